"""The command line as a user meets it: help at once, errors in one line, exit codes, output for people and programs."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from feature_files import data_set, write_file
from vggfeat.cli import group, run
from vggfeat.datasets import catalogue
from vggfeat.errors import ResourceError, StoreError

NET = "random:A:0:0.03125"
HEAVY = ("torch", "torchvision", "numpy", "h5py", "sklearn", "scipy", "matplotlib", "PIL", "rich", "pyarrow")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own images")
    for number in range(30):
        folder = root / ("across" if number % 2 else "down")
        folder.mkdir(exist_ok=True)
        stripes = np.zeros((60, 64, 3), dtype=np.uint8)
        stripes[(slice(None), slice(None, None, 6)) if number % 2 else slice(None, None, 6)] = 200
        noise = np.random.default_rng(number).integers(0, 56, stripes.shape, dtype=np.uint8)
        Image.fromarray(stripes + noise).save(folder / f"{number:02d}.jpg")
    return root


@pytest.fixture(scope="module")
def features(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("features") / "own.h5"
    code = run(extract(images, out))
    assert code == 0
    return out


def extract(root, out, *more):
    words = ["extract", "--dataset", "folder", "--root", root, "--weights", NET, "--scales", "224,232"]
    return [str(word) for word in (*words, "--workers", "0", "--device", "cpu", "--out", out, *more)]


def commands():
    from vggfeat.cli import group

    for name, command in group.commands.items():
        yield name
        for inner in getattr(command, "commands", {}):
            yield f"{name} {inner}"


def test_help_and_import_load_nothing_heavy():
    code = f"""
import sys
import vggfeat
import vggfeat.cli
assert "click" not in sys.modules, "signals are to be listened to first"
from vggfeat.cli import run
assert run(["--help"]) == 0
for command in {list(commands())!r}:
    assert run([*command.split(), "--help"]) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_is_in_a_section_of_the_help_with_words_that_are_whole(capsys):
    for words in ([], ["data"], ["weights"], ["bench"], ["localise"]):
        assert run([*words, "--help"]) == 0
        text = capsys.readouterr().out.partition("Exit codes")[0]
        assert "..." not in text.partition("Options:")[2], words
        inner = [name.split()[-1] for name in commands() if name.split()[:-1] == words]
        assert all(re.search(rf"^  {name} +[A-Z]", text, re.MULTILINE) for name in inner)


@pytest.mark.parametrize(
    ("words", "option", "section"),
    [
        ("extract", "--workers", "Decoding"),
        ("extract", "--dataset", "Options"),
        ("plan", "--layer", "Features"),
        ("svm", "--grid", "Protocol"),
        ("classify", "--retry-failed", "Resuming and failures"),
        ("localise evaluate", "--merge", "Boxes"),
    ],
)
def test_the_options_of_a_long_command_stand_in_sections_each_once(words, option, section, capsys):
    assert run([*words.split(), "--help"]) == 0
    parts = re.split(r"^(\w[\w ]+):\n", capsys.readouterr().out, flags=re.MULTILINE)
    where = [title for title, text in zip(parts[1::2], parts[2::2], strict=True) if f"\n  {option} " in f"\n{text}"]
    assert where == [section]


def test_version(capsys):
    assert run(["--version"]) == 0
    assert "0.1.0" in capsys.readouterr().out


