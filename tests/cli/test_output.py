"""What commands print: names that act on no terminal, tables as wide as it is, progress, folders."""

import ast
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggfeat.cli import group, output, run
from vggfeat.cli.output import Progress, duration, line, rate_of, say_lines
from vggfeat.datasets import catalogue
from vggfeat.errors import ConfigError
from vggfeat.results.record import SHORTEST, align, failures_by_reason, shortened, shown_in
from vggfeat.wording import quoted

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


def test_a_byte_that_is_no_utf_8_is_shown_alike_wherever_a_name_is_told(tmp_path, capsys):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "caf\udce9.png").write_bytes(b"")
    output.say("caf\udce9")
    output.say(f"expected {quoted('caf' + chr(0xDCE9))}, of {Path('caf' + chr(0xDCE9))!r}")
    assert run(["inspect", "caf\udce9.h5"]) == 6
    assert run(["caf\udce9"]) == 2
    assert run(["data", "check", "folder", "--root", str(tmp_path / "photos")]) == 4
    found = "".join(capsys.readouterr())
    assert found.count(r"caf\xe9") >= 5
    assert "udce9" not in found


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


ROWS = [["class", "AP %"], ["a name that is far too long", "12.5"], ["猫猫猫猫猫猫猫猫", "7.0"]]


def test_a_wide_table_gives_way_in_its_names_never_in_its_numbers():
    assert align(ROWS, left=1) == [
        "class                        AP %",
        "a name that is far too long  12.5",
        "猫猫猫猫猫猫猫猫              7.0",
    ]
    assert align(ROWS, left=1, width=33) == align(ROWS, left=1)
    assert align(ROWS, left=1, width=20) == ["class           AP %", "a name that i…  12.5", "猫猫猫猫猫猫…    7.0"]
    assert align(ROWS, left=1, width=SHORTEST + 6)[1] == "a name …  12.5"


def test_a_cut_text_says_so():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdef", 5) == "abcd…"
    assert shortened("猫猫猫", 5) == "猫猫…"
    assert shortened("abcdef", None) == "abcdef"


def test_on_a_terminal_no_line_is_longer_than_it_and_in_a_pipe_nothing_is_cut(monkeypatch, capsys):
    assert run(["data", "list"]) == 0
    whole = capsys.readouterr().out
    assert max(map(len, whole.splitlines())) > 60
    assert "…" not in whole
    assert "\x1b" not in whole
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert output.terminal_width() == 60
    assert run(["data", "list"]) == 0
    cut = capsys.readouterr().out
    assert max(map(len, cut.splitlines())) == 60
    assert len(cut.splitlines()) == len(whole.splitlines()), "nothing wraps"


def all_commands():
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {word}", sub) for word, sub in inner.items()) if inner else [(name, command)]


@pytest.mark.parametrize("name", [name for name, _ in all_commands()])
def test_every_command_can_print_json(name):
    options = {option for param in dict(all_commands())[name].params for option in param.opts}
    assert "--json" in options


