"""Damaged files of weights, in every format: loaded or refused, in little time and memory. See fuzz_weights.py."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import fuzz_weights
from fuzz_files import SAMPLES, Corpus
from vggfeat.errors import WeightsError

SUPPORT = Path(__file__).parents[1] / "support"


def run(*arguments):
    """Run in a process with one thread, from which children can be forked."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )


def check_fuzzing(done, cases):
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"(\w+): (\d+) cases .*: (\d+) loaded, (\d+) refused, (\d+) failed", done.stdout)
    assert [name for name, *_ in counts] == list(SAMPLES)
    for name, *numbers in counts:
        tried, loaded, refused, failed = map(int, numbers)
        assert (tried, loaded + refused, failed) == (cases, cases, 0)
        # Of our own format, a checksum finds what is damaged but not broken.
        assert loaded > (0 if name == "safetensors" else 0.02) * cases
        assert refused > 0.3 * cases


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Forty damaged files of each format, then a reader that meets one fault after the other, in one process."""
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(SUPPORT)]!r}; import test_damage as test; "
    code += "failed = test.fuzz_weights.main(['--cases', '40', '--seed', '1']); "
    return run(
        "-c", code + f"test.break_the_reader(test.Path({str(tmp_path_factory.mktemp('x'))!r})); sys.exit(failed)"
    )


def test_forty_damaged_files_of_each_format(seen):
    check_fuzzing(seen, 40)


@pytest.mark.long
def test_ten_thousand_damaged_files_of_each_format():
    check_fuzzing(run(SUPPORT / "fuzz_weights.py", "--cases", 10_000, "--seed", 0), 10_000)


def test_a_case_can_be_had_again(tmp_path):
    first, again = (Corpus("caffe", tmp_path) for _ in range(2))
    for number in range(20):
        assert first.case(random.Random(f"0:caffe:{number}")) == again.case(random.Random(f"0:caffe:{number}"))


def hang(path):
    time.sleep(60)


def hoard(path):
    return bytearray(b"x" * (100 << 20))


def die(path):
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(path):
    os._exit(0)


def exhaust(path):
    return bytearray(2 << 30)


def warn(path):
    warnings.warn("overflow", RuntimeWarning, stacklevel=1)


def slip(path):
    raise IndexError("list index out of range")


def keep_quiet(path):
    raise WeightsError("something is wrong")


FAULTS = {
    hang: "died of SIGALRM",
    hoard: r"took \d{9} bytes for a file of",
    die: "died of SIGSEGV",
    leave: "ended too early",
    exhaust: "MemoryError",
    warn: "RuntimeWarning: overflow",
    slip: "IndexError: list index out of range",
    keep_quiet: "refused without its name: something is wrong",
}


def break_the_reader(folder):
    """In a process of its own: let the first cases of a run meet one fault each."""
    sound, corpus = fuzz_weights.LOAD["caffe"], Corpus("caffe", folder)
    faults = {corpus.case(random.Random(f"0:caffe:{number}")): fault for number, fault in enumerate(FAULTS)}
    fuzz_weights.LOAD["caffe"] = lambda path: faults.get(path.read_bytes(), sound)(path)
    fuzz_weights.MOST_SECONDS = 3
    counts = fuzz_weights.fuzz("caffe", len(FAULTS) + 2, 0, folder)
    print(json.dumps([counts.loaded + counts.refused, counts.failed]))


def test_each_kind_of_failure_is_seen_and_the_next_case_still_runs(seen):
    peaceful, failed = json.loads(seen.stdout.splitlines()[-1])
    assert peaceful == 2
    assert len(failed) == len(FAULTS)
    for number, (found, expected) in enumerate(zip(failed, FAULTS.values(), strict=True)):
        assert re.match(rf"case {number}: {expected}", found), found
