"""What commands print: tables that fit a terminal and are plain elsewhere, and JSON from every one of them."""

import json
import re
import shlex
import sys

import numpy as np
import pytest

from vggfeat.cli import group, output, run
from vggfeat.results.record import SHORTEST, align, failures_by_reason, shortened

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


def commands():
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {word}", sub) for word, sub in inner.items()) if inner else [(name, command)]


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_can_print_json(name):
    options = {option for param in dict(commands())[name].params for option in param.opts}
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
