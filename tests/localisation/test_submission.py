"""The submission file: what is written, and that the reader takes nothing else."""

import numpy as np
import pytest

from vggfeat import synthetic
from vggfeat.datasets import ilsvrc
from vggfeat.errors import DatasetError
from vggfeat.localisation.submission import class_ids, read_submission, submission_text

BOX = [3, 5, 20, 40]


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "submission.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_line_has_label_and_box_of_every_guess():
    labels = [[2, 0, -1], [1, -1, -1], [-1, -1, -1]]
    boxes = [[BOX, [1, 1, 2, 2], [0, 0, 0, 0]], [[7, 7, 7, 7]] * 3, [[0, 0, 0, 0]] * 3]
    text = submission_text(labels, boxes, [10, 20, 30])
    assert text == "30 3 5 20 40 10 1 1 2 2\n20 7 7 7 7\n0 0 0 0 0\n"


def test_what_is_written_is_read_back(file):
    rng = np.random.default_rng(0)
    labels = rng.permuted(np.tile(np.arange(9), (40, 1)), axis=1)[:, :5]
    first = rng.integers(1, 200, (40, 5, 2))
    boxes = np.concatenate([first, first + rng.integers(0, 200, (40, 5, 2))], axis=2)
    numbers = rng.permutation(9) + 1
    found = read_submission(file(submission_text(labels, boxes, numbers)), images=40, classes=9)
    np.testing.assert_array_equal(np.stack(found)[..., 0], numbers[labels])
    np.testing.assert_array_equal(np.stack(found)[..., 1:], boxes)


@pytest.mark.parametrize("line", ["1 1 1 1 1", "1000 1 1 1 1 " * 5, "3\t1.5  2e1 3 40.25", "7 -3 0 5 5", "7 1 1 2 2\r"])
def test_what_the_format_allows_is_taken(file, line):
    assert len(read_submission(file(f"{line}\n1 1 1 2 2"), images=2)) == 2


def test_five_zeros_are_no_guess(file):
    found = read_submission(file("0 0 0 0 0\n3 1 1 2 2 0 0 0 0 0\n0 0 0 0 0 3 1 1 2 2\n"), images=3)
    assert [guesses.tolist() for guesses in found] == [[], [[3, 1, 1, 2, 2]], [[3, 1, 1, 2, 2]]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "found 0 fields"),
        ("1 1 1 1", "found 4 fields"),
        ("1 1 1 1 1 1", "found 6 fields"),
        ("1 1 1 1 1 " * 6, "found 30 fields"),
        ("0 1 1 1 1", "labels from 1 to 1000, found 0"),
        ("1001 1 1 1 1", "labels from 1 to 1000, found 1001"),
        ("1.5 1 1 1 1", "labels from 1 to 1000, found 1.5"),
        ("1 5 1 4 1", "xmin <= xmax and ymin <= ymax, found 5 1 4 1"),
        ("1 1 5 1 4", "xmin <= xmax and ymin <= ymax, found 1 5 1 4"),
        ("1 1 1 1 nan", "finite numbers, found 'nan'"),
        ("1 1 1 inf 1", "finite numbers, found 'inf'"),
        ("1 1 1 1 x", "finite numbers, found 'x'"),
        ("1,1,1,1,1", "found 1 fields"),
        ("1 1 1 1 1_0", "finite numbers, found '1_0'"),
        ("1 1 1 1 ٣", "finite numbers"),
        ("1 1 1 1 1" + " " * 5000, "at most 4096 characters"),
    ],
)
def test_the_first_bad_line_is_named(file, line, words):
    path = file(f"1 1 1 2 2\n{line}\n0\n")
    with pytest.raises(DatasetError, match=words) as caught:
        read_submission(path, images=3)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "found"), [("", 0), ("1 1 1 2 2\n", 1), ("1 1 1 2 2\n" * 3, 3)])
def test_the_number_of_lines_is_that_of_the_images(file, content, found):
    with pytest.raises(DatasetError, match=f"expected 2 lines, .* found {found}"):
        read_submission(file(content), images=2)


def test_a_file_that_is_no_text_or_is_missing_is_refused(file, tmp_path):
    with pytest.raises(DatasetError, match="UTF-8"):
        read_submission(file(b"\xff\xfe1 1"), images=1)
    with pytest.raises(DatasetError, match=r"none\.txt"):
        read_submission(tmp_path / "none.txt", images=1)


def test_labels_are_the_numbers_of_the_kit_and_not_the_order_of_the_names(tmp_path):
    synthetic.write("ilsvrc", tmp_path, size=synthetic.Settings(image_side=32, classes=6, train=2, val=6, test=1))
    data = ilsvrc.read(tmp_path)
    numbering = class_ids(data.classes, tmp_path)
    truth = tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    by_file = sorted(zip(data.val.paths, data.val.targets.tolist(), strict=True))
    assert [numbering.ids[target] for _, target in by_file] == [int(line) for line in truth.read_text().split()]
    assert numbering.ids.tolist() != list(range(1, 7))
    assert "meta.mat" in numbering.source
    with pytest.raises(DatasetError, match="none of the name other"):
        class_ids(("other",), tmp_path)


def test_without_a_kit_labels_are_places_and_that_is_said(tmp_path):
    numbering = class_ids(("ant", "bee"), tmp_path)
    assert numbering.ids.tolist() == [1, 2]
    assert "no kit" in numbering.source
