"""Failure is visible: what failed and why, how far a run has come, and how it ends when it is told to."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import h5py
import pytest
import torch
from PIL import Image

from image_files import draw
from launches import seen_by_the_net
from vggfeat.cli import group, run
from vggfeat.cli.signals import is_main, line, stopped
from vggfeat.datasets.catalogue import open_dataset
from vggfeat.errors import StoreError, WeightsError
from vggfeat.extract import RunSettings, extract_features
from vggfeat.forward.features import ExtractionSettings
from vggfeat.runtime.durable import DISK
from vggfeat.store.failures import failures_path, tally, write_failures
from vggfeat.store.reader import count_reasons
from vggfeat.store.writer import FeatureWriter
from vggfeat.training.checkpoints import Checkpoints
from vggfeat.weights import load_backbone

NET = "random:A:0:0.03125"
FAILED = {"a/b.jpg": "empty", "a/c\n.png": "unrecognised", "a/d.jpg": "empty"}


@pytest.fixture
def root(tmp_path) -> Path:
    for number in range(5):
        draw(tmp_path / "in" / "a" / f"{number}.png", number)
    for name, reason in FAILED.items():
        (tmp_path / "in" / name).write_bytes(b"no image" if reason == "unrecognised" else b"")
    return tmp_path / "in"


def words(root, out, *more):
    given = ["extract", "--dataset", "folder", "--root", root, "--weights", NET, "--scales", "224", "--out", out]
    return [str(word) for word in (*given, "--workers", "0", "--device", "cpu", "--shard-rows", "2", *more)]


# --- counts, and the list of failures


def test_the_most_frequent_reason_comes_first_and_equals_by_name():
    counts = count_reasons(["empty: a: b", "truncated: x", "missing: y", "truncated: z", "odd"])
    assert list(counts.items()) == [("truncated", 2), ("empty", 1), ("missing", 1), ("odd", 1)]
    told = tally(total=9, done=6, resumed=2, reasons=["empty: ", "missing: ", "missing: "])
    assert told == "3 of 9 images done, 3 failed (2 missing, 1 empty), 3 left, 2 by earlier runs"
    assert tally(total=2, done=2, resumed=0, reasons=[]) == "2 of 2 images done"


def test_failures_are_counted_listed_and_forgotten_when_they_are_mended(root, tmp_path, capsys):
    out = tmp_path / "x.h5"
    assert run(words(root, out)) == 3
    shown = capsys.readouterr().out
    assert f"{out}: 5 of 8 images done, 3 failed (2 empty, 1 unrecognised), in " in shown
    assert f"failed: all of them: {out}.failures.jsonl" in shown
    lines = [json.loads(line) for line in failures_path(out).read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in lines} == FAILED
    assert [line["id"] for line in lines] == sorted(FAILED)
    assert all(line["path"] == line["id"] and line["message"] and str(root) not in line["message"] for line in lines)

    failures_path(out).unlink()
    assert run(words(root, out, "--json")) == 3, "a run that finds all done makes it again"
    told = json.loads(capsys.readouterr().out)
    assert (told["total"], told["done"], told["failed"], told["resumed"]) == (8, 5, 3, 8)
    assert told["failed_by_reason"] == {"empty": 2, "unrecognised": 1}
    assert told["failures_file"] == str(failures_path(out))
    assert [json.loads(line) for line in failures_path(out).read_text().splitlines()] == lines

    for name in FAILED:
        draw(root / f"{name}.png", 9)
        (root / name).unlink()
    assert run(words(root, out, "--overwrite", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["failures_file"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.h5"]


@pytest.fixture(params=["equal size", "other size"])
def broken(request, tmp_path):
    """12 images of which two are no images for now, in the first and the third of four shards; and their bytes."""
    for number in range(12):
        draw(tmp_path / "in" / "a" / f"{number:02d}.png", number)
    kept = {tmp_path / "in" / "a" / name: (tmp_path / "in" / "a" / name).read_bytes() for name in ("01.png", "08.png")}
    for path, content in kept.items():
        path.write_bytes(b"x" * len(content) if request.param == "equal size" else content[:-40])
    return kept


def extracted(tmp_path, name, *more):
    """Give the command, and return its code, and the images that went through the net."""
    with seen_by_the_net() as seen:
        given = ["--shard-rows", "3", "--json", *more]
        code = run([str(word) for word in (*words(tmp_path / "in", tmp_path / name)[:-2], *given)])
    return code, len(seen)


@contextlib.contextmanager
def breaking_off(after):
    """Let a run break off after so many commits."""
    commit, left = FeatureWriter.append, [after]

    def committing(self, *given):
        commit(self, *given)
        left[0] -= 1
        if not left[0]:
            raise StoreError("broken off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureWriter, "append", committing)
        yield


def test_images_that_failed_are_tried_again_with_their_shards_alone(broken, tmp_path, capsys):
    assert extracted(tmp_path, "x.h5") == (3, 12)
    assert extracted(tmp_path, "x.h5", "--retry-failed") == (3, 6), "they fail again"
    for path, content in broken.items():
        path.write_bytes(content)
    assert extracted(tmp_path, "x.h5", "--retry-failed") == (0, 6)
    assert extracted(tmp_path, "x.h5", "--retry-failed") == (0, 0)
    assert extracted(tmp_path, "whole.h5") == (0, 12)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "whole.h5", "x.h5"]
    capsys.readouterr()


def test_images_that_have_changed_are_computed_anew_with_their_shards_alone(broken, tmp_path, capsys):
    for path, content in broken.items():
        path.write_bytes(content)
    assert extracted(tmp_path, "x.h5") == (0, 12)
    Image.new("RGB", (70, 60), (9, 8, 7)).save(tmp_path / "in" / "a" / "04.png")
    assert extracted(tmp_path, "x.h5") == (6, 0)
    assert "have come, gone or changed: --retry-failed makes" in capsys.readouterr().err
    assert extracted(tmp_path, "x.h5", "--retry-failed") == (0, 3)
    assert extracted(tmp_path, "whole.h5") == (0, 12)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_of_an_unfinished_run_too(broken, tmp_path, capsys):
    with breaking_off(after=4):
        assert extracted(tmp_path, "x.h5") == (6, 12)
    equal = all(path.stat().st_size == len(content) for path, content in broken.items())
    for path, content in broken.items():
        path.write_bytes(content)
    # Its shards say nothing of the images that they were computed from, so that their sizes must be equal.
    assert extracted(tmp_path, "x.h5", "--retry-failed") == ((0, 6) if equal else (6, 0))
    assert equal or "delete the folder" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--retry-failed"], []], ids=["flag", "plain"])
def test_a_retry_that_is_broken_off_leaves_the_file_and_goes_on(flags, broken, tmp_path, capsys):
    assert extracted(tmp_path, "x.h5") == (3, 12)
    before = (tmp_path / "x.h5").read_bytes()
    equal = all(path.stat().st_size == len(content) for path, content in broken.items())
    for path, content in broken.items():
        path.write_bytes(content)
    with breaking_off(after=3):  # two shards that are taken, one that is computed
        assert extracted(tmp_path, "x.h5", "--retry-failed") == (6, 3)
    assert (tmp_path / "x.h5").read_bytes() == before
    assert failures_path(tmp_path / "x.h5").exists()
    if not equal and not flags:  # Then what stands there is a file of other images.
        assert extracted(tmp_path, "x.h5") == (6, 0)
        flags = ["--retry-failed"]
    assert extracted(tmp_path, "x.h5", *flags) == (0, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.h5"]
    assert extracted(tmp_path, "whole.h5") == (0, 12)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    capsys.readouterr()


@pytest.mark.parametrize("finished", [True, False])
def test_what_fails_again_is_tried_once_however_often_a_retry_is_broken_off(finished, broken, tmp_path, capsys):
    if finished:
        assert extracted(tmp_path, "x.h5") == (3, 12)
    else:
        with breaking_off(after=4):
            assert extracted(tmp_path, "x.h5") == (6, 12)
    with breaking_off(after=3 if finished else 1):
        assert extracted(tmp_path, "x.h5", "--retry-failed") == (6, 3)
    with breaking_off(after=1):
        assert extracted(tmp_path, "x.h5", "--retry-failed") == (6, 3)
    assert extracted(tmp_path, "x.h5", "--retry-failed") == (3, 0)
    assert extracted(tmp_path, "whole.h5") == (3, 12)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    capsys.readouterr()


def test_a_damaged_file_is_made_again_when_that_is_asked_for(broken, tmp_path, capsys):
    assert extracted(tmp_path, "x.h5") == (3, 12)
    good = (tmp_path / "x.h5").read_bytes()
    with h5py.File(tmp_path / "x.h5") as file:
        place = file["features"].id.get_offset() + 5
    (tmp_path / "x.h5").write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    for more in ((), ("--retry-failed",)):
        capsys.readouterr()
        assert extracted(tmp_path, "x.h5", *more) == (6, 0)
        assert "make it again with --overwrite" in capsys.readouterr().err
    assert extracted(tmp_path, "x.h5", "--overwrite") == (3, 12)
    assert (tmp_path / "x.h5").read_bytes() == good


def test_a_finished_file_needs_no_disk_that_can_be_written(broken, tmp_path, monkeypatch, capsys):
    for path, content in broken.items():
        path.write_bytes(content)
    assert extracted(tmp_path, "x.h5") == (0, 12)

    def refuse(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(DISK, "make_folder", refuse)
    assert extracted(tmp_path, "x.h5") == (0, 0)
    capsys.readouterr()
    assert extracted(tmp_path, "y.h5") == (6, 0)
    assert "kept" not in capsys.readouterr().err


def test_a_list_of_failures_that_cannot_be_written_leaves_the_old_one_and_no_other(root, tmp_path, monkeypatch):
    dataset = open_dataset("folder", root)
    failures_path(tmp_path / "x.h5").write_text("old")

    def full(fd, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DISK, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_failures(tmp_path / "x.h5", dataset, {0: "empty: no"}, temp=tmp_path / "x.tmp", files=DISK)
    assert failures_path(tmp_path / "x.h5").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.h5.failures.jsonl"]


def test_whatever_ends_a_run_is_told_how_far_it_has_come(root, tmp_path):
    dataset = open_dataset("folder", root)  # in the order of names: 5 good ones, 3 bad ones
    cache = RunSettings(workers=0, shard_rows=1)
    settings = ExtractionSettings(scales=(224,))
    later = "5 of 8 images done, 1 failed (1 empty), 2 left, 1 by earlier runs"
    for last, told in ((2, "1 of 8 images done, 7 left"), (7, later)):

        def stop(done, total, failed, last=last):
            if done >= last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as stopped:
            extract_features(dataset, load_backbone(NET), tmp_path / "x.h5", settings, run=cache, progress=stop)
        (note,) = stopped.value.__notes__
        assert note == f"{tmp_path / 'x.h5'}: {told}"


def test_packing_names_ten_of_what_it_leaves_out(tmp_path, capsys):
    for number in range(2000):  # so that 12 are below the 1 % that stop it
        path = tmp_path / "in" / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number:
            os.link(tmp_path / "in" / "train" / "a" / "0.jpg", path)
        else:
            Image.new("RGB", (8, 8)).save(path)
    for name in ("a", "b"):
        draw(tmp_path / "in" / "val" / name / "0.jpg", 0)
    for number in range(2, 14):
        path = tmp_path / "in" / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.unlink()
        path.write_bytes(b"")
    assert run(["data", "pack", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "x"), "--workers", "0"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 11
    assert lines[-1] == f"left out: 2 more; all of them: {tmp_path / 'x' / 'unreadable.jsonl'}"


def test_a_checkpoint_given_as_weights_is_called_one(tmp_path):
    about = {"state": {"step": 7}, "run": {"net": "A"}}
    (tmp_path / "nets").mkdir()
    path = Checkpoints(tmp_path / "nets" / "checkpoints", DISK).save(7, {"x": torch.zeros(1)}, about)
    with pytest.raises(WeightsError, match=r"a checkpoint of a training run.*name .*/nets/weights\.safetensors, which"):
        load_backbone(path)
    moved = path.rename(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"name RUN/weights\.safetensors"):
        load_backbone(moved)


# --- signals

# Scripts sleep in short pieces: Python hears of a signal that comes just before it sleeps only when it has slept.
SCRIPT = """
import atexit, sys, time
import vggfeat.cli as cli

