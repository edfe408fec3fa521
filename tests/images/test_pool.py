import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decoding_hooks import crew, obey, orders, pid_of
from odd_images import encode, good_images, png, scan_bomb
from vggfeat.errors import ConfigError, ImageError, ResourceError, VggfeatError
from vggfeat.images.decode import REASONS, DecodedImage, DecodeSettings, Request, decode
from vggfeat.images.pool import AHEAD, Decoder
from vggfeat.runtime.sandbox import Connection, environment
from vggfeat.samples import Box

SUPPORT = Path(__file__).parents[1] / "support"


def words(answers):
    """The number that each image shows, or the reason why there is none."""
    return [a.reason if isinstance(a, ImageError) else int(a.regions[0][0, 0, 0]) for a in answers]


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pid, seconds):
    end = time.monotonic() + seconds
    while running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not running(pid)


# Order and look-ahead


def test_answers_come_in_the_order_of_the_requests():
    pauses = random.Random(0).choices([0, 0.001, 0.03], k=60)
    with crew(2) as decoder:
        found = words(decoder.stream(orders(*[f"sleep/{pause}" for pause in pauses])))
    assert found == list(range(60))


def test_images_cross_the_line_unchanged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    (tmp_path / "ca\udce9 f.png").write_bytes(encode(Image.fromarray(noise), "PNG", compress_level=0))
    requests = [Request(str(tmp_path / "ca\udce9 f.png"), (None, Box(10, 20, 13, 22)))] * 3
    with Decoder(0, DecodeSettings()) as near, Decoder(1, DecodeSettings()) as far:
        pairs = list(zip(near.stream(requests), far.stream(requests), strict=True))
    for here, there in pairs:
        assert (there.regions[0] == noise).all()
        assert (there.regions[1] == noise[20:22, 10:13]).all()
        assert there.regions[0].flags.writeable
        assert there[1:] == here[1:]
        assert there.size == (700, 900)


@pytest.mark.parametrize(("hold", "ahead"), [(1 << 28, AHEAD * 2), (11, 3), (24, 4)])
def test_no_more_is_drawn_than_the_look_ahead(hold, ahead):
    drawn = []

    def source():
        for request in orders(*["show/-"] * 50):
            drawn.append(request)
            yield request

    # An image has 6 bytes: with 11, the second would be too many; with 24, four fit.
    with Decoder(2, DecodeSettings(), decode=obey, hold=hold) as decoder:
        stream = decoder.stream(source())
        assert drawn == []
        for taken in range(1, 30):
            next(stream)
            assert len(drawn) <= taken + ahead
            time.sleep(0.005)
        assert len(drawn) >= 29 + ahead - 1
        assert words(stream) == list(range(29, 50))


def test_without_workers_one_request_is_drawn_at_a_time():
    source = iter(orders("show/-", "pid/-", "show/-"))
    with crew(0) as decoder:
        stream = decoder.stream(source)
        assert words([next(stream)]) == [0]
        assert str(next(stream)) == str(os.getpid())
        assert words([next(stream)]) == [2]


def test_a_stream_that_is_given_up_does_not_disturb_the_next():
    with crew(2) as decoder:
        first = decoder.stream(orders(*["sleep/0.05"] * 20))
        next(first)
        assert words(decoder.stream(orders(*["show/-"] * 8))) == list(range(8))
        first.close()
        assert words(decoder.stream(orders(*["show/-"] * 8))) == list(range(8))


def test_an_error_of_the_source_comes_through():
    def source():
        yield from orders("show/-")
        raise LookupError("no more lists")

    with crew() as decoder, pytest.raises(LookupError, match="no more lists"):
        list(decoder.stream(source()))


# Workers that die, stop or swell


KILLERS = {"signal/9": "SIGKILL", "segfault/-": "SIGSEGV", "exit/3": "exit code 3", "half/9": "SIGKILL"}


