"""Every file gets the right blame, and what it says next to its pixels never costs it these.

What the header of a file says decides how it is read, and the way out is named. Of all that is written beside the
pixels the orientation alone is used, whatever else there is.
"""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from odd_images import encode, flat_jpeg, png
from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.images.image_bytes import FORMATS, odd_jpeg, without_metadata


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
        (bytes(128) + b"DICM" + bytes(40), "DICOM"),
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


# What lies beside the pixels

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
        assert without_metadata(plain[:2] + extra + plain[2:]) == without_metadata(plain)


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


# What turns an image is found whatever lies beside it. (H, W) of the image below: 16 x 24 as stored, 24 x 16 upright.

NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
EXIF = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\6\0\0\0\0\0\0\0"
PROFILE = b"\nexif\n      26\n" + EXIF.hex().encode() + b"\n"
LONG_XMP = b" " * MEGABYTES + XMP
XMP_NAME, PROFILE_NAME = b"XML:com.adobe.xmp", b"Raw profile type exif"
XAP = b"http://ns.adobe.com/xap/1.0/\0"


def noisy_png(*chunks):
    return png(24, 16, 8, 2, [row.tobytes() for row in NOISE], *chunks)


def with_segments(*bodies):
    plain = encode(Image.fromarray(NOISE), "JPEG")
    return plain[:2] + b"".join(segment(0xE1, body) for body in bodies) + plain[2:]


def with_chunks(*chunks):
    """A WebP with these (name, content) after its pixels."""
    plain = encode(Image.fromarray(NOISE), "WEBP", lossless=True, exif=b"Exif\0\0" + EXIF)
    pixels = plain[12 : plain.index(b"EXIF")]
    tail = b"".join(name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for name, body in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(pixels + tail)) + b"WEBP" + pixels + tail


def with_long_tags(*, orientation):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[270] = "x" * MEGABYTES
    tags.tagtype[700], tags[700] = 1, LONG_XMP
    if orientation:
        tags[274] = 6
    return encode(Image.fromarray(NOISE), "TIFF", tiffinfo=tags)


TURNED = {
    "PNG, EXIF after long texts": lambda: noisy_png(
        CHUNKS["long text"], CHUNKS["long packed text"], CHUNKS["long XMP"], (b"eXIf", EXIF)
    ),
    "PNG, long EXIF": lambda: noisy_png((b"eXIf", EXIF + bytes(MEGABYTES))),
    "PNG, EXIF with its mark": lambda: noisy_png((b"eXIf", b"Exif\0\0" + EXIF)),
    "PNG, EXIF beside a broken profile": lambda: noisy_png((b"iCCP", b"a\0\0not zlib"), (b"eXIf", EXIF)),
    "PNG, long XMP": lambda: noisy_png(itxt(XMP_NAME, LONG_XMP)),
    "PNG, long packed XMP": lambda: noisy_png(itxt(XMP_NAME, LONG_XMP, packed=True)),
    "PNG, raw profile": lambda: noisy_png((b"zTXt", PROFILE_NAME + b"\0\0" + zlib.compress(PROFILE))),
    "PNG, long raw profile": lambda: noisy_png(
        (b"zTXt", PROFILE_NAME + b"\0\0" + zlib.compress(PROFILE.strip(b"\n").join([b"\n", b"00" * MEGABYTES])))
    ),
    "PNG, raw profile that is not packed": lambda: noisy_png((b"tEXt", PROFILE_NAME + b"\0" + PROFILE)),
    "PNG, XMP beside a broken EXIF": lambda: noisy_png((b"eXIf", b"MM\0*\xff\xff\xff\xff"), itxt(XMP_NAME, XMP)),
    "JPEG, EXIF after large segments": lambda: with_segments(
        *[b"http://ns.adobe.com/xmp/extension/\0" + bytes(65000)] * 40, XAP + b" " * 65000, b"Exif\0\0" + EXIF
    ),
    "JPEG, EXIF in two segments": lambda: with_segments(
        b"Exif\0\0II*\0" + struct.pack("<I", 65000) + bytes(64992), b"Exif\0\0" + EXIF[8:]
    ),
    "JPEG, XMP": lambda: with_segments(XAP + XMP),
    "JPEG, XMP beside a broken EXIF": lambda: with_segments(b"Exif\0\0MM\0*\xff\xff\xff\xff", XAP + XMP),
    "JPEG, EXIF after stray bytes": lambda: b"\xff\xd8\0\0\0" + with_segments(b"Exif\0\0" + EXIF)[2:],
    "WebP, EXIF beside long XMP": lambda: with_chunks((b"XMP ", LONG_XMP), (b"EXIF", EXIF)),
    "WebP, long EXIF": lambda: with_chunks((b"EXIF", EXIF + bytes(MEGABYTES))),
    "TIFF, tag after long ones": lambda: with_long_tags(orientation=True),
    "TIFF, long XMP": lambda: with_long_tags(orientation=False),
    "AVIF, its own property beside long metadata": lambda: encode(
        Image.fromarray(NOISE), "AVIF", quality=100, subsampling="4:4:4", exif=b"Exif\0\0" + EXIF + bytes(MEGABYTES),
        xmp=LONG_XMP.replace(b"6", b"1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNED)
def test_an_image_is_turned_whatever_lies_beside_its_orientation(read, name):
    found = read(TURNED[name]())
    assert found.shape == (24, 16, 3)
    lossy = {"JPEG": {}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    kind = name.partition(",")[0]
    plain = read(encode(Image.fromarray(NOISE), kind, **lossy[kind])) if kind in lossy else NOISE
    assert np.array_equal(found, np.rot90(plain, -1))
