"""A TIFF becomes RGB as its tags say: any depth, kind of number, order of planes and bytewise compression.

H, W = sides as stored; S = numbers a pixel; P = planes, 1 or S. libtiff, by way of Pillow, only undoes the compression
here: it is given each plane as a grey image of bytes.
"""

import io
import struct
from collections.abc import Iterator

import numpy as np
import PIL.TiffImagePlugin
from numpy.typing import NDArray
from PIL import Image

from vggfeat.errors import ImageError
from vggfeat.images.image_bytes import too_large
from vggfeat.images.tiff_tags import (
    ASSOCIATED,
    CMYK,
    PALETTE,
    UNCOMPRESSED,
    WHITE_IS_ZERO,
    Layout,
    read_layout,
    read_tags,
    unsupported,
)
from vggfeat.images.upright import TURNS, between, over_white, to_rgb

_STRIP = 1 << 20
_BYTES_A_PIXEL = 8
_CORELDRAW = 999  # what it writes for opacity
_MIRRORED_BITS = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]


def read_tiff(
    data: bytes, max_pixels: int, *, partial: bool = False, at: int | None = None, page: int = 0
) -> tuple[Image.Image, int]:
    """Read a page of a TIFF.

    Unsigned numbers of up to 16 bits span 0 to 2**bits - 1: greys and short numbers are scaled and rounded, of longer
    ones of colours the higher 8 bits are kept. Floats that all lie in 0 to 1 span that; other floats, and integers that
    are signed or longer, span their own smallest and largest finite values, over all colours.

    Parameters
    ----------
    data : bytes
        Of the whole file.
    max_pixels : int
        More are refused; so are samples of more than 8 bytes for each of them.
    partial : bool
        Whether pixels that the file ends before are black, instead of an error.
    at, page : int, optional
        Where the tags of the page are in the file, and its number; the first by default.

    Returns
    -------
    image : Image
        Of mode RGB, upright.
    orientation : int
        By which it was turned.

    Raises
    ------
    ImageError
        "unsupported", "truncated", "damaged" or "too-large".
    """
    layout = read_layout(*read_tags(data, at))
    if layout.width * layout.height > max_pixels:
        raise too_large(max_pixels, layout.width, layout.height)
    if layout.by_pillow:
        if (layout.counts + layout.offsets[: len(layout.counts)] > len(data)).any() and not partial:
            raise ImageError("truncated", f"expected more pixels, found the end of the file at byte {len(data)}")
        return _by_pillow(data, page, layout), layout.orientation
    _check_bytes(layout, max_pixels)
    rgb = Image.fromarray(_colours(_planes(data, layout, partial=partial), layout))
    turned = layout.orientation
    return (rgb if turned == 1 else rgb.transpose(TURNS[turned])), turned


def _check_bytes(layout: Layout, max_pixels: int) -> None:
    """Refuse numbers that take far more memory than the pixels that are allowed; tiles may outgrow the image."""
    found = layout.cells_down * layout.cell_height * layout.cells_across * layout.cell_bytes * layout.planes
    most = _BYTES_A_PIXEL * max(max_pixels, 1 << 16)
    if found > most:
        expected = f"expected at most {most} bytes of samples ({_BYTES_A_PIXEL} for each pixel allowed)"
        raise ImageError("too-large", f"{expected}, found {found}; raise --max-pixels (max_pixels) to read it")


def _by_pillow(data: bytes, page: int, layout: Layout) -> Image.Image:
    # libtiff also for uncompressed files: Pillow alone mistakes chroma of a lower resolution.
    before, PIL.TiffImagePlugin.READ_LIBTIFF = PIL.TiffImagePlugin.READ_LIBTIFF, True
    try:
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            image.seek(page)
            image.load()
            return to_rgb(image)
    except (SyntaxError, KeyError):
        raise unsupported(
            f"compression {layout.compression}, photometric interpretation {layout.photometric}"
        ) from None
    finally:
        PIL.TiffImagePlugin.READ_LIBTIFF = before


# From the file to bytes


def _planes(data: bytes, layout: Layout, *, partial: bool) -> list[NDArray[np.uint8]]:
    """Return P arrays (H or more, bytes a row) without compression, tiles put in their places."""
    cells = layout.cells_down * layout.cells_across
    if len(layout.offsets) < cells * layout.planes:
        raise ImageError("damaged", f"expected {cells * layout.planes} strips or tiles, found {len(layout.offsets)}")
    planes = []
    for plane in range(layout.planes):
        span = slice(plane * cells, (plane + 1) * cells)
        unpack = _copied if layout.compression == UNCOMPRESSED else _unpacked
        rows = unpack(data, layout, layout.offsets[span], layout.counts[span], partial=partial)
        if layout.tiled:
            across, height, width = layout.cells_across, layout.cell_height, layout.cell_bytes
            rows = rows.reshape(-1, across, height, width).swapaxes(1, 2).reshape(-1, across * width)
        planes.append(rows)
    return planes


