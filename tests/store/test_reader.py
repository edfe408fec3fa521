"""Feature files: they hold what was put in, plain h5py reads them, and nothing hostile gets past the look at them."""

import contextlib
import errno
import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from feature_rows import (
    FAILED,
    KEY,
    PROVENANCE,
    ROWS,
    SHAPE,
    crash_run,
    feature,
    finish,
    make_block,
    make_dataset,
    memory_folder,
    open_parts,
)
from vggfeat.errors import DatasetError, StoreError
from vggfeat.samples import DataSet, Task
from vggfeat.store.identity import is_damaged
from vggfeat.store.layout import Status
from vggfeat.store.reader import FeatureFile, validate

EVERY = np.array(
    [
        [[[feature(row, s, r, c) for c in range(5)] for r in range(2)] for s in range(2)]
        if row not in FAILED
        else np.full((2, 2, 5), np.nan)
        for row in range(ROWS)
    ],
    np.float32,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("good") / "voc2007.h5")


@pytest.fixture
def copy(good, tmp_path):
    """A copy to be spoilt."""
    return shutil.copy(good, tmp_path / "copy.h5")


# Who else has it open.

HANDLES = [
    {"mode": "r"}, {"mode": "r+"}, {"mode": "a"}, {"mode": "r", "swmr": True}, {"mode": "r", "locking": False},
    {"mode": "r+", "locking": True}, {"mode": "r+", "libver": "latest"}, {"mode": "r", "driver": "core"},
]  # fmt: skip


@pytest.mark.parametrize("handle", HANDLES, ids=str)
def test_a_file_is_read_that_the_program_has_open_in_any_way_or_opens_then(copy, handle):
    """As in a notebook: HDF5 itself refuses a second handle with other flags."""
    with h5py.File(copy, **handle) as theirs, FeatureFile(copy) as ours:
        ours.check()
        np.testing.assert_array_equal(ours.read(), theirs["features"][...])
    with FeatureFile(copy) as ours:
        with h5py.File(copy, **handle) as theirs:
            np.testing.assert_array_equal(ours.read(), theirs["features"][...])
        ours.check()


def test_a_file_that_another_process_has_open_is_read_and_no_descriptor_is_left(copy):
    words = f"import h5py; file = h5py.File({str(copy)!r}, 'r+', locking=True); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", words], stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            assert validate(copy).problems == ()
        assert not set(os.listdir("/proc/self/fd")) - set(before)
        process.communicate(b"\n")


