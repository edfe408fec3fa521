"""Unfinished feature files: nothing committed is lost, nothing foreign is mixed in, the end is the same to the byte."""

import dataclasses
import hashlib
import io
import json
import os
import random
import subprocess
import time
import tracemalloc

import h5py
import numpy as np
import pytest

from feature_rows import (
    FAILED,
    KEY,
    ODD_NAMES,
    PROVENANCE,
    ROWS,
    SHAPE,
    SHARD_ROWS,
    crash_run,
    finish,
    finished,
    make_block,
    make_dataset,
    memory_folder,
    open_parts,
)
from vggfeat.errors import StoreError
from vggfeat.runtime.durable import Files
from vggfeat.store.identity import describe, differences, first_other_row, matching
from vggfeat.store.layout import Shape, Status
from vggfeat.store.parts import HEAD
from vggfeat.store.reader import FeatureFile, validate
from vggfeat.store.writer import FeatureWriter


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def append_all(parts):
    for shard in parts.pending:
        parts.append(shard, make_block(parts.rows(shard), parts.shape))


def begun(out, *shards, **settings):
    """Begin a run, or go on, keep some of its shards, and return the folder of its parts."""
    with open_parts(out, **settings) as parts:
        for shard in shards:
            parts.append(shard, make_block(parts.rows(shard)))
        return parts.folder


@pytest.fixture
def folder():
    """Where a sync costs nothing: hundreds of runs are to be killed there."""
    with memory_folder() as path:
        yield path


@pytest.fixture
def out(folder):
    return folder / "voc2007.h5"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """SHA-256 of the file of a run that nothing befell."""
    return digest(finish(tmp_path_factory.mktemp("unbroken") / "voc2007.h5"))


# Kills, faults, races: the whole of each mode stands in crash_runs.py.


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.long)])
def test_kill_at_every_call_loses_nothing_and_ends_the_same(folder, stride):
    seen = crash_run("sweep", folder, stride)
    assert seen["calls"] > 80
    assert seen["points"] == seen["died"] > 1.2 * seen["calls"] / stride
    assert (seen["lost"], seen["different"]) == ([], [])


@pytest.mark.parametrize("stride", [29, pytest.param(7, marks=pytest.mark.long)])
def test_kill_during_recovery_from_a_kill_ends_the_same(folder, stride):
    seen = crash_run("stacked", folder, stride)
    assert seen["points"] >= 9
    assert seen["different"] == []


def test_real_kills_at_random_moments_lose_nothing(folder):
    seen = crash_run("random_kills", folder, 10)
    assert seen["kills"] >= 10
    assert (seen["lost"], seen["different"]) == ([], 0)


@pytest.mark.parametrize("stride", [19, pytest.param(1, marks=pytest.mark.long)])
def test_disk_error_at_every_call_is_told_and_mended_by_running_again(folder, stride):
    seen = crash_run("faults", folder, stride)
    assert seen["points"] > 3 * seen["calls"] / stride
    assert (seen["silent"], seen["different"]) == ([], [])
    for message in seen["messages"]:
        assert "f.h5" in message
        begun = "opening failed" not in message or "kept" in message  # Before that there is nothing to keep.
        told = "kept in f.h5.parts" in message or "the file itself is complete" in message
        assert begun == told
        assert "fix it and run the same again" in message or "delete" in message
    assert any("kept in f.h5.parts" in message for message in seen["messages"])
    assert any("the disk is full" in message for message in seen["messages"])


def test_of_two_writers_exactly_one_goes_on_and_the_other_names_it(folder):
    seen = crash_run("races", folder, 20)
    assert seen["winners"] == [1] * 20
    assert seen["messages"] == [True] * 20
    assert seen["slowest"] < 1


def test_lock_is_free_when_its_holder_is_killed_though_a_worker_lives_on(folder):
    assert crash_run("orphans", folder) == {"refused while held": True, "free at once": True}


