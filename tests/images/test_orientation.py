"""Boxes turn as their images do: painted rectangles, turned by Pillow, are found where the boxes say."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from vggfeat.images.decode import DecodeSettings, Request, decode, row_requests, shrink
from vggfeat.images.orientation import (
    annotated_orientation,
    pillow_orientation,
    stored_size,
    turn_back,
    turn_boxes,
    written_orientation,
)
from vggfeat.images.pool import Decoder
from vggfeat.samples import Box, DataSet, Task

ORIENTATIONS = range(1, 9)
BOX = Box(7, 3, 19, 8)
"""In stored pixels of an image of 40 x 24."""


def painted(box: Box = BOX, size=(40, 24)) -> Image.Image:
    image = Image.new("RGB", size, "black")
    image.paste("white", tuple(int(edge) for edge in box))
    return image


def found(pixels: np.ndarray) -> tuple[int, ...]:
    rows, columns = np.nonzero(np.asarray(pixels)[..., 0] > 127)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def encoded(image: Image.Image, orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    image.save(file, kind, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_box_is_where_pillow_turns_its_rectangle_and_comes_back(orientation):
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(painted(), orientation))))
    size = (upright.height, upright.width)
    turned = turn_boxes(BOX, orientation, size)
    assert tuple(turned) == found(upright)
    assert tuple(turn_back(turned, orientation, size)) == BOX
    assert stored_size(size, orientation) == (24, 40)
    assert turn_boxes(np.array([[BOX, BOX]]), orientation, size).shape == (1, 2, 4)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_box_of_stored_pixels_cuts_out_the_same_whatever_the_orientation(tmp_path, kind, orientation):
    path = tmp_path / "image"
    path.write_bytes(encoded(painted(), orientation, kind))
    image = decode(Request(str(path), (None, BOX), stored=True), DecodeSettings())
    assert image.orientation == orientation
    assert image.regions[1].min() > 100  # White throughout, whichever way the image stands.
    assert image.regions[1].shape[0] * image.regions[1].shape[1] == 12 * 5
    plain = decode(Request(str(path), (BOX,)), DecodeSettings())
    assert (plain.regions[0].min() > 100) == (orientation == 1)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, value):
    path = tmp_path / "image"
    path.write_bytes(encoded(painted(), value))
    image = decode(Request(str(path), (BOX,), stored=True), DecodeSettings())
    assert image.orientation == 1
    assert image.regions[0].min() == 255


@pytest.mark.parametrize(("kind", "code"), [(1, "B"), (3, "H"), (4, "I"), (8, "h"), (9, "i")])
def test_whatever_number_an_orientation_is_a_file_and_its_opened_image_turn_alike(kind, code):
    block = b"II*\0" + struct.pack("<IHHHI", 8, 1, 274, kind, 1) + struct.pack(f"<{code}", 6).ljust(8, b"\0")
    file = io.BytesIO()
    painted().save(file, "JPEG", exif=b"Exif\0\0" + block)
    assert written_orientation(file.getvalue()) == pillow_orientation(Image.open(file)) == 6


def test_the_workers_say_the_orientation_too(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(painted(), 6))
    with Decoder(1, DecodeSettings()) as decoder:
        (image,) = decoder.stream([Request(str(path), (BOX,), stored=True)])
    assert (image.orientation, image.size) == (6, (40, 24))
    assert image.regions[0].min() == 255


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("name", "stored"), [("voc2012-action", True), ("manifest", False)])
def test_official_boxes_are_of_stored_pixels_and_those_of_a_manifest_of_the_upright_image(
    tmp_path, name, stored, orientation
):
    (tmp_path / "1.png").write_bytes(encoded(painted(), orientation))
    image = decode(Request(str(tmp_path / "1.png"), (None,)), DecodeSettings())
    box = BOX if stored else Box(*map(float, found(image.regions[0])))
    data = DataSet(
        name=name, task=Task.UNLABELLED, classes=(), ids=("1",), paths=("1.png",), labels=np.zeros((1, 0), np.int8),
        boxes=np.array([box], dtype=np.float64), root=str(tmp_path),
    )  # fmt: skip
    (request,) = row_requests(data, [0], ["box"])
    region = decode(request, DecodeSettings()).regions[0]
    assert region.min() == 255
    assert region.shape[0] * region.shape[1] == 12 * 5


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_packed_image_keeps_its_orientation_and_so_its_boxes(tmp_path, orientation):
    (tmp_path / "large").write_bytes(encoded(painted(Box(70, 30, 190, 80), (400, 240)), orientation, "JPEG"))
    packed = shrink(Request(str(tmp_path / "large"), (None,)), DecodeSettings(), side=24, quality=95)
    (tmp_path / "small").write_bytes(packed.regions[0].tobytes())
    image = decode(Request(str(tmp_path / "small"), (None, BOX), stored=True), DecodeSettings())
    assert image.orientation == orientation
    assert image.size == stored_size((24, 40), orientation)
    assert image.regions[1].mean() > 230


def test_an_annotation_of_the_turned_sides_is_meant_in_the_upright_image():
    assert annotated_orientation(6, (40, 24), (24, 40)) == 6
    assert annotated_orientation(6, (40, 24), (40, 24)) == 1
    assert annotated_orientation(6, (40, 24), (400, 240)) == 1
    assert annotated_orientation(6, (40, 24), (0, 0)) == 6
    assert annotated_orientation(3, (40, 24), (40, 24)) == 3
