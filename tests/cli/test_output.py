"""What goes out to a terminal: no name, from whatever file, acts on it, passes for our line, or ends a command."""

import ast
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggfeat.cli import output, run
from vggfeat.cli.output import Progress

NET = "random:A:0:0.03125"
FORGED = "sound: every checksum fits"
# Names that clear a screen, change its title, turn text round, go back in the line, or make a line of their own.
HOSTILE = (
    "a\x1b[2Jb",
    "a\x1b]0;title\x07b",
    "a\u202egnp.b",
    "a\u2066b\u2069",
    "a\rb",
    f"a\n{FORGED}",
    "a\x9b31mb",
    "a\x85b",
)
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("name", [*HOSTILE, "a\udcffb", "a\u2028b", "\x00"])
def test_a_line_stays_one_line_and_holds_nothing_that_is_obeyed(name, capsys):
    output.say(f"failed: {name}")
    output.say(f"failed: {name}", err=True)
    output.say_note(name)
    found = capsys.readouterr()
    assert [len(text.splitlines()) for text in found] == [1, 2]
    assert not OBEYED.search(found.out + found.err)
    found.out.encode()


def test_names_that_do_no_harm_are_shown_as_they_are(capsys):
    output.say("Zürich/猫, naïve 🐈.jpg")
    assert capsys.readouterr().out == "Zürich/猫, naïve 🐈.jpg\n"


@pytest.mark.parametrize("name", HOSTILE)
def test_errors_notes_and_progress_are_escaped_as_well(name, capsys):
    assert run(["inspect", f"{name}.h5"]) == 6
    assert run(["svm", f"{name}.h5", f"--{name}"]) == 2
    assert run([name]) == 2
    with Progress(name, "images") as bar:
        bar.update(1, 2, name)
    found = capsys.readouterr()
    assert not OBEYED.search(found.out + found.err)
    assert not any(line.startswith(FORGED) for line in found.err.splitlines())


def test_only_one_module_prints():
    cli = Path(output.__file__).parent
    for path in cli.glob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {ast.unparse(function) for function in calls}
        printing = {name for name in names if name in ("click.echo", "print", "click.secho", "sys.stdout.write")}
        assert not printing or path.name == "output.py", f"{path.name} prints by {printing}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for folder in ("cat\x1b[2J", f"dog\n{FORGED}"):
        (root / folder).mkdir()
        for name in (*HOSTILE[:6], "ordinary", "猫", os.fsdecode(b"\xff")):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / folder / f"{name}.png")
        for name in HOSTILE[:6]:
            (root / folder / f"{name} damaged.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def commands(tree, tmp_path_factory) -> list[list[str]]:
    out = tmp_path_factory.mktemp("out")
    features, runs, root = str(out / "f.h5"), str(out / "f.svm"), ["--root", str(tree)]
    return [
        ["data", "check", "folder", *root],
        ["extract", "--dataset", "folder", *root, "--weights", NET, "--scales", "224", "--workers", "0",
         "--device", "cpu", "--out", features, "--allow-failed", "100"],
        ["inspect", features, "--failed"],
        ["svm", features, "--folds", "2", "--grid", "1", "--out", runs],
        ["similar", features, "--query", "cat\x1b[2J/ordinary.png"],
        ["export", features, "--to", "csv", "--overwrite"],
        ["report", runs, "--out", str(out / "page.html")],
    ]  # fmt: skip


def check_lines(text, forged, words):
    assert "Traceback" not in text
    assert not OBEYED.search(text), f"{words[0]}: {text!r}"
    assert sum(line.startswith(FORGED) for line in text.splitlines()) == forged, text


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_every_command_on_hostile_names_in_every_encoding_of_a_terminal(commands, monkeypatch, encoding):
    for words in commands:
        shown = io.BytesIO()
        with monkeypatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, io.TextIOWrapper(shown, encoding, write_through=True))
            code = run(words)
            text = shown.getvalue().decode(encoding)
        assert code == 0, text
        check_lines(text, words[0] == "inspect", words)


def test_a_process_whose_terminal_has_few_characters_shows_hostile_names(commands):
    run(commands[1])
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    script = "import sys; from vggfeat.cli import entry_point; entry_point(sys.argv[1:])"
    command = [sys.executable, "-c", script, *commands[2]]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True, env=environment)
    check_lines((done.stdout + done.stderr).decode("cp1252"), 1, commands[2])