def test_a_disk_that_fails_while_it_is_read_is_named(copy, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    with FeatureFile(copy) as ours:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(StoreError, match=r"copy\.h5.*Input/output error"):
            ours.read()


# What is in it.


def test_file_holds_what_was_put_in(good):
    dataset = make_dataset()
    with FeatureFile(good) as file:
        assert len(file) == ROWS
        assert (file.scales, file.regions, file.channels, file.shape) == ((256, 384), ("image", "box"), 5, SHAPE)
        assert np.array_equal(file.read(), EVERY, equal_nan=True)
        assert file.features.dtype == np.float32
        assert file.status.tolist() == [Status.FAILED if row in FAILED else Status.DONE for row in range(ROWS)]
        assert file.reasons == tuple(FAILED.get(row, "") for row in range(ROWS))
        assert file.sizes[5].tolist() == [6, 11]
        assert file.sizes[3].tolist() == [0, 0]
        assert file.sha256[5].tolist() == [5] * 32
        assert (file.key, file.provenance) == (KEY, PROVENANCE)
        assert file.dataset.fingerprint() == file.fingerprint == dataset.fingerprint()
        for name in ("ids", "paths", "classes"):
            assert getattr(file.dataset, name) == getattr(dataset, name)
        assert (file.dataset.name, file.dataset.task) == ("voc2007", Task.MULTI_LABEL)
        assert np.array_equal(file.dataset.labels, dataset.labels)
        assert np.array_equal(file.dataset.boxes, dataset.boxes, equal_nan=True)
        assert {name: rows.tolist() for name, rows in file.dataset.splits.items()} == {
            "train-1": list(range(11)),
            "test": list(range(11, 23)),
            "none": [],
        }


PLAIN = """
import h5py, json, sys
with h5py.File(sys.argv[1]) as f:
    done = f["status"][:] == 1
    x = f["features"][:][done].mean(axis=(1, 2))
    ids = f["ids"].asstr(errors="surrogateescape")[:][done]
    labels, classes = f["labels"][:][done], f["classes"].asstr()[:]
    train, scales = f["splits/train-1"][:], f["scales"][:]
    made = json.loads(f.attrs["provenance"])
print(ascii([x[4].tolist(), ids[4], labels.shape, classes.tolist(), train.tolist(), scales.tolist(), made]))
"""


def test_plain_h5py_reads_it_in_ten_lines(good):
    assert len(PLAIN.strip().splitlines()) <= 10
    done = subprocess.run([sys.executable, "-I", "-c", PLAIN, good], capture_output=True, text=True, check=True)
    row = 5  # Row 3 failed, so the fifth that is done is the sixth.
    mean = [row + 1 / 8 + 1 / 16 + channel / 64 for channel in range(5)]
    expected = [mean, "id 000005.jpg", (21, 2), ["cat", "dining table"], list(range(11)), [256, 384], PROVENANCE]
    assert done.stdout.strip() == ascii(expected)


def test_every_set_is_plain_contiguous_bytes_with_its_checksum(good):
    raw = good.read_bytes()
    with h5py.File(good) as file:
        sets = [file[name] for name in file if name != "splits"] + list(file["splits"].values())
        assert len(sets) == 12 + 3
        for data in sets:
            assert (data.chunks, data.compression, data.external, data.is_virtual) == (None, None, None, False)
            start = data.id.get_offset() or 0
            content = raw[start : start + data.nbytes]
            assert hashlib.sha256(content).hexdigest().encode() == data.attrs["sha256"]
        assert file.attrs["features_sha256"] == file["features"].attrs["sha256"]
        assert (file.attrs["format"], file.attrs["version"]) == (b"vggfeat-features", 1)
        assert (file.attrs["dataset"], file.attrs["task"]) == (b"voc2007", b"multi-label")
        assert (file.attrs["done"], file.attrs["failed"]) == (21, 2)


@pytest.mark.parametrize("rows", [
    [0, 1, 2], [22, 4, 4, 5, 6, 0], [], [-1], slice(3, 9), slice(None, None, -2), slice(5, 5), np.arange(ROWS) % 2 == 0,
    np.array([7], np.uint8), range(2, 20, 3),
])  # fmt: skip
def test_rows_come_in_the_order_asked_for(good, rows):
    index = list(rows) if isinstance(rows, range) else rows
    wanted = EVERY[np.array(index, int)] if isinstance(index, list) else EVERY[index]
    with FeatureFile(good) as file:
        found = file.read(rows)
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted, equal_nan=True)


@pytest.mark.parametrize(
    "rows", [[ROWS], [-ROWS - 1], [True] * 3, 3, np.int64(3), True, [[0, 1], [2, 3]], [[0]], [1.0], "1"]
)
def test_rows_that_are_not_there_or_no_list_of_rows_are_an_index_error_and_no_damage(good, rows):
    with FeatureFile(good) as file, pytest.raises(IndexError):
        file.read(rows)


def test_a_file_that_was_closed_is_called_that(good):
    file = FeatureFile(good)
    file.close()
    file.close()
    readings = [file.read, file.check, file.report, lambda: file.block(range(2)), lambda: file.dataset]
    readings += [lambda name=name: getattr(file, name) for name in ("status", "reasons", "sizes", "features_sha256")]
    for reading in readings:
        with pytest.raises(StoreError, match="expected an open feature file, found one that was closed; open it"):
            reading()


def test_data_set_without_labels_boxes_or_splits_comes_back(tmp_path):
    dataset = DataSet(
        name="folder",
        task=Task.UNLABELLED,
        classes=(),
        ids=tuple(f"{row}" for row in range(5)),
        paths=("a.jpg",) * 5,
        labels=np.zeros((5, 0), np.int8),
    )
    for boxes in (None, np.full((5, 4), np.nan)):
        out = finish(tmp_path / f"{boxes is None}.h5", DataSet(**(dataset.__dict__ | {"boxes": boxes})))
        with FeatureFile(out) as file:
            assert file.dataset.fingerprint() == dataset.fingerprint()
            assert (file.dataset.boxes, file.dataset.classes, file.dataset.splits) == (None, (), {})
        assert validate(out).problems == ()


