"""Counts in messages: one of a thing is said as one."""

import ast
import re
from pathlib import Path

import pytest

import vggfeat
from vggfeat.errors import Failure, VggfeatError
from vggfeat.wording import counted, install_extra


@pytest.mark.parametrize(
    ("words", "one", "two"),
    [
        ("image{s} scored", "1 image scored", "2 images scored"),
        ("batch{es} {were} halved", "1 batch was halved", "2 batches were halved"),
        ("image{s} occur{v} twice: look at {them}", "1 image occurs twice: look at it",
         "2 images occur twice: look at them"),
        ("image{s} {have} failed; {they} {do} not count", "1 image has failed; it does not count",
         "2 images have failed; they do not count"),
    ],
)  # fmt: skip
def test_one_of_a_thing_is_said_as_one(words, one, two):
    assert counted(1, words) == one
    assert counted(2, words) == two
    assert counted(0, words) == two.replace("2", "0")


def test_no_text_leaves_the_number_to_its_reader():
    """Where a count may be one, `counted` says so; "image(s)" is no word."""
    for path in Path(vggfeat.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                left = re.search(r"\b(?!http)\w+\((s|es)\)", node.value)
                assert left is None, f"{path.name}, line {node.lineno}: {left}"


def test_a_message_is_one_line_and_leaves_the_spaces_of_names():
    assert str(VggfeatError("/photos/a  b.jpg:\tnone\n")) == "/photos/a  b.jpg:\tnone"
    broken = str(VggfeatError("a\nb\r\nc\u2028d\x85e"))
    assert broken == r"a\nb\r\nc\u2028d\x85e"
    assert len(broken.splitlines()) == 1


def test_an_extra_is_installed_from_a_clone_and_not_by_a_name_that_others_may_hold():
    root = Path(vggfeat.__file__).parents[1]
    assert install_extra("ray") == "pip install 'PATH_OF_CLONE[ray]'"
    assert "PATH_OF_CLONE[" in (root / "docs" / "tutorial-own-images.md").read_text()
    for path in (*root.glob("vggfeat/**/*.py"), *root.glob("d*/**/*.md"), root / "README.md"):
        assert "vggfeat[" not in path.read_text(), path


def test_a_failure_is_text_in_files_and_comes_back_from_it():
    failure = Failure("missing", "/a: b.jpg: expected a file: none")
    assert Failure.of(str(failure)) == failure
    assert failure.without("/a: b.jpg").message == "expected a file: none"
    assert failure.without("b.jpg") == failure