def test_the_whole_job_on_own_images(features, capsys):
    out = features.with_suffix(".svm")
    assert run(["svm", "--features", str(features), "--protocol", "k-fold", "--folds", "3", "--grid", "1,10"]) == 0
    shown = capsys.readouterr().out
    assert "own.svm: results.json, table.txt, scores.npz, results.png" in shown
    results = json.loads((out / "results.json").read_text())
    assert results["metric"]["name"] == "mean class recall"
    assert results["headline"] > 0.9
    assert results["chance"]["value"] == 0.5
    assert "mean class recall" in shown
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_svm_refuses_leaves_no_folder(features, tmp_path, capsys):
    out = tmp_path / "refused"
    for words, message in ((["--device", "nothing"], "device: expected"), (["--jobs", "2"], "--jobs: expected")):
        assert run(["svm", "--features", str(features), "--grid", "1", "--out", str(out), *words]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_json_is_the_only_thing_on_standard_output(features, tmp_path, capsys):
    capsys.readouterr()
    assert run(["svm", "--features", str(features), "--grid", "1", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "results.json").read_text())
    assert run(["inspect", str(features), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 30
    assert run(["data", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 7


def test_a_net_fused_with_itself_changes_nothing_but_the_length(features, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(features.read_bytes())
    for name, files in (("one", [features]), ("two", [features, copy])):
        words = [word for file in files for word in ("--features", str(file))]
        assert run(["svm", *words, "--grid", "1", "--out", str(tmp_path / name), "--quiet"]) == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["settings"]["features"]["length"] == 2 * one["settings"]["features"]["length"]
    assert two["headline"] == pytest.approx(one["headline"], abs=0.05)


def test_inspect_shows_what_is_in_the_file(features, capsys):
    assert run(["inspect", str(features)]) == 0
    shown = capsys.readouterr().out
    for words in ("own.h5", "single-label", "[224, 232]", NET, "sound: every checksum fits"):
        assert words in shown


def test_inspect_counts_groups_and_the_values_of_further_columns(tmp_path, capsys):
    dataset = replace(data_set(), groups=("x", "y", "x", "z"), columns={"age": ("4", "4", "4", "")})
    path = write_file(tmp_path / "x.h5", dataset=dataset)
    assert run(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["groups"], found["columns"]) == (3, {"age": 2})


def test_inspect_finds_a_flipped_byte(features, tmp_path, capsys):
    raw = bytearray(features.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "rotten.h5").write_bytes(raw)
    assert run(["inspect", str(tmp_path / "rotten.h5")]) == 6
    assert "NOT SOUND" in capsys.readouterr().out
    for words in (["svm", "--features"], ["export", "--to", "csv"]):
        assert run([*words, str(tmp_path / "rotten.h5")]) == 6
        assert "expected a sound feature file" in capsys.readouterr().err


def test_an_unfinished_file_is_called_so(tmp_path, capsys):
    (tmp_path / "x.h5.parts").mkdir()
    assert run(["svm", "--features", str(tmp_path / "x.h5")]) == 6
    assert "unfinished" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["npz", "parquet", "csv", "mat"])
def test_export(features, tmp_path, kind, capsys):
    target = tmp_path / f"x.{kind}"
    assert run(["export", str(features), "--to", kind, "--out", str(target), "--join", "stack"]) == 0
    assert "30 descriptors of 256 values, join stack" in capsys.readouterr().out
    assert target.stat().st_size > 30 * 256
    assert run(["export", str(features), "--to", kind, "--out", str(target)]) == 6
    assert run(["export", str(features), "--to", kind, "--out", str(target), "--overwrite"]) == 0


def test_failed_images_make_exit_code_3_unless_allowed(images, tmp_path, capsys):
    root = tmp_path / "in" / "a"
    root.mkdir(parents=True)
    (root / "good.jpg").write_bytes(next((images / "down").iterdir()).read_bytes())
    (root / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "x.h5"
    assert run(extract(root.parent, out)) == 3
    shown = capsys.readouterr().out
    assert "1 of 2 images" in shown
    assert "failed: a/bad.jpg: unrecognised: " in shown
    assert run(extract(root.parent, out)) == 3
    assert run(extract(root.parent, out, "--allow-failed", 1)) == 0
    assert run(["inspect", str(out), "--failed"]) == 0
    assert "failed: a/bad.jpg: unrecognised" in capsys.readouterr().out


def test_settings_that_change_nothing_for_the_data_are_said(images, tmp_path, capsys):
    assert run(extract(images, tmp_path / "x.h5", "--scales", "64")) == 0
    captured = capsys.readouterr()
    assert "untrained net" in captured.err
    assert "Q = 64 is too short for one 7x7 window of the net: images were enlarged to 224 instead" in captured.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["extract"], 2, "--dataset"),
        (["extract", "--dataset", "voc2008"], 2, "did you mean voc2007?"),
        (["extract", "--dataset", "voc2007", "--root", "nowhere"], 4, "found nothing there"),
        (["extract", "--dataset", "folder", "--root", "{images}", "--weights", "none.pth"], 5, "ways to get one"),
        (["extract", "--dataset", "folder", "--root", "{images}", "--weights", "random:Z"], 2, "one of A, A-LRN"),
        (["extract", "--dataset", "folder", "--root", "{images}", "--weights", NET, "--scales", "a"], 2, "numbers"),
        (["extract", "--dataset", "folder", "--root", "{images}", "--weights", NET, "--regions", "nose"], 2, "regions"),
        (["extract", "--dataset", "folder", "--root", "{images}", "--weights", NET, "--device", "tpu"], 2, "device"),
        (["extract", "--dataset", "folder", "--root", "{images}", "--weights", NET, "--regions", "box"], 2, "box"),
        (["svm", "--features", "nowhere.h5"], 6, "found none"),
        (["svm", "--features", "{features}", "--grid", "0"], 2, "grid: expected finite numbers above 0"),
        (["svm", "--features", "{features}", "--protocol", "caltech"], 7, "train"),
        (["svm", "--features", "{features}", "--protocol", "given-splits"], 7, "train"),
        (["inspect", "{image}"], 6, "00.jpg"),
        (["export", "nowhere.h5", "--to", "csv"], 6, "found none"),
        (["export", "{features}", "--to", "csv", "--split", "train"], 2, "split"),
        (["data", "check", "voc2007", "--root", "nowhere"], 4, "NOT COMPLETE"),
        (["data", "splits", "caltech101", "--root", "nowhere"], 4, "nowhere"),
        (["data", "synth", "voc2007", "--root", "{images}"], 4, "new or empty"),
        (["data", "synth", "voc2013", "--root", "nowhere"], 2, "expected one of voc2007"),
        (["svm", "--features", "{features}", "--features", "{features}"], 2, "twice"),
        (["svm", "--features", "{features}", "--regions", "box"], 2, "regions"),
        (["svm", "--features", "{features}", "--out", "{image}"], 6, "expected a folder"),
        (
            ["export", "{features}", "--to", "npz", "--out", "{features}", "--overwrite"],
            2,
            "another file than the inputs",
        ),
        (["similar", "{features}", "--query", "down/00.jpg", "--out", "{features}"], 2, "another file than the inputs"),
        (["report", "nowhere.svm", "--out", "{features}"], 6, "page of vggfeat or no file"),
        (["extract", "--dataset", "folder", "--root", "{images}", "--weights", "{features}"], 5, "a feature file"),
        (["nonsense"], 2, "nonsense"),
        (["inspect", "{image}"], 6, "00.jpg: expected a feature file, found a file that is no HDF5; correct its name"),
    ],
)
def test_mistakes_give_one_line_and_a_code(words, code, said, images, features, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kept = features.read_bytes()
    places = {"{images}": images, "{features}": features, "{image}": images / "down" / "00.jpg"}
    assert run([str(places.get(word, word)) for word in words]) == code
    captured = capsys.readouterr()
    assert said in captured.err + captured.out
    assert "Traceback" not in captured.err
    ours = [line for line in captured.err.splitlines() if not line.startswith("note:")]
    assert len(ours) <= (4 if code == 2 and ours[0].startswith("Usage") else 1)
    assert list(tmp_path.iterdir()) == []
    assert features.read_bytes() == kept


@pytest.mark.parametrize("words", [[], ["data"], ["weights"], ["localise"], ["bench"]])
def test_without_a_command_there_is_the_help_as_it_is_with_help(words, capsys):
    assert run([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    run(words)
    found = capsys.readouterr()
    assert (found.out + found.err).rstrip() == shown.rstrip()
    assert len(shown.splitlines()) > 5


def test_data_check_names_archives_and_checksums(tmp_path, capsys):
    assert run(["data", "check", "voc2007", "--root", str(tmp_path)]) == 4
    shown = capsys.readouterr().out
    assert "VOCtrainval_06-Nov-2007.tar (md5 c52e279531787c972589f7e41ab4ae64)" in shown


def test_rendered_sets_can_be_checked_and_split(tmp_path, capsys):
    root = tmp_path / "c101"
    assert run(["data", "synth", "caltech101", "--root", str(root), "--size", "tiny"]) == 0
    assert run(["data", "check", "caltech101", "--root", str(root)]) == 4
    assert "DIFFERS" in capsys.readouterr().out
    assert run(["data", "splits", "caltech101", "--root", str(root), "--out", str(tmp_path / "s")]) == 0
    assert len((tmp_path / "s" / "train-1.txt").read_text().splitlines()) == 30 * 6


@pytest.mark.long  # the twin of the small net in tests/test_pipelines.py ends with the demo
def test_the_demo(tmp_path, capsys):
    words = ["demo", "--out", str(tmp_path / "demo"), "--size", "tiny", "--scales", "224", "--weights", NET]
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert "mean average precision, 11-point" in shown
    assert "chance" in shown
    assert "The net is not trained" in shown
    assert f"results {tmp_path / 'demo' / 'voc2007.svm'}" in shown
    assert run(words) == 0


@pytest.mark.parametrize(  # tests/proofs/signals.py sends all of them
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)]
)
def test_signals_end_in_order_and_the_run_goes_on(images, tmp_path, number, code, capsys):
    root = tmp_path / "in"
    for copy in range(4):
        (root / f"{copy:02d}").mkdir(parents=True)
        for image in (images / "down").iterdir():
            (root / f"{copy:02d}" / image.name).write_bytes(image.read_bytes())
    words = extract(root, tmp_path / "x.h5", "--workers", 2, "--shard-rows", 1)
    running = subprocess.Popen([sys.executable, "-m", "vggfeat", *words], stderr=subprocess.PIPE, text=True)
    parts = Path(f"{tmp_path / 'x.h5'}.parts")
    deadline = time.monotonic() + 60
    while len(list(parts.glob("s*.h5"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    asked = time.monotonic()
    running.send_signal(number)
    said = running.communicate(timeout=30)[1]
    assert running.returncode == code
    assert time.monotonic() - asked < 10
    assert "the same command resumes from there" in said
    assert "Traceback" not in said
    kept = len(list(parts.glob("s*.h5")))
    assert kept >= 3
    told = re.search(r"^note: .*/x\.h5: (\d+) of 60 images done, (\d+) left$", said, re.MULTILINE)
    assert int(told[1]) + int(told[2]) == 60
    assert int(told[1]) in (kept, kept - 1), "the last one may have its name and not be counted yet"
    assert not (tmp_path / "x.h5").exists()
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == kept


def test_a_reader_that_leaves_ends_the_command_without_a_traceback(features):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "vggfeat", "inspect", str(features)], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


def test_what_else_ends_the_process_keeps_its_exit_code(monkeypatch):
    def ended(**_):
        raise SystemExit(3)

    monkeypatch.setattr(group.commands["inspect"], "callback", ended)
    with pytest.raises(SystemExit, match="3"):
        run(["inspect", "x.h5"])


FULL = (
    "vggfeat: standard output: expected to print to it, found: No space left on device; "
    "what was finished is kept: make room, and give the same command again\n"
)


@pytest.mark.parametrize("words", [["data", "list"], ["--help"], ["inspect", "{features}", "--json"]])
def test_an_output_that_is_full_ends_the_command_with_one_line(words, features):
    words = [str(features) if word == "{features}" else word for word in words]
    command = [sys.executable, "-m", "vggfeat", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (6, FULL)
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 6


def test_a_summary_that_cannot_be_printed_loses_no_work(images, tmp_path, capsys):
    words = extract(images, tmp_path / "x.h5", "--quiet", "--json")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "vggfeat", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6
    assert [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("note: ")] == [FULL]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 30


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
)
def test_what_the_system_does_not_give_is_one_line_and_no_defect(error, monkeypatch, capsys):
    monkeypatch.setattr(catalogue, "resolve_root", mock.Mock(side_effect=error))
    assert run(["data", "splits", "voc2007"]) == ResourceError.exit_code
    said = capsys.readouterr().err
    assert re.fullmatch("vggfeat: this machine: expected the memory, .* give the same command again\n", said)
    assert str(error) in said


def test_a_machine_without_room_for_temporary_files_is_no_defect(monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setattr(catalogue, "resolve_root", lambda *_: tempfile.gettempdir())
    assert run(["data", "splits", "voc2007"]) == StoreError.exit_code
    assert capsys.readouterr().err == (
        "vggfeat: temporary files: expected a folder to write into, found: No usable temporary directory found in "
        "['/nowhere']; make room in one of them, or set TMPDIR to a folder that has some, and give the same command "
        "again\n"
    )


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(catalogue, "resolve_root", mock.Mock(side_effect=RuntimeError("no such thing")))
    with pytest.raises(RuntimeError, match="no such thing"):
        run(["data", "splits", "voc2007"])


@pytest.mark.parametrize("words", [["--help"], ["data", "list"]])
def test_without_a_standard_output_nothing_is_printed(words):
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "vggfeat", *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