GROUPS = tuple(f"patient {row // 4}" for row in range(ROWS))
FURTHER = {"site": ("Köln",) * ROWS, "age (years)": tuple(map(str, range(ROWS))), "": ("x",) * ROWS}


def test_groups_and_further_columns_come_back_and_are_in_no_file_without_them(good, tmp_path):
    further = {name: FURTHER[name] for name in ("site", "age (years)")}
    dataset = make_dataset(groups=GROUPS, columns=further)
    out = finish(tmp_path / "x.h5", dataset)
    assert validate(out).problems == ()
    with FeatureFile(out) as file, h5py.File(out) as plain:
        assert (file.dataset.groups, file.dataset.columns) == (GROUPS, further)
        assert file.fingerprint == dataset.fingerprint()
        assert plain["groups"].asstr()[4] == "patient 1"
        assert plain["columns/site"].asstr()[22] == "Köln"
    with FeatureFile(good) as file, h5py.File(good) as plain:
        assert (file.dataset.groups, file.dataset.columns) == (None, {})
        assert not {"groups", "columns"} & set(plain)
        assert set(h5py.File(out)) - set(plain) == {"groups", "columns"}


def test_groups_and_further_columns_are_part_of_what_is_compared():
    other = ({}, {"groups": GROUPS}, {"groups": GROUPS[::-1]}, {"columns": {"a": GROUPS}}, {"columns": {"b": GROUPS}})
    assert len({make_dataset(**changes).fingerprint() for changes in other}) == 5


@pytest.mark.parametrize(("changes", "words"), [
    ({"columns": FURTHER}, "expected a column name without / or odd signs, found ''"),
    ({"columns": {"a/b": GROUPS}}, "expected a column name without / or odd signs, found 'a/b'"),
    ({"columns": {"a": ("\0",) * ROWS}}, "voc2007: 'a': expected a text"),
    ({"groups": GROUPS[1:]}, "expected 23 values in the column groups"),
    ({"groups": ("", *GROUPS[1:])}, "expected 23 values in the column groups"),
    ({"columns": {"a": GROUPS[1:]}}, "expected 23 values in the column a"),
])  # fmt: skip
def test_columns_that_do_not_fit_are_refused(tmp_path, changes, words):
    with pytest.raises((DatasetError, StoreError), match=words):
        finish(tmp_path / "x.h5", make_dataset(**changes))


@pytest.mark.parametrize("name", ["groups", "columns"])
def test_optional_columns_are_looked_at_like_the_others(copy, name):
    with h5py.File(copy, "r+") as file:
        file[name] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(StoreError, match=f"{name}: expected a data set in this file, found a ExternalLink"):
        FeatureFile(copy)


def test_long_provenance_has_room(tmp_path):
    with open_parts(tmp_path / "x.h5") as parts:
        for shard in parts.pending:
            parts.append(shard, make_block(parts.rows(shard)))
        parts.finish({"text": "x" * 200_000})
    with FeatureFile(tmp_path / "x.h5") as file:
        assert len(file.provenance["text"]) == 200_000


# What validate finds.


def test_report_counts_rows_and_reasons(good):
    report = validate(good)
    assert (report.rows, report.done, report.failed, report.pending) == (ROWS, 21, 2, 0)
    assert report.reasons == {"truncated": 1, "not-an-image": 1}
    assert (report.dataset, report.shape, report.problems) == ("voc2007", SHAPE, ())


