"""Feature files of the same samples become one table: matched, joined, normalised, and checked by hand."""

import copy
import pickle
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import h5py
import numpy as np
import pytest

import vggfeat
from feature_files import CLASSES, FEATURES, IDS, LABELS, SPLITS, data_set, write_file
from vggfeat import descriptor_stream as fusion
from vggfeat.descriptor_stream import match_rows
from vggfeat.errors import ConfigError, StoreError
from vggfeat.samples import Task
from vggfeat.store.export import Table
from vggfeat.store.reader import FeatureFile
from vggfeat.table import DescriptorTable, class_numbers, read_descriptors, rows_of, to_table


def shuffled(order=(2, 0, 3, 1)):
    """The same samples in another order, with splits that point to other rows."""
    order = list(order)
    splits = {name: np.sort([order.index(row) for row in rows]) for name, rows in SPLITS.items()}
    return data_set([IDS[row] for row in order], LABELS[order], splits=splits), order


def unit(*values):
    return np.array(values, dtype=float) / np.sqrt(sum(value * value for value in values))


# --- joins and normalisations


def test_mean_over_scales_at_unit_length(tmp_path):
    table = read_descriptors(write_file(tmp_path / "d.h5"))
    expected = [unit(3, 4), unit(0, 3), unit(2, 2), unit(3, 4)]
    np.testing.assert_allclose(table.descriptors, expected, rtol=1e-6)
    assert table.descriptors.dtype == np.float32
    assert table.ok.tolist() == [True] * 4
    assert table.dataset.ids == IDS
    assert (table.dataset.labels == LABELS).all()
    assert {name: rows.tolist() for name, rows in table.dataset.splits.items()} == {
        name: rows.tolist() for name, rows in SPLITS.items()
    }


@pytest.mark.parametrize(("name", "join"), [("caltech101", "stack"), ("voc2007", "mean"), ("photos", "mean")])
def test_scales_are_joined_as_the_paper_did_for_the_data_set_unless_something_else_is_asked_for(tmp_path, name, join):
    path = write_file(tmp_path / "x.h5", dataset=data_set(name=name))
    expected = read_descriptors(path, join=join)
    table, loaded, entries = read_descriptors(path), vggfeat.load_features(path), vggfeat.FeatureDataset(path)
    assert table.settings == expected.settings
    for found in (table.descriptors, loaded.descriptors, np.stack([entries[row][0] for row in range(4)])):
        assert found.tobytes() == expected.descriptors.tobytes()
    assert fusion.table_bytes(path) == expected.descriptors.nbytes
    with fusion.stream_descriptors(path) as stream:
        assert stream.settings == expected.settings


@pytest.mark.parametrize(
    ("join", "normalisation", "first"),
    [
        ("mean", "none", (3, 4)),
        ("max", "none", (3, 8)),
        ("stack", "none", (3, 0, 3, 8)),
        ("max", "whole", unit(3, 8)),
        ("stack", "blocks", unit(3, 0, 3, 8)),
    ],
)
def test_join_and_normalisation_are_those_asked_for(tmp_path, join, normalisation, first):
    path = write_file(tmp_path / "d.h5")
    table = read_descriptors([path], join=join, normalisation=normalisation)
    np.testing.assert_allclose(table.descriptors[0], first, rtol=1e-6)
    np.testing.assert_allclose(vggfeat.load_features(path, join, normalisation=normalisation)[0][0], first, rtol=1e-6)


def test_two_nets_with_two_regions_are_stacked_net_by_net_and_brought_to_unit_length(tmp_path):
    features = np.array([[[[3, 4], [0, 2]]]] * 4, dtype=np.float32)
    paths = [write_file(tmp_path / "d.h5", features), write_file(tmp_path / "e.h5", 5 * features[..., :1], net="E")]
    by_hand = {
        # Each region of each net at length 1, each net at length 1, the whole at length 1.
        "blocks": np.array([3 / 5, 4 / 5, 0, 1, 0, 0]) / 2 + np.array([0, 0, 0, 0, np.sqrt(1 / 2), 0]),
        "whole": unit(3, 4, 0, 2, 15, 0),
        "none": np.array([3, 4, 0, 2, 15, 0]),
    }
    for normalisation, expected in by_hand.items():
        found = read_descriptors(paths, normalisation=normalisation).descriptors
        np.testing.assert_allclose(found, [expected] * 4, rtol=1e-6, err_msg=normalisation)