def test_an_image_that_kills_is_named_and_the_others_are_kept():
    places = dict(zip((0, 6, 7, 14), KILLERS, strict=True))
    with crew(2) as decoder:
        answers = list(decoder.stream(orders(*[places.get(place, "show/-") for place in range(15)])))
    assert words(answers) == ["worker-died" if place in places else place for place in range(15)]
    for place, deed in places.items():
        assert str(answers[place]).startswith(f"{deed}/{place}: ")
        assert f"by {KILLERS[deed]} and by {KILLERS[deed]}" in str(answers[place])


def test_an_image_gets_a_second_try_in_a_fresh_worker(tmp_path):
    with crew() as decoder:
        assert words(decoder.stream(orders("show/-", f"once{tmp_path}/9", "show/-"))) == [0, 1, 2]
    assert (tmp_path / "mark").exists()


def test_an_idle_worker_that_is_killed_costs_nothing():
    with crew() as decoder:
        pid = pid_of(decoder)
        os.kill(pid, signal.SIGKILL)
        assert gone(pid, 5)
        assert words(decoder.stream(orders("show/-", "show/-"))) == [0, 1]
        assert pid_of(decoder) != pid


@pytest.mark.parametrize("deed", ["signal/19", "half/19", "sleep/1000", "spin/-"])
def test_a_worker_that_hangs_is_ended_in_time(deed):
    with crew(2, timeout=0.6) as decoder:
        assert words(decoder.stream(orders("show/-", "show/-"))) == [0, 1]
        start = time.monotonic()
        answers = list(decoder.stream(orders("show/-", deed, *["show/-"] * 10)))
        seconds = time.monotonic() - start
    assert words(answers) == [0, "time-out", *range(2, 12)]
    assert str(answers[1]) == f"{deed}/1: expected pixels within 0.6 s, found none"
    assert 0.6 <= seconds < 6


def test_an_idle_worker_that_is_stopped_is_ended_in_time():
    with crew(timeout=1.0) as decoder:
        os.kill(pid_of(decoder), signal.SIGSTOP)
        assert words(decoder.stream(orders("show/-", "show/-"))) == ["time-out", 1]


def test_time_counts_from_the_start_of_an_image_and_not_from_its_place_in_the_queue():
    with crew(timeout=0.9) as decoder:
        assert words(decoder.stream(orders(*["sleep/0.25"] * 5))) == list(range(5))


def test_a_slow_taker_makes_no_image_late():
    with crew(timeout=0.7) as decoder:
        stream = decoder.stream(orders(*["show/-"] * 6))
        next(stream)
        time.sleep(1.2)
        assert words(stream) == list(range(1, 6))


def test_a_scan_bomb_is_ended_in_time(tmp_path):
    (tmp_path / "bomb.jpg").write_bytes(scan_bomb(4000, 2000))
    (tmp_path / "good.png").write_bytes(png(1, 1, 8, 0, [b"\x07"]))
    assert (tmp_path / "bomb.jpg").stat().st_size < 200_000
    requests = [Request(str(tmp_path / name), (None,)) for name in ("good.png", "bomb.jpg", "good.png")]
    with Decoder(1, DecodeSettings(timeout=1.0)) as decoder:
        assert words(decoder.stream(requests[:1])) == [7]
        start = time.monotonic()
        assert words(decoder.stream(requests)) == [7, "time-out", 7]
        assert time.monotonic() - start < 6


def test_an_image_that_needs_too_much_memory_is_refused_alone(tmp_path):
    (tmp_path / "large.png").write_bytes(png(3500, 3500, 8, 2, [bytes(10500)] * 3500))
    (tmp_path / "small.png").write_bytes(png(1, 1, 8, 0, [b"\x07"]))
    requests = [Request(str(tmp_path / name), (None,)) for name in ("small.png", "large.png", "small.png")]
    for memory, expected in ((32 << 20, "out-of-memory"), (1 << 30, 0)):
        with Decoder(1, DecodeSettings(memory=memory)) as decoder:
            assert words(decoder.stream(requests)) == [7, expected, 7]


