"""Every file gets the right blame: what its header says decides, and the way out is named."""

import struct

import numpy as np
import pytest
from PIL import Image

from odd_images import encode, flat_jpeg
from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.images.recognise import FORMATS, odd_jpeg


@pytest.fixture
def failure(tmp_path):
    def failure(data):
        (tmp_path / "image.jpg").write_bytes(data)
        with pytest.raises(ImageError) as caught:
            decode(Request(str(tmp_path / "image.jpg"), (None,)), DecodeSettings())
        return caught.value.reason, str(caught.value)

    return failure


def ftyp(*brands):
    return struct.pack(">I4s4sI", 16 + 4 * (len(brands) - 1), b"ftyp", brands[0], 0) + b"".join(brands[1:]) + bytes(50)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "HEIC/HEIF"),
        (ftyp(b"heix", b"mif1"), "HEIC/HEIF"),
        (ftyp(b"mif1", b"heic"), "HEIC/HEIF"),
        (ftyp(b"msf1", b"hevc"), "HEIC/HEIF"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
        (encode(Image.new("RGB", (16, 16)), "JPEG2000"), "JPEG 2000"),
        (encode(Image.new("RGB", (16, 16)), "JPEG2000", no_jp2=True), "JPEG 2000"),
        (ftyp(b"crx "), "camera raw (CR3)"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), "camera raw (CR2)"),
        (b"IIRO\x08\0\0\0" + bytes(40), "camera raw (ORF)"),
        (b"IIU\0\x18\0\0\0" + bytes(40), "camera raw (RW2)"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(40), "camera raw (RAF)"),
        (b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF", "PDF"),
        (b"\n%PDF-1.7\n", "PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg/>', "SVG"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\4CgBI\x50\0\x20\2" + bytes(40), "PNG in Apple's own form (CgBI)"),
        (b"II\xbc\x01" + bytes(40), "JPEG XR"),
    ],
)
def test_formats_with_a_name_are_unsupported_by_it_with_the_way_out(failure, data, name):
    reason, text = failure(data)
    assert reason == "unsupported"
    assert f"found {name}; convert it to " in text


@pytest.mark.parametrize(
    "data", [b"<!DOCTYPE html><p>an inline <svg>", b"GIF", b"ftyp" * 9, b"<?xml version='1.0'?><note/>"]
)
def test_what_has_no_name_is_unrecognised(failure, data):
    assert failure(data)[0] == "unrecognised"


# AVIF


def test_avif_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.avif").write_bytes(
        encode(Image.fromarray(noise), "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    )
    found = decode(Request(str(tmp_path / "a.avif"), (None,)), DecodeSettings())
    assert found.size == (224, 160)
    assert np.abs(found.regions[0].astype(int) - np.rot90(noise, -1)).mean() < 3
    assert "AVIF" in FORMATS


def test_avif_with_alpha_is_over_white(tmp_path):
    (tmp_path / "a.avif").write_bytes(encode(Image.new("RGBA", (64, 64), (200, 0, 255, 64)), "AVIF", quality=100))
    found = decode(Request(str(tmp_path / "a.avif"), (None,)), DecodeSettings()).regions[0]
    assert np.abs(found.astype(int) - (241, 191, 255)).max() <= 4


def test_avif_that_ends_early_is_truncated(failure):
    data = encode(Image.effect_noise((64, 64), 90), "AVIF")
    assert failure(data[: len(data) // 2])[0] == "truncated"
    assert failure(data[:40])[0] in ("truncated", "damaged")


# JPEG


def with_frame(marker, precision=8, components=3, height=8):
    data = bytearray(flat_jpeg((1, 200, 255)))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    data[at + 5 : at + 7] = struct.pack(">H", height)
    data[at + 9] = components
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        *[with_frame(marker) for marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)],
        with_frame(0xC0, precision=12),
        with_frame(0xC1, precision=12),
        with_frame(0xC2, precision=12),
        with_frame(0xC3, precision=16),
        with_frame(0xC0, components=2),
        with_frame(0xC0, components=5),
        with_frame(0xC0, height=0),  # said later, by DNL
        with_frame(0xF7),
    ],
)
def test_uncommon_jpegs_are_unsupported_by_their_frame_and_never_damaged(failure, data):
    assert odd_jpeg(data)
    reason, text = failure(data)
    assert reason == "unsupported"
    assert "; convert it to PNG" in text


def test_common_jpegs_are_not_odd():
    for options in ({}, {"progressive": True}, {"subsampling": 2}):
        assert odd_jpeg(encode(Image.new("RGB", (8, 8)), "JPEG", **options)) is None
    assert odd_jpeg(encode(Image.new("CMYK", (8, 8)), "JPEG")) is None
    assert odd_jpeg(b"\xff\xd8\xff") is None
    assert odd_jpeg(b"GIF89a") is None


def test_the_name_of_the_option_is_in_the_message_of_a_large_image(tmp_path):
    for kind in ("PNG", "TIFF", "BMP", "AVIF"):
        (tmp_path / "a").write_bytes(encode(Image.new("RGB", (10, 10)), kind))
        with pytest.raises(ImageError, match=r"at most 99 pixels, found (10x10|more); raise --max-pixels") as caught:
            decode(Request(str(tmp_path / "a"), (None,)), DecodeSettings(max_pixels=99))
        assert caught.value.reason == "too-large"
