"""What a file says next to its pixels never costs it its pixels; of all of it, the orientation alone is used."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from odd_images import encode, png
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.images.metadata import without_metadata

ROW = [b"\1\2\3\4\5\6"]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
MEGABYTES = 5 << 20


@pytest.fixture
def read(tmp_path):
    def read(data):
        (tmp_path / "image").write_bytes(data)
        return decode(Request(str(tmp_path / "image"), (None,)), DecodeSettings()).regions[0]

    return read


def itxt(keyword, text, *, packed=False):
    return b"iTXt", keyword + b"\0" + (b"\1\0" if packed else b"\0\0") + b"\0\0" + (
        zlib.compress(text) if packed else text
    )


CHUNKS = {
    "long text": (b"tEXt", b"Comment\0" + b"x" * MEGABYTES),
    "long packed text": (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * MEGABYTES)),
    "bomb": (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9)),
    "long international text": itxt(b"Comment", b"x" * MEGABYTES),
    "long packed international text": itxt(b"Comment", b"x" * MEGABYTES, packed=True),
    "long XMP": itxt(b"XML:com.adobe.xmp", XMP.replace(b"6", b"1") + b" " * MEGABYTES),
    "long packed XMP": itxt(b"XML:com.adobe.xmp", b"x" * MEGABYTES, packed=True),
    "long profile": (b"iCCP", b"a\0\0" + zlib.compress(b"x" * MEGABYTES)),
    "broken profile": (b"iCCP", b"a\0\0" + b"not zlib"),
    "profile of another method": (b"iCCP", b"a\0\7" + b"?"),
    "broken packed text": (b"zTXt", b"Comment\0\0not zlib"),
    "text of another method": (b"zTXt", b"Comment\0\7?"),
    "broken EXIF": (b"eXIf", b"MM\0*\xff\xff\xff\xff"),
    "long raw profile": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  9\n" + b"00" * MEGABYTES)),
    "short gamma": (b"gAMA", b"\0"),
    "short density": (b"pHYs", b"\0\0\0"),
    "short chromaticities": (b"cHRM", b"\0"),
    "short time": (b"tIME", b"\0"),
    "empty": (b"sRGB", b""),
    "private": (b"caBX", bytes(MEGABYTES)),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_png_is_read_whatever_is_written_beside_its_pixels(read, name):
    wanted = [[[1, 2, 3], [4, 5, 6]]]
    assert read(png(2, 1, 8, 2, ROW, CHUNKS[name])).tolist() == wanted
    if len(CHUNKS[name][1]) < 1 << 20:
        many = [CHUNKS[name]] * 100
        assert read(png(2, 1, 8, 2, ROW, *many)).tolist() == wanted
        broken = png(2, 1, 8, 2, ROW, CHUNKS[name])
        at = broken.index(CHUNKS[name][0]) + 4 + len(CHUNKS[name][1])
        assert read(broken[:at] + b"\0\0\0\0" + broken[at + 4 :]).tolist() == wanted  # a wrong checksum


@pytest.mark.parametrize("chunk", [
    itxt(b"XML:com.adobe.xmp", XMP),
    itxt(b"XML:com.adobe.xmp", XMP, packed=True),
    (b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\6\0\0\0\0\0\0\0"),
], ids=["XMP", "packed XMP", "EXIF"])  # fmt: skip
def test_the_orientation_of_a_png_is_kept(read, chunk):
    assert read(png(2, 1, 8, 2, ROW, chunk, CHUNKS["long text"])).tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


def test_transparency_and_frames_of_a_png_are_kept():
    data = png(1, 1, 8, 3, [b"\0"], (b"PLTE", b"\1\2\3"), (b"tRNS", b"\0"))
    assert without_metadata(data) is data
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animated = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert without_metadata(animated) is animated


def segment(marker, body):
    return struct.pack(">BBH", 255, marker, len(body) + 2) + body


def test_a_jpeg_is_read_whatever_is_written_beside_its_pixels(read):
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encode(Image.fromarray(noise), "JPEG", exif=exif)
    wanted = read(plain)
    assert wanted.shape == (24, 16, 3)
    for extra in (
        b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 9]) + bytes(60000)) for n in range(1, 30)),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"MPF\0MM\0*\xff\xff\xff\xff"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
        segment(0xFE, bytes(65000)),
        segment(0xE5, b""),
        b"\xff\xff" + segment(0xFE, b"after fill bytes"),
    ):
        assert (read(plain[:2] + extra + plain[2:]) == wanted).all()
        assert without_metadata(plain[:2] + extra + plain[2:]) in (plain, plain[:2] + b"\xff\xff" + plain[2:])


@pytest.mark.parametrize(("marker", "name", "least"), [(0xE0, b"JFIF\0", 14), (0xEE, b"Adobe", 12)])
def test_a_marker_that_breaks_off_costs_nothing(read, marker, name, least):
    plain = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)), "JPEG")
    for length in range(len(name), least):
        broken = plain[:2] + segment(marker, name.ljust(length, b"\0")) + plain[2:]
        assert (read(broken) == read(plain)).all(), length


def test_adobe_s_transform_of_a_jpeg_is_kept():
    data = encode(Image.new("CMYK", (8, 8), (1, 2, 3, 4)), "JPEG")
    assert without_metadata(data) is data


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 12, 20, 40])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_ends_early_is_left_alone(kind, size):
    data = encode(Image.new("L", (8, 8)), kind)[:size]
    assert data.startswith(without_metadata(data))


def test_broken_exif_of_an_avif_loses_nothing(read):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    data = encode(Image.fromarray(noise), "AVIF", exif=exif)
    at = data.index(b"MM\0*") if b"MM\0*" in data else data.index(b"II*\0")
    wanted = read(encode(Image.fromarray(noise), "AVIF"))
    assert (read(data) == wanted).all()
    for block in (b"\xff" * 8, b"MM\0*\xff\xff\xff\xff"):
        assert (read(data[:at] + block + data[at + 8 :]) == wanted).all()


def test_other_formats_are_left_alone():
    data = encode(Image.new("L", (8, 8)), "GIF")
    assert without_metadata(data) is data