def test_the_memory_limit_is_what_a_worker_may_add():
    with crew(memory=200 << 20) as decoder:
        assert words(decoder.stream(orders("swell/150", "swell/210", "show/-"))) == [0, "out-of-memory", 2]


def test_signals_to_the_group_are_left_to_the_parent():
    with crew() as decoder:
        assert words(decoder.stream(orders("ignore/-", "show/-"))) == [0, 1]


def test_a_fault_of_the_program_is_not_taken_for_a_bad_image():
    with crew() as decoder, pytest.raises(RuntimeError, match=r"decoding defect/-/0: [^$]*ZeroDivisionError"):
        list(decoder.stream(orders("defect/-")))
    with crew(0) as decoder, pytest.raises(ZeroDivisionError):
        list(decoder.stream(orders("defect/-")))


def test_a_run_that_was_suspended_finds_no_image_late(monkeypatch):
    class End:
        def settimeout(self, seconds):
            self.seconds = seconds

        def recv_into(self, view):
            clock[0] += 3600 if clock[0] == 0 else self.seconds
            raise TimeoutError

    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    line = Connection(End())
    line.left = 5.0
    with pytest.raises(TimeoutError):
        line.receive()
    assert clock[0] == pytest.approx(3600 + 4)


# Starting and ending


@pytest.mark.parametrize("deed", ["sleep/1000", "spin/-", "signal/19"])
def test_closing_ends_busy_workers_at_once(deed):
    decoder = crew(2, timeout=600)
    pids = {pid_of(decoder) for _ in range(8)}
    stream = decoder.stream(orders("show/-", *[deed] * 5))
    assert words([next(stream)]) == [0]
    time.sleep(0.2)
    pids |= {worker._process.pid for worker in decoder._living}
    assert len(pids) == 2
    start = time.monotonic()
    decoder.close()
    assert time.monotonic() - start < 2
    assert not any(running(pid) for pid in pids)
    decoder.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)
    with pytest.raises(RuntimeError, match="closed"):
        decoder.stream([])


def test_an_exception_ends_the_workers():
    with pytest.raises(KeyboardInterrupt), crew(2) as decoder:  # noqa: PT012
        pid = pid_of(decoder)
        for _ in decoder.stream(orders("show/-", "sleep/1000", "sleep/1000")):
            start = time.monotonic()
            raise KeyboardInterrupt
    assert time.monotonic() - start < 2
    assert not running(pid)


def script(body, **options):
    head = f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\nfrom decoding_hooks import crew, orders, pid_of\n"
    return subprocess.Popen([sys.executable, "-c", head + body], stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("deed", ["show/-", "sleep/1000", "spin/-", "signal/19"])
def test_no_worker_outlives_a_killed_parent(deed):
    body = (
        "decoder = crew(1, timeout=600)\n"
        "print(pid_of(decoder), flush=True)\n"
        f"list(decoder.stream(orders('{deed}')))\n"
        "import time; time.sleep(1000)\n"
    )
    with script(body) as parent:
        pid = int(parent.stdout.readline())
        assert running(pid)
        time.sleep(0.2)
        parent.kill()
        parent.wait()
        assert gone(pid, 2)


def test_a_decoder_that_nobody_closed_does_not_hold_up_the_end():
    with script("decoder = crew(2)\nprint(pid_of(decoder), flush=True)\n") as parent:
        pid = int(parent.stdout.readline())
        assert parent.wait(10) == 0
        assert gone(pid, 2)


def test_a_plain_script_needs_no_guard(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, 0, [b"\x07"]))
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    (tmp_path / "run.py").write_text(
        "import sys; sys.path.pop(0)\n"
        "from vggfeat.images.pool import Decoder\n"
        "from vggfeat.images.decode import DecodeSettings, Request\n"
        f"requests = [Request({str(tmp_path / 'a.png')!r}, (None,))] * 3\n"
        "with Decoder(2, DecodeSettings()) as decoder:\n"
        "    for image in decoder.stream(requests):\n"
        "        print(image.regions[0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[[[7, 7, 7]]]\n" * 3, "")


