"""A BMP whose colours are bit fields becomes RGB: any masks of 16 or 32 bits, where Pillow knows eleven."""

import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggfeat.errors import ImageError
from vggfeat.images.colours import over_white
from vggfeat.images.tiff import too_large

_FIELDS, _FIELDS_AND_ALPHA = 3, 6
_STRIP = 1 << 20


def has_bit_fields(data: bytes) -> bool:
    """Say whether a BMP has bit fields."""
    if len(data) < 54:
        return False
    header, bits, compression = _header(data)[0], *_header(data)[3:5]
    known = header in (40, 52, 56, 108, 124) and bits in (16, 32) and compression in (_FIELDS, _FIELDS_AND_ALPHA)
    return known and any(_masks(data))


def read_bit_fields(data: bytes, max_pixels: int, *, partial: bool = False) -> Image.Image:
    """Read a BMP of bit fields; each colour is scaled to 0 to 255 and rounded down, as Pillow does, opacity over white.

    `data`: of the whole file, for which `has_bit_fields` holds. `partial`: whether rows that the file ends before are
    black, instead of an error.
    Raises ImageError "damaged", "truncated", "too-large", or "unsupported" if a mask has gaps.
    """
    _, width, signed, bits, _ = _header(data)
    height = abs(signed)
    if width < 1 or height < 1:
        raise ImageError("damaged", f"expected sides above 0, found {width}x{height}")
    if width * height > max_pixels:
        raise too_large(max_pixels, width, height)
    rows = _rows(data, width, height, bits, partial=partial)
    fields = [_field(mask, bits) for mask in _masks(data)]
    out = np.empty((height, width, 3), np.uint8)
    opaque = not _masks(data)[3]
    step = max(1, _STRIP // width)
    for top in range(0, height, step):
        pixels = rows[top : top + step]
        rgb = np.stack([_scaled(pixels, *field) for field in fields[:3]], axis=2)
        out[top : top + step] = rgb if opaque else over_white(rgb, _scaled(pixels, *fields[3]), premultiplied=False)
    # A positive height means that the lowest row comes first.
    return Image.fromarray(out if signed < 0 else np.ascontiguousarray(out[::-1]))


def _header(data: bytes) -> tuple[int, int, int, int, int]:
    """Return header size, width, height (negative: from the top), bits a pixel and compression."""
    size, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", data, 14)
    return size, width, height, bits, compression


def _masks(data: bytes) -> tuple[int, int, int, int]:
    header, _, _, _, compression = _header(data)
    red, green, blue, alpha = struct.unpack_from("<4I", data + bytes(4), 54)
    return red, green, blue, alpha if header >= 56 or compression == _FIELDS_AND_ALPHA else 0


def _field(mask: int, bits: int) -> tuple[int, int]:
    """Return how far a field lies from the lowest bit, and its largest number."""
    shift = (mask & -mask).bit_length() - 1 if mask else 0
    most = mask >> shift
    if most & (most + 1) or mask >> bits:
        raise ImageError("unsupported", f"expected masks of bits side by side, found {mask:#x}; convert it to PNG")
    return shift, most


def _scaled(pixels: NDArray, shift: int, most: int) -> NDArray[np.uint8]:
    return ((pixels >> shift & most).astype(np.uint64) * 255 // max(1, most)).astype(np.uint8)


def _rows(data: bytes, width: int, height: int, bits: int, *, partial: bool) -> NDArray:
    """Return the pixels (H, W) as numbers, in the order of the file."""
    (start,) = struct.unpack_from("<I", data, 10)
    start = start or 14 + _header(data)[0]
    stride = (width * bits + 31) // 32 * 4
    need = start + stride * height
    if need > len(data):
        # The padding of the last row may be missing.
        if not partial and need - stride + width * bits // 8 > len(data):
            raise ImageError("truncated", f"expected {need} bytes, found {len(data)}")
        data = data[start:].ljust(stride * height, b"\0")
        start = 0
    raw = np.frombuffer(data, np.uint8, stride * height, start).reshape(height, stride)
    return np.ascontiguousarray(raw[:, : width * bits // 8]).view(f"<u{bits // 8}")
