"""Pages: templates become one file of HTML, which takes its name in one step.

Everything in it that comes from outside is escaped, and nothing is loaded.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vggfeat.results.charts import COLOURS
from vggfeat.results.reading import unsolved
from vggfeat.results.svm_page import points
from vggfeat.results.text import DASH, percent, printable
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, open_bounded
from vggfeat.runtime.targets import check_target

MARK = b'<meta name="generator" content="vggfeat">'
"""In the first bytes of every page of ours."""
_FILES = resources.files("vggfeat.results").joinpath("templates")
_SORT, _STYLE = "sort.js", "page.css"


def check_page_place(path: Path, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Check, before the work for a page, that nothing but another page would be replaced by it.

    Raises
    ------
    ConfigError
        If it is one of the inputs.
    StoreError
        If something else has that name.
    """
    check_target(path, inputs=inputs, ours=is_page, called="a page of vggfeat")


def is_page(path: Path) -> bool:
    """Say whether a file is a page of ours."""
    with open_bounded(path) as file:
        return MARK in file.read(1024)


def write_page(path: Path, content: bytes) -> None:
    """Write a page; a file of its name is replaced, see `check_page_place`.

    Raises
    ------
    StoreError
        If it can't be written.
    """
    path = Path(os.path.realpath(path))
    with (
        disk_errors(path, "writing the page", "mend it, or choose another --out"),
        atomic_write(DISK, path) as file,
    ):
        file.write(content)


def render(template: str, *, script: str = _SORT, **content: Any) -> bytes:
    """Fill in a template.

    Parameters
    ----------
    template : str
        A name in the folder templates.
    script : str
        A name there: the only one that runs on the page.
    **content
        What it shows. Texts are escaped, and control characters in them, line breaks and marks of writing direction
        among them, stand in their escaped form.

    Returns
    -------
    bytes
        UTF-8. The page's own policy lets no other script run, and loads nothing.
    """
    from markupsafe import Markup

    code = _read(script)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    shared = {"style": Markup(_read(_STYLE)), "script": Markup(code), "script_sha256": digest}
    return _environment().get_template(template).render(**content, **shared).encode() + b"\n"


@cache
def _environment() -> Any:
    """Keep the templates compiled, which takes longer than to fill them in."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_read),
        undefined=StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "percent": lambda value: percent(value, DASH),
        "points": points,
        "colour": lambda place: f"c{place % COLOURS}",
        "unsolved": unsolved,
    }
    environment.filters |= filters
    environment.tests |= {"listing": lambda value: isinstance(value, list | tuple), "facts": _is_mapping}
    return environment


def _read(name: str) -> str:
    return _FILES.joinpath(name).read_text(encoding="utf-8")


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