def test_real_full_disk_keeps_what_was_committed(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    try:
        seen = crash_run("full_disk", tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    for name in ("shards", "file"):
        assert "MiB free on its disk" in seen[f"{name} asked first"]
        assert "the disk is full" in seen[f"{name} found out"][1]
    assert 0 < seen["shards found out"][0] < 32
    assert seen["shards kept"] == 32 * seen["shards found out"][0]
    assert (seen["file found out"][0], seen["file kept"]) == (32, 1000)


def test_limit_on_the_size_of_files_is_told_and_mended_by_running_again(tmp_path):
    seen = crash_run("file_limit", tmp_path)
    assert seen["first"][0] == 32
    assert "writing the feature file failed: File too large" in seen["first"][1]
    assert seen["second"] == [0, "finished"]


def test_memory_does_not_grow_with_the_rows(folder):
    seen = crash_run("many_rows", folder, 64_000)
    assert seen["file_mib"] > 60
    assert seen["grown_mib"] < 64


# Going on.


def test_run_that_goes_on_asks_only_for_what_is_missing(out, unbroken):
    with open_parts(out) as parts:
        assert (parts.pending, parts.total_rows, parts.done_rows) == ([0, 1, 2], ROWS, 0)
        assert [parts.rows(shard) for shard in parts.pending] == [range(8), range(8, 16), range(16, 23)]
        parts.append(2, make_block(parts.rows(2)))
        assert (parts.pending, parts.done_rows, len(parts.failures)) == ([0, 1], 7, 1)
    with open_parts(out) as parts:
        assert (parts.pending, parts.done_rows, parts.failures) == ([0, 1], 7, {17: FAILED[17]})
        for shard in (1, 0):
            parts.append(shard, make_block(parts.rows(shard)))
        assert parts.failures == FAILED
        assert parts.finish(PROVENANCE) == out
        assert parts.complete
    assert digest(out) == unbroken
    assert set(os.listdir(out.parent)) == finished(out)


def test_nothing_in_a_file_tells_when_it_was_made(out, unbroken):
    begun = int(time.time())
    while int(time.time()) == begun:  # HDF5 counts in whole seconds.
        time.sleep(0.05)
    assert digest(finish(out)) == unbroken
    with open_parts(out.with_name("second.h5")) as parts:
        parts.append(0, make_block(parts.rows(0)))
        raw = (parts.folder / "s00000.h5").read_bytes()
    with h5py.File(io.BytesIO(raw)) as file:
        times = {h5py.h5o.get_info(file[name].id).mtime for name in ["/", *file]}
    with h5py.File(out) as file:
        times |= {h5py.h5o.get_info(file[name].id).mtime for name in ["/", *file, "splits/test"]}
    assert times == {0}


def test_complete_file_is_left_alone_and_known(out, unbroken):
    finish(out)
    with open_parts(out) as parts:
        assert (parts.complete, parts.pending, parts.done_rows) == (True, [], ROWS)
        assert parts.failures == FAILED
    report = matching(out, describe(make_dataset(), KEY, SHAPE, 0)).report
    assert (report.rows, report.done, report.failed) == (ROWS, ROWS - 2, 2)
    assert digest(out) == unbroken
    assert set(os.listdir(out.parent)) == finished(out)


def test_nothing_exists_before_the_end(out):
    assert matching(out, describe(make_dataset(), KEY, SHAPE, 0)) is None
    begun(out, 0)
    assert matching(out, describe(make_dataset(), KEY, SHAPE, 0)) is None
    assert not out.exists()


def test_frozen_list_names_every_row(out):
    with open_parts(out) as parts:
        lines = (parts.folder / "inputs.jsonl").read_text().splitlines()
    dataset = make_dataset()
    assert [json.loads(line) for line in lines] == [list(pair) for pair in zip(dataset.ids, dataset.paths, strict=True)]


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_every_flipped_bit_of_a_shard_is_found_and_the_shard_computed_anew(out, unbroken, shard):
    choice = random.Random(shard)
    path = begun(out, 0, 1, 2) / f"s{shard:05d}.h5"
    good = path.read_bytes()
    places = [0, HEAD - 1, HEAD, len(good) - 1] + [choice.randrange(len(good)) for _ in range(30)]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << choice.randrange(8)
        path.write_bytes(bad)
        with open_parts(out) as parts:
            assert parts.pending == [shard], place
            assert path.with_name(f"{path.name}.bad").read_bytes() == bad
            parts.append(shard, make_block(parts.rows(shard)))
        assert path.read_bytes() == good
    finish(out)
    assert digest(out) == unbroken
    assert set(os.listdir(out.parent)) == finished(out)


@pytest.mark.parametrize("damage", ["empty", "truncated", "longer", "another's", "huge", "pipe"])
def test_shard_that_is_no_shard_is_computed_anew(out, unbroken, damage):
    parts = begun(out, 0, 1)
    path, other = parts / "s00000.h5", parts / "s00001.h5"
    good = path.read_bytes()
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    else:
        contents = {"truncated": good[:-1], "longer": good + b"\0", "another's": other.read_bytes()}
        path.write_bytes(contents.get(damage, b""))
        if damage == "huge":
            os.truncate(path, 1 << 40)
    with open_parts(out) as parts:
        assert parts.pending == [0, 2]
    finish(out)
    assert digest(out) == unbroken


@pytest.mark.parametrize("change", ["nothing", "reason", "status", "value"])
def test_shard_with_impossible_rows_behind_a_fitting_checksum_is_computed_anew(out, unbroken, change):
    path = begun(out, 0) / "s00000.h5"
    image = bytearray(path.read_bytes()[HEAD:])
    with h5py.File(io.BytesIO(image)) as file:
        place = {name: file[name].id.get_offset() for name in ("features", "status", "reasons")}
        width = file["reasons"].dtype.itemsize
    if change == "reason":
        at = place["reasons"] + 3 * width
        image[at : at + width] = b"trunc\0ted"
    elif change == "status":
        image[place["status"]] = Status.PENDING
    elif change == "value":
        image[place["features"] : place["features"] + 4] = np.float32(np.inf).tobytes()
    head = path.read_bytes()[:HEAD]
    digests = [hashlib.sha256(content).hexdigest().encode() for content in (path.read_bytes()[HEAD:], image)]
    path.write_bytes(head.replace(*digests) + image)
    with open_parts(out) as parts:
        assert parts.pending == ([1, 2] if change == "nothing" else [0, 1, 2])
    finish(out)
    assert digest(out) == unbroken


def test_shard_damaged_while_the_run_goes_on_never_reaches_the_file(out, unbroken):
    with open_parts(out) as parts:
        append_all(parts)
        path = parts.folder / "s00001.h5"
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        with pytest.raises(StoreError, match=r"s00001\.h5.*damage.*computed again"):
            parts.finish(PROVENANCE)
        assert not out.exists()
        assert not list(parts.folder.glob("*.tmp"))
    finish(out)
    assert digest(out) == unbroken


def test_shard_is_plain_hdf5_behind_its_checksum(out):
    path = begun(out, 1) / "s00001.h5"
    raw = path.read_bytes()
    assert hashlib.sha256(raw[HEAD:]).hexdigest().encode() in raw[:HEAD]
    with h5py.File(path) as file:
        assert file["features"][0, 1, 1, 3] == 8 + 1 / 4 + 1 / 8 + 3 / 64


def test_manifest_that_is_damaged_says_what_to_do(out):
    path = begun(out) / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match=r"manifest\.json.*damage.*delete"):
        open_parts(out)


@pytest.mark.parametrize("content", [b"[" + b"[]," * (25 << 20), b"{" * (1 << 20) + b"}", b"\0" * (1 << 21), None])
def test_manifest_of_more_than_a_run_writes_is_not_read(out, content):
    path = begun(out) / "manifest.json"
    if content is None:
        os.truncate(path, 1 << 36)
    else:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"manifest\.json: expected at most 1048576 bytes, found \d+; move it away"):
        open_parts(out)