def test_workers_load_no_heavy_library():
    with crew() as decoder:
        loaded = set(str(next(decoder.stream(orders("modules/-")))).split())
    assert {"numpy", "PIL.Image", "vggfeat.images.decode"} <= loaded
    assert not loaded & {"torch", "torchvision", "h5py", "sklearn", "scipy", "click", "pytest", "multiprocessing"}


def test_a_worker_that_cannot_start_is_an_error_and_not_a_bad_image():
    def local(request, settings):
        raise AssertionError

    with (
        Decoder(1, DecodeSettings(), decode=local) as decoder,
        pytest.raises(VggfeatError, match="AttributeError") as caught,
    ):
        list(decoder.stream(orders("show/-")))
    assert not isinstance(caught.value, ImageError)
    with pytest.raises(ConfigError, match="workers"):
        Decoder(-1, DecodeSettings())


def test_a_worker_that_ends_while_starting_is_an_error(monkeypatch):
    monkeypatch.setattr("vggfeat.runtime.sandbox._BOOT", "import os; os._exit(9)")
    with crew() as decoder, pytest.raises(VggfeatError, match="exit code 9"):
        list(decoder.stream(orders("show/-")))


@pytest.mark.parametrize("boot", ["import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)", "raise ValueError",
    "import socket, sys; socket.socket(fileno=int(sys.argv[2])).send(b'\\0\\0\\0\\3abc')"])  # fmt: skip
def test_a_worker_that_is_never_ready_is_no_image_s_fault(monkeypatch, boot):
    monkeypatch.setattr("vggfeat.runtime.sandbox._BOOT", boot)
    with crew(2) as decoder, pytest.raises(ResourceError, match=r"decoding process: .*fewer workers") as caught:
        list(decoder.stream(orders(*["show/-"] * 5)))
    assert caught.value.exit_code == 9


def failing(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


# Of a worker that has to be replaced in the midst of a run, which takes a start each, one error stands for all.
@pytest.mark.parametrize(("number", "first"), [
    *((number, True) for number in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOENT, errno.EACCES)),
    (errno.ENOMEM, True), (errno.ENOMEM, False),
])  # fmt: skip
@pytest.mark.parametrize("call", ["subprocess.Popen", "socket.socketpair"])
def test_a_system_that_gives_no_process_ends_the_stream_by_its_cause(monkeypatch, call, number, first):
    with crew() as decoder:
        if not first:
            os.kill(pid := pid_of(decoder), signal.SIGKILL)
            assert gone(pid, 5)
        monkeypatch.setattr(call, failing(number))
        with pytest.raises(ResourceError, match=os.strerror(number)) as caught:
            list(decoder.stream(orders("show/-")))
    assert "--workers" in str(caught.value)


def test_an_interpreter_that_is_not_known_or_not_there_is_the_cause(monkeypatch, tmp_path):
    for path, found in ((None, "sys.executable"), (str(tmp_path / "python"), "No such file")):
        monkeypatch.setattr(sys, "executable", path)
        with crew() as decoder, pytest.raises(ResourceError, match=found):
            list(decoder.stream(orders("show/-")))