def test_regions_can_be_chosen(tmp_path):
    features = np.arange(32, dtype=np.float32).reshape(4, 2, 2, 2) + 1
    path = write_file(tmp_path / "d.h5", features)
    by_hand = {
        ("image",): [[3, 4]],
        ("box",): [[5, 6]],
        ("box", "image"): [[5, 6, 3, 4]],
        None: [[3, 4, 5, 6]],
    }
    for regions, expected in by_hand.items():
        table = read_descriptors(path, normalisation="none", regions=regions)
        assert table.descriptors[:1].tolist() == expected
        assert table.settings["files"][0]["regions"] == list(regions or ("image", "box"))
        assert vggfeat.load_features(path, normalisation="none", regions=regions).descriptors[:1].tolist() == expected
    for regions in (("image", "head"), (), ("box", "box")):
        with pytest.raises(ConfigError, match="regions: expected some of image, box"):
            read_descriptors(path, regions=regions)


def test_settings_say_how_and_of_which_files(tmp_path):
    paths = [write_file(tmp_path / "d.h5"), write_file(tmp_path / "e.h5", FEATURES[:, :1], failed={"c"}, net="E")]
    settings = read_descriptors(paths, join="max", normalisation="whole").settings
    assert (settings["join"], settings["normalisation"]) == ("max", "whole")
    assert settings["length"] == 4
    assert [file["file"] for file in settings["files"]] == ["d.h5", "e.h5"]
    assert [file["provenance"]["net"] for file in settings["files"]] == ["D", "E"]
    assert [file["scales"] for file in settings["files"]] == [[256, 384], [256]]
    assert [file["failed"] for file in settings["files"]] == [0, 1]
    assert [file["regions"] for file in settings["files"]] == [["image"], ["image"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"join": "sum"}, "join: expected one of mean, max, stack, found 'sum'"),
        ({"normalisation": "l1"}, "normalisation: expected one of blocks, whole, none, found 'l1'"),
    ],
)
def test_unknown_ways_are_refused(tmp_path, options, words):
    path = write_file(tmp_path / "d.h5")
    for load in (read_descriptors, vggfeat.load_features):
        with pytest.raises(ConfigError) as raised:
            load(path, **options)
        assert str(raised.value) == words


def test_reading_in_small_slices_gives_the_same(tmp_path, monkeypatch):
    dataset, order = shuffled()
    paths = [write_file(tmp_path / "d.h5"), write_file(tmp_path / "e.h5", FEATURES[order] + 1, dataset)]
    at_once = read_descriptors(paths, join="stack").descriptors
    for chunk in (1, 3 * 2 * FEATURES[0].nbytes):
        monkeypatch.setattr(fusion, "CHUNK_BYTES", chunk)
        assert read_descriptors(paths, join="stack").descriptors.tobytes() == at_once.tobytes()


# --- matching rows


def test_rows_are_matched_by_id_and_keep_the_order_of_the_first_file(tmp_path):
    dataset, order = shuffled()
    first = write_file(tmp_path / "d.h5")
    second = write_file(tmp_path / "e.h5", 10 * FEATURES[order], dataset)
    table = read_descriptors([first, second], normalisation="none")
    assert table.dataset.ids == IDS
    assert table.descriptors.tolist() == [[3, 4, 30, 40], [0, 3, 0, 30], [2, 2, 20, 20], [3, 4, 30, 40]]
    turned = read_descriptors([second, first], normalisation="none")
    assert turned.dataset.ids == ("c", "a", "d", "b")
    assert turned.descriptors[0].tolist() == [20, 20, 2, 2]
    assert (turned.dataset.labels == LABELS[order]).all()
    assert turned.dataset.splits["val"].tolist() == [3]


