"""The documents against the product: commands and snippets run as they are written, formats are what files hold."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import h5py
import pytest
from safetensors import safe_open

import vggfeat
from documents import DOCS, ROOT, blocks
from vggfeat import errors
from vggfeat.cli import EXIT_CODES, group, run
from vggfeat.datasets.catalogue import DATASETS
from vggfeat.nets.vgg import VGG
from vggfeat.weights import save_weights

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
FORMATS = (DOCS / "formats.md").read_text(encoding="utf-8")


def command_lines(page: Path) -> list[str]:
    """All commands of vggfeat on a page: those in blocks, and those that are indented."""
    text = page.read_text(encoding="utf-8")
    lines = [line for _, language, block in blocks(page) if language == "sh" for line in block.splitlines()]
    lines += [line[4:] for line in text.splitlines() if line.startswith("    vggfeat ")]
    return [
        line.partition("#")[0].strip() for line in lines if line.startswith("vggfeat ") and not line.endswith("...")
    ]


def commands() -> dict[str, click.Command]:
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {word}": sub for word, sub in inner.items()}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_one_that_the_command_line_takes(page):
    for line in command_lines(page):
        words = shlex.split(line, comments=True)[1:]
        name = " ".join(words[:2]) if " ".join(words[:2]) in commands() else words[0]
        command, rest = commands()[name], words[len(name.split()) :]
        if rest != ["--help"]:
            command.make_context(name, list(rest), resilient_parsing=False).close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_exists(page):
    known = {option for command in commands().values() for param in command.params for option in param.opts}
    known |= {"--twin", "--help", "--no-dev", "--full", "--json"}  # of pipelines, of everything, of uv, of the proofs
    known |= {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}  # torchrun's own
    known |= {"--folder", "--cases", "--seed"}  # of the proofs
    known |= {"--all-groups", "--group", "--torch-backend", "--no-cache-dir", "--dist"}  # of uv, pip and pytest
    known |= {"--gpus", "--rm", "--user", "--nv"}  # of Docker and Apptainer
    known |= {"--array", "--gres", "--wrap"}  # of SLURM
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", page.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("name", commands())
def test_every_option_has_a_help_text_or_speaks_for_itself(name):
    for param in commands()[name].params:
        if param.param_type_name == "option":
            assert param.help or getattr(param.type, "choices", None), f"{name} {param.opts}"


def test_every_command_has_an_example():
    for name, command in commands().items():
        assert re.search(rf"Examples?:\n +(torchrun .*)?vggfeat {name}\b", (command.help or "").replace("\b", "")), name


def test_the_exit_codes_in_the_help_are_those_of_the_errors():

    codes = {
        cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.VggfeatError)
    }
    told = {int(code) for code in re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)}
    assert codes | {0, 1, 3, 129, 130, 141, 143} == told


def test_every_data_set_has_a_page():
    for name in DATASETS:
        assert (ROOT / "data" / f"{name}.md").is_file()


def test_links_in_the_documents_lead_somewhere():
    for page in [*PAGES, ROOT / "CHANGELOG.md", *(ROOT / "data").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            place = page.parent / target
            if page.parent == DOCS and target.startswith("data/"):
                place = ROOT / target  # docs/conf.py brings them there
            assert target.startswith("http") or place.exists(), f"{page.name}: {target}"


@pytest.mark.long  # `.ci/run` builds it as well, with the same options
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    words = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "site"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="vggfeat.{name}"' in api for name in vggfeat.__all__ if name != "__version__")
    listed = (tmp_path / "site" / "commands.html").read_text(encoding="utf-8")
    assert all(f"vggfeat-{name.replace(' ', '-')}" in listed for name in commands())


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    words = ["demo", "--out", str(out), "--size", "tiny", "--scales", "224", "--weights", "random:A:0:0.03125"]
    assert run(words) == 0
    return out


def test_the_table_of_the_feature_file_is_the_feature_file(demo):
    section = FORMATS.split("## Feature file")[1].split("Attributes:")[0]
    told = {
        name
        for cell in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", cell)
    }
    with h5py.File(demo / "voc2007.h5") as file:
        assert told - {"splits/NAME"} == set(file) - {"splits"}
        attributes = FORMATS.split("Attributes:")[1].split("\n\n")[0]
        assert set(re.findall(r"`(\w+)`", attributes)) == set(file.attrs) | {"sha256"}
        assert all("sha256" in data.attrs for data in (file["features"], file["ids"], file["labels"]))


def test_the_fields_of_the_results_are_those_in_the_documents(demo):
    section = FORMATS.split("### results.json")[1].split("### scores.npz")[0]
    results = json.loads((demo / "voc2007.svm" / "results.json").read_text())
    assert set(results) <= set(re.findall(r"`(\w+)`", section))


def test_the_table_of_a_training_folder_is_the_folder(tmp_path):
    root = tmp_path / "rendered"
    assert run(["data", "synth", "folder", "--root", str(root), "--size", "tiny"]) == 0
    next(root.rglob("*.jpg")).write_bytes(b"no image")
    words = ["--net", "A", "--width", "0.03125", "--batch", "48", "--steps", "1", "--workers", "0", "--device", "cpu"]
    assert run(["train", "--root", str(root), "--out", str(tmp_path / "x"), *words]) == 0
    section = FORMATS.split("## Folder of a training run")[1].split("\n\n## ")[0]
    told = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    names = [path.name + "/" * path.is_dir() for path in (tmp_path / "x").iterdir()]
    found = {re.sub(r"-[0-9a-f]{16}\.", "-KEY.", name) for name in names}
    assert found - {"tensorboard/"} == told
    log = [json.loads(line) for line in (tmp_path / "x" / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in log} <= set(re.search(r"`kind` \(([^)]+)\)", section)[1].split(", "))


def test_the_weights_file_holds_what_the_documents_say(tmp_path):
    model = VGG("A", 2, width=1 / 64)
    save_weights(tmp_path / "x.safetensors", model, mean=(1, 2, 3), training={})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        about = json.loads(file.metadata()["vggfeat"])
    section = FORMATS.split("## Weights")[1].split("\n\n## ")[0]
    assert set(about) <= set(re.findall(r"`(\w+)`", section))


SECTIONS = ["Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "Examples"]
"""Of a docstring, in their order."""


def docstrings():
    for path in sorted(Path(vggfeat.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.name}: {getattr(node, 'name', '')}", ast.get_docstring(node) or ""


def test_errors_are_named_behind_what_a_function_takes_and_returns():
    for where, text in docstrings():
        first, *parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}$", text, flags=re.MULTILINE)
        titles = ["Raises"] * ("Raises " in first) + parts[::2]
        assert titles == sorted(titles, key=SECTIONS.index), where


def test_versions_agree():
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
