"""Names in images are drawn with a font that has their letters, or in escaped form."""

import pytest
from matplotlib import font_manager, get_data_path

from made_font import make_font
from vggfeat.runtime.figures import OWN, font_file, fonts_for

LETTERS = "\U0001f400\U0001f401\U0001f402"
"""Of no font that text is written in."""


@pytest.fixture
def installed(tmp_path):
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.ttflist = [font for font in before if font.fname.startswith(get_data_path())]

    def install(family, letters):
        font_manager.fontManager.addfont(make_font(tmp_path / f"{family}.ttf", family, letters))

    yield install
    font_manager.fontManager.ttflist = before


def test_letters_that_no_font_has_are_escaped(installed):
    fonts = fonts_for(["a猫b", "Größe Ωж"])
    assert fonts.families == (OWN,)
    assert fonts.shown("a猫b Größe Ωж") == "a\\u732bb Größe Ωж"


def test_fonts_that_have_the_letters_are_taken_as_few_as_will_do(installed):
    installed("Test A few", LETTERS[:2])
    installed("Test B more", LETTERS[:1])
    installed("Test C other", LETTERS[2:])
    fonts = fonts_for([LETTERS + "猫"])
    assert fonts.families == (OWN, "Test A few", "Test C other")
    assert fonts.missing == {"猫"}
    assert fonts.shown(LETTERS + "猫") == LETTERS + "\\u732b"


def test_of_one_font_that_with_the_most_letters_is_taken(installed):
    installed("Test D few", "ab" + LETTERS[:1])
    installed("Test E more", "ab" + LETTERS)
    assert font_file("Größe")[0].endswith("DejaVuSans.ttf")
    file, text = font_file(f"ab {LETTERS}")
    assert (file.rpartition("/")[2], text) == ("Test E more.ttf", f"ab {LETTERS}")
    assert font_file("ab猫")[1] == "ab\\u732b"


def test_plain_text_needs_no_search(monkeypatch):
    monkeypatch.setattr(font_manager, "findfont", lambda *_: pytest.fail("searched"))
    assert fonts_for(["plain"]) == ((OWN,), frozenset())
