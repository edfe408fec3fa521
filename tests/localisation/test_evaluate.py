"""Errors are counted where the official boxes are meant: in stored pixels, whichever way EXIF turns the image."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.support.box_runs import boxes_of, listed
from vggfeat.localisation.evaluate import count_errors
from vggfeat.metrics import inclusive_pixels
from vggfeat.samples import Shards

BOX = (10.0, 20.0, 70.0, 90.0)
SIZE = (120, 200)
"""Height and width as stored."""


def seen(orientation: int) -> tuple[tuple[int, int], tuple[float, ...]]:
    """Size of the upright image, and where Pillow shows what is in the box."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("L", SIZE[::-1])
    image.paste(255, tuple(map(int, BOX)))
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    return (upright.height, upright.width), tuple(map(float, upright.getbbox()))


def record(size, box, orientation) -> dict:
    return {
        "path": "a.jpg", "size": list(size), "orientation": orientation, "sha256": "", "reason": "", "guesses": 1,
        "classes": [0], "boxes": [list(box)],
    }  # fmt: skip


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_that_is_right_on_the_upright_image_is_right_for_the_official_script(orientation, scale):
    size, box = seen(orientation)
    images = listed(Path(), ["a.jpg"], [0])
    if scale != 1:  # A packed copy is smaller than what was annotated.
        images = images.__class__(**{**vars(images), "shards": Shards(("s",), np.array([[0, 0, 1]]))})
    truth = boxes_of([tuple(scale * edge for edge in BOX)], sizes=[tuple(scale * side for side in SIZE)])
    found = count_errors([record(size, box, orientation)], images, truth, 1)
    assert found.guessed.overlaps.tolist() == [[1.0]]
    assert found.guessed.error == found.true_class.error == 0
    assert found.boxes[0, 0].tolist() == inclusive_pixels(np.array(truth.of(0)))[0].tolist()
    assert not [note for note in found.notes if "size" in note and "packed" not in note]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_annotation_that_says_the_turned_sides_is_of_the_upright_image(orientation):
    size, box = seen(orientation)
    found = count_errors(
        [record(size, box, orientation)], listed(Path(), ["a.jpg"], [0]), boxes_of([box], sizes=[size]), 1
    )
    assert found.guessed.overlaps.tolist() == [[1.0]]
    assert found.notes == ()


def test_an_image_of_another_size_is_noted_whichever_way_it_stands():
    size, box = seen(6)
    truth = boxes_of([BOX], sizes=[(121, 200)])
    found = count_errors([record(size, box, 6)], listed(Path(), ["a.jpg"], [0]), truth, 1)
    assert found.notes == ("1 image is not of the size that the annotation declares, for instance a.jpg",)