def test_three_files_in_three_orders(tmp_path):
    paths = [write_file(tmp_path / "1.h5")]
    for number, order in enumerate([(3, 2, 1, 0), (1, 3, 0, 2)], start=2):
        dataset, rows = shuffled(order)
        paths.append(write_file(tmp_path / f"{number}.h5", number * FEATURES[rows], dataset))
    found = read_descriptors(paths, normalisation="none", join="max").descriptors
    largest = FEATURES.max(axis=1).reshape(4, 2)
    np.testing.assert_array_equal(found, np.concatenate([largest, 2 * largest, 3 * largest], axis=1))


def without(dataset, row):
    keep = [index for index in range(len(dataset)) if index != row]
    return data_set([dataset.ids[index] for index in keep], dataset.labels[keep], splits={})


def other_label():
    labels = LABELS.copy()
    labels[1:, 1] = -1
    return data_set(labels=labels)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (without(data_set(), 2), "expected the same samples, found 'c' in ONE only"),
        (data_set([*"abcde"], LABELS[[0, 1, 2, 3, 3]]), "expected the same samples, found 'e' in TWO only"),
        (data_set([*"abyx"]), "expected the same samples, found 'c' in ONE only"),
        (data_set(classes=("cat", "fox")), "expected the same classes, found 'dog' and 'fox' as number 2"),
        (data_set(classes=("dog", "cat")), "expected the same classes, found 'cat' and 'dog' as number 1"),
        (
            data_set(classes=("cat",), labels=LABELS[:, :1]),
            "expected the same classes, found 'dog' and None as number 2",
        ),
        (other_label(), "expected the same labels, found 1 and -1 for 'b', class dog"),
    ],
)
def test_files_that_differ_are_refused_and_the_first_difference_is_named(tmp_path, other, words):
    one = write_file(tmp_path / "one.h5")
    two = write_file(tmp_path / "two.h5", np.ones((len(other), 1, 1, 2)), other)
    words = words.replace("ONE", str(one)).replace("TWO", str(two))
    for load in (read_descriptors, vggfeat.load_features):
        with pytest.raises(StoreError) as raised:
            load([one, two])
        assert str(raised.value) == f"{one} and {two}: {words}"


def test_of_several_samples_without_a_partner_the_first_in_its_file_is_named():
    one, two = data_set([*"abcd"]), data_set([*"xbwa"])
    with pytest.raises(StoreError, match="found 'c' in one only"):
        match_rows(one, two, "one", "two")
    one = without(without(data_set(), 3), 2)
    with pytest.raises(StoreError, match="found 'x' in two only"):
        match_rows(one, two, "one", "two")


def test_images_of_the_same_name_with_other_bytes_are_refused(tmp_path):
    dataset, order = shuffled()
    one = write_file(tmp_path / "one.h5")
    two = write_file(tmp_path / "two.h5", FEATURES[order], dataset, contents=["c", "a", "other", "b"])
    with pytest.raises(StoreError, match="the image 'd' had other bytes; extract both from one copy"):
        read_descriptors([one, two])
    # An image that failed has nothing to compare.
    three = write_file(tmp_path / "three.h5", contents=["a", "b", "c", "other"], failed={"d"})
    assert read_descriptors([one, three]).ok.tolist() == [True, True, True, False]


def test_no_files(tmp_path):
    for load in (read_descriptors, vggfeat.load_features):
        with pytest.raises(ConfigError, match="expected at least one feature file, found none"):
            load([])


def test_a_missing_file_is_named_and_the_others_are_closed(tmp_path, monkeypatch):
    one, two = write_file(tmp_path / "one.h5"), write_file(tmp_path / "two.h5")
    closed, close = [], FeatureFile.close
    monkeypatch.setattr(FeatureFile, "close", lambda file: (closed.append(file.path), close(file)))
    with pytest.raises(StoreError, match=r"none\.h5: expected a feature file, found none"):
        read_descriptors([one, tmp_path / "none.h5"])
    assert closed == [one]
    read_descriptors([one, two])
    assert sorted(closed) == [one, one, two]


