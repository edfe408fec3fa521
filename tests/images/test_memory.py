"""An image in memory is what its file is, or is refused; never another."""

import io
import itertools
import pickle
import struct
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from odd_images import bit_fields, encode, flat_jpeg, png, tiff
from tiffs import DEFLATE, NONE, write_tiff
from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodeSettings, Request, decode, region_of

SETTINGS = DecodeSettings()


def unpickled(image):
    return pickle.loads(pickle.dumps(image))


def loaded(image):
    image.load()
    return image


DERIVED = {
    "opened": lambda image: image,
    "loaded": loaded,
    "copy": lambda image: image.copy(),
    "crop": lambda image: image.crop((0, 0, *image.size)),
    "pickle": unpickled,
    "pickle of a loaded one": lambda image: unpickled(loaded(image)),
    "copy of a loaded one": lambda image: loaded(image).copy(),
}


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def files():
    """Name, content, and whether Pillow's pixels of derived images say what the file does."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8)
    colour, alpha = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    ramp = np.arange(12).reshape(3, 4, 1)
    yield "jpeg", encode(colour, "JPEG", exif=rotated())
    yield "cmyk jpeg", flat_jpeg((155, 255, 255, 205), 0)
    yield "png", encode(alpha, "PNG", exif=rotated())
    yield "png, 16 bit grey", png(2, 1, 16, 0, [b"\x12\x34\x56\x78"])
    yield "png, 16 bit colour", png(1, 1, 16, 2, [b"\x12\x34\x00\xff\xff\x00"])
    yield (
        "png, 16 bit colour, transparent",
        png(2, 1, 16, 2, [b"\x12\x34" * 3 + b"\x34\x12" * 3], (b"tRNS", b"\x12\x34" * 3)),
    )
    yield "png, 4 bit, transparent", png(2, 1, 4, 0, [b"\x23"], (b"tRNS", b"\0\2"))
    yield "png, 2 bit, transparent", png(4, 1, 2, 0, [b"\x18"], (b"tRNS", b"\0\1"))
    yield "png, 8 bit, transparent", png(2, 1, 8, 0, [b"\5\6"], (b"tRNS", b"\0\5"))
    yield "png, 16 bit, transparent", png(2, 1, 16, 0, [b"\x12\x34\x12\x35"], (b"tRNS", b"\x12\x34"))
    yield "gif", encode(colour.quantize(8), "GIF", transparency=2)
    yield "bmp", encode(colour, "BMP")
    numbers = noise.view(np.uint32)[..., 0]
    yield "bmp, 565", bit_fields(numbers & 0xFFFF, 16, (0xF800, 0x7E0, 0x1F))
    yield "bmp, 555", bit_fields(numbers & 0xFFFF, 16, (), compression=0)
    yield "bmp, opacity", bit_fields(numbers, 32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=56)
    yield "bmp, no opacity", bit_fields(numbers, 32, (0xFF000000, 0xFF0000, 0xFF00))
    yield "webp", encode(alpha, "WEBP", lossless=True, exif=rotated())
    yield "ppm, 16 bit", b"P5\n2 1\n65535\n\x12\x34\x56\x78"
    yield "tiff, turned", encode(colour, "TIFF", tiffinfo={274: 6})
    yield "tiff, 12 bit", tiff(4, 1, 12, b"\x00\x0f\xff\x80\x07\xf8")
    yield "tiff, float", tiff(3, 1, 32, struct.pack("<3f", 0.25, 0.5, 0.75), sample_format=3)
    for photometric, bits, kind, compression in itertools.product((0, 1), (8, 16, 32), "ui", (NONE, DEFLATE)):
        values = ramp * (2 ** (bits - 5)) - (2 ** (bits - 2) if kind == "i" else 0)
        data = write_tiff(values, bits, kind, photometric=photometric, compression=compression)
        yield f"tiff, photometric {photometric}, {kind}{bits}, compression {compression}", data
    for bits, planar, compression in itertools.product((8, 16), (False, True), (NONE, DEFLATE)):
        values = noise[..., :3].astype(int) * (257 if bits == 16 else 1)
        data = write_tiff(values, bits, photometric=2, planar=planar, compression=compression)
        yield f"tiff, RGB of {bits} bits, planar {planar}, compression {compression}", data


def opened_by_pillow(path):
    """None for what only vggfeat reads."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        return nullcontext()