@pytest.mark.parametrize(
    "name", ["features", "status", "sizes", "sha256", "ids", "paths", "reasons", "labels", "boxes", "splits/test"]
)
def test_one_flipped_bit_in_any_set_is_found(copy, name):
    with h5py.File(copy) as file:
        start, size = file[name].id.get_offset(), file[name].nbytes
    raw = bytearray(copy.read_bytes())
    raw[start + size // 2] ^= 1
    copy.write_bytes(raw)
    try:
        problems = validate(copy).problems
    except StoreError:
        return
    assert any(problem.startswith(f"{name}: the bytes") for problem in problems)


def resum(data):
    """Let the checksum fit again, so that only what the values mean can be found wrong."""
    kind = data.attrs.get_id("sha256").dtype
    data.attrs.modify("sha256", np.array(hashlib.sha256(data[...].tobytes()).hexdigest().encode(), kind))


def test_row_that_is_done_and_not_finite_is_found(copy):
    with h5py.File(copy, "r+") as file:
        file["features"][11, 1, 0, 2] = np.inf
        file["features"][3] = np.inf
        resum(file["features"])
        file.attrs.modify("features_sha256", file["features"].attrs["sha256"])
    assert "features: row 11 is done and has values that are not finite" in validate(copy).problems


def test_counts_and_fingerprint_that_do_not_fit_are_found(copy):
    with h5py.File(copy, "r+") as file:
        file["status"][0] = Status.PENDING
        file["labels"][0] = 0
        resum(file["status"])
        resum(file["labels"])
    problems = validate(copy).problems
    assert len(problems) == 2
    assert problems[0].startswith("done, failed: (21, 2) by the header, (20, 2) by status")
    assert problems[1].startswith("fingerprint: not that of")


# What is refused before it is read.


def replace(file, name, make):
    """Put something else in the place of a member."""
    del file[name]
    make(file, name)


def link_out(file, name):
    with h5py.File(f"{file.filename}.other", "w") as other:
        other["x"] = np.arange(10)
    file[name] = h5py.ExternalLink(f"{file.filename}.other", "x")


def loop(file, name):
    file[name] = h5py.SoftLink(f"/{name}")


def outside(file, name, dims=(ROWS, 2, 2, 5), kind="<f4"):
    with open(f"{file.filename}.raw", "wb") as raw:
        raw.write(bytes(4 * ROWS * 20))
    file.create_dataset(name, dims, kind, external=[(f"{file.filename}.raw", 0, h5py.h5f.UNLIMITED)])


def virtual(file, name):
    with h5py.File(f"{file.filename}.other", "w") as other:
        other["x"] = np.zeros((ROWS, 2, 2, 5), "<f4")
    layout = h5py.VirtualLayout((ROWS, 2, 2, 5), "<f4")
    layout[...] = h5py.VirtualSource(f"{file.filename}.other", "x", (ROWS, 2, 2, 5))
    file.create_virtual_dataset(name, layout)


def sets(dims, kind, **settings):
    return lambda file, name: file.create_dataset(name, dims, kind, **settings)


def cycle(file, name):
    file[name] = file["/"]


def length_bomb(file, name):
    """Text of variable length, whose elements all say that they are 2 GiB long."""
    file.create_dataset(name, (ROWS,), h5py.string_dtype(), data=["x"] * ROWS)
    file.flush()
    start = file[name].id.get_offset()
    with open(file.filename, "r+b") as raw:
        for row in range(ROWS):
            raw.seek(start + 16 * row)
            raw.write((2**31 - 1).to_bytes(4, "little"))


UNPLAIN = "features: expected plain contiguous"
TEXT9, TEXT1G, ANY_TEXT = h5py.string_dtype("utf-8", 9), h5py.string_dtype("utf-8", 1 << 30), h5py.string_dtype()
FULL = (ROWS, 2, 2, 5)
HOSTILE = {
    "external link": ("features", link_out, "features: expected a data set in this file, found a ExternalLink"),
    "external link to texts": ("ids", link_out, "ids: .*a ExternalLink"),
    "soft link to itself": ("features", loop, "features: .*a SoftLink"),
    "soft link as split": ("splits/test", loop, "test: .*a SoftLink"),
    "external link as splits": ("splits", link_out, "splits: .*a ExternalLink"),
    "external storage": ("features", outside, UNPLAIN),
    "virtual data set": ("features", virtual, UNPLAIN),
    "4 TiB declared": ("features", sets((1 << 40, 1, 1, 1), "<f4"), "expected at most .* 4398046511104 bytes declared"),
    "more rows than fit": ("features", sets((1 << 60, 1, 1, 1), "<f4"), "features: expected at most"),
    "4 TiB in chunks": ("features", sets((1 << 40, 1, 1, 1), "<f4", chunks=(1, 1, 1, 1)), UNPLAIN),
    "23 GiB of text": ("ids", sets((ROWS,), TEXT1G), "ids: expected at most .* 24696061952 bytes"),
    "4 TiB split": ("splits/test", sets((1 << 39,), "<i8"), "test: expected at most .* 4398046511104 bytes"),
    "never written": ("status", sets((ROWS,), "|u1"), "status: expected at most"),
    "chunks": ("features", sets(FULL, "<f4", data=np.zeros(FULL, "<f4"), chunks=(1, 2, 2, 5)), UNPLAIN),
    "compressed": ("features", sets(FULL, "<f4", data=np.zeros(FULL, "<f4"), compression="gzip"), UNPLAIN),
    "other byte order": ("features", sets(FULL, ">f4", data=np.zeros(FULL)), "features: expected <f4"),
    "double": ("features", sets(FULL, "<f8", data=np.zeros(FULL)), "features: expected <f4"),
    "complex": ("features", sets(FULL, "<c8", data=np.zeros(FULL, "<c8")), "features: expected <f4"),
    "five dimensions": ("features", sets((*FULL, 1), "<f4", data=np.zeros((*FULL, 1))), "features: expected shape"),
    "scalar": ("features", sets((), "<f4", data=0), "features: expected shape"),
    "null": (
        "features",
        lambda file, name: file.create_dataset(name, data=h5py.Empty("<f4")),
        "features: expected shape",
    ),
    "fewer rows": ("status", sets((22,), "|u1", data=np.zeros(22)), r"status: expected shape \(23,\), found \(22,\)"),
    "fewer scales": ("scales", sets((1,), "<i8", data=[256]), r"scales: expected shape \(2,\)"),
    "equal scales": ("scales", sets((2,), "<i8", data=[256, 256]), "scales: expected one or more, each once"),
    "scale below 1": ("scales", sets((2,), "<i8", data=[256, -1]), "at least 1"),
    "fewer classes": (
        "classes",
        sets((1,), TEXT9, data=np.array([b"cat"], TEXT9)),
        r"labels: expected shape \(23, 1\)",
    ),
    "text of variable length": ("ids", sets((ROWS,), ANY_TEXT, data=["x"] * ROWS), "ids: expected UTF-8 text of fixed"),
    "text that says it is long": ("ids", length_bomb, "ids: expected UTF-8 text of fixed width"),
    "text in ASCII": ("ids", sets((ROWS,), "S9", data=np.zeros(ROWS, "S9")), "ids: expected UTF-8 text"),
    "numbers as text": ("ids", sets((ROWS,), "<i8", data=np.zeros(ROWS)), "ids: expected UTF-8"),
    "references": ("labels", sets((ROWS, 2), h5py.ref_dtype), "labels: expected .i1"),
    "compound": ("labels", sets((ROWS, 2), [("a", "i1"), ("b", "S3")]), "labels: expected .i1"),
    "group for a set": (
        "features",
        lambda file, name: file.create_group(name),
        "features: expected a data set, found Group",
    ),
    "set for a group": ("splits", sets((3,), "<i8", data=[1, 2, 3]), "splits: expected a group, found Dataset"),
    "type for a set": (
        "features",
        lambda file, name: file.__setitem__(name, np.dtype("<f4")),
        "a data set, found Datatype",
    ),
    "cycle of groups": ("splits", cycle, "expected"),
}


def spoil(copy, change):
    with h5py.File(copy, "r+", libver=("v108", "latest")) as file:
        change(file)
    return copy


def assert_refused(path, words=None):
    with pytest.raises(StoreError, match=words) as caught:
        FeatureFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError):
        validate(path)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_unread(copy, case):
    name, make, words = HOSTILE[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(spoil(copy, lambda file: replace(file, name, make)), words)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize(
    "name",
    "features ids paths reasons classes labels boxes scales regions status sizes sha256 splits".split(),  # noqa: SIM905
)
def test_missing_member_is_named(copy, name):
    assert_refused(spoil(copy, lambda file: file.__delitem__(name)), rf"\['{name}'\] missing")


def test_member_that_does_not_belong_is_named(copy):
    assert_refused(spoil(copy, lambda file: file.__setitem__("mine", [1, 2])), r"\['mine'\] unexpected")


@pytest.mark.parametrize("name", ["format", "version", "dataset", "fingerprint", "key", "provenance"])
def test_missing_attribute_is_named(copy, name):
    assert_refused(spoil(copy, lambda file: file.attrs.__delitem__(name)), f"{name}: expected an attribute, found none")


@pytest.mark.parametrize("name", ["task", "features_sha256", "done", "failed"])
def test_attribute_missing_where_only_validation_looks_is_named(copy, name):
    spoil(copy, lambda file: file.attrs.__delitem__(name))
    with pytest.raises(StoreError, match=f"{name}: expected an attribute, found none"):
        validate(copy)


def fixed(text):
    return np.array(text, h5py.string_dtype("utf-8", len(text)))


@pytest.mark.parametrize(("name", "value", "words"), [
    ("format", fixed(b"other"), "format: expected vggfeat-features, found 'other'"),
    ("format", "vggfeat-features", "format: expected UTF-8 text of fixed width"),
    ("format", np.int64(3), "format: expected UTF-8 text"),
    ("format", np.zeros(3), "format: expected one value"),
    ("version", np.int64(2), "version: expected 1, found 2; update"),
    ("version", np.float64(1), "version: expected <i8"),
    ("key", fixed(b"{"), "can't be read"),
    ("key", fixed(b"[1]"), "key: expected a JSON object, found list"),
    ("provenance", fixed(b"[" * 50000), "can't be read"),
])  # fmt: skip
def test_other_attribute_is_refused(copy, name, value, words):
    assert_refused(spoil(copy, lambda file: file.attrs.__setitem__(name, value)), words)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [("ids", 1, b"id a\nb.jpg"), ("ids", 0, b""), ("labels", 0, 9), ("splits/test", 0, ROWS), ("splits/test", 1, -1)],
)
def test_contents_that_are_no_data_set_are_a_store_error(copy, name, place, value):
    spoil(copy, lambda file: file[name].__setitem__(place, value))
    with FeatureFile(copy) as file, pytest.raises(StoreError, match=r"copy\.h5"):
        _ = file.dataset


