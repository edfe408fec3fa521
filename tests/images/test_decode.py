import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from odd_images import encode, flat_jpeg, png, scan_bomb, tiff
from vggfeat.errors import ConfigError, ImageError
from vggfeat.given import MISSING
from vggfeat.images.decode import (
    EXTRACTION_REASONS,
    MEANINGS,
    REASONS,
    DecodeSettings,
    Request,
    decode,
    loaded,
    region_of,
)
from vggfeat.images.upright import to_rgb
from vggfeat.samples import Box

SETTINGS = DecodeSettings()
COLOURS = {
    "R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "K": (0, 0, 0), "W": (255, 255, 255), "Y": (255, 255, 0),
}  # fmt: skip
# The upright image is RGB over KWY. EXIF names the sides on which row 0 and column 0 of the stored image lie.
STORED = {
    1: ("RGB", "KWY"),  # top, left
    2: ("BGR", "YWK"),  # top, right
    3: ("YWK", "BGR"),  # bottom, right
    4: ("KWY", "RGB"),  # bottom, left
    5: ("RK", "GW", "BY"),  # left, top
    6: ("BY", "GW", "RK"),  # right, top
    7: ("YB", "WG", "KR"),  # right, bottom
    8: ("KR", "WG", "YB"),  # left, bottom
}


