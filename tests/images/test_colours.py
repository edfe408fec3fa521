"""Bit fields of a BMP are read by their masks."""

import struct

import numpy as np
import pytest
from PIL import Image

from odd_images import bit_fields, encode
from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodeSettings, Request, decode


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