def nested(depth, inner):
    return '{"a":' * depth + inner + "}" * depth


@pytest.mark.parametrize("found", [
    "[]",
    nested(900, ",".join([f'"b{number}":1' for number in range(90_000)]).join(("{", "}"))),
    json.dumps({"k" * 500_000: {f"b{number}": 1 for number in range(40_000)}}),
    json.dumps({"\x1b[2J\n": 1}),
    nested(900, "1"),
])  # fmt: skip
def test_manifest_of_another_kind_is_refused_in_a_short_line_and_little_memory(out, found):
    path = begun(out) / "manifest.json"
    path.write_text(found)
    tracemalloc.start()
    with pytest.raises(StoreError, match="expected parts of the same run, found another: ") as caught:
        open_parts(out)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    assert len(str(caught.value)) < 20_000
    assert str(caught.value).isprintable()


def test_key_too_large_to_be_read_again_is_refused_and_what_stood_there_stays(out):
    begun(out, 0)
    with pytest.raises(StoreError, match="expected a key of less than 1 MiB"):
        open_parts(out, key=KEY | {"long": "x" * (1 << 20)}, overwrite=True)
    with open_parts(out) as parts:
        assert parts.pending == [1, 2]


def test_differences_beyond_fifty_are_counted():
    told = differences({f"k{number:03d}": 1 for number in range(99)}, {"z": 2})
    assert told[0] == "k000: found 1, expected none"
    assert (len(told), told[-1]) == (51, "and 50 more")


