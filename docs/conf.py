"""How Sphinx builds the site: `uv run --group docs sphinx-build -W -b html docs build/docs`."""

import shutil
from importlib.metadata import version as version_of
from pathlib import Path

project = "vggfeat"
copyright = "the vggfeat authors"  # noqa: A001  Sphinx's word
release = version = version_of("vggfeat")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
html_theme = "furo"
html_title = f"vggfeat {release}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and units, which types do not
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # else the letters of a shape, as in (N, C), would lead to attributes of that name

# The pages of the data sets belong to data/, where people look for them next to their copies.
_pages = Path(__file__).parent / "data"
shutil.rmtree(_pages, ignore_errors=True)
shutil.copytree(
    Path(__file__).parents[1] / "data", _pages, ignore=lambda _, names: [n for n in names if n[-3:] != ".md"]
)
shutil.copy(Path(__file__).parents[1] / "CHANGELOG.md", Path(__file__).parent / "changelog.md")