@pytest.mark.parametrize(("name", "data"), list(files()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_derived_image_gives_the_pixels_of_its_file_or_is_refused(tmp_path, name, data):
    (tmp_path / "image").write_bytes(data)
    expected = decode(Request(str(tmp_path / "image"), (None,)), SETTINGS)
    refused = {}
    for how, derive in DERIVED.items():
        if ("RGB of 16 bits, planar True" in name or ", i8" in name) and how not in ("opened", "loaded"):
            continue  # Pillow has made other 8-bit pixels of it, which nothing tells from those of another file
        with opened_by_pillow(tmp_path / "image") as image:
            if image is None:
                return
            try:
                found = region_of(derive(image), SETTINGS)
            except ImageError as error:
                refused[how] = f"{error.reason}: {error}"
                continue
        assert found.size == expected.size, how
        assert (found.regions[0] == expected.regions[0]).all(), how
    assert "opened" not in refused
    assert all(text.startswith("unsupported: ") and "give its path" in text for text in refused.values())
    shallow = not any(sign in name for sign in ("16", "32", "12 bit", "float", ", i8", "4 bit", "2 bit"))
    if shallow:
        assert refused == {}


GREYS = np.arange(0, 240, 20).reshape(3, 4, 1)
MISREAD = {
    "planes of grey": {"values": GREYS, "photometric": 0, "planar": True, "rows": 1},
    "planes of grey with opacity": {
        "values": np.concatenate([GREYS, 255 - GREYS], 2), "photometric": 1, "planar": True, "extra": (2,),
        "compression": DEFLATE,
    },
    "planes of reversed bits": {
        "values": np.repeat(GREYS, 3, 2), "photometric": 2, "planar": True, "fill_order": 2,
    },
    "a palette of 8 bits": {
        "values": GREYS, "photometric": 3, "colour_map": [*range(256), *range(255, -1, -1), *range(256)],
    },
}  # fmt: skip


@pytest.mark.parametrize("how", MISREAD)
def test_a_loaded_tiff_that_pillow_misreads_is_refused_and_an_opened_one_is_read(tmp_path, how):
    (tmp_path / "image.tif").write_bytes(write_tiff(bits=8, **MISREAD[how]))
    expected = decode(Request(str(tmp_path / "image.tif"), (None,)), SETTINGS).regions[0]
    with Image.open(tmp_path / "image.tif") as image:
        assert (region_of(image, SETTINGS).regions[0] == expected).all()
        image.load()
        with pytest.raises(ImageError, match="has been loaded already; give its path"):
            region_of(image, SETTINGS)


@pytest.mark.parametrize("page", [0, 1, 2])
def test_the_page_that_was_sought_is_read(page):
    pages = [Image.fromarray(np.full((2, 3), value, np.uint16)) for value in (0, 257, 65535)]
    for options in ({}, {"compression": "tiff_lzw"}):
        data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:], **options)
        with Image.open(io.BytesIO(data)) as image:
            image.seek(page)
            assert (region_of(image, SETTINGS).regions[0] == (0, 1, 255)[page]).all()
            assert image.tell() == page


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.zeros((2, 3), np.uint16)),
        Image.fromarray(np.zeros((2, 3), np.int32)),
        Image.fromarray(np.zeros((2, 3), np.float32)),
        Image.new("I;16B", (2, 3)),
    ],
    ids=lambda image: image.mode,
)
def test_deep_values_without_a_file_are_refused_with_the_way_to_scale_them(image):
    with pytest.raises(ImageError, match=r"image in memory: .*mode (I|F).*fromarray\(np\.rint\(") as caught:
        region_of(image, SETTINGS)
    assert caught.value.reason == "unsupported"


def test_the_advice_works():
    image = Image.fromarray(np.array([[100, 300, 500]], np.uint16))
    with pytest.raises(ImageError) as caught:
        region_of(image, SETTINGS)
    code = str(caught.value).partition("PIL.Image.fromarray(")[2][:-1]
    scaled = Image.fromarray(eval(code, {"np": np, "image": image, "black": 100, "white": 500}))
    assert region_of(scaled, SETTINGS).regions[0][0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_arrays_of_8_bits_are_taken_as_they_are(dtype):
    values = np.array([[0, 1]], dtype)
    assert region_of(Image.fromarray(values), SETTINGS).regions[0][0, 1, 0] == (255 if dtype == np.bool_ else 1)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_without_pixels_is_refused(mode, size):
    with pytest.raises(ImageError, match=f"expected sides above 0, found {size[0]}x{size[1]}"):
        region_of(Image.new(mode, size), SETTINGS)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_a_closed_image_is_called_closed(form, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x", form)
    image = Image.open(tmp_path / "x")
    image.close()
    with pytest.raises(ImageError, match="expected an open image, found a closed one; load it") as caught:
        region_of(image, SETTINGS)
    assert caught.value.reason == "unreadable"