@pytest.mark.parametrize(("content", "words"), [
    (b"\0", "inputs.jsonl can't be read, so that"),
    (None, "inputs.jsonl can't be read, so that"),
    (b'["000000"', "inputs.jsonl can't be read, so that"),
    (b"null\n", "row 0 is the first that differs: found None, expected"),
])  # fmt: skip
def test_frozen_list_as_large_as_a_disk_is_read_by_short_lines(tmp_path, content, words):
    path = tmp_path / "inputs.jsonl"
    if content is not None:
        path.write_bytes(content)
        os.truncate(path, 1 << 36)
    tracemalloc.start()
    assert words in first_other_row(path, make_dataset())
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_frozen_list_that_goes_on_with_nothing_ends(tmp_path):
    dataset, path = make_dataset(), tmp_path / "inputs.jsonl"
    pairs = zip(dataset.ids, dataset.paths, strict=True)
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs) + "null\n")
    assert "row 23 is the first that differs: found None, expected None" in first_other_row(path, dataset)
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in zip(dataset.ids, dataset.paths, strict=True)))
    assert "ids and paths are the same" in first_other_row(path, dataset)


@pytest.mark.parametrize("name", ["LOCK", "inputs.jsonl", "manifest.json"])
def test_pipe_in_the_folder_of_parts_is_not_waited_for(out, name):
    path = begun(out) / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match=r"found another: |expected a regular file, found a link, folder, pipe"):
        open_parts(out, make_dataset(name="voc2012"))


# Other settings.

CHANGED_KEYS = [
    ({"weights_sha256": "cd" * 32}, r'found "abababab\.\.\.", expected "cdcdcdcd\.\.\." \(another weights'),
    ({"network": "E"}, r'network: found "D", expected "E"'),
    ({"layer": "fc6"}, r'layer: found "fc7", expected "fc6"'),
    ({"precision": "bf16"}, r'precision: found "fp32", expected "bf16"'),
    ({"interpolation": "bilinear"}, r"interpolation"),
    ({"batch": 4}, r"batch: found 8, expected 4"),
    ({"mean": [123.68, 116.779, 103.94]}, r"mean: .*103\.939.*103\.94"),
    ({"mirror": False}, r"mirror: found true, expected false"),
    ({"mirror": 1}, r"mirror: found true, expected 1"),
    ({"versions": KEY["versions"] | {"torch": "2.12"}}, r'versions\.torch: found "2\.11", expected "2\.12"'),
    ({"new": None}, r"new: found none, expected null"),
    ({"batch": "x" * 500 + "1"}, r"batch: found 8, expected \"xxx"),
]
CHANGED_SHAPES = [
    ({"scales": (256, 512)}, r"scales: found \[256, 384\], expected \[256, 512\]"),
    ({"regions": ("image", "frame")}, r"regions: "),
    ({"channels": 6}, r"channels: found 5, expected 6"),
]
ROWS_ARRAY = np.arange(ROWS)
CHANGED_SETS = [
    ({"name": "voc2012"}, r'dataset: found "voc2007", expected "voc2012"'),
    ({"ids": (*make_dataset().ids[:-1], "new")}, r"row 22 is the first that differs: .*000022.*'new'"),
    ({"paths": ("new.jpg", *make_dataset().paths[1:])}, r"row 0 is the first that differs"),
    ({"classes": ("cat", "dog")}, "classes, labels, boxes, splits, groups or columns differ"),
    ({"labels": -make_dataset().labels}, "classes, labels, boxes, splits, groups or columns differ"),
    ({"boxes": None}, "classes, labels, boxes, splits, groups or columns differ"),
    ({"splits": {}}, "classes, labels, boxes, splits, groups or columns differ"),
]