def _rows(layout: Layout, number: int) -> int:
    """Return the rows of the strip or tile of a number; the last strip may be short."""
    return layout.cell_height if layout.tiled else min(layout.cell_height, layout.height - number * layout.cell_height)


def _copied(
    data: bytes, layout: Layout, offsets: NDArray[np.int64], counts: NDArray[np.int64], *, partial: bool
) -> NDArray[np.uint8]:
    # The counts are not read: some writers get them wrong, and the sides say the same.
    width = layout.cell_bytes
    total = sum(_rows(layout, number) for number in range(len(offsets)))
    out = np.zeros(total * width, np.uint8)
    start = 0
    for number, offset in enumerate(offsets.tolist()):
        size = _rows(layout, number) * width
        if not 0 <= offset <= len(data) - size and not partial:
            raise ImageError("truncated", f"expected pixels up to byte {offset + size}, found {len(data)} bytes")
        found = np.frombuffer(data, np.uint8)[max(offset, 0) : offset + size] if offset >= 0 else out[:0]
        out[start : start + len(found)] = _MIRRORED_BITS[found] if layout.fill_order == 2 else found
        start += size
    return out.reshape(-1, width)


def _unpacked(
    data: bytes, layout: Layout, offsets: NDArray[np.int64], counts: NDArray[np.int64], *, partial: bool
) -> NDArray[np.uint8]:
    if len(counts) != len(offsets):
        if len(offsets) > 1:
            raise ImageError("damaged", f"expected {len(offsets)} sizes of strips or tiles, found {len(counts)}")
        counts = len(data) - offsets
    if ((offsets < 0) | (counts < 0) | (offsets + counts > len(data))).any() and not partial:
        raise ImageError("truncated", f"expected pixels up to byte {(offsets + counts).max()}, found {len(data)} bytes")
    rows = sum(_rows(layout, number) for number in range(len(offsets)))
    tags: dict[int, list[int] | NDArray[np.int64]] = {
        256: [layout.cell_bytes], 257: [rows], 258: [8], 259: [layout.compression], 262: [1],
        266: [layout.fill_order], 273: offsets, 277: [1], 278: [layout.cell_height], 279: counts,
    }  # fmt: skip
    with PIL.TiffImagePlugin.TiffImageFile(io.BytesIO(_with_tags(data, tags))) as image:
        try:
            image.load()
        except OSError:
            if not partial:
                raise
        return np.array(image)