def test_the_same_file_twice_is_refused_under_any_name(tmp_path):
    path = write_file(tmp_path / "d.h5")
    (tmp_path / "link.h5").symlink_to(path)
    for other in (path, str(path), tmp_path / "link.h5"):
        with pytest.raises(ConfigError, match=r"expected files of different nets, found .*\.h5 twice"):
            read_descriptors([path, other])


def test_one_path_needs_no_list(tmp_path):
    path = write_file(tmp_path / "d.h5")
    expected = read_descriptors([path]).descriptors.tobytes()
    assert read_descriptors(path).descriptors.tobytes() == expected
    assert read_descriptors(str(path)).descriptors.tobytes() == expected


# --- images that failed


@pytest.mark.parametrize("normalisation", ["blocks", "whole", "none"])
@pytest.mark.parametrize("join", ["mean", "max", "stack"])
def test_failed_images_are_zero_rows_whichever_file_they_failed_in(tmp_path, join, normalisation):
    dataset, order = shuffled()
    one = write_file(tmp_path / "one.h5", failed={"a"})
    two = write_file(tmp_path / "two.h5", FEATURES[order], dataset, failed={"c"})
    with FeatureFile(one) as file:
        assert np.isnan(file.read([0])).all(), "else this proves nothing"
    table = read_descriptors([one, two], join=join, normalisation=normalisation)
    assert table.ok.tolist() == [False, True, False, True]
    assert not table.descriptors[[0, 2]].any()
    assert np.isfinite(table.descriptors).all()
    assert (np.abs(table.descriptors[[1, 3]]).sum(axis=1) > 0).all()


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_file_with_a_changed_number_is_refused(tmp_path, value):
    one, two = write_file(tmp_path / "d.h5"), write_file(tmp_path / "e.h5", net="E")
    with h5py.File(two, "r+") as file:
        file["features"][2, 1, 0, 1] = value
    for load in (read_descriptors, lambda paths: vggfeat.load_features(paths, split="val")):
        with pytest.raises(StoreError, match=r"e\.h5: expected a sound feature file, found: features"):
            load([one, two])


# --- load_features


def test_load_features_of_a_multi_label_set(tmp_path):
    found = vggfeat.load_features(write_file(tmp_path / "d.h5"))
    np.testing.assert_allclose(found.descriptors[0], unit(3, 4), rtol=1e-6)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.labels.dtype == np.int8
    assert found.ids == list(IDS)
    assert found.classes == CLASSES
    descriptors, labels, ids, classes = found
    assert (len(descriptors), len(labels), len(ids), len(classes)) == (4, 4, 4, 2)


def test_load_features_of_a_single_label_set_gives_class_numbers(tmp_path):
    labels = np.array([[-1, 1], [1, -1], [2, 2], [-1, 1]], dtype=np.int8)
    path = write_file(tmp_path / "d.h5", dataset=data_set(labels=labels, task=Task.SINGLE_LABEL))
    found = vggfeat.load_features(path)
    assert found.labels.tolist() == [1, 0, -1, 1]
    assert found.labels.dtype == np.int64
    assert class_numbers(np.zeros((0, 2), np.int8)).tolist() == []


def test_load_features_without_labels(tmp_path):
    dataset = data_set(labels=np.zeros((4, 0), np.int8), classes=(), splits={}, task=Task.UNLABELLED)
    found = vggfeat.load_features(write_file(tmp_path / "d.h5", dataset=dataset))
    assert found.labels.shape == (4, 0)
    assert found.classes == ()
    assert found.ids == list(IDS)


@pytest.mark.parametrize(
    ("split", "ids"),
    [
        ("train", "ac"),
        ("test", "bd"),
        (["train"], "ac"),
        (("test", "train"), "abcd"),
        (["val", "test"], "bd"),
    ],
)
def test_splits_by_name_and_united(tmp_path, split, ids):
    dataset, order = shuffled()
    paths = [write_file(tmp_path / "d.h5"), write_file(tmp_path / "e.h5", FEATURES[order], dataset)]
    whole = vggfeat.load_features(paths)
    found = vggfeat.load_features(paths, "mean", split)
    assert found.ids == list(ids)
    rows = [IDS.index(name) for name in ids]
    assert found.descriptors.tobytes() == whole.descriptors[rows].tobytes()
    assert found.labels.tolist() == LABELS[rows].tolist()


