"""How commands declare their options."""

from pathlib import Path

import pytest

from vggfeat.cli.commands import command, option


def test_an_option_whose_annotation_is_text_must_say_its_type():
    def spoken(*, place: "Path | None" = option(help="Where.")) -> None:
        """Say it."""

    with pytest.raises(TypeError, match=r"place: expected a type as its annotation, found the text 'Path . None'"):
        command()(spoken)