def test_status_that_is_none_is_refused(copy):
    spoil(copy, lambda file: file["status"].__setitem__(0, 3))
    with FeatureFile(copy) as file, pytest.raises(StoreError, match="status: expected 0, 1 or 2, found 3"):
        _ = file.status


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("features")
    for name in ("none", "pipe", "loop", "empty", "text", ".", "a\0b", "raw-\udcff"):
        with pytest.raises(StoreError, match=r"expected a feature file(, or the folder of a run)?, found"):
            FeatureFile(tmp_path / name)
    with pytest.raises(StoreError):
        FeatureFile("/dev/zero")


def test_every_truncation_is_refused(good, tmp_path):
    raw = good.read_bytes()
    choice = random.Random(2)
    for size in [*range(0, 100, 7), *(choice.randrange(len(raw)) for _ in range(50)), len(raw) - 1]:
        (tmp_path / "short.h5").write_bytes(raw[:size])
        assert_refused(tmp_path / "short.h5")


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.long)])
def test_damaged_file_never_passes_for_sound(count):
    with memory_folder() as folder:
        seen = crash_run("mutants", folder, count)
    assert seen["refused"] + seen["told"] + seen["as good"] == count
    assert min(seen["refused"], seen["told"]) > count / 10
    assert seen["wrong"] == []
    assert seen["grown_mib"] < 100


def opened():
    """Return the paths that this process holds open."""
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry.path))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists what a process holds open")
def test_file_is_closed_when_refused(copy):
    spoil(copy, lambda file: file.__delitem__("ids"))
    with contextlib.suppress(StoreError):
        FeatureFile(copy)
    assert str(copy.resolve()) not in opened()
    held = copy.open("rb")
    assert str(copy.resolve()) in opened()
    held.close()


def test_a_file_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    assert is_damaged(tmp_path / "x.h5")

    def fail(path, *given):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(StoreError, match="reading failed: Input/output error; nothing was changed"):
        is_damaged(tmp_path / "x.h5")
