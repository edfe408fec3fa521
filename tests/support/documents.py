"""The pages of the documentation, and what they give to run."""

import json
import re
import shlex
from pathlib import Path

from vggfeat.cli import run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"(<!-- not run: [^\n]*-->\n)?```(sh|python)\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[bool, str, str]]:
    """Whether each block is run, its language, and its text."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(not skipped, language, text) for skipped, language, text in found]


def run_page(page: Path, *, without: str = "\0", codes: dict[str, int] | None = None) -> dict[str, object]:
    """Run the blocks of a page in order, all code in one namespace, which is returned.

    Lines of commands that hold `without` are left out; `codes` are exit codes other than 0, by a part of the line.
    """
    names: dict[str, object] = {}
    for is_run, language, text in blocks(page):
        if is_run and language == "python":
            exec(compile(text, str(page), "exec"), names)
        elif is_run:
            for line in text.splitlines():
                if line.startswith("vggfeat ") and without not in line:
                    expected = next((code for part, code in (codes or {}).items() if part in line), 0)
                    assert run(shlex.split(line, comments=True)[1:]) == expected, line
    return names


def run_notebook(path: Path) -> dict[str, object]:
    """Run the code cells of a notebook in order, in one namespace, which is returned."""
    names: dict[str, object] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec(compile("".join(cell["source"]), str(path), "exec"), names)
    return names
