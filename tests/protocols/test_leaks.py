"""What training and test have in common is said: groups, and images of the same bytes; and labels that contradict."""

from dataclasses import replace

import numpy as np
import pytest

from small_tables import data_set, multi_label, one_hot, table_of
from vggfeat.errors import ConfigError, FitError
from vggfeat.protocols import ProtocolSettings, run_protocol
from vggfeat.protocols.folds import contents_of, label_notes
from vggfeat.samples import Task

FAST = ProtocolSettings(grid=(1.0,), folds=3)
SPLITS = {"train": range(30), "test": range(30, 60)}


def digests(count, **same):
    """Digests that differ, but for rows that have those of another: s3=5 is row 3 with the bytes of row 5."""
    numbers = np.arange(1, count + 1)
    for row, other in same.items():
        numbers[int(row[1:])] = other + 1
    return np.repeat(numbers[:, None], 32, axis=1).astype(np.uint8)


def notes_of(table, settings=FAST):
    return [note for note in run_protocol(table, settings).notes if "group" in note or "bytes" in note]


def test_the_same_bytes_in_training_and_test_are_said_with_their_names():
    dataset = data_set(np.repeat(multi_label(30), 2, axis=0), SPLITS)
    assert notes_of(table_of(dataset, sha256=digests(60))) == []
    assert notes_of(table_of(dataset)) == [], "files of old do not say it"
    assert notes_of(table_of(dataset, sha256=digests(60, s40=3, s59=3))) == [
        "In test 2 samples have the same bytes as images in train, among them s040.jpg as s003.jpg, s059.jpg as "
        "s003.jpg: the figures may be too good."
    ]


def test_images_that_failed_have_no_bytes_to_compare():
    dataset = data_set(multi_label(60), SPLITS)
    sha256 = digests(60)
    sha256[[3, 40]] = 0
    assert notes_of(table_of(dataset, failed=[3, 40], sha256=sha256)) == []
    assert len(set(contents_of(table_of(dataset, sha256=sha256)).tolist())) == 60


def test_over_folds_there_is_one_note_of_all():
    dataset = data_set(one_hot(np.arange(30) % 2), task=Task.SINGLE_LABEL)
    (note,) = notes_of(table_of(dataset, sha256=digests(30, **{f"s{row}": 0 for row in range(2, 30, 2)})))
    assert note.startswith("In the test 15 samples have the same bytes as images in the training of 3 of 3 runs, ")


def test_a_group_on_both_sides_of_given_splits_is_said():
    groups = ["a", "b", "c"] * 10 + ["c", "d", "e"] * 10
    dataset = data_set(multi_label(60), SPLITS, groups=tuple(groups))
    assert notes_of(table_of(dataset)) == [
        "1 group is both in train and in test, among them c: the figures may be too good."
    ]


def test_folds_keep_groups_together_and_so_do_held_out_parts():
    groups = tuple(f"g{row // 5}" for row in range(60))
    dataset = data_set(one_hot(np.arange(60) % 3), task=Task.SINGLE_LABEL, groups=groups)
    result = run_protocol(table_of(dataset), replace(FAST, grid=(1.0, 2.0)))
    assert not [note for note in result.notes if "group" in note]
    assert "Samples of one group stay together." in result.description
    tested = [{groups[row] for row in run.rows} for run in result.runs]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 12


def test_too_few_groups_are_refused_by_their_number():
    groups = tuple("ab"[row % 2] for row in range(60))
    dataset = data_set(one_hot(np.arange(60) % 3), task=Task.SINGLE_LABEL, groups=groups)
    with pytest.raises(ConfigError, match=r"folds: expected 2 up to the number of groups \(2\), found 3"):
        run_protocol(table_of(dataset), FAST)
    groups = tuple("a" if row % 3 == 0 else f"{row // 6}" for row in range(60))
    with pytest.raises(FitError, match=r"the data set has 20 of it in 1 group: add samples"):
        run_protocol(table_of(replace(dataset, groups=groups)), FAST)


@pytest.mark.parametrize("single", [True, False])
def test_the_same_bytes_with_contradictory_labels_are_said(single):
    labels = one_hot([0, 1, 1, 0]) if single else np.array([[1, 1], [1, -1], [-1, 1], [1, 0]])
    dataset = data_set(labels, task=Task.SINGLE_LABEL if single else Task.MULTI_LABEL)
    assert label_notes(table_of(dataset, sha256=digests(4))) == []
    assert label_notes(table_of(dataset, sha256=digests(4, s3=0))) == []
    names = "s000 and s001 (class0)" if single else "s000 and s001 (class1)"
    assert label_notes(table_of(dataset, sha256=digests(4, s1=0))) == [
        f"1 image occurs more than once, with contradictory labels: {names}."
    ]


def test_boxes_of_one_image_may_have_labels_of_their_own():
    boxes = np.array([[0, 0, 5, 5], [5, 5, 9, 9], [0, 0, 5, 5]], dtype=float)
    dataset = replace(data_set(one_hot([0, 1, 1])), boxes=boxes)
    assert label_notes(table_of(dataset, sha256=digests(3, s1=0))) == []
    assert len(label_notes(table_of(dataset, sha256=digests(3, s2=0)))) == 1
