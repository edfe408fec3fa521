"""Members of tars as Python's library finds them, whoever wrote the tar and whatever is damaged in it."""

import io
import random
import tarfile

import pytest

from vggfeat.errors import DatasetError
from vggfeat.formats import tar
from vggfeat.runtime.storage import open_storage

NAMES = [
    "a/0.jpg",
    "a/0.cls",
    "./a/1.jpg",
    "b..c/2.jpg",
    "é/3.jpg",
    "d" * 90 + "/" + "4" * 40 + ".jpg",
    "5" * 200 + ".jpg",
]
NAMES += [f"e/{number:03}.{ending}" for number in range(40) for ending in ("jpg", "cls")]


def write(path, form=tarfile.GNU_FORMAT, more=(), **named):
    with tarfile.open(path, "w", format=form, **named) as file:
        for name in NAMES[: None if form != tarfile.USTAR_FORMAT else 6]:
            info = tarfile.TarInfo(name)
            info.size = 3000 if name.startswith("e/001") else 700 * name.endswith("jpg") + 1
            file.addfile(info, io.BytesIO(b"7" * info.size))
        for kind, name in more:
            info = tarfile.TarInfo(name)
            info.type = kind
            file.addfile(info)
    return path


def members(path):
    """Return what is found, and the message of the error that ended it."""
    found = []
    try:
        found.extend(tar.TarIndex(open_storage(path.parent), path.name).members())
    except DatasetError as error:
        return found, str(error)
    return found, None


def of_the_library(path):
    with tarfile.open(path) as file:
        return [(info.name.removeprefix("./"), info.offset_data, info.size) for info in file if info.isreg()]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("window", [1024, 1 << 16])
def test_members_are_those_of_the_library(form, window, tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_WINDOW", window)
    path = write(tmp_path / "x.tar", form, [(tarfile.DIRTYPE, "folder"), (tarfile.AREGTYPE, "folder/")])
    found, error = members(path)
    assert error is None
    assert [tuple(member) for member in found] == of_the_library(path)


def test_what_a_global_header_says_counts_for_all_members(tmp_path):
    path = write(tmp_path / "x.tar", tarfile.PAX_FORMAT, pax_headers={"comment": "x", "size": "9"})
    assert [tuple(member) for member in members(path)[0]] == of_the_library(path)


def test_most_headers_are_read_without_the_library(tmp_path, monkeypatch):
    path = write(tmp_path / "x.tar")
    read, original = [], tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: read.append(1) or original(self))
    assert len(members(path)[0]) == len(NAMES)
    assert len(read) < 0.2 * len(NAMES)


def test_labels_come_from_the_windows_that_headers_are_in(tmp_path, monkeypatch):
    path = write(tmp_path / "x.tar")
    index, requests = tar.TarIndex(open_storage(tmp_path), "x.tar"), []
    read = index._raw.readinto
    monkeypatch.setattr(type(index._raw), "readinto", lambda self, buffer: requests.append(1) or read(buffer))
    for member in index.members():
        assert index.read(member.start, member.size) == b"7" * member.size
    assert len(requests) <= -(-path.stat().st_size // tar._WINDOW)


def test_damage_ends_as_if_the_library_had_read_every_header(tmp_path, monkeypatch):
    whole = write(tmp_path / "x.tar", more=[(tarfile.LNKTYPE, "link")]).read_bytes()
    chance, path = random.Random(0), tmp_path / "bad.tar"
    headers = [member.start - 512 for member in members(tmp_path / "x.tar")[0]]
    plain = tar._plain_header
    for _ in range(100):
        bad = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            bad[chance.choice(headers) + chance.choice([chance.randrange(512), chance.randrange(124, 160)])] = (
                chance.choice([0, 32, 47, 48, 56, 76, 120, chance.randrange(256)])
            )
        path.write_bytes(bad[: chance.choice([len(bad), chance.randrange(len(bad))])])
        found = members(path)
        monkeypatch.setattr(tar, "_plain_header", lambda data, at: None)
        assert found == members(path)
        monkeypatch.setattr(tar, "_plain_header", plain)
