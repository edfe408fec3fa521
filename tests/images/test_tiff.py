"""A TIFF is what its tags say, or is refused: over the grid of what tags can say, never another value."""

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from odd_images import encode, flat_jpeg
from tiffs import DEFLATE, LZMA, LZW, NONE, OLD_DEFLATE, PACKBITS, assemble, write_tiff
from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodeSettings, Request, decode

tifffile = pytest.importorskip("tifffile")

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4}
COMPRESSIONS = (NONE, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA)
HEIGHT, WIDTH = 5, 7


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file; return its pixels, or the reason why it has none."""

    def read(data, **settings):
        path = tmp_path / "image.tif"
        path.write_bytes(data)
        try:
            return decode(Request(str(path), (None,)), DecodeSettings(**settings)).regions[0]
        except ImageError as error:
            return error.reason

    return read


def numbers(bits, kind, samples, seed=0):
    """Numbers (H, W, S) over the whole range, its ends among them."""
    rng = np.random.default_rng(seed)
    shape = (HEIGHT, WIDTH, samples)
    if kind == "f":
        values = rng.random(shape).astype(f"f{bits // 8}")
        values[0, 0], values[0, 1] = 0, 1
        return values
    low, high = (0, 2**bits - 1) if kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    values = rng.integers(low, high, shape, dtype="u8" if kind == "u" else "i8", endpoint=True)
    values[0, 0], values[0, 1] = low, high
    return values


def to_8_bits(values, bits, kind, *, colour):
    """What the docs say: greys and short numbers rounded, of longer unsigned colours the higher 8 bits."""
    if kind == "u" and colour and 8 <= bits <= 16:
        return values // 2 ** (bits - 8)
    if kind == "u" and bits <= 16:
        return np.rint(values.astype(float) * 255 / (2**bits - 1))
    low, high = float(values.min()), float(values.max())
    if kind == "f" and low >= 0 and high <= 1:
        low, high = 0, 1
    return np.rint((values.astype(float) - low) * 255 / (high - low))


def expected(values, bits, kind, photometric, extra=(), colour_map=None):
    count = COLOURS[photometric]
    ink = values[..., :count]
    if photometric == PALETTE:
        rgb = np.asarray(colour_map).reshape(3, -1).T[ink[..., 0]] // 256
    else:
        ink = to_8_bits(ink, bits, kind, colour=photometric in (RGB, CMYK))
        rgb = ink
        if photometric == WHITE_IS_ZERO:
            rgb = 255 - ink
        if photometric == CMYK:
            rgb = np.rint((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255)
    rgb = np.broadcast_to(rgb, (*rgb.shape[:2], 3)).astype(float)
    if extra[:1] in ((1,), (2,)):
        alpha = values[..., count : count + 1]
        if kind == "f":
            alpha = np.rint(alpha.astype(float) * 255)
        else:
            alpha = alpha // 2 ** (bits - 8) if bits >= 8 else np.rint(alpha * 255 / (2**bits - 1))
        light = rgb * 255 if extra[0] == 1 else rgb * alpha
        rgb = np.clip(np.rint((light + 255 * (255 - alpha)) / 255), 0, 255)
    return rgb


def differ(found, wanted):
    # Half-way cases, and Pillow's own arithmetic for CMYK, may fall to the other side.
    return np.abs(found.astype(float) - wanted).max() > 1 or np.mean(found != wanted) > 0.15


def grid():
    kinds = [("u", bits) for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 64)]
    kinds += [("i", bits) for bits in (8, 12, 16, 32, 64)] + [("f", bits) for bits in (16, 32, 64)]
    # No palette is longer than 2**16; one of that length is tested below.
    return [(*kind, colours) for kind in kinds for colours in COLOURS if not (colours == PALETTE and kind[1] > 14)]


@pytest.mark.parametrize(("kind", "bits", "photometric"), grid())
def test_a_layout_is_read_as_its_tags_say_or_refused(read, kind, bits, photometric):
    for extra in ((), (0,), (1,), (2,), (2, 0), (0, 0)):
        check_layout(read, kind, bits, photometric, extra)


def check_layout(read, kind, bits, photometric, extra):
    count = COLOURS[photometric] + len(extra)
    colour_map = np.random.default_rng(1).integers(0, 65536, 3 << bits).tolist() if photometric == PALETTE else []
    values = numbers(bits, kind, count)
    wanted = None
    outcomes = set()
    # In turn over the grid, so that every compression and byte order meets every kind of sample.
    packed = COMPRESSIONS[1 + (bits + photometric + len(extra)) % (len(COMPRESSIONS) - 1)]
    for planar, compression in itertools.product((False, True), (NONE, packed)):
        order = "<>"[(planar + (compression == NONE) + len(extra)) % 2]
        options = {"planar": planar, "compression": compression, "order": order, "colour_map": colour_map}
        found = read(write_tiff(values, bits, kind, photometric=photometric, extra=extra, **options))
        outcomes.add("read" if isinstance(found, np.ndarray) else found)
        if isinstance(found, np.ndarray):
            wanted = expected(values, bits, kind, photometric, extra, colour_map) if wanted is None else wanted
            assert not differ(found, wanted), (extra, options)
    assert outcomes in ({"read"}, {"unsupported"}), extra
    if kind == "u" and bits <= 16 and not (photometric == WHITE_IS_ZERO and 1 in extra):
        assert outcomes == {"read"}, extra


LAYOUTS = [("u", 8), ("u", 12), ("u", 16), ("u", 32), ("i", 16), ("f", 32), ("f", 16), ("f", 64), ("u", 1)]


@pytest.mark.parametrize(("kind", "bits"), LAYOUTS)
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB])
def test_strips_tiles_predictors_bit_orders_and_big_files_hold_the_same(read, kind, bits, photometric):
    values = numbers(bits, kind, COLOURS[photometric])
    wanted = read(write_tiff(values, bits, kind, photometric=photometric))
    assert not differ(wanted, expected(values, bits, kind, photometric))
    cells = ({"rows": 1}, {"rows": 3}, {"tile": (16, 16)}, {"tile": (4, 8)})
    predictors = [1] + [2] * (bits in (8, 16, 32, 64)) + [3] * (kind == "f")
    for cell, planar, order, predictor, compression, fill_order in itertools.product(
        cells, (False, True), "<>", predictors, (NONE, LZW, DEFLATE), (1, 2)
    ):
        if (predictor != 1 and compression == NONE) or (planar and photometric != RGB and cell != {"rows": 3}):
            continue  # planes of one number a pixel are no other layout
        options = {"planar": planar, "order": order, "predictor": predictor, "compression": compression, **cell}
        big = fill_order == 2
        found = read(write_tiff(values, bits, kind, photometric=photometric, fill_order=fill_order, big=big, **options))
        assert isinstance(found, np.ndarray), (found, options)
        assert (found == wanted).all(), (options, fill_order)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_files_of_tifffile_are_read_as_tifffile_reads_them(read, photometric, dtype):
    kind, bits = dtype[0], int(dtype[1:]) * 8
    values = numbers(bits, kind, 3 if photometric == "rgb" else 1).astype(dtype)
    for order, planar, compression, tile, predictor in itertools.product(
        "<>", ("contig", "separate"), (None, "zlib"), (None, (16, 16)), (False, True)
    ):
        if (planar == "separate" and photometric != "rgb") or (predictor and not compression):
            continue
        if predictor and (kind == "f" or bits == 64):
            continue  # tifffile needs another package for these
        stored = values[..., 0] if photometric != "rgb" else values if planar == "contig" else values.transpose(2, 0, 1)
        file = io.BytesIO()
        tifffile.imwrite(
            file, stored, byteorder=order, photometric=photometric,
            planarconfig=planar if photometric == "rgb" else None, compression=compression, tile=tile,
            predictor=predictor or None,
        )  # fmt: skip
        file.seek(0)
        assert (tifffile.imread(file) == stored).all()
        wanted = expected(values, bits, kind, {"minisblack": 1, "miniswhite": 0, "rgb": 2}[photometric])
        found = read(file.getvalue())
        assert isinstance(found, np.ndarray), found
        assert not differ(found, wanted), (order, planar, compression, tile, predictor)


# Values that can be checked by hand


def test_planar_colours_of_16_bits_are_their_higher_byte(read):
    values = np.array([[[0x1234, 0x00FF, 0xFF00]]], "u2")
    for planar in (False, True):
        assert read(write_tiff(values, 16, photometric=RGB, planar=planar)).tolist() == [[[0x12, 0, 0xFF]]]


def test_unsigned_numbers_of_32_bits_do_not_wrap(read):
    values = np.array([[[0], [2**31], [2**32 - 1]]], "u4")
    for order in "<>":
        assert read(write_tiff(values, 32, photometric=BLACK_IS_ZERO, order=order))[0, :, 0].tolist() == [0, 128, 255]


def test_signed_bytes_are_not_unsigned(read):
    values = np.array([[[-128], [0], [127]]], "i1")
    assert read(write_tiff(values, 8, "i", photometric=BLACK_IS_ZERO))[0, :, 0].tolist() == [0, 128, 255]


def test_12_bit_white_is_zero(read):
    values = np.array([[[0], [4095]]])
    assert read(write_tiff(values, 12, photometric=WHITE_IS_ZERO))[0, :, 0].tolist() == [255, 0]


def test_floats_of_colours_share_one_range(read):
    values = np.array([[[0.0, 0.25, 1.0]]], "f4")
    assert read(write_tiff(values, 32, "f", photometric=RGB)).tolist() == [[[0, 64, 255]]]
    assert read(write_tiff(values * 100 - 50, 32, "f", photometric=RGB)).tolist() == [[[0, 64, 255]]]
    assert read(write_tiff(values * np.nan, 32, "f", photometric=RGB)).tolist() == [[[0, 0, 0]]]


def test_a_palette_of_16_bit_numbers_and_one_of_8_bit_colours(read):
    colours = [0, 0x1234, 0xFFFF] + [0] * 65533
    found = read(write_tiff(np.array([[[0], [1], [2]]]), 16, photometric=PALETTE, colour_map=colours + [0] * (2 << 16)))
    assert found[0, :, 0].tolist() == [0, 0x12, 0xFF]
    # Old writers store 0 to 255, which would be black as 16 bits.
    found = read(write_tiff(np.array([[[0], [1]]]), 1, photometric=PALETTE, colour_map=[0, 255, 0, 7, 0, 9]))
    assert found.tolist() == [[[0, 0, 0], [255, 7, 9]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_deep_pixels_is_applied(read, orientation):
    values = np.arange(6).reshape(2, 3, 1) * 257
    found = read(write_tiff(values, 16, photometric=BLACK_IS_ZERO, t274=[orientation]))
    plain = read(
        encode(Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)), "TIFF", tiffinfo={274: orientation})
    )
    assert found.tolist() == plain.tolist()


def test_extra_alpha_without_a_declaration_is_alpha(read):
    values = np.array([[[200, 0, 255, 64]]], "u1")
    assert read(write_tiff(values, 8, photometric=RGB)).tolist() == [[[241, 191, 255]]]


# Codecs that give pixels


def jpeg_in_tiff(image, photometric, order="<", **more):
    samples = len(image.getbands())
    data = encode(image, "JPEG", quality=100, subsampling=0)
    tags = {256: [image.width], 257: [image.height], 258: [8] * samples, 259: [7], 262: [photometric], 277: [samples],
            278: [image.height], 530: [1, 1]} | {int(name[1:]): content for name, content in more.items()}  # fmt: skip
    return assemble(tags, [data], (273, 279), order)


def smooth(mode="RGB"):
    ramp = np.linspace(0, 255, 32)
    colours = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 128.0), 2)
    return Image.fromarray(colours.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(("mode", "photometric"), [("RGB", YCBCR), ("L", BLACK_IS_ZERO)])
@pytest.mark.parametrize("order", "<>")
def test_jpeg_in_a_tiff(read, mode, photometric, order):
    found = read(jpeg_in_tiff(smooth(mode), photometric, order))
    assert np.abs(found.astype(int) - np.asarray(smooth(mode).convert("RGB"))).max() <= 3


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("samples", "photometric", "colour"),
    [
        ((1, 200, 255), RGB, (1, 200, 255)),
        ((100, 128, 168), YCBCR, (156, 71, 100)),
        # Plain inks: (255 - 100) * (255 - 50) / 255 = 124.6
        ((100, 0, 0, 50), CMYK, (125, 205, 205)),
        ((77,), BLACK_IS_ZERO, (77, 77, 77)),
    ],
)
def test_a_flat_jpeg_in_a_tiff_has_the_colour_of_its_samples(read, samples, photometric, colour, order):
    tags = {256: [8], 257: [8], 258: [8] * len(samples), 259: [7], 262: [photometric], 277: [len(samples)], 278: [8],
            530: [1, 1]}  # fmt: skip
    found = read(assemble(tags, [flat_jpeg(samples)], (273, 279), order))
    assert np.abs(found.astype(int) - colour).max() <= 1


def test_an_uncommon_jpeg_in_a_tiff_is_read_rightly_or_refused(read):
    grey = np.asarray(smooth("L").convert("RGB"))
    for photometric, compression in ((WHITE_IS_ZERO, 7), (PALETTE, 7), (BLACK_IS_ZERO, 6), (LAB, 7)):
        found = read(jpeg_in_tiff(smooth("L"), photometric, t259=[compression]))
        wanted = 255 - grey if photometric == WHITE_IS_ZERO else grey
        assert isinstance(found, str) or np.abs(found.astype(int) - wanted).max() <= 3
        assert not isinstance(found, str) or found == "unsupported"


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
def test_fax_is_black_and_white(read, compression, photometric):
    noise = np.random.default_rng(0).random((40, 50)) < 0.3
    file = encode(Image.fromarray(noise), "TIFF", compression=compression, tiffinfo={262: photometric})
    # Pillow writes the same codes whatever the tag says.
    as_written = read(file)
    assert sorted(np.unique(as_written)) == [0, 255]
    stored = noise if photometric == BLACK_IS_ZERO else ~noise
    assert ((as_written[..., 0] == 255) == noise).all() or ((as_written[..., 0] == 255) == stored).all()


def test_chroma_of_lower_resolution_without_compression(read):
    # Two by two lumas, then one Cb and one Cr: (100, 128, 168) is (156, 71, 100) by the formula of JFIF.
    tags = {256: [2], 257: [2], 258: [8, 8, 8], 259: [1], 262: [YCBCR], 277: [3], 278: [2], 530: [2, 2]}
    found = read(assemble(tags, [bytes([100, 100, 100, 100, 128, 168])], (273, 279), "<"))
    assert isinstance(found, str) or np.abs(found.astype(int) - (156, 71, 100)).max() <= 1
    assert not isinstance(found, str) or found == "unsupported"


# Refusals


ONE = np.zeros((2, 2, 1), int)


@pytest.mark.parametrize(
    "tags",
    [
        {"t262": [32803]},  # mosaic of a camera's sensor
        {"t262": [32844], "t259": [34676]},  # LogL
        {"t262": [32845], "t259": [34677]},  # LogLuv
        {"t262": [4]},  # mask
        {"t262": [9]},  # ICC Lab
        {"t259": [34712]},  # JPEG 2000
        {"t259": [34892]},  # lossy JPEG of DNG
        {"t259": [50002]},  # JPEG XL
        {"t259": [34887]},  # LERC
        {"t259": [32809]},  # ThunderScan
        {"t258": [0x7FFF]},
        {"t339": [5]},  # complex
        {"t339": [6]},
        {"t258": [24], "t339": [3]},
        {"t277": [5]},
        {"t277": [40], "t338": [0] * 39},
        {"t50706": [1]},  # DNG
        {"t254": [1], "t330": [8]},  # begins with a reduced copy
        {"t317": [34892], "t259": [8]},
        {"t317": [3], "t259": [8]},
        {"t258": [12], "t317": [2], "t259": [8]},
        {"t258": [12], "t259": [7]},  # JPEG of 12 bits
        {"t258": [5], "t262": [5], "t277": [4], "t332": [2]},  # inks that are not CMYK
    ],
    ids=str,
)
def test_what_is_not_read_is_unsupported_by_its_tags(read, tmp_path, tags):
    assert read(write_tiff(ONE, 8, photometric=BLACK_IS_ZERO, **tags)) == "unsupported"


def test_samples_of_different_sizes_are_unsupported(read):
    values = np.zeros((2, 2, 3), int)
    assert read(write_tiff(values, 8, photometric=RGB, t258=[5, 6, 5])) == "unsupported"
    assert read(write_tiff(values, 8, photometric=RGB, t339=[1, 1, 3])) == "unsupported"


def test_a_refusal_names_what_it_found_and_the_way_out(tmp_path):
    (tmp_path / "a.tif").write_bytes(write_tiff(ONE, 8, photometric=32803))
    with pytest.raises(ImageError, match=r"found photometric interpretation 32803.*; convert it to PNG"):
        decode(Request(str(tmp_path / "a.tif"), (None,)), DecodeSettings())


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("planar", [False, True])
def test_a_tiff_that_ends_early_is_truncated(read, compression, planar):
    values = numbers(16, "u", 3)
    data = write_tiff(values, 16, photometric=RGB, planar=planar, compression=compression)
    for share in (0.1, 0.5, 0.95):
        assert read(data[: int(share * len(data))]) == "truncated"
    found = read(data[: int(0.7 * len(data))], allow_truncated=True)
    assert found.shape == (HEIGHT, WIDTH, 3)


def test_a_tiff_whose_tags_come_last_is_truncated_without_them(read):
    data = bytearray(encode(smooth(), "TIFF"))
    assert read(bytes(data[:4]) + struct.pack("<I", len(data) + 8) + bytes(data[8:])) == "truncated"


def test_sizes_are_checked_before_memory_is_taken(read):
    small = write_tiff(ONE, 8, photometric=BLACK_IS_ZERO)
    assert read(small, max_pixels=3) == "too-large"
    data = write_tiff(ONE, 8, photometric=BLACK_IS_ZERO, compression=LZW, t256=[60000], t257=[60000], t278=[60000])
    assert read(data) == "too-large"
    tags = {"photometric": BLACK_IS_ZERO, "extra": (0,) * 30, "t256": [9000], "t257": [9000]}
    wide = write_tiff(np.zeros((1, 1, 31), int), 64, compression=LZW, **tags)
    assert read(wide) == "too-large"


@pytest.mark.parametrize("compression", [LZW, DEFLATE, PACKBITS, LZMA])
def test_broken_codes_are_damaged(read, compression):
    data = bytearray(write_tiff(numbers(16, "u", 3), 16, photometric=RGB, compression=compression))
    data[-60:-20] = b"\xff" * 40
    found = read(bytes(data))
    assert isinstance(found, np.ndarray) or found == "damaged"


def test_an_orientation_that_only_xmp_holds_is_applied(read):
    xmp = list(b'<rdf:Description tiff:Orientation="6"/> ')
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    wanted = read(encode(image, "TIFF", tiffinfo={274: 6}))
    assert wanted.shape == (3, 2, 3)
    for options in ({}, {"compression": "tiff_lzw"}):
        data = encode(image, "TIFF", tiffinfo={700: bytes(xmp)}, **options)
        assert (read(data) == wanted).all()
        assert read(encode(image, "TIFF", tiffinfo={274: 1, 700: bytes(xmp)}, **options)).shape == (2, 3, 3)


@pytest.mark.parametrize("codec", ["jpeg", "group4", "tiff_lzw"])
def test_metadata_beside_pixels_of_any_codec_loses_nothing(read, codec):
    image = smooth().convert("1" if codec == "group4" else "RGB")
    wanted = read(encode(image, "TIFF", compression=codec))
    for info in (
        {700: b"\xff\0broken" * 200_000},
        {34675: b"no profile"},
        {33723: b"\x1c"},
        {34377: b"8BIM" * 3},
        {270: "x" * (3 << 20)},
    ):
        assert (read(encode(image, "TIFF", compression=codec, tiffinfo=info)) == wanted).all(), info.keys()


def test_a_jpeg_in_a_tiff_that_ends_early_is_truncated(read):
    data = jpeg_in_tiff(smooth(), YCBCR)
    assert read(data[:-200]) == "truncated"


def test_metadata_that_is_broken_loses_nothing(read):
    values = numbers(8, "u", 3)
    wanted = read(write_tiff(values, 8, photometric=RGB))
    found = read(write_tiff(values, 8, photometric=RGB, t34675=[1, 2, 3], t700=[9] * 5, t33723=[65535], t34665=[65000]))
    assert (found == wanted).all()