def test_only_the_rows_of_the_split_are_read(tmp_path, monkeypatch):
    path = write_file(tmp_path / "d.h5")
    asked, read = [], FeatureFile.read
    monkeypatch.setattr(FeatureFile, "read", lambda file, rows: (asked.extend(rows.tolist()), read(file, rows))[1])
    vggfeat.load_features(path, split="test")
    assert asked == [1, 3]


@pytest.mark.parametrize(
    ("splits", "split", "words"),
    [
        (SPLITS, "trainval", "split: expected one of test, train, val, found 'trainval'"),
        (SPLITS, ["train", "dev"], "split: expected one of test, train, val, found 'dev'"),
        (SPLITS, [], "split: expected one of test, train, val, found an empty list"),
        ({}, "train", "split: expected no name, as the file has no splits, found 'train'"),
    ],
)
def test_unknown_splits_are_named(tmp_path, splits, split, words):
    path = write_file(tmp_path / "d.h5", dataset=data_set(splits=splits))
    with pytest.raises(ConfigError) as raised:
        vggfeat.load_features(path, split=split)
    assert str(raised.value) == words


def test_failed_images_raise_before_anything_is_read_or_are_dropped(tmp_path, monkeypatch):
    path = write_file(tmp_path / "d.h5", failed={"b", "d"})
    with monkeypatch.context() as patch:
        patch.setattr(FeatureFile, "read", None)
        with pytest.raises(StoreError, match=r"each of 4 rows, found 2 whose image failed .* first is 'b'; .*'drop'"):
            vggfeat.load_features(path)
    found = vggfeat.load_features(path, failed="drop")
    assert found.ids == ["a", "c"]
    np.testing.assert_allclose(found.descriptors, [unit(3, 4), unit(1, 1)], rtol=1e-6)
    assert found.labels.tolist() == LABELS[[0, 2]].tolist()
    # An image that failed outside the split is nobody's business.
    assert vggfeat.load_features(path, split="train").ids == ["a", "c"]
    nothing = vggfeat.load_features(path, split="test", failed="drop")
    assert (nothing.descriptors.shape, nothing.labels.shape, nothing.ids) == ((0, 2), (0, 2), [])
    with pytest.raises(ConfigError, match="failed: expected one of raise, drop, found 'ignore'"):
        vggfeat.load_features(path, failed="ignore")


def test_load_features_needs_no_torch_and_nothing_that_fits_svms(tmp_path):
    path = write_file(tmp_path / "d.h5")
    program = (
        "import sys, vggfeat\n"
        f"found = vggfeat.load_features({str(path)!r}, split='train')\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "print(found.ids, found.descriptors.shape, sorted(heavy))\n"
    )
    run = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("['a', 'c'] (2, 2) []\n", "")


# --- groups, further columns and bytes of images


def test_groups_and_further_columns_go_with_their_rows(tmp_path):
    further = {"age": ("4", "3", "2", "1")}
    dataset = replace(data_set(), groups=("x", "y", "x", "z"), columns=further)
    path = write_file(tmp_path / "d.h5", dataset=dataset, failed={"c"})
    table = read_descriptors(path)
    assert table.dataset.groups == ("x", "y", "x", "z")
    found = vggfeat.load_features(path, failed="drop")
    for one in (found, found._replace(labels=found.labels * 0), pickle.loads(pickle.dumps(found)), copy.copy(found)):
        assert (one.ids, one.groups, one.columns) == (["a", "b", "d"], ["x", "y", "z"], {"age": ["4", "3", "1"]})
    assert len(found) == 4, "what is unpacked stays what it was"
    exported = to_table(table, np.array([0, 3]))
    assert (exported.groups, exported.columns) == (["x", "z"], {"age": ["4", "1"]})
    plain = vggfeat.load_features(write_file(tmp_path / "e.h5"))
    assert (plain.groups, plain.columns) == (None, {})