def told(capsys, *words):
    assert run([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_of_the_commands_that_write_data(tmp_path, capsys):
    root = tmp_path / "f"
    words = ["data", "synth", "folder", "--root", root, "--size", "tiny", "--json"]
    assert told(capsys, *words) == {"root": str(root), "name": "folder", "size": "tiny", "seed": 0, "rendered": True}
    assert told(capsys, *words)["rendered"] is False
    found = told(capsys, "data", "pack", "--root", root, "--out", tmp_path / "p", "--workers", 0, "--quiet", "--json")
    assert list(found) == ["folder", "images", "bytes", "left_out"]
    assert found["images"] > 10
    assert found["left_out"] == []
    (tmp_path / "list.csv").write_text("path,split\na.jpg,train\nb.jpg,test\n")
    words = ["data", "splits", "manifest", "--root", tmp_path / "list.csv", "--out", tmp_path / "s", "--json"]
    assert told(capsys, *words) == {"files": [str(tmp_path / "s" / f"{name}.txt") for name in ("train", "test")]}


def test_the_commands_say_how_to_make_a_page(tmp_path, capsys):
    from feature_files import data_set, write_file

    rng = np.random.default_rng(0)
    names = [f"{row:02}" for row in range(20)]
    labels = np.where(np.arange(20)[:, None] % 2 == np.arange(2), 1, -1).astype(np.int8)
    dataset = data_set(names, labels, splits={})
    features = rng.standard_normal((20, 1, 1, 4)) + 2 * labels[:, None, None, :1]
    write_file(tmp_path / "it's.h5", features, dataset)
    assert run(["svm", "--features", str(tmp_path / "it's.h5"), "--quiet"]) == 0
    shown = capsys.readouterr().out
    (command,) = re.findall(r"^as a page: vggfeat (report .*) --root ROOT$", shown, re.M)
    assert run([*shlex.split(command), "--out", str(tmp_path / "x.html"), "--quiet"]) == 0
    assert (tmp_path / "x.html").read_bytes().startswith(b"<!doctype html>")
    capsys.readouterr()
    found = told(capsys, "export", tmp_path / "it's.h5", "--to", "npz", "--json")
    assert found == {"file": str(tmp_path / "it's.npz"), "descriptors": 20, "length": 4, "join": "mean", "left_out": 0}


def test_a_reason_of_many_failures_stands_once():
    failures = [("a", "empty"), ("b", "missing"), ("c", "empty"), ("d", "damaged"), ("e", "empty")]
    assert failures_by_reason(failures, 2, "x.jsonl") == [
        "failed: a and 2 more: empty",
        "failed: b: missing",
        "failed: 1 more; all of them: x.jsonl",
    ]
    assert failures_by_reason([], 2, "x.jsonl") == []


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_line_gives_rate_and_time_left():
    assert line("extract", "images", 50, 100, 10, 20.0, "1 failed") == (
        "extract: 50 of 100 images, 1 failed, 2.0 images/s, 25s left"
    )


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(capsys):
    clock = Clock()
    with Progress("extract", "images", clock=clock) as bar:
        for second in range(100):
            clock.now = second
            bar.update(second + 1, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [text.split()[1] for text in lines] == ["31", "61", "91", "100"]
    assert "9s left" in lines[2]


def test_resumed_work_does_not_flatter_the_rate(capsys):
    clock = Clock()
    with Progress("extract", "images", clock=clock) as bar:
        bar.update(900, 1000)
        clock.now = 50.0
        bar.update(1000, 1000)
    assert "2.0 images/s" in capsys.readouterr().err


def test_each_stage_has_a_rate_of_its_own(capsys):
    clock = Clock()
    with Progress("svm", "problems", clock=clock) as bar:
        for done in range(1, 42):
            clock.now += 1
            bar.update(done, 41, "choosing")
        for done in range(1, 5):
            clock.now += 10
            bar.update(done, 4, "training")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "svm: 30 of 41 problems, choosing, 1.0 problems/s, 11s left"
    assert lines[-1] == "svm: 4 of 4 problems, training, 0.1 problems/s"
    assert len(lines) == 3


def test_what_is_done_at_once_has_no_rate():
    assert line("svm", "problems", 20, 20, 20, 0.0, "training") == "svm: 20 of 20 problems, training"
    assert line("svm", "problems", 20, 20, 20, 0.0, "") == "svm: 20 of 20 problems"


def test_quiet_says_nothing(capsys):
    with Progress("extract", "images", quiet=True) as bar:
        bar.update(1, 1)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(output.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("extract", "images") as bar:
        bar.update(0, 4)
        bar.update(4, 4, "1 failed")
    shown = capsys.readouterr().err
    assert "extract" in shown
    assert "4/4" in shown


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (190, "3m10s"), (18120, "5h02m")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (0.5, "0.05"), (25, "2.5"), (12345, "1234")])
def test_rates(count, text):
    assert rate_of(count, 10) == text


def test_work_that_stands_still_is_given_no_time_left(capsys):
    clock = Clock()
    with Progress("extract", "images", clock=clock) as bar:
        for second in range(0, 200, 5):
            clock.now = second
            bar.update(min(second, 90) + 1, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2] == "extract: 91 of 100 images, 1.0 images/s, 9s left"
    assert lines[-1] == "extract: 91 of 100 images, no progress for 1m45s, 0.46 images/s"


def test_a_stage_that_counts_in_its_note_does_not_stand_still(capsys):
    clock = Clock()
    with Progress("train A", "steps", clock=clock) as bar:
        for second in range(100):
            clock.now = second
            bar.update(0, 10, f"mean pixel: {second} of 100 images")
    assert "no progress" not in capsys.readouterr().err


def test_the_bar_foretells_what_the_line_does(monkeypatch):
    class Bar:
        def __init__(self):
            self.start = self.stop = lambda: None
            self.add_task = lambda *_, **__: 0

        def update(self, task, **fields):
            self.fields = fields

    clock = Clock()
    monkeypatch.setattr(output, "_rich_bar", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("extract", "images", clock=clock) as shown:
        shown.update(10, 100)
        clock.now = 20.0
        shown.update(50, 100, "1 failed")
        assert shown.bar.fields["rate"] == "1 failed, 2.0 images/s, 25s left"


def test_columns_are_straight_where_the_terminal_lacks_a_character():
    rows = [["class", "%"], ["gr\xfcn", "12.5"], ["\u732b", "\N{EN DASH}"]]
    assert align(rows, left=1) == ["class     %", "gr\xfcn   12.5", "\u732b        \N{EN DASH}"]
    with shown_in("ascii"):
        assert align(rows, left=1) == ["class         %", "gr\\xfcn    12.5", "\\u732b   \\u2013"]
        assert shortened("abcdef", 4) == "abc~"


def test_a_command_prints_straight_tables_in_an_ascii_locale(monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", printed)

    def resolve(*_):
        say_lines("\n".join(align([["\xfc", "1"], ["b", "2"]], 1)))
        raise ConfigError("that is enough")

    monkeypatch.setattr(catalogue, "resolve_root", resolve)
    assert run(["data", "splits", "voc2007"]) == ConfigError.exit_code
    printed.flush()
    assert printed.buffer.getvalue() == b"\\xfc  1\nb     2\n"