def work(**_):
    try:
        print("working", flush=True)
        [time.sleep(0.05) for _ in range(1200)]
    finally:
        print("cleaning", flush=True)
        [time.sleep(0.05) for _ in range(int(20 * {cleaning}))]

def leave():
    print("leaving", flush=True)
    time.sleep({leaving})

atexit.register(leave)
cli.group.main = work
cli.entry_point(["extract"])
"""


def start(*before, cleaning=0.0, leaving=0.0):
    command = [*before, sys.executable, "-c", SCRIPT.format(cleaning=cleaning, leaving=leaving)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def send_at(running, *moments):
    """Send a signal after each word that the process says, and return what it said besides and how it ended."""
    for word, number in moments:
        assert not word or running.stdout.readline().strip() == word
        running.send_signal(number)
    said = running.communicate(timeout=20)[1]
    return running.returncode, said


LINE = "vggfeat: stopped by {}; what was finished is kept, and the same command resumes from there\n"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (1, "SIGHUP")])
def test_a_signal_ends_with_one_line_and_its_own_code(number, name):
    assert send_at(start(), ("working", number)) == (128 + number, LINE.format(name))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("extract --dataset folder", "; what was finished is kept, and the same command resumes from there"),
        ("data pack --root x", "; what was finished is kept, and the same command resumes from there"),
        ("train --net A", ""),  # It says itself whether there is a checkpoint.
        ("localise train", ""),
        ("bench train", ""),
        ("bench gpu --out x", "; what was finished is kept, and the same command resumes from there"),
        ("reproduce small_net", "; what was finished is kept, and the same command resumes from there"),
        ("svm --features extract", ""),
        ("", ""),
    ],
)
def test_only_what_can_be_gone_on_with_is_said_to_be(words, advice):
    assert stopped(signal.SIGINT, words.split()) == f"stopped by Ctrl-C{advice}"


@pytest.mark.parametrize(
    ("environ", "leading"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
    ],
)
def test_a_process_alone_speaks_for_itself_whatever_number_a_scheduler_gave_it(environ, leading, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    assert is_main() == leading
    assert line("x") == ("vggfeat: x" if leading else "vggfeat, process 1: x")


@pytest.mark.parametrize(
    ("moments", "options"),
    [
        ([("working", signal.SIGINT), ("cleaning", signal.SIGINT)], {"cleaning": 60}),
        ([("working", signal.SIGINT), ("cleaning", signal.SIGTERM)], {"cleaning": 0.2}),
        ([("working", signal.SIGINT), ("cleaning", 0), ("leaving", signal.SIGINT)], {"leaving": 0.2}),
    ],
)
def test_a_second_signal_is_no_noise_whenever_it_comes(moments, options):
    begun = time.monotonic()
    assert send_at(start(**options), *moments) == (130, LINE.format("Ctrl-C"))
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("second", [False, True])
def test_a_signal_that_a_destructor_swallows_comes_again(second):
    script = f"""
