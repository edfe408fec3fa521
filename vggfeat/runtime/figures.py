"""Figures of matplotlib: our style, and fonts for names in images.

A font is one that has the letters where one is installed, else the letters are shown in escaped form.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREY, ORANGE = "#3b6ea8", "#9aa5b1", "#d9772b"
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
"""Where a legend stands: within, it would cover what there is to see."""

OWN = "DejaVu Sans"
"""Comes with matplotlib, and has Latin, Greek, Cyrillic and some more."""
_NOT_FOR_NAMES = ("Last Resort", "STIX", "cm", "DejaVu")
"""Beginnings of fonts whose glyphs are boxes, or formulas."""


class Fonts(NamedTuple):
    """How some texts can be drawn."""

    families: tuple[str, ...]
    """For matplotlib's font.family: a letter is taken from the first that has it."""
    missing: frozenset[str]
    """Letters that none has."""

    def shown(self, text: str) -> str:
        """Return a text with the letters that can't be drawn as \\u732b."""
        return "".join(ascii(char)[1:-1] if char in self.missing else char for char in text)


@contextmanager
def own_style(fonts: Fonts) -> Iterator[None]:
    """Draw in our own style, whatever the user's is."""
    import matplotlib.style

    own = {"font.size": 9, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.style.context(["default", {**own, "font.family": fonts.families}]):
        yield


def png_bytes(figure: "Figure") -> bytes:
    """Return a figure as a PNG file; equal figures give equal bytes."""
    drawn = io.BytesIO()
    # No version of the drawing library in the file.
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    return drawn.getvalue()


def fonts_for(texts: Iterable[str]) -> Fonts:
    """Find fonts that are installed and have the letters of some texts; as few as will do."""
    wanted = {char for text in texts for char in text if not char.isascii()}
    families = [OWN]
    if wanted:
        wanted -= _letters(OWN)
    while wanted:
        most, name = max(((len(wanted & _letters(name)), name) for name in _others()), default=(0, ""))
        if not most:
            break
        families.append(name)
        wanted -= _letters(name)
    return Fonts(tuple(families), frozenset(wanted))


def font_file(text: str) -> tuple[str, str]:
    """Return the file of the one font that has most letters of a text, and the text with the others escaped."""
    wanted = frozenset(text)
    family = max((OWN, *_others()), key=lambda name: len(wanted & _letters(name)))
    return _file(family), Fonts((family,), wanted - _letters(family)).shown(text)


def _others() -> list[str]:
    from matplotlib.font_manager import fontManager

    return sorted({font.name for font in fontManager.ttflist if not font.name.startswith(_NOT_FOR_NAMES)})


def _file(family: str) -> str:
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties(family=[family])))


@cache
def _letters(family: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(_file(family)).get_charmap()))
    except (OSError, RuntimeError, ValueError):  # No outline font, or one that can't be read.
        return frozenset()
