"""A data set that a program makes: what could be read as something else is refused."""

import numpy as np
import pytest

from feature_files import LABELS, data_set
from vggfeat.errors import DatasetError


@pytest.mark.parametrize("labels", [LABELS == 1, LABELS.astype(float), np.full(LABELS.shape, 0.5), LABELS + 10])
def test_labels_are_whole_numbers_of_their_meanings(labels):
    # Of truth values, False would be the label of ignored samples.
    with pytest.raises(DatasetError, match="expected labels 1, -1, 0, 2 or 3, found"):
        data_set(labels=labels)


@pytest.mark.parametrize(
    "rows", [[1, 0], [0, 0], [-1, 0], [0, 4], [0.0, 1.0], [False, True, True, False], [[0], [1]]], ids=str
)
def test_a_split_is_an_ascending_list_of_rows(rows):
    with pytest.raises(DatasetError, match="split train is not an ascending list of rows below 4"):
        data_set(splits={"train": np.array(rows)})


def test_numbers_of_any_kind_are_rows():
    for kind in (np.uint8, np.int16, np.uint64):
        assert data_set(splits={"train": np.array([0, 3], kind)}).splits["train"].tolist() == [0, 3]
        with pytest.raises(DatasetError, match="not an ascending list"):
            data_set(splits={"train": np.array([3, 0], kind)})
    assert len(data_set(splits={"train": np.zeros(0)}).splits["train"]) == 0


@pytest.mark.parametrize(
    "changes", [{"labels": LABELS.tolist()}, {"splits": {"train": [0, 1]}}], ids=["labels", "train"]
)
def test_lists_in_the_place_of_arrays_are_refused_by_name(changes, request):
    name = request.node.callspec.id
    with pytest.raises(DatasetError, match=f"expected {name} as an array of NumPy, found a list; pass an array"):
        data_set(**changes)
