"""Drawings of boxes against the pixels that they must have."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggfeat.localisation.predict import Mark, draw_boxes, drawing_names
from vggfeat.samples import Box


def test_a_label_in_letters_that_no_font_has_is_drawn_in_escaped_form():
    plain = np.full((240, 400, 3), 200, np.uint8)
    box = Box(40, 60, 380, 200)
    escaped = draw_boxes(plain, [Mark(box, "Größe \U0001f400 93 %")])
    assert escaped != draw_boxes(plain, [Mark(box, "Größe \U0001f401 93 %")]), "no two boxes that look alike"


def opened(png):
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("ground", [0, 255, 128])
def test_boxes_and_labels_are_seen_on_any_ground(ground):
    plain = np.full((240, 320, 3), ground, np.uint8)
    drawn = opened(draw_boxes(plain, [Mark(Box(40, 60, 280, 200), "cat 93 %")]))
    assert drawn.shape == (240, 320, 3)
    colour = np.array([230, 159, 0])
    # From the ground inwards at the middle of the left edge: black, the colour, black.
    crossing = drawn[130, 36:60]
    assert (crossing[:4] == ground).all()
    assert (crossing == colour).all(axis=1).sum() >= 1
    assert (crossing == 0).all(axis=1).sum() >= 2
    plate = drawn[60:72, 42:80]
    assert (plate == colour).all(axis=2).mean() > 0.3
    assert (plate == 0).all(axis=2).mean() > 0.05
    assert (drawn[150, 100:200] == ground).all()


def test_the_original_pixels_are_not_drawn_on_and_equal_input_gives_equal_bytes():
    plain = np.zeros((64, 64, 3), np.uint8)
    marks = [Mark(Box(5, 5, 60, 60), "a"), Mark(Box(5, 5, 60, 60), "b"), Mark(Box(5, 5, 60, 60), "c")]
    assert draw_boxes(plain, marks) == draw_boxes(plain, marks)
    assert not plain.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (200, 2), (30, 30)])
def test_small_images_and_odd_boxes_do_no_harm(size):
    plain = np.zeros((*size, 3), np.uint8)
    boxes = [Box(-50, -50, 500, 500), Box(10.2, 10.2, 10.4, 10.4), Box(900, 900, 950, 950), Box(0, 0, 1, 1)]
    marks = [Mark(box, f"{name} " * 40) for box, name in zip(boxes, ("x", "日本", "\N{PILE OF POO}", ""), strict=True)]
    assert opened(draw_boxes(plain, marks)).shape == (*size, 3)


def test_labels_of_equal_boxes_do_not_cover_each_other():
    plain = np.full((300, 300, 3), 90, np.uint8)
    drawn = opened(draw_boxes(plain, [Mark(Box(20, 20, 280, 280), f"class {k}") for k in range(5)]))
    seen = {tuple(pixel) for pixel in drawn[:, 40]}
    assert {(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167)} <= seen


def test_no_two_drawings_have_one_name_where_the_disk_ignores_case():
    files = [Path("x/A.png"), Path("x/a.png"), Path("y/a.png")]
    assert drawing_names(files) == ["A.png.boxes.png", "a.png-2.boxes.png", "a.png-3.boxes.png"]
