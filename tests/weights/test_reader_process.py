"""The process in which files of other libraries are read: its limits, its end, and what it is given."""

import errno
import os
import pickle
import resource
import signal
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from other_nets import torchvision_net
from vggfeat.errors import ResourceError, WeightsError
from vggfeat.weights import load_backbone, reader_process
from vggfeat.weights.reader_process import Limits
from vggfeat.wording import quoted


@pytest.fixture(scope="module")
def shared():
    """A reader process of these tests' own, started where the environment holds a secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        one = reader_process._ReaderProcess()
        one.start()
    yield one
    one.close()


@pytest.fixture
def reader(shared, monkeypatch):
    monkeypatch.setattr(reader_process, "_READER", shared)
    return shared


@pytest.fixture
def unstarted(monkeypatch):
    monkeypatch.setattr(reader_process, "_READER", reader_process._ReaderProcess())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.pth"
    torch.save(torchvision_net("A").state_dict(), path)
    return path


def nested_key(path, depth):
    """A dictionary with a key given twice, a pair of twice the same pair of ...: its text doubles with each level.

    So does the work to compare it, and to hash it up to Python 3.13; later ones keep the hash of each pair.
    """
    key = b")" + b"q\x00h\x00\x86" * depth
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + 2 * (key + b"K\x01s") + b".")
        archive.writestr("a/version", b"3\n")
    return path


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_the_reader_is_not_given_secrets(reader):
    environment = Path(f"/proc/{reader._process.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"hush" not in environment


def test_several_threads_read_at_once_and_by_names_relative_to_the_current_folder(reader, sound, monkeypatch):
    monkeypatch.chdir(sound.parent)
    with ThreadPoolExecutor(4) as threads:
        nets = list(threads.map(lambda _: load_backbone(Path("net.pth")), range(4)))
    assert len({net.sha256 for net in nets}) == 1


def test_a_reader_that_was_killed_is_started_again(reader, sound):
    load_backbone(sound)
    os.kill(reader._process.pid, signal.SIGKILL)
    assert load_backbone(sound).model.config == "A"


def test_a_small_pickle_that_would_never_end_is_ended(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(Limits, "of", classmethod(lambda cls, size: Limits(seconds=1, memory=1 << 30)))
    path = nested_key(tmp_path / "x.pth", 60)
    assert path.stat().st_size < 1000
    # After a second of its own time, or after 3 of a clock where others use the cores.
    expected = r"x\.pth: expected a file that can be read, found one that .* [13] s"
    with pytest.raises(WeightsError, match=expected) as caught:
        load_backbone(path)
    assert len(str(caught.value)) < 400


def test_a_key_with_a_long_text_gives_a_short_message(tmp_path):
    with pytest.raises(WeightsError, match="found dict with a tuple; save") as caught:
        load_backbone(nested_key(tmp_path / "x.pth", 17))
    assert len(str(caught.value)) < 400


def test_a_signal_is_heard_while_a_file_is_read_and_leaves_no_process(reader, sound, tmp_path):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    load_backbone(sound)
    path = nested_key(tmp_path / "x.pth", 60)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            load_backbone(path)
        assert time.monotonic() - begun < 8
    finally:
        signal.signal(signal.SIGALRM, before)
    assert reader._process.poll() is not None
    running = [
        fields[0]
        for fields in (stat.read_text().split(") ")[1].split() for stat in Path("/proc").glob("[0-9]*/stat"))
        if int(fields[2]) == reader._process.pid
    ]
    assert set(running) <= {"Z"}  # nor any fork of it


def test_a_file_that_declares_more_memory_than_there_is_is_refused(tmp_path):
    # The older format of torch.save names the size of each array before its numbers.
    torch.save({"x": torch.zeros(4)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    size = pickle.dumps(4, protocol=2)[2:-1]
    at = content.index(size, content.index(b"cpu"))
    (tmp_path / "x.pth").write_bytes(content[:at] + pickle.dumps(1 << 36, protocol=2)[2:-1] + content[at + len(size) :])
    with pytest.raises(WeightsError, match=r"x\.pth: expected"):
        load_backbone(tmp_path / "x.pth")


def test_dictionaries_without_an_end_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.")  # it holds itself
        archive.writestr("a/version", b"3\n")
    with pytest.raises(WeightsError, match=r"found dict with 'model'; save the net's state_dict\(\) alone"):
        load_backbone(tmp_path / "x.pth")


def test_a_reader_that_cannot_start_is_not_blamed_on_the_file(unstarted, sound, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ResourceError, match="expected /nowhere/python to start, found No such file"):
        load_backbone(sound)


def test_a_reader_starts_where_no_file_can_be_written(unstarted, sound):
    """Libraries look for a folder of temporary files as they are imported, by writing to it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        reader_process._READER.start()
        found = load_backbone(sound).model.config
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        reader_process._READER.close()
    assert found == "A"


def fail(*args, **kwargs):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_limit_on_open_files_is_named(sound, monkeypatch):
    one = reader_process._ReaderProcess()
    monkeypatch.setattr(reader_process, "_READER", one)
    # As it begins, and once it was killed; each start takes a second.
    for calls in (["subprocess.Popen", "socket.socketpair"], ["socket.socketpair", "subprocess.Popen"]):
        for call in calls:
            with monkeypatch.context() as patch:
                patch.setattr(call, fail)
                with pytest.raises(ResourceError, match="found Too many open files; give it what it lacks"):
                    load_backbone(sound)
        assert load_backbone(sound).model.config == "A"
        os.killpg(one._process.pid, signal.SIGKILL)
    one.close()


@pytest.mark.parametrize("path", ["", None])
def test_a_python_without_a_path_of_its_own_is_named(unstarted, sound, monkeypatch, path):
    monkeypatch.setattr("sys.executable", path)
    with pytest.raises(ResourceError, match="expected Python to start, found no path of the Python interpreter"):
        load_backbone(sound)


def test_text_of_others_is_cut_and_without_control_characters():
    assert quoted("a\x1b[2J\u202eb\n") == r"'a\x1b[2J\u202eb\n'"
    assert quoted("x" * 100, 5) == "'xxxxx'..."
    assert quoted((1, 2)) == "a tuple"
