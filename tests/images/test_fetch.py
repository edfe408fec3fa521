"""Images from elsewhere have the pixels of the file, bit by bit, or fail alone, by a reason of their own."""

import io
import tarfile
import time

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

import fsspec

import range_server
from vggfeat.errors import ConfigError, ImageError
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.images.fetch import FetchSettings, fetched
from vggfeat.images.pool import Decoder
from vggfeat.runtime.http_client import is_public
from vggfeat.runtime.storage import StorageSettings

WHOLE = (None,)
STORE = StorageSettings(attempts=3, wait=0.005, timeout=1, allow_private=True)
SETTINGS = FetchSettings(storage=STORE, threads=4)


def encoded(number):
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, ("png", "jpeg", "webp")[number % 3])
    return file.getvalue()


IMAGES = {f"{number:02d}.img": encoded(number) for number in range(12)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images as files, in a tar (tar.tar), and in Parquet (table.parquet, 4 rows a group)."""
    root = tmp_path_factory.mktemp("images")
    for name, data in IMAGES.items():
        (root / name).write_bytes(data)
    with tarfile.open(root / "tar.tar", "w") as file:
        for name in IMAGES:
            file.add(root / name, name)
    cells = [{"bytes": data, "path": name} for name, data in IMAGES.items()]
    table = pa.table({"image": cells, "plain": list(IMAGES.values()), "text": list(IMAGES)})
    parquet.write_table(table, root / "table.parquet", row_group_size=4)
    return root


@pytest.fixture(scope="module")
def server(folder):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with range_server.served(files) as running:
        yield running


@pytest.fixture(scope="module")
def memory(folder):
    fsspec.filesystem("memory").put(f"{folder}/", "memory://fetch/", recursive=True)
    return "memory://fetch"


@pytest.fixture(scope="module")
def pixels(folder):
    return [decode(Request(str(folder / name), WHOLE), DecodeSettings()) for name in IMAGES]


def files_of(root):
    return [Request(f"{root}/{name}", WHOLE) for name in IMAGES]


def members_of(root, folder):
    with tarfile.open(folder / "tar.tar") as tar:
        return [Request(f"{root}/tar.tar", WHOLE, (member.offset_data, member.size)) for member in tar]


def cells_of(root, column):
    return [Request(f"{root}/table.parquet#{column}={row}", WHOLE) for row in range(len(IMAGES))]


def ways(root, folder):
    return {
        "files": files_of(root), "tar": members_of(root, folder), "cells": cells_of(root, "image"),
        "bytes": cells_of(root, "plain"),
    }  # fmt: skip


@pytest.mark.parametrize("way", ["files", "tar", "cells", "bytes"])
@pytest.mark.parametrize("place", ["folder", "server", "memory"])
def test_images_from_anywhere_have_the_pixels_of_the_file_in_their_order(place, way, folder, server, memory, pixels):
    root = {"folder": folder, "server": server.address, "memory": memory}[place]
    with Decoder(1, DecodeSettings()) as decoder:
        found = list(decoder.stream(fetched(ways(root, folder)[way], SETTINGS)))
    assert len(found) == len(pixels)
    for mine, local in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(mine.regions[0], local.regions[0])
        assert mine.sha256 == local.sha256


def test_rows_in_any_order_are_found_in_a_table(folder):
    order = [11, 3, 4, 4, 0, 7, 6]
    requests = [cells_of(folder, "image")[row] for row in order]
    assert [one.data for one in fetched(requests, SETTINGS)] == [list(IMAGES.values())[row] for row in order]


def test_neighbours_in_a_tar_come_by_one_request_and_the_others_by_their_own(folder, server):
    server.log.clear()
    members = members_of(server.address, folder)
    assert [one.data for one in fetched(members, SETTINGS)] == list(IMAGES.values())
    assert len(server.log) == 1
    server.log.clear()
    backwards = [one.data for one in fetched(members[::-1], SETTINGS)]
    assert backwards == list(IMAGES.values())[::-1]
    assert len(server.log) == len(members)


def test_a_server_without_ranges_is_read_up_to_the_last_byte_that_is_needed(folder, server):
    member = members_of(f"{server.address}/whole", folder)[5]
    (found,) = fetched([member], SETTINGS)
    assert found.data == list(IMAGES.values())[5]


def test_what_fails_in_passing_is_tried_again(server):
    name = "00.img"
    (found,) = fetched([Request(f"{server.address}/fail/2/{name}", WHOLE)], SETTINGS)
    assert found.data == IMAGES[name]


@pytest.mark.parametrize(
    ("path", "reason", "said", "requests"),
    [
        ("none.img", "missing", "expected a file at this address, found none", 1),
        ("status/403", "unreadable", "reading was refused: ClientResponseError: 403", 1),
        ("status/500", "unreachable", r"reading failed 3 times, the last: ClientResponseError: 500", 3),
        ("drip/00.img", "unreachable", r"reading failed 3 times, the last: no answer in time", 3),
        ("redirect/http://127.0.0.1:9/a.png", "unreachable", "Cannot connect to host 127.0.0.1:9", 3),
        ("redirect/file:///etc/passwd", "unreadable", "refused: NonHttpUrlRedirectClientError", 1),
        ("endless", "too-large", r"expected 1 to 1000000 bytes", 1),
        ("table.parquet#image=99", "damaged", r"expected more than 99 rows, found 12", None),
        ("table.parquet#none=0", "damaged", "expected the column 'none', found none", None),
        ("table.parquet#text=0", "unsupported", "expected bytes, found str", None),
        ("tar.tar#image=0", "damaged", "expected a whole Parquet file", None),
        ("none.parquet#image=0", "missing", "expected a file", None),
    ],
)
def test_a_failure_is_that_of_its_image_alone(server, path, reason, said, requests):
    server.log.clear()
    address = f"{server.address.replace('//', '//me:SECRET@')}/{path}" + ("?key=SECRET" if "#" not in path else "")
    good = Request(f"{server.address}/00.img", WHOLE)
    limited = FetchSettings(storage=STORE, threads=4, max_bytes=1_000_000)
    first, failed, last = fetched([good, Request(address, WHOLE), good], limited)
    assert first.data == last.data == IMAGES["00.img"]
    assert isinstance(failed, ImageError)
    assert failed.reason == reason
    assert str(failed).startswith(f"{server.address}/{path.split('#')[0]}")
    with pytest.raises(ImageError, match=said):
        raise failed
    assert "SECRET" not in str(failed)
    if requests is not None:
        assert len(server.log) - 2 == (requests if "127.0.0.1:9" not in path else 3)


def test_a_tar_that_has_become_shorter_costs_the_images_that_it_lost(folder, server):
    members = members_of(server.address, folder)
    beyond = Request(members[-1].path, WHOLE, (members[-1].span[0] + members[-1].span[1] + 100, 10**5))
    *kept, lost = fetched([*members, beyond], SETTINGS)
    assert [one.data for one in kept] == list(IMAGES.values())
    assert (lost.reason, "expected 100000 bytes, found" in str(lost)) == ("truncated", True)


@pytest.mark.parametrize("way", ["{}/00.img", "{}/redirect/{}/00.img", "zip://a.png::{}/00.img"])
def test_addresses_of_the_own_network_are_read_only_where_that_is_allowed(server, way):
    address = way.format(server.address, server.address)
    server.log.clear()
    careful = FetchSettings(storage=StorageSettings(attempts=2, wait=0, timeout=2))
    (found,) = fetched([Request(address, WHOLE)], careful)
    assert isinstance(found, ImageError)
    assert found.reason == "unreadable"
    assert "private address" in str(found)
    assert server.log == []
    by_name = address.replace("127.0.0.1", "localhost")
    (found,) = fetched([Request(by_name, WHOLE)], careful)
    assert "private" in str(found)
    assert server.log == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.9.9", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
     "2002:7f00:1::"],
)  # fmt: skip
def test_what_is_not_for_everybody_is_no_public_address(host):
    assert not is_public(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_what_is_for_everybody_is(host):
    assert is_public(host)


def test_local_files_pass_as_they_are(folder):
    requests = [*files_of(folder), *members_of(folder, folder), Request("memory", WHOLE, data=b"x")]
    assert list(fetched(requests, SETTINGS)) == requests


def test_nobody_waits_for_attempts_when_the_reader_goes_away(server):
    patient = FetchSettings(storage=StorageSettings(attempts=9, wait=20, allow_private=True), threads=2)
    requests = [Request(f"{server.address}/{path}", WHOLE) for path in ("00.img", "status/500")]
    found = fetched(requests, patient)
    next(found)
    begun = time.monotonic()
    found.close()
    assert time.monotonic() - begun < 5


def test_what_can_not_be_read_at_all_is_no_fault_of_an_image():
    with pytest.raises(ConfigError, match="expected an address that fsspec can read"):
        list(fetched([Request("nonsense://a/b.png", WHOLE)], SETTINGS))
    with pytest.raises(ConfigError, match="at least one thread"):
        FetchSettings(threads=0)