@pytest.fixture(scope="module", params=["parts", "file"])
def other(request, tmp_path_factory):
    """The output of a run of other settings, unfinished or finished."""
    out = tmp_path_factory.mktemp("other") / "x.h5"
    if request.param == "file":
        return finish(out)
    begun(out, 0)
    return out


def refused(other, words, **changes):
    before = {path: path.read_bytes() for path in other.parent.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=words) as caught:
        open_parts(other, **changes)
    assert "x.h5" in str(caught.value)
    assert {path: path.read_bytes() for path in other.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("change", "words"), CHANGED_KEYS)
def test_other_key_is_refused_and_named(other, change, words):
    refused(other, words, key=KEY | change)


def test_of_a_finished_file_the_weights_are_named(tmp_path):
    out = tmp_path / "x.h5"
    with open_parts(out) as parts:
        append_all(parts)
        parts.finish(PROVENANCE | {"weights": "D.safetensors"})
    refused(out, 'the file was made with "D.safetensors"', key=KEY | {"weights_sha256": "cd" * 32})


def test_missing_key_is_refused_and_named(other):
    refused(other, r'layer: found "fc7", expected none', key={k: v for k, v in KEY.items() if k != "layer"})


@pytest.mark.parametrize(("change", "words"), CHANGED_SHAPES)
def test_other_shape_is_refused_and_named(other, change, words):
    refused(other, words, shape=dataclasses.replace(SHAPE, **change))


@pytest.mark.parametrize(("change", "words"), CHANGED_SETS)
def test_other_data_set_is_refused_and_the_difference_named(other, change, words):
    if other.exists():  # The file itself says only that the data set is another one.
        words = "fingerprint: found|dataset: found"
    refused(other, words, dataset=make_dataset(**change))


def test_other_shard_size_is_refused_while_parts_stand(other):
    if other.exists():
        with open_parts(other, shard_rows=3) as parts:
            assert parts.complete
    else:
        refused(other, f"shard_rows: found {SHARD_ROWS}, expected 3", shard_rows=3)


def test_long_values_that_differ_only_at_their_end_differ(out):
    finish(out, key=KEY | {"x": "a" * 200 + "1"})
    with pytest.raises(StoreError, match=r"x"):
        open_parts(out, key=KEY | {"x": "a" * 200 + "2"})


def test_overwriting_replaces_a_file_of_another_key_only_at_the_end(out):
    before = digest(finish(out))
    with open_parts(out, key=KEY | {"layer": "fc6"}, overwrite=True) as parts:
        append_all(parts)
        assert digest(out) == before
        parts.finish(PROVENANCE)
    with FeatureFile(out) as file:
        assert file.key["layer"] == "fc6"
    assert set(os.listdir(out.parent)) == finished(out)


def test_overwriting_goes_on_with_its_own_parts_and_throws_away_others(out):
    finish(out)
    for layer, pending in (("fc6", [0, 1, 2]), ("fc6", [1, 2]), ("fc8", [0, 1, 2])):
        with open_parts(out, key=KEY | {"layer": layer}, overwrite=True) as parts:
            assert parts.pending == pending
            parts.append(pending[0], make_block(parts.rows(pending[0])))