def _with_tags(data: bytes, tags: dict[int, list[int] | NDArray[np.int64]]) -> bytes:
    """Return a TIFF of the same bytes with other tags, which it ends with."""
    start = len(data) + len(data) % 2
    head = struct.pack("<H", len(tags))
    free = start + 2 + 12 * len(tags) + 4
    more = b""
    for tag, values in tags.items():
        raw = np.asarray(values, "<i8").astype("<u4").tobytes()
        field = raw
        if len(raw) > 4:
            field, more = struct.pack("<I", free + len(more)), more + raw
        head += struct.pack("<HHI", tag, 4, len(raw) // 4) + field
    return b"".join(
        (b"II*\0", struct.pack("<I", start), memoryview(data)[8:], bytes(len(data) % 2), head, bytes(4), more)
    )


# From bytes to numbers


def _strips(planes: list[NDArray[np.uint8]], layout: Layout) -> Iterator[tuple[int, NDArray]]:
    """Yield the first row of some, and their numbers (rows, W, S)."""
    step = max(1, _STRIP // (layout.width * layout.samples))
    for top in range(0, layout.height, step):
        below = min(top + step, layout.height)
        parts = [_numbers(plane[top:below], layout) for plane in planes]
        yield top, np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]


def _numbers(rows: NDArray[np.uint8], layout: Layout) -> NDArray:
    """Turn bytes (rows, bytes a row) into numbers (rows, W, S / P)."""
    count, interleaved = len(rows), layout.samples // layout.planes
    cells = np.ascontiguousarray(rows).reshape(-1, layout.cell_bytes)  # (rows * tiles across, bytes)
    length = layout.cell_width * interleaved
    if layout.predictor == 3:
        numbers = _undo_float_prediction(cells, layout.bits // 8, interleaved).view(_kind(">", layout))
    elif layout.bits in (8, 16, 32, 64):
        numbers = cells.view(_kind(layout.order, layout))
        if layout.predictor == 2:
            whole = numbers.view(numbers.dtype.str.replace("f", "u").replace("i", "u"))
            native = whole.astype(whole.dtype.newbyteorder("=")).reshape(len(cells), -1, interleaved)
            sums = np.cumsum(native, axis=1, dtype=native.dtype).reshape(len(cells), -1)
            numbers = sums.view(_kind("=", layout))
    else:
        numbers = _short_numbers(cells, length, layout)
    return numbers.reshape(count, -1, interleaved)[:, : layout.width]


def _kind(order: str, layout: Layout) -> str:
    return f"{order}{layout.kind[0]}{layout.bits // 8}".replace("s", "i")


def _undo_float_prediction(cells: NDArray[np.uint8], size: int, interleaved: int) -> NDArray[np.uint8]:
    """Put together floats, most significant byte first, from planes of bytes that were stored as differences."""
    sums = np.cumsum(cells.reshape(len(cells), -1, interleaved), axis=1, dtype=np.uint8)
    return np.ascontiguousarray(sums.reshape(len(cells), size, -1).swapaxes(1, 2)).reshape(len(cells), -1)


def _short_numbers(cells: NDArray[np.uint8], length: int, layout: Layout) -> NDArray:
    """Take numbers that are no whole bytes from a row of bits, the highest bit first."""
    bits = layout.bits
    if bits == 24:
        order = slice(None) if layout.order == ">" else slice(None, None, -1)
        parts = cells.reshape(len(cells), -1, 3)[..., order].astype(np.uint32)
        numbers = parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]
    else:
        flags = np.unpackbits(cells, axis=1, count=length * bits).reshape(len(cells), length, bits)
        numbers = np.zeros((len(cells), length), np.uint32)
        for place in range(bits):
            numbers = numbers << 1 | flags[..., place]
    if layout.kind == "signed":
        top = np.int64(1) << (bits - 1)
        return (numbers.astype(np.int64) ^ top) - top
    return numbers


# From numbers to colours


def _colours(planes: list[NDArray[np.uint8]], layout: Layout) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3), transparency laid over white."""
    out = np.empty((layout.height, layout.width, 3), np.uint8)
    alpha = _alpha(layout)
    limits = _limits(planes, layout, alpha)
    for top, numbers in _strips(planes, layout):
        ink = numbers[..., : layout.colours]
        if layout.photometric == PALETTE:
            rgb = _palette(layout)[ink[..., 0]]
        elif layout.photometric == CMYK:
            rgb = np.asarray(Image.fromarray(_eight_bits(ink, layout, limits), "CMYK").convert("RGB"))
        else:
            rgb = _eight_bits(ink, layout, limits)
        if alpha is not None:
            opaque = _opacity(numbers[..., alpha], layout)
            premultiplied = layout.extra[alpha - layout.colours : alpha - layout.colours + 1] == (ASSOCIATED,)
            rgb = over_white(rgb, opaque, premultiplied=premultiplied)
        out[top : top + len(rgb)] = rgb
    return out


def _alpha(layout: Layout) -> int | None:
    """Return which number of a pixel is its opacity."""
    if not layout.extra and layout.samples > layout.colours:
        return layout.colours
    places = [place for place, meaning in enumerate(layout.extra) if meaning in (1, 2, _CORELDRAW)]
    return layout.colours + places[0] if places else None


def _limits(planes: list[NDArray[np.uint8]], layout: Layout, alpha: int | None) -> tuple[float, float]:
    """Return the numbers that are black and white, or no ink and all of it."""
    own = layout.kind != "unsigned" or layout.bits > 16
    low, high = 0.0, 2.0**layout.bits - 1
    if own:
        low, high = np.inf, -np.inf
        for _, numbers in _strips(planes, layout):
            ink = numbers[..., : layout.colours]
            finite = ink[np.isfinite(ink)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if layout.kind == "float" and (low > high or (low >= 0 and high <= 1)):
            low, high, own = 0.0, 1.0, False
    if alpha is not None and (layout.kind == "signed" or (own and layout.kind == "float")):
        raise unsupported(f"transparency in {layout.kind} samples beyond 0 to 1")
    if alpha is not None and (own or layout.photometric == WHITE_IS_ZERO) and ASSOCIATED in layout.extra:
        raise unsupported("colours without a fixed range, multiplied by their transparency")
    if low == high:
        low, high = low - 1, high + 1
    return (high, low) if layout.photometric == WHITE_IS_ZERO else (low, high)


def _eight_bits(numbers: NDArray, layout: Layout, limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Bring colours (rows, W, 1, 3 or 4) to 0 to 255; grey becomes (rows, W, 3)."""
    if layout.kind == "unsigned" and layout.colours > 1 and 8 <= layout.bits <= 16:
        found = (numbers >> (layout.bits - 8)).astype(np.uint8)
    else:
        found = np.rint(between(numbers, *limits)).astype(np.uint8)
    return np.repeat(found, 3, axis=2) if layout.colours == 1 else found


def _opacity(numbers: NDArray, layout: Layout) -> NDArray[np.uint8]:
    if layout.kind == "float":
        return np.rint(between(numbers, 0, 1)).astype(np.uint8)
    if layout.bits >= 8:
        return (numbers >> (layout.bits - 8)).astype(np.uint8)
    return np.rint(numbers * (255.0 / (2**layout.bits - 1))).astype(np.uint8)


def _palette(layout: Layout) -> NDArray[np.uint8]:
    """Return the colours (2**bits, 3) of a palette; old writers store 8 bits where 16 are asked for."""
    table = layout.colour_map.reshape(3, -1).T
    return (table if table.max() < 256 else table >> 8).astype(np.uint8)