import time
import vggfeat.cli as cli
from vggfeat.cli import signals

class Slow:
    def __del__(self):
        print("working", flush=True)
        [time.sleep(0.05) for _ in range(1200)]

def work(**_):
    signals._LATER = {60 if second else 0.01}
    slow = Slow()
    del slow
    print("swallowed", flush=True)
    [time.sleep(0.05) for _ in range(1200)]

cli.group.main = work
cli.entry_point(["extract"])
"""
    running = subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True)
    moments = [("working", signal.SIGTERM), ("swallowed", signal.SIGTERM)][: 1 + second]
    assert send_at(running, *moments) == (143, LINE.format("SIGTERM"))


def test_a_signal_leaves_no_lock_behind_that_is_just_being_taken():
    """Else threads that want it would wait for ever, and the command for them."""
    script = f"""
import functools, signal, threading, time
import vggfeat.cli as cli

class Lock:
    acquire = release = locked = lambda *_: None
    __enter__ = staticmethod(functools.partial(signal.raise_signal, {signal.SIGINT:d}))

    def __exit__(self, *_):
        print("released", flush=True)

def work(**_):
    with threading.Condition(Lock()):
        print("taken", flush=True)
        [time.sleep(0.05) for _ in range(1200)]

cli.group.main = work
cli.entry_point(["extract"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "taken\nreleased\n", LINE.format("Ctrl-C"))


@pytest.mark.parametrize("method", ["write", "truncate", "seek", "_attempt"])
def test_a_signal_is_not_raised_into_hdf5_which_would_go_on_with_it(method, tmp_path):
    script = f"""
import signal, sys, time
from pathlib import Path
import h5py
import numpy as np
import vggfeat.cli as cli
from vggfeat.runtime.durable import DISK, atomic_write

def strike(frame, event, _):
    if event == "call" and frame.f_code.co_qualname.endswith("File.{method}"):
        sys.setprofile(None)
        signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)

def work(**_):
    with atomic_write(DISK, Path({str(tmp_path / "x.h5")!r})) as sink:
        sys.setprofile(strike)
        with h5py.File(sink, "w") as file:
            file["x"] = np.zeros(100_000)
    print("struck" if sys.getprofile() is None else "missed", flush=True)
    [time.sleep(0.05) for _ in range(1200)]

cli.group.main = work
cli.entry_point(["extract"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (130, LINE.format("Ctrl-C"))
    assert done.stdout in ("struck\n", "")  # It comes again in a moment, which may be before the word is said.


LOADING = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "{slow}":
            print("loading", flush=True)
            [time.sleep(0.05) for _ in range(1200)]

sys.meta_path.insert(0, Slow())
import vggfeat.cli as cli

def work(**_):
    try:
        import a_library_that_is_large
    finally:
        print("cleaning", flush=True)

if "{slow}" != "click":
    cli.group.main = work
cli.entry_point(["extract"])
"""


@pytest.mark.parametrize("slow", ["click", "a_library_that_is_large"])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (1, "SIGHUP")])
def test_while_libraries_are_loaded_a_signal_ends_at_once(slow, number, name):
    script = LOADING.format(slow=slow)
    running = subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True)
    assert running.stdout.readline() == "loading\n"
    running.send_signal(number)
    assert running.communicate(timeout=20) == ("", LINE.format(name))
    assert running.returncode == 128 + number


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (1, "SIGHUP")])
def test_a_signal_that_click_sees_first_keeps_its_code_and_its_line(number, name):
    script = """
import time
import click
import vggfeat.cli as cli

def work():
    try:
        print("working", flush=True)
        [time.sleep(0.05) for _ in range(1200)]
    except KeyboardInterrupt as error:
        error.add_note("1 of 2 done")
        raise

cli.group.add_command(click.Command("work", callback=work))
cli.entry_point(["work"])
"""
    running = subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True)
    echoed = "\n" * (number == signal.SIGINT)  # click's, after the ^C of a terminal
    said = f"{echoed}note: 1 of 2 done\nvggfeat: stopped by {name}\n"
    assert send_at(running, ("working", number)) == (128 + number, said)


def test_an_end_of_file_that_nobody_expected_is_no_ctrl_c(monkeypatch):
    def work():
        raise EOFError

    monkeypatch.setitem(group.commands, "work", click.Command("work", callback=work))
    with pytest.raises(click.Abort):
        run(["work"])


def test_nohup_keeps_a_run_from_the_end_of_its_terminal():
    assert send_at(start("nohup"), ("working", signal.SIGHUP), ("", signal.SIGTERM))[0] == 143


def test_the_end_of_the_terminal_ends_a_run_in_order():
    near, far = os.openpty()
    own = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    command = [sys.executable, "-c", own + SCRIPT.format(cleaning=0.1, leaving=0)]
    running = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, start_new_session=True)
    os.close(far)
    assert b"working" in os.read(near, 100)
    os.close(near)
    assert running.wait(20) == 129
