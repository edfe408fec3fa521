"""Planted faults of every kind, found again where they were put."""

from dataclasses import replace

import numpy as np
import pytest

from planted import digests, make_table, planted_table
from vggfeat.audit import AuditSettings, audit_table
from vggfeat.errors import ConfigError, StoreError

WITHOUT = AuditSettings(labels=False)


def audit(table, same=(), settings=WITHOUT):
    return audit_table(replace(table, sha256=digests(len(table.dataset), *same)), settings)


def test_copies_are_named_those_across_splits_first_then_those_of_other_labels():
    table, _ = planted_table(wrong=0)
    found = audit(table, [(0, 4, 8), (1, 2), (3, 239)])
    assert [one.rows for one in found.copies] == [(3, 239), (1, 2), (0, 4, 8)]
    assert [one.across for one in found.copies] == [True, False, False]
    assert [one.labels_differ for one in found.copies] == [False, True, False]
    assert audit_table(table, WITHOUT).copies_known is False


def test_images_whose_bytes_are_not_known_are_no_copies():
    table, _ = planted_table(wrong=0)
    known = digests(240, (1, 2))
    known[[5, 9]] = 0
    assert [one.rows for one in audit_table(replace(table, sha256=known), WITHOUT).copies] == [(1, 2)]


def test_copies_are_no_near_duplicates_as_well():
    table, _ = planted_table(wrong=0)
    for row in (7, 200):
        table.descriptors[row] = table.descriptors[0]
    found = audit(table, [(0, 7)], AuditSettings(labels=False, near=0.9999))
    assert found.near.rows.tolist() == [[0, 200], [7, 200]]
    assert found.near.across.tolist() == [True, True]


def test_every_planted_near_copy_is_found():
    """Descriptors of copies in another quality: turned by 0.1, a cosine of 0.995."""
    table, _ = planted_table(wrong=0, length=256, noise=1.0)
    rng = np.random.default_rng(3)
    pairs = {(row, row + 150) for row in range(20)}
    for row, other in pairs:
        turn = rng.standard_normal(256)
        turn *= 0.1 / np.linalg.norm(turn)
        table.descriptors[other] = table.descriptors[row] + turn
    found = audit(table)
    assert {tuple(pair) for pair in found.near.rows.tolist()} == pairs
    assert found.near.total_across == 20


def test_an_image_like_no_other_is_an_outlier():
    table, _ = planted_table(wrong=0)
    table.descriptors[17] = np.eye(48)[40]
    found = audit(table)
    assert [one.row for one in found.outliers][:1] == [17]
    assert len(found.outliers) <= 3
    assert found.outliers[0].distance > found.far


def test_rows_of_one_image_are_neither_copies_nor_near_duplicates():
    table, _ = planted_table(wrong=0)
    table.descriptors[1] = table.descriptors[0]
    paths = ("0000.jpg", "0000.jpg", *table.dataset.paths[2:])
    object.__setattr__(table.dataset, "paths", paths)
    found = audit(table, [(0, 1)])
    assert found.copies == ()
    assert [0, 1] not in found.near.rows.tolist()


def test_small_classes_and_failed_images_are_named_by_their_rows():
    table, _ = planted_table(wrong=0)
    table.dataset.labels[8:, 2] = -1
    table = make_table(table.dataset, table.descriptors, failed=(2, 30))
    found = audit(table)
    assert found.few == (("class 2", 1),), "of two images one failed"
    assert found.failed == (2, 30)
    assert not {2, 30} & set(found.near.rows.ravel().tolist())


def test_rows_keep_their_numbers_where_others_failed():
    table, wrong = planted_table()
    table = make_table(table.dataset, table.descriptors, failed=(0, 1, 2))
    table.descriptors[150] = table.descriptors[100]
    found = audit(table, settings=AuditSettings(near=0.999999, grid=(1.0,)))
    assert found.near.rows.tolist() == [[100, 150]]
    assert set(wrong.tolist()) - {0, 1, 2} <= {one.row for one in found.suspects}


def test_train_and_trainval_are_not_apart_but_folds_are():
    table, _ = planted_table(wrong=0)
    splits = {"train": np.arange(100), "trainval": np.arange(200), "test": np.arange(200, 240)}
    object.__setattr__(table.dataset, "splits", splits)
    found = audit(table, [(0, 150), (1, 210), (2, 3)])
    assert {one.rows: one.across for one in found.copies} == {(0, 150): False, (1, 210): True, (2, 3): False}


def test_settings_that_mean_nothing_are_refused():
    for wrong in ({"near": 0}, {"near": 1.5}, {"folds": 1}, {"neighbours": 0}, {"most": 0}):
        with pytest.raises(ConfigError, match="expected"):
            AuditSettings(**wrong)
    table, _ = planted_table()
    with pytest.raises(StoreError, match="expected images with descriptors"):
        audit(make_table(table.dataset, table.descriptors, failed=range(240)))