def painted(rows, scale=1):
    array = np.array([[COLOURS[letter] for letter in row] for row in rows], np.uint8)
    return Image.fromarray(array.repeat(scale, 0).repeat(scale, 1))


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file and return its decoded region as nested lists, or the image with `whole`."""

    def read(data, *, name="image.bin", box=None, whole=False, **settings):
        path = tmp_path / name
        path.write_bytes(data)
        image = decode(Request(str(path), (box,)), DecodeSettings(**settings))
        return image if whole else image.regions[0]

    return read


def refusal(path, boxes=(None,), **settings):
    with pytest.raises(ImageError) as caught:
        decode(Request(str(path), boxes), DecodeSettings(**settings))
    assert caught.value.reason in EXTRACTION_REASONS
    text = str(caught.value)
    assert text.isprintable()
    assert text == text.strip()
    return caught.value


@pytest.fixture
def refused(tmp_path):
    """Write bytes to a file and return the reason why it gives no pixels."""

    def refused(data, *, name="image.bin", **settings):
        path = tmp_path / name
        path.write_bytes(data)
        error = refusal(path, **settings)
        assert str(error).startswith(str(path))
        return error.reason

    return refused


# Orientation


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_comes_out_upright(read, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = read(encode(painted(STORED[orientation]), kind, exif=exif, **options), whole=True)
    assert image.size == (2, 3)
    assert image.regions[0].tolist() == np.asarray(painted(STORED[1])).tolist()


@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_of_a_jpeg_comes_out_upright(read, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(painted(STORED[orientation], 16), "JPEG", exif=exif, quality=100, subsampling=0)
    region = read(data)
    assert region.shape == (32, 48, 3)
    expected = np.asarray(painted(STORED[1]), int)
    assert np.abs(region[8::16, 8::16].astype(int) - expected).max() <= 4


def test_boxes_are_meant_in_the_upright_image(read):
    exif = Image.Exif()
    exif[0x0112] = 6
    region = read(encode(painted(STORED[6]), "PNG", exif=exif), box=Box(2, 0, 3, 2))
    assert region.tolist() == [[[0, 0, 255]], [[255, 255, 0]]]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(read, value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert read(encode(painted(STORED[1]), "PNG", exif=exif)).tolist() == np.asarray(painted(STORED[1])).tolist()


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"garbage of any kind",
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
        # Orientation as text, and as a value that lies outside the block.
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\x7f\xff\xff\xff\x7f\0\0\0\0",
    ],
)
def test_a_broken_exif_block_loses_nothing(read, block):
    body = b"Exif\0\0" + block
    good = flat_jpeg((77,))
    data = good[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + good[2:]
    assert (read(data) == 77).all()


# Colours


def test_grey_jpeg_and_plain_rgb(read):
    region = read(flat_jpeg((77,)))
    assert region.shape == (8, 8, 3)
    assert region.dtype == np.uint8
    assert (region == 77).all()
    assert (read(flat_jpeg((1, 200, 255), adobe_transform=0)) == (1, 200, 255)).all()


def test_ycc_jpeg_by_the_formula_of_jfif(read):
    # R = Y + 1.402 (Cr - 128) = 100 + 56.08, G = Y - 0.71414 (Cr - 128) = 100 - 28.57, B = Y.
    assert np.abs(read(flat_jpeg((100, 128, 168))).astype(int) - (156, 71, 100)).max() <= 1


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((255, 255, 255, 255), (255, 255, 255)),  # no ink
        ((255, 0, 0, 255), (255, 0, 0)),  # magenta and yellow
        ((0, 255, 255, 255), (0, 255, 255)),  # cyan
        ((255, 255, 255, 0), (0, 0, 0)),  # black
        ((155, 255, 255, 205), (125, 205, 205)),  # 155 * 205 / 255 = 124.6
    ],
)
@pytest.mark.parametrize("transform", [0, None])
def test_cmyk_jpeg_is_inverted(read, stored, expected, transform):
    assert (read(flat_jpeg(stored, transform)) == expected).all()


@pytest.mark.parametrize(("luma", "black", "grey"), [(0, 255, 255), (200, 255, 55), (0, 100, 100)])
def test_ycck_jpeg(read, luma, black, grey):
    # Y without colour is the ink C = M = Y' = Y; K is stored inverted.
    assert (read(flat_jpeg((luma, 128, 128, black), 2)) == grey).all()


@pytest.mark.parametrize(
    ("ink", "expected"),
    [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 0), (255,) * 3), ((100, 0, 0, 50), (125, 205, 205))],
)
def test_cmyk_tiff_is_plain(read, ink, expected):
    assert read(encode(Image.new("CMYK", (1, 1), ink), "TIFF")).tolist() == [[list(expected)]]


# Value and alpha, and (value * a + 255 * (255 - a)) / 255 by hand: 200 * 64 + 255 * 191 = 61505, / 255 = 241.2
OVER_WHITE = [(0, 0, 255), (0, 255, 0), (0, 128, 127), (200, 64, 241), (10, 250, 15), (254, 1, 255), (123, 255, 123)]


def test_grey_with_alpha_over_white(read):
    row = bytes(byte for value, alpha, _ in OVER_WHITE for byte in (value, alpha))
    region = read(png(len(OVER_WHITE), 1, 8, 4, [row]))
    assert region.tolist() == [[[white] * 3 for _, _, white in OVER_WHITE]]


def test_rgba_over_white_channel_by_channel(read):
    row = bytes(byte for value, alpha, _ in OVER_WHITE for byte in (value, 255, 0, alpha))
    region = read(png(len(OVER_WHITE), 1, 8, 6, [row]))
    assert region.tolist() == [[[white, 255, 255 - alpha] for _, alpha, white in OVER_WHITE]]


def test_webp_with_alpha_over_white(read):
    data = encode(Image.new("RGBA", (1, 1), (200, 0, 255, 64)), "WEBP", lossless=True)
    assert read(data).tolist() == [[[241, 191, 255]]]


def test_palette_with_and_without_transparency(read):
    palette = (b"PLTE", bytes([10, 20, 30, 0, 0, 0, 200, 200, 200]))
    assert read(png(3, 1, 8, 3, [b"\0\1\2"], palette)).tolist() == [[[10, 20, 30], [0, 0, 0], [200, 200, 200]]]
    faded = read(png(3, 1, 8, 3, [b"\0\1\2"], palette, (b"tRNS", b"\0\x80")))
    assert faded.tolist() == [[[255, 255, 255], [127, 127, 127], [200, 200, 200]]]


def test_transparent_colour_of_a_gif_is_white(read):
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert read(encode(image, "GIF", transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert read(encode(image, "GIF")).tolist() == [[[1, 2, 3], [40, 50, 60]]]


@pytest.mark.parametrize(
    ("bits", "colour", "row", "key", "expected"),
    [
        (1, 0, b"\x80", 1, [255, 0]),
        (1, 0, b"\x80", 0, [255, 255]),
        (2, 0, b"\x18", 1, [0, 255, 170, 0]),
        (4, 0, b"\x2f", 2, [255, 255]),
        (4, 0, b"\x23", 2, [255, 51]),
        (8, 0, b"\x05\x06", 5, [255, 6]),
        (16, 0, b"\x12\x34\x12\x35", 0x1234, [255, 18]),
        (8, 2, b"\5\5\5\6\6\6", 5, [255, 6]),
        (16, 2, b"\x12\x34" * 3 + b"\x34\x12" * 3, 0x1234, [255, 0x34]),
    ],
)
def test_transparent_colour_of_a_png_is_white_at_every_depth(read, bits, colour, row, key, expected):
    channels = 3 if colour == 2 else 1
    data = png(len(expected), 1, bits, colour, [row], (b"tRNS", struct.pack(">H", key) * channels))
    assert read(data)[0].tolist() == [[value] * 3 for value in expected]


def test_a_bit_of_black_and_white(read):
    assert read(png(8, 1, 1, 0, [b"\xa0"]))[0, :, 0].tolist() == [255, 0, 255, 0, 0, 0, 0, 0]


# 128 / 257 = 0.498 and 129 / 257 = 0.502; 32767 / 257 = 127.498 and 32768 / 257 = 127.502
SIXTEEN = {0: 0, 128: 0, 129: 1, 257: 1, 32767: 127, 32768: 128, 65278: 254, 65406: 254, 65407: 255, 65535: 255}


def test_16_bit_grey_in_every_format_and_byte_order(read):
    count = len(SIXTEEN)
    big, little = struct.pack(f">{count}H", *SIXTEEN), struct.pack(f"<{count}H", *SIXTEEN)
    for data in (
        png(count, 1, 16, 0, [big]),
        b"P5\n%d 1\n65535\n" % count + big,
        tiff(count, 1, 16, little),
        encode(Image.frombytes("I;16B", (count, 1), big), "TIFF"),
    ):
        assert read(data)[0].tolist() == [[value] * 3 for value in SIXTEEN.values()]


def test_16_bit_colours_keep_their_higher_byte(read):
    assert read(png(1, 1, 16, 2, [b"\x12\x34\x00\xff\xff\x00"])).tolist() == [[[0x12, 0, 0xFF]]]
    assert read(png(1, 1, 16, 6, [b"\x12\x34\x00\xff\xff\x00\xff\xff"])).tolist() == [[[0x12, 0, 0xFF]]]


def test_12_bit_grey_is_scaled_by_4095(read):
    # Two pixels in three bytes: 0x000 and 0xfff, then 0x800 = 2048 and 0x7f8 = 2040: 127.53 and 127.03.
    assert read(tiff(4, 1, 12, b"\x00\x0f\xff\x80\x07\xf8"))[0, :, 0].tolist() == [0, 255, 128, 127]


def test_white_is_zero_is_turned_round(read):
    assert read(tiff(3, 1, 16, struct.pack("<3H", 0, 257, 65535), photometric=0))[0, :, 0].tolist() == [255, 254, 0]
    assert read(tiff(3, 1, 8, bytes([0, 1, 255]), photometric=0))[0, :, 0].tolist() == [255, 254, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),  # 127.5 to the even neighbour
        ([0.25, 0.25, 0.25], [64, 64, 64]),
        ([0.0, 100.0, 200.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([float("nan"), 0.0, 1.0], [0, 0, 255]),
        ([float("-inf"), 0.0, float("inf")], [0, 0, 255]),
        ([7.0, 7.0, 7.0], [128, 128, 128]),
        ([float("nan")] * 3, [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
    ],
)
def test_float_grey(read, values, expected):
    data = tiff(len(values), 1, 32, struct.pack(f"<{len(values)}f", *values), sample_format=3)
    assert read(data)[0, :, 0].tolist() == expected


def test_signed_and_32_bit_integers_span_their_own_range(read):
    assert read(tiff(3, 1, 16, struct.pack("<3h", -5, 0, 5), sample_format=2))[0, :, 0].tolist() == [0, 128, 255]
    limits = struct.pack("<3i", -(2**31), 0, 2**31 - 1)
    assert read(tiff(3, 1, 32, limits, sample_format=2))[0, :, 0].tolist() == [0, 128, 255]


def test_deep_grey_is_the_same_in_strips(read):
    column = np.arange(65536, dtype=">u2").repeat(32)
    region = read(png(32, 65536, 16, 0, [row.tobytes() for row in column.reshape(-1, 32)]))
    assert (region[:, 0, 0] == (np.arange(65536) + 128) // 257).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK", "RGBa", "PA", "LA", "I;16B"])
def test_every_mode_has_a_way_to_rgb(mode):
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_cielab(read):
    # L = 255 of 255 without colour is white.
    assert (read(encode(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF")) >= 254).all()


def test_a_variant_that_pillow_does_not_know_is_unsupported(refused):
    data = bytearray(encode(Image.new("RGB", (2, 2)), "BMP"))
    data[30] = 4  # compression: a JPEG inside the BMP
    assert refused(bytes(data)) == "unsupported"


# What counts is the content


def test_the_content_decides_and_not_the_suffix(read):
    assert read(png(1, 1, 8, 2, [b"\1\2\3"]), name="really.jpg").tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("notes.jpg", b"These are the notes of the photographer.\n" * 20),
        ("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>"),
        ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"),
        ("drawing.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"),
        ("icon.ico", encode(Image.new("RGB", (16, 16)), "ICO")),
        ("byte.jpg", b"\0"),
    ],
)
def test_other_formats_are_refused(refused, name, data):
    assert refused(data, name=name) == "unrecognised"


def test_refusing_loads_no_plugin_of_another_format(tmp_path):
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    code = (
        "import sys, vggfeat.images.pool as d\n"
        "from vggfeat.images.decode import DecodeSettings, Request\n"
        f"print(next(d.Decoder(0, DecodeSettings()).stream([Request({str(tmp_path / 'a.eps')!r}, (None,))])).reason)\n"
        "from PIL import Image\n"
        "print(sorted(Image.OPEN))\n"
        "print([m for m in ('torch', 'sklearn', 'h5py', 'scipy', 'click') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    formats = ["AVIF", "BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
    assert done.stdout.splitlines() == ["unrecognised", str(formats), "[]"]
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_many(read, kind):
    frames = [Image.new("RGB", (4, 4), COLOURS[letter]) for letter in "RGB"]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (read(data) == COLOURS["R"]).all()


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (1, 65535), (65535, 1)])
def test_images_of_one_pixel_are_images(read, size):
    image = read(encode(Image.new("L", size, 9), "PNG"), whole=True)
    assert image.size == size[::-1]
    assert image.regions[0].shape == (*size[::-1], 3)
    assert (image.regions[0] == 9).all()


# Bad files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_truncated(refused, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    assert refused(data[: int(share * len(data))]) == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_even_a_cut_in_the_head_is_named(refused, kind):
    data = encode(Image.new("RGB", (64, 48)), kind)
    assert {refused(data[:size]) for size in (10, 15)} == {"truncated"}


def test_a_progressive_jpeg_that_lacks_its_last_scans_is_truncated(refused):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", progressive=True)
    assert refused(data[: data.rindex(b"\xff\xda")]) == "truncated"


def test_truncated_images_can_be_allowed(read):
    rows = [bytes([7, 8, 9] * 4)] * 40
    whole = png(4, 40, 8, 2, rows)
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    data = encode(Image.fromarray(noise), "BMP")
    region = read(data[: len(data) // 2], allow_truncated=True)
    assert region.shape == (64, 48, 3)
    # BMP stores the lowest row first.
    assert (region[-30:] == noise[-30:]).all()
    assert (region[:20] == 0).all()
    assert (read(whole, allow_truncated=True) == (7, 8, 9)).all()


def test_broken_content_is_damaged(refused):
    data = bytearray(png(64, 64, 8, 0, [os.urandom(64) for _ in range(64)]))
    start = data.index(b"IDAT") + 4
    data[start : start + 40] = bytes(40)
    assert refused(bytes(data)) == "damaged"


def test_an_empty_file(refused):
    assert refused(b"") == "empty"


def test_a_bomb_is_refused_by_its_head_alone(refused):
    data = png(30000, 30000, 8, 2, [b""])
    assert len(data) < 100
    assert refused(data) == "too-large"
    assert refused(data.replace(b"IDAT", b"idat")) in ("damaged", "truncated", "too-large")


def test_the_pixel_limit_is_exact(read, refused):
    data = encode(Image.new("L", (10, 10)), "PNG")
    assert read(data, max_pixels=100).shape == (10, 10, 3)
    assert refused(data, max_pixels=99) == "too-large"


def test_the_pixel_limit_may_be_above_that_of_pillow(read, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read(encode(Image.new("L", (10, 10)), "PNG")).shape == (10, 10, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_the_size_limit_is_exact(read, refused):
    data = encode(Image.new("L", (10, 10)), "PNG")
    assert read(data, max_bytes=len(data)).shape == (10, 10, 3)
    assert refused(data, max_bytes=len(data) - 1) == "too-large"


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "plain").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
        found = {path.name: refusal(path).reason for path in sorted(tmp_path.iterdir()) if path.suffix}
    assert found == {
        "fifo.jpg": "not-a-file",
        "folder.jpg": "not-a-file",
        "gone.jpg": "missing",
        "loop.jpg": "link-loop",
        "socket.jpg": "not-a-file",
    }
    assert refusal("/dev/zero").reason == "not-a-file"
    assert refusal(tmp_path / "none.jpg").reason == "missing"
    assert refusal(tmp_path / "plain" / "below.jpg").reason == "missing"
    assert refusal(tmp_path / ("long" * 100)).reason == "missing"
    assert refusal(f"{tmp_path}/nul\0.jpg").reason == "missing"


def test_a_link_to_an_image_is_followed(read, tmp_path):
    read(png(1, 1, 8, 0, [b"\x07"]), name="image.png")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "image.png")
    assert decode(Request(str(tmp_path / "link.jpg"), (None,)), SETTINGS).regions[0].tolist() == [[[7, 7, 7]]]


def test_a_file_that_may_not_be_opened(monkeypatch, tmp_path):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    error = refusal(tmp_path / "secret.jpg")
    assert error.reason == "unreadable"
    assert "Permission denied" in str(error)


def test_messages_are_fit_for_a_terminal_and_for_a_table(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n\x1b[31m.jpg")
    error = refusal(path)
    assert re.search(r"caf\\xe9\?\?\[31m\.jpg", str(error))
    str(error).encode("utf-8")


def test_equal_failures_have_equal_messages(tmp_path):
    (tmp_path / "notes.jpg").write_bytes(b"notes")
    (tmp_path / "cut.jpg").write_bytes(flat_jpeg((7,))[:30])
    for name in ("notes.jpg", "cut.jpg"):
        first, second = (str(refusal(tmp_path / name)) for _ in range(2))
        assert first == second
        assert "0x" not in first


BROKEN = (
    OSError, ValueError, SyntaxError, KeyError, IndexError, TypeError, AttributeError, OverflowError, ZeroDivisionError,
    struct.error, RecursionError, RuntimeError, AssertionError, BufferError,
)  # fmt: skip


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out-of-memory"),
        (OSError("out of memory when reading image file"), "out-of-memory"),
        (Image.DecompressionBombError("big"), "too-large"),
        (OSError("image file is truncated (3 bytes not processed)"), "truncated"),
        (EOFError(), "truncated"),
        (ValueError("not enough image data"), "truncated"),
        (NotImplementedError("that"), "unsupported"),
        (OSError("Unsupported BMP compression"), "unsupported"),
        *((kind("broken"), "damaged") for kind in BROKEN),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "damaged"),
    ],
    ids=repr,
)
def test_whatever_pillow_raises_has_a_reason(refused, monkeypatch, error, reason):
    def load(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert refused(encode(Image.new("L", (2, 2)), "PNG")) == reason


def test_warnings_neither_escape_nor_fail(read, monkeypatch):
    load = ImageFile.ImageFile.load

    def noisy(self):
        warnings.warn("Corrupt EXIF data", UserWarning, stacklevel=1)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", noisy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read(png(1, 1, 8, 0, [b"\x07"])).tolist() == [[[7, 7, 7]]]
    assert caught == []


def test_interrupts_are_not_images(read, monkeypatch):
    def load(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(KeyboardInterrupt):
        read(encode(Image.new("L", (2, 2)), "PNG"))


def test_pillow_is_left_as_it_was(read, refused):
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    read(flat_jpeg((7,)), max_pixels=64, allow_truncated=True)
    refused(flat_jpeg((7,))[:-30], max_pixels=64)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


# Images in memory


def test_an_image_in_memory_is_treated_as_its_file(read, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (
        encode(painted(STORED[6]), "PNG", exif=exif),
        png(2, 1, 4, 0, [b"\x23"], (b"tRNS", b"\0\2")),
        png(2, 1, 16, 0, [b"\x12\x34\x56\x78"]),
        flat_jpeg((155, 255, 255, 205), 0),
        encode(Image.new("L", (64, 48), 9), "PNG"),
    ):
        expected = read(data, whole=True, largest_side=4)
        with Image.open(tmp_path / "image.bin") as image:
            info = dict(image.info)
            found = region_of(image, DecodeSettings(largest_side=4))
            assert image.info == info
        assert found.regions[0].tolist() == expected.regions[0].tolist()
        assert found.size == expected.size
        assert found.sha256 == bytes(32)
        assert found.regions[0].flags.writeable


def test_an_image_in_memory_that_is_broken_is_named(tmp_path):
    (tmp_path / "cut.png").write_bytes(encode(Image.effect_noise((64, 64), 90), "PNG")[:900])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ImageError, match=r"cut\.png: ") as caught:
        region_of(image, SETTINGS)
    assert caught.value.reason == "truncated"


# Boxes and reduction


@pytest.fixture
def grid():
    """10 x 6 pixels that hold their own column and row."""
    rows, columns = np.mgrid[0:6, 0:10]
    return encode(Image.fromarray(np.stack([columns, rows, rows * 0], 2).astype(np.uint8)), "PNG")


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        (Box(0, 0, 10, 6), (0, 9), (0, 5)),
        (Box(2, 1, 3, 2), (2, 2), (1, 1)),
        (Box(2.9, 1.1, 4.1, 2.0), (2, 4), (1, 1)),
        (Box(2.1, 1.9, 2.2, 2.1), (2, 2), (1, 2)),
        (Box(-5, -0.5, 1, 1), (0, 0), (0, 0)),
        (Box(8.5, 4, 99, 1e9), (8, 9), (4, 5)),
    ],
)
def test_boxes_are_rounded_outwards_and_clipped(read, grid, box, columns, rows):
    region = read(grid, box=box)
    assert region[0, 0].tolist() == [columns[0], rows[0], 0]
    assert region[-1, -1].tolist() == [columns[1], rows[1], 0]
    assert region.shape == (rows[1] - rows[0] + 1, columns[1] - columns[0] + 1, 3)


@pytest.mark.parametrize("box", [
    Box(3, 3, 3, 5), Box(2.5, 1, 2.5, 2), Box(2.9, 1, 2.1, 2), Box(10, 0, 12, 6), Box(0, 6, 10, 7), Box(-3, 0, 0, 6),
    Box(float("nan"), 0, 1, 1), Box(0, 0, float("inf"), 1),
])  # fmt: skip
def test_boxes_without_area_are_refused(tmp_path, grid, box):
    (tmp_path / "grid.png").write_bytes(grid)
    error = refusal(tmp_path / "grid.png", (None, box))
    assert error.reason == "bad-box"
    assert "10x6" in str(error)


def test_one_region_per_box_in_order(tmp_path, grid):
    (tmp_path / "grid.png").write_bytes(grid)
    boxes = (Box(1, 1, 2, 2), None, Box(3, 2, 4, 4), Box(1, 1, 2, 2))
    image = decode(Request(str(tmp_path / "grid.png"), boxes), SETTINGS)
    assert [region.shape[:2] for region in image.regions] == [(1, 1), (6, 10), (2, 1), (1, 1)]
    assert image.size == (6, 10)
    assert image.sha256 == hashlib.sha256(grid).digest()
    for region in image.regions:
        assert region.flags.writeable
        assert region.flags.c_contiguous


def test_reduction_averages_whole_blocks(read):
    rows = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    rows = rows.repeat(2, 0).repeat(2, 1)
    rows[::2] += 3
    rows[:, ::2] += 1
    image = read(encode(Image.fromarray(rows), "PNG"), whole=True, largest_side=1)
    # 8 x 12 with Q = 1: 8 // 3 = 2, and each block of 2 x 2 is v + (0 + 1 + 3 + 4) / 4.
    assert image.regions[0][..., 0].tolist() == (np.arange(0, 240, 10).reshape(4, 6) + 2).tolist()
    assert image.size == (8, 12)


@pytest.mark.parametrize(
    ("side", "largest", "left"),
    [(47, 8, 47), (48, 8, 24), (49, 8, 25), (71, 8, 36), (72, 8, 24), (7, 8, 7), (72, None, 72)],
)
def test_reduction_keeps_three_times_the_largest_side(read, side, largest, left):
    image = read(encode(Image.new("L", (side, 100), 50), "PNG"), whole=True, largest_side=largest)
    assert image.regions[0].shape[1] == left
    assert (image.regions[0] == 50).all()


def test_each_region_is_reduced_by_its_own_size(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(Image.new("L", (60, 60), 50), "PNG"))
    settings = DecodeSettings(largest_side=5)
    image = decode(Request(str(tmp_path / "a.png"), (None, Box(0, 0, 20, 60))), settings)
    assert [region.shape for region in image.regions] == [(15, 15, 3), (60, 20, 3)]


# The rest


@pytest.mark.parametrize("name", ["max_pixels", "max_bytes", "largest_side", "timeout", "memory"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_must_be_above_zero(name, value):
    with pytest.raises(ConfigError, match=name):
        DecodeSettings(**{name: value})


def test_every_reason_has_its_sentence():
    assert tuple(MEANINGS) == REASONS
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    assert {"no-label", MISSING} < set(REASONS)
    for reason, sentence in MEANINGS.items():
        assert f"| `{reason}` | {sentence} |" in page
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", reason)
        assert re.fullmatch(r"[A-Z][^.]*\.", sentence)


def test_the_scan_bomb_is_an_image(read):
    assert (read(scan_bomb(16, 3)) == 90).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_is_forked_while_a_thread_decodes_can_decode():
    request, settings = (
        Request("x", (None,), data=encode(Image.new("RGB", (4, 3)), "PNG")),
        DecodeSettings(max_pixels=99),
    )
    before, begun = Image.MAX_IMAGE_PIXELS, threading.Event()

    def hold():
        with loaded(request, settings):
            begun.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(20)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        same = before == Image.MAX_IMAGE_PIXELS
        os._exit(0 if same and decode(request, settings).size == (3, 4) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    thread.join()