def test_a_thread_that_cannot_start_is_the_cause(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    with crew() as decoder:
        monkeypatch.setattr("threading.Thread.start", start)
        with pytest.raises(ResourceError, match="can't start new thread"):
            list(decoder.stream(orders("show/-")))


def test_a_limit_on_open_files_is_never_an_image_s_fault(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, 0, [b"\x07"]))
    body = (
        "import os, resource\n"
        "from vggfeat.errors import ImageError, ResourceError\n"
        "from vggfeat.images.decode import DecodeSettings, Request\n"
        "from vggfeat.images.pool import Decoder\n"
        "used = len(os.listdir('/proc/self/fd'))\n"
        "for more in range(-1, 9):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "    for workers in (0, 1):\n"
        "        try:\n"
        "            with Decoder(workers, DecodeSettings()) as decoder:\n"
        f"                answer = next(decoder.stream([Request({str(tmp_path / 'a.png')!r}, (None,))]))\n"
        "            print(type(answer).__name__)\n"
        "        except ResourceError as error:\n"
        "            print('ResourceError')\n"
    )
    with script(body) as done:
        found = done.stdout.read().split()
    assert set(found) == {"ResourceError", "DecodedImage"}
    assert found[:2] == ["ResourceError"] * 2
    assert found[-2:] == ["DecodedImage"] * 2


def test_a_worker_gets_of_the_environment_what_it_needs_and_no_secrets(monkeypatch):
    secrets = {
        "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "DATABASE_URL", "SSH_AUTH_SOCK", "MY_OWN", "LC",
        "PYTHON_KEY",
    }  # fmt: skip
    for name in (*secrets, "LC_ALL", "LANG", "TMPDIR", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "C" if name in ("LC_ALL", "LANG") else "/tmp")
    with crew() as decoder:
        found = set(str(next(decoder.stream(orders("environment/-")))).split())
    assert {"PATH", "LC_ALL", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"} <= found
    assert not found & secrets
    kept = {"PATH": "a", "LC_CTYPE": "b", "KEY": "c"}
    assert {name: value for name, value in environment(kept).items() if name in kept} == {"PATH": "a", "LC_CTYPE": "b"}


# Mutants


def mutants(count):
    rng = random.Random(2)
    good = list(good_images())
    for number in range(count):
        data = bytearray(good[number % len(good)])
        how = rng.choice(["flip", "flip", "head", "cut", "hole", "join"])
        if how == "flip":
            for _ in range(rng.choice([1, 3, 10])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == "head":
            data[rng.randrange(min(120, len(data)))] = rng.choice([0, 1, 127, 128, 255])
        elif how == "cut":
            del data[rng.randrange(len(data)) :]
        elif how == "hole":
            start = rng.randrange(len(data))
            del data[start : start + rng.randrange(1, 50)]
        else:
            data[len(data) // 2 :] = rng.choice(good)[len(data) // 2 :]
        yield bytes(data)


def check_mutants(folder, count, workers):
    requests = []
    for number, data in enumerate(mutants(count)):
        (folder / f"{number}.jpg").write_bytes(data)
        requests.append(Request(str(folder / f"{number}.jpg"), (None,)))
    with Decoder(workers, DecodeSettings(timeout=20)) as decoder:
        answers = list(decoder.stream(requests))
    assert len(answers) == count
    for request, answer in zip(requests, answers, strict=True):
        if isinstance(answer, ImageError):
            assert answer.reason in set(REASONS) - {"missing", "worker-died", "time-out", "elongated"}
            assert str(answer).startswith(request.path)
        else:
            assert isinstance(answer, DecodedImage)
            assert answer.regions[0].shape == (*answer.size, 3)
    return requests, answers


def test_good_images_are_good(tmp_path):
    for number, data in enumerate(good_images()):
        (tmp_path / "image").write_bytes(data)
        image = decode(Request(str(tmp_path / "image"), (None,)), DecodeSettings())
        assert image.regions[0].std() > 10, number


def test_every_mutant_ends_exactly_once(tmp_path, capfd):
    requests, answers = check_mutants(tmp_path, 300, 2)
    assert capfd.readouterr() == ("", "")
    failed = sum(isinstance(answer, ImageError) for answer in answers)
    assert 50 < failed < 250
    here = list(Decoder(0, DecodeSettings()).stream(requests))
    assert words(here) == words(answers)


@pytest.mark.long
def test_every_mutant_ends_exactly_once_in_the_long_run(tmp_path):
    check_mutants(tmp_path, 12_000, 2)