def test_finished_run_leaves_the_parts_of_an_overwriting_one(out):
    finish(out)
    begun(out, 0, key=KEY | {"layer": "fc6"}, overwrite=True)
    with open_parts(out) as parts:
        assert parts.complete
    with open_parts(out, key=KEY | {"layer": "fc6"}, overwrite=True) as parts:
        assert parts.pending == [1, 2]


# What stands in the way.


def of_another_program():
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["mine"] = [1, 2, 3]
    return memory.getvalue()


@pytest.mark.parametrize("content", [b"an image", of_another_program()], ids=["image", "HDF5"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_file_that_is_not_ours_is_never_overwritten(out, content, overwrite):
    out.write_bytes(content)
    with pytest.raises(StoreError, match="left as it is"):
        open_parts(out, overwrite=overwrite)
    assert out.read_bytes() == content
    assert os.listdir(out.parent) == [out.name]


def cut(content):
    return content[: len(content) // 2]


def status_7(content):
    memory = io.BytesIO(content)
    with h5py.File(memory, "r+") as file:
        file["status"][3] = 7
    return memory.getvalue()


def one_bit(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [cut, status_7, one_bit, lambda content: b""], ids=["cut", "status", "bit", "empty"])
def test_a_damaged_file_is_replaced_if_that_is_asked_for(out, unbroken, damage):
    finish(out)
    content = damage(out.read_bytes())
    out.write_bytes(content)
    if damage is not one_bit:  # Which only the checksums tell, when the file is used.
        with pytest.raises(StoreError, match="make it again with --overwrite"):
            open_parts(out)
    assert out.read_bytes() == content
    assert set(os.listdir(out.parent)) == finished(out)
    with open_parts(out, overwrite=True) as parts:
        assert not parts.complete
        append_all(parts)
        parts.finish(PROVENANCE)
    assert digest(out) == unbroken


def test_a_refused_retry_leaves_nothing_behind(out):
    finish(out)
    content = one_bit(out.read_bytes())
    out.write_bytes(content)
    with pytest.raises(StoreError, match="expected a sound feature file"):
        open_parts(out, retry_failed=True)
    assert out.read_bytes() == content
    assert set(os.listdir(out.parent)) == finished(out)


def test_file_that_appears_during_the_run_is_never_overwritten(out):
    with open_parts(out) as parts:
        append_all(parts)
        out.write_bytes(b"mine")
        with pytest.raises(StoreError, match="left as it is"):
            parts.finish(PROVENANCE)
    assert out.read_bytes() == b"mine"


def test_output_in_no_folder_or_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(StoreError, match="make it first"):
        open_parts(tmp_path / "none" / "x.h5")
    with pytest.raises(StoreError, match="found a folder"):
        open_parts(tmp_path)
    assert os.listdir(tmp_path) == []


def test_parts_that_are_a_file_or_a_link_are_refused(tmp_path):
    (tmp_path / "x.h5.parts").write_bytes(b"mine")
    with pytest.raises(StoreError, match="expected a folder for parts"):
        open_parts(tmp_path / "x.h5")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "y.h5.parts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="expected a folder for parts"):
        open_parts(tmp_path / "y.h5")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_link_to_the_output_leads_to_the_same_work(tmp_path, unbroken):
    real, link = tmp_path / "real.h5", tmp_path / "link.h5"
    link.symlink_to(real)
    with open_parts(real), pytest.raises(StoreError, match="only writer"):
        open_parts(link)
    finish(link)
    assert link.is_symlink()
    assert digest(real) == unbroken


def test_others_files_in_the_folder_stay(out):
    with open_parts(out) as parts:
        (parts.folder / "notes.txt").write_text("mine")
    finish(out)
    assert os.listdir(f"{out}.parts") == ["notes.txt"]
    assert validate(out).problems == ()


@pytest.mark.parametrize("name", ["with space.h5", "é𝄞.h5", "new\nline.h5", "raw-\udcff.h5", "-o.h5", "no suffix"])
def test_output_may_have_any_name(tmp_path, unbroken, name):
    assert digest(finish(tmp_path / name)) == unbroken


def test_too_little_room_is_told_before_anything_is_computed(out):
    class Small(Files):
        def free(self, folder):
            return 1 << 20

    with pytest.raises(StoreError, match=r"expected 1\.\d MiB free on its disk, found 1\.0 MiB"):
        open_parts(out, files=Small())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        open_parts(tmp_path / "x.h5")
    tmp_path.chmod(0o700)


# What a block and a data set must be.


def changed_block(**changes):
    return dataclasses.replace(make_block(range(8)), **changes)


BAD_BLOCKS = [
    (lambda block: {"features": block.features[:7]}, "features: expected float32"),
    (lambda block: {"features": block.features.astype(np.float64)}, "features: expected float32"),
    (lambda block: {"features": block.features[..., :4]}, "features: expected float32"),
    (lambda block: {"status": block.status * 0}, "every row done or failed"),
    (lambda block: {"status": block.status * 0 + 3}, "every row done or failed"),
    (lambda block: {"status": block.status.astype(np.int64)}, "status: expected uint8"),
    (lambda block: {"reasons": block.reasons[:7]}, "a reason for every failed row"),
    (lambda block: {"reasons": ("",) * 8}, "a reason for every failed row"),
    (lambda block: {"reasons": ("late", *block.reasons[1:])}, "a reason for every failed row"),
    (lambda block: {"reasons": (*block.reasons[:3], "a\0b", *block.reasons[4:])}, "reasons"),
    (lambda block: {"sizes": block.sizes[:, :1]}, "sizes: expected int32"),
    (lambda block: {"sha256": block.sha256[:, :31]}, "sha256: expected uint8"),
]


@pytest.mark.parametrize(("change", "words"), BAD_BLOCKS)
def test_block_that_does_not_fit_is_refused(out, change, words):
    with open_parts(out) as parts:
        with pytest.raises(StoreError, match=words):
            parts.append(0, changed_block(**change(make_block(range(8)))))
        assert parts.pending == [0, 1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_that_is_not_finite_can_not_be_done(out, value):
    features = make_block(range(8)).features.copy()
    features[5, 1, 0, 4] = value
    with open_parts(out) as parts, pytest.raises(StoreError, match=r"finite features.*row 5"):
        parts.append(0, changed_block(features=features))


def test_failed_row_may_hold_anything_and_is_nan_in_the_file(out):
    features = make_block(range(8)).features.copy()
    features[3] = np.inf
    with open_parts(out) as parts:
        parts.append(0, changed_block(features=features))
        assert np.isinf(features[3]).all()
        append_all(parts)
        parts.finish(PROVENANCE)
    with FeatureFile(out) as file:
        assert np.isnan(file.read([3, 17])).all()
        assert np.isfinite(file.read(file.status == Status.DONE)).all()


def test_shard_is_committed_once_and_the_end_waits_for_all(out):
    with open_parts(out) as parts:
        with pytest.raises(StoreError, match="3 pending"):
            parts.finish(PROVENANCE)
        parts.append(0, make_block(parts.rows(0)))
        for shard in (0, 3, -1):
            with pytest.raises(StoreError, match="one of the pending shards"):
                parts.append(shard, make_block(parts.rows(0)))


def test_provenance_that_is_no_json_is_refused_and_the_shards_stay(out, unbroken):
    with open_parts(out) as parts:
        append_all(parts)
        for bad in ({"x": float("nan")}, {"x": {1, 2}}):
            with pytest.raises(StoreError, match="provenance"):
                parts.finish(bad)
        parts.finish(PROVENANCE)
    assert digest(out) == unbroken


@pytest.mark.parametrize(("change", "words"), [
    ({"ids": ("a\0b", *make_dataset().ids[1:])}, r"ids: .*'a\\x00b'"),
    ({"paths": ("\ud834", *make_dataset().paths[1:])}, r"paths: .*ud834"),
    ({"splits": {"a/b": np.arange(2)}}, "split name"),
    ({"splits": {"..": np.arange(2)}}, "split name"),
    ({"splits": {"a\nb": np.arange(2)}}, "split name"),
    ({"splits": {"": np.arange(2)}}, "split name"),
])  # fmt: skip
def test_name_that_no_file_can_hold_is_refused_before_anything_is_made(out, change, words):
    with pytest.raises(StoreError, match=words):
        open_parts(out, make_dataset(**change))
    assert os.listdir(out.parent) == []


def test_empty_data_set_and_empty_shards_are_refused(out):
    empty = make_dataset(0, boxes=None, splits={})
    with pytest.raises(StoreError, match="at least one sample"):
        open_parts(out, empty)
    with pytest.raises(StoreError, match="shard_rows: expected at least 1, found 0"):
        open_parts(out, shard_rows=0)


@pytest.mark.parametrize(
    "changes", [{"scales": ()}, {"scales": (256, 256)}, {"scales": (0,)}, {"regions": ()}, {"channels": 0}]
)
def test_shape_that_holds_nothing_is_refused(changes):
    with pytest.raises(StoreError):
        Shape(**({"scales": (256,), "regions": ("image",), "channels": 1} | changes))


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16])
@pytest.mark.parametrize("shard_rows", [1, 8, 100])
def test_every_cut_into_shards_gives_the_same_file(tmp_path, rows, shard_rows):
    dataset = make_dataset(max(rows, len(ODD_NAMES)))
    one, two = (finish(tmp_path / f"{step}.h5", dataset, shard_rows=step) for step in (shard_rows, len(dataset)))
    if one != two:
        assert digest(one) == digest(two)


def test_parts_close_more_than_once(out):
    parts = open_parts(out)
    parts.close()
    parts.close()
    assert isinstance(parts, FeatureWriter)


# Several processes.


def test_two_take_part_and_the_first_makes_the_file_of_one(out, unbroken):
    with open_parts(out) as first:
        ticket = first.share()
        assert (ticket.pending, ticket.done, ticket.complete) == ([0, 1, 2], 0, False)
        with open_parts(out, ticket=ticket) as second:
            assert second.pending == [0, 1, 2]
            second.append(2, make_block(second.rows(2)))
            assert first.done_rows == 0
            first.poll([2])
            assert (first.done_rows, first.failures) == (7, {})
            for shard in (0, 1):
                first.append(shard, make_block(first.rows(shard)))
            with pytest.raises(StoreError, match="1 pending"):
                first.finish(PROVENANCE)
        first.merge_ranks(second.made)
        assert (first.done_rows, first.failures) == (ROWS, FAILED)
        with pytest.raises(StoreError, match="one of the pending shards"):
            first.merge_ranks(second.made)
        first.finish(PROVENANCE)
    assert digest(out) == unbroken
    assert set(os.listdir(out.parent)) == finished(out)


def test_another_run_is_refused_while_any_process_takes_part(out):
    with open_parts(out) as first, open_parts(out, ticket=first.share()):
        first.close()
        with pytest.raises(StoreError, match="only writer"):
            open_parts(out)
    open_parts(out).close()


def test_none_takes_part_in_a_run_of_other_settings(out):
    with open_parts(out) as first:
        ticket = first.share()
        with pytest.raises(StoreError, match=r'all its processes, .* layer: found "fc6", expected "fc7"'):
            open_parts(out, key=KEY | {"layer": "fc6"}, ticket=ticket)
        first.append(0, make_block(first.rows(0)))


def test_none_takes_part_in_what_another_run_has_taken(out):
    with open_parts(out) as first:
        ticket = first.share()
    with open_parts(out), pytest.raises(StoreError, match="only writer"):
        open_parts(out, ticket=ticket)


def test_who_takes_part_in_a_finished_run_has_nothing_to_do(out):
    finish(out)
    with open_parts(out) as first, open_parts(out, ticket=first.share()) as second:
        assert second.complete
        assert second.pending == []
    assert set(os.listdir(out.parent)) == finished(out)
