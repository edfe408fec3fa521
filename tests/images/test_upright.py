"""Images and boxes turn alike, painted rectangles by Pillow and by us; bit fields of a BMP are read by their masks."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from odd_images import bit_fields, encode
from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodeSettings, Request, decode, row_requests, shrink
from vggfeat.images.pool import Decoder
from vggfeat.images.upright import (
    annotated_orientation,
    pillow_orientation,
    stored_size,
    turn_back,
    turn_boxes,
    written_orientation,
)
from vggfeat.samples import Box, DataSet, Task


@pytest.fixture
def read(tmp_path):
    def read(data, **settings):
        (tmp_path / "a.bmp").write_bytes(data)
        try:
            return decode(Request(str(tmp_path / "a.bmp"), (None,)), DecodeSettings(**settings)).regions[0]
        except ImageError as error:
            return error.reason

    return read


# Where red, green and blue lie; where the opacity lies.
LAYOUTS = {
    "RGB 565": (16, (0xF800, 0x7E0, 0x1F)),
    "BGR 565": (16, (0x1F, 0x7E0, 0xF800)),
    "RGB 555": (16, (0x7C00, 0x3E0, 0x1F)),
    "BGR 555": (16, (0x1F, 0x3E0, 0x7C00)),
    "RGB 444": (16, (0xF00, 0xF0, 0xF)),
    "RGB 332": (16, (0xE0, 0x1C, 0x3)),
    "BGRX": (32, (0xFF0000, 0xFF00, 0xFF)),
    "RGBX": (32, (0xFF, 0xFF00, 0xFF0000)),
    "XBGR": (32, (0xFF000000, 0xFF0000, 0xFF00)),
    "XRGB": (32, (0xFF00, 0xFF0000, 0xFF000000)),
    "GRB": (32, (0xFF00, 0xFF0000, 0xFF)),
    "RGB 10 10 10": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "RGB 565 in 32": (32, (0xF800, 0x7E0, 0x1F)),
}


def packed(values, masks):
    """values (H, W, fields), each of the range of its field."""
    shifts = [(mask & -mask).bit_length() - 1 for mask in masks]
    return sum(values[..., place].astype(np.int64) << shift for place, shift in enumerate(shifts))


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_every_header(read, layout, header, top_down):
    bits, masks = LAYOUTS[layout]
    tops = np.array([mask >> (mask & -mask).bit_length() - 1 for mask in masks])
    values = np.random.default_rng(0).integers(0, tops + 1, (3, 5, 3))
    values[0, 0], values[0, 1] = 0, tops
    found = read(bit_fields(packed(values, masks), bits, masks, header=header, top_down=top_down))
    assert np.array_equal(found, values * 255 // tops)


def test_16_bits_without_masks_are_555(read):
    values = np.array([[[31, 0, 16]]])
    data = bit_fields(packed(values, (0x7C00, 0x3E0, 0x1F)), 16, (), compression=0)
    assert read(data).tolist() == [[[255, 0, 131]]]  # 16 * 255 / 31 = 131.6


@pytest.mark.parametrize(
    "masks",
    [(0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF, 0xFF00, 0xFF0000, 0xFF000000), (0xFF000000, 0xFF0000, 0xFF00, 0xFF)],
)
def test_opacity_is_laid_over_white(read, masks):
    values = np.array([[[200, 0, 255, 64], [1, 2, 3, 255]]])
    assert read(bit_fields(packed(values, masks), 32, masks, header=56)).tolist() == [[[241, 191, 255], [1, 2, 3]]]


def test_masks_with_gaps_are_unsupported(read):
    assert read(bit_fields([[1, 2]], 32, (0xF0F, 0xF0, 0xF000))) == "unsupported"
    assert read(bit_fields([[1, 2]], 16, (0xFF0000, 0xFF00, 0xFF))) == "unsupported"


def test_sizes_are_checked(read):
    data = bit_fields(np.zeros((10, 10), int), 32, LAYOUTS["RGBX"][1])
    assert read(data, max_pixels=99) == "too-large"
    assert read(data[:-41]) == "truncated"
    assert read(data[:-41], allow_truncated=True).shape == (10, 10, 3)
    assert read(data[:18] + struct.pack("<ii", 0, 5) + data[26:]) == "damaged"
    assert read(data[:18] + struct.pack("<ii", 60000, 60000) + data[26:]) == "too-large"


def test_common_bitmaps_are_read_as_before(read):
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(read(encode(Image.fromarray(noise), "BMP")), noise)


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