def test_files_of_other_groups_are_refused(tmp_path):
    paths = [
        write_file(tmp_path / f"{number}.h5", dataset=replace(data_set(), groups=groups))
        for number, groups in enumerate([("x", "y", "x", "z"), ("x", "y", "y", "z"), None])
    ]
    for other, found in ((paths[1], "'x' and 'y' for 'c'"), (paths[2], "'x' and '' for 'a'")):
        with pytest.raises(StoreError, match=f"expected the same groups, found {found}; extract both from one list"):
            read_descriptors([paths[0], other])


def test_the_table_says_which_images_have_the_same_bytes(tmp_path):
    table = read_descriptors(write_file(tmp_path / "d.h5", contents=["same", "other", "same", "more"]))
    assert table.sha256.shape == (4, 32)
    assert (table.sha256[0] == table.sha256[2]).all()
    assert (table.sha256[0] != table.sha256[1]).any()


# --- memory


def test_two_stacked_nets_are_held_once(tmp_path, monkeypatch):
    n, channels = 512, 1024
    rng = np.random.default_rng(0)
    ids = [f"{row:04}" for row in range(n)]
    order = rng.permutation(n)
    features = rng.random((n, 2, 1, channels), dtype=np.float32)
    labels = np.zeros((n, 2), np.int8)
    one = write_file(tmp_path / "d.h5", features, data_set(ids, labels, splits={}))
    other = data_set([ids[row] for row in order], labels, splits={"train": np.arange(n // 2)})
    two = write_file(tmp_path / "e.h5", features[order], other)
    monkeypatch.setattr(fusion, "CHUNK_BYTES", 1 << 18)
    size = 4 * n * 4 * channels
    for load, expected in (
        (lambda: read_descriptors([one, two], join="stack").descriptors, size),
        (lambda: vggfeat.load_features([two, one], "stack").descriptors, size),
        (lambda: vggfeat.load_features([two, one], "stack", "train").descriptors, size / 2),
    ):
        tracemalloc.start()
        found = load()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.nbytes == expected
        assert expected < peak < 1.3 * size, peak / expected
    table = read_descriptors([one, two], join="stack")
    assert np.shares_memory(to_table(table, np.arange(n)).descriptors, table.descriptors)


# --- tables for other programs


def table_of(descriptors, dataset):
    return DescriptorTable(dataset=dataset, descriptors=descriptors, ok=np.ones(len(dataset), bool))


@pytest.mark.parametrize(
    ("rows", "splits"),
    [
        ([0, 1, 2, 3], {"train": [0, 2], "val": [1], "test": [1, 3]}),
        ([1, 2], {"train": [1], "val": [0], "test": [0]}),
        ([0, 3], {"train": [0], "val": [], "test": [1]}),
        ([3, 0, 1], {"train": [1], "val": [2], "test": [0, 2]}),
        ([], {"train": [], "val": [], "test": []}),
    ],
)
def test_to_table_takes_rows_and_renumbers_splits(rows, splits):
    descriptors = np.arange(8, dtype=np.float32).reshape(4, 2)
    found = to_table(table_of(descriptors, data_set()), np.array(rows, dtype=np.int64))
    assert isinstance(found, Table)
    assert found.ids == [IDS[row] for row in rows]
    assert found.paths == [f"{IDS[row]}.jpg" for row in rows]
    assert found.descriptors.tolist() == [[2 * row, 2 * row + 1] for row in rows]
    assert found.labels.tolist() == LABELS[rows].tolist()
    assert found.classes == CLASSES
    assert {name: part.tolist() for name, part in found.splits.items()} == splits


def test_rows_of_all(tmp_path):
    assert rows_of(data_set(), None).tolist() == [0, 1, 2, 3]
    assert rows_of(replace(data_set(), splits={"none": np.zeros(0, np.int64)}), "none").tolist() == []
