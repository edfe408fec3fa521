"""Whatever Pillow found in a file becomes upright 8-bit RGB: deep greys scaled, transparency laid over white.

So does a BMP whose colours are bit fields: any masks of 16 or 32 bits, where Pillow knows eleven.
"""

import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggfeat.errors import ImageError
from vggfeat.images.image_bytes import too_large
from vggfeat.images.orientation import TURNS, pillow_orientation

_STRIP = 1 << 20
_FIELDS, _FIELDS_AND_ALPHA = 3, 6


def upright_rgb(image: Image.Image, orientation: int | None = None) -> tuple[Image.Image, int]:
    """Load an image and bring it to RGB, and upright.

    `image`: best not loaded yet; apart from loading it is left as it is. `orientation`: by default the one that Pillow
    knows.

    Returns
    -------
    image : Image
        Of mode RGB; it may be the same object.
    orientation : int
        By which it was turned, 1 to 8.
    """
    loaded = _load(image)
    # Only now: PNG may hold the EXIF block after the pixels.
    turned = pillow_orientation(loaded) if orientation is None else orientation
    rgb = to_rgb(loaded)
    return (rgb if turned == 1 else rgb.transpose(TURNS[turned])), turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a loaded image into RGB.

    Alpha, and colours that PNG or GIF declare transparent, are laid over white: (value * a + 255 * (255 - a)) / 255,
    rounded. Greys of more than 8 bits are scaled by their range, see `grey_range`; of colours of 16 bits Pillow keeps
    the higher 8.

    `image`: of any mode.
    Returns an image of mode RGB, the same object if it was plain RGB.
    Raises ValueError if Pillow knows no way from this mode to RGB.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def grey_range(mode: str, values: NDArray) -> tuple[float, float]:
    """Say which values of a grey image of more than 8 bits are black and white.

    0 and 65535 for integers, 0 and 1 for floats that all lie there. Other floats have no customary range: their own
    smallest and largest finite values, and a constant image is mid-grey.

    `mode`: I;16 (any byte order) or I, as Pillow reads PNG and PPM; or F. `values` (H, W): the pixels.
    Returns black and white, which are never equal.
    """
    if mode != "F":
        return 0.0, 65535.0
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return (low - 1, high + 1) if low == high else (low, high)


def over_white(rgb: NDArray[np.uint8], opacity: NDArray[np.uint8], *, premultiplied: bool) -> NDArray[np.uint8]:
    """Lay colours (..., 3) of an opacity (...), 0 to 255, over white."""
    alpha = opacity[..., None].astype(np.uint32)
    light = rgb.astype(np.uint32) * 255 if premultiplied else rgb * alpha
    return np.minimum((light + 255 * (255 - alpha) + 127) // 255, 255).astype(np.uint8)


def between(values: NDArray, black: float, white: float) -> NDArray[np.float64]:
    """Scale numbers from black to white to 0 to 255, not rounded; NaN becomes 0."""
    scaled = np.clip((values.astype(np.float64) - black) * 255 / (white - black), 0, 255)
    scaled[np.isnan(scaled)] = 0
    return scaled


def _load(image: Image.Image) -> Image.Image:
    # Pillow scales PNG's pixels of 2 and 4 bits up to 8 and cuts colours of 16 bits down to 8, but leaves the colour
    # that is to be transparent at the scale of the file.
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    rawmode = tiles[0][3] if tiles else None
    image.load()
    top = {"L;2": 3, "L;4": 15}.get(rawmode) if isinstance(rawmode, str) else None
    if top and isinstance(key, int) and key <= top:
        mended: int | tuple[int, ...] = key * 255 // top
    elif isinstance(key, tuple) and (rawmode == "RGB;16B" or max(key) > 255):
        mended = tuple(value >> 8 for value in key)
    else:
        return image
    copy = image.copy()
    copy.info["transparency"] = mended
    return copy


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    black, white = grey_range(image.mode, values)
    key = image.info.get("transparency")
    grey = np.empty(values.shape, np.uint8)
    # In strips, because the arithmetic takes many times the memory of the result.
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = values[top : top + rows]
        scaled = between(strip, black, white)
        if isinstance(key, int):
            scaled[strip == key] = 255
        grey[top : top + rows] = np.rint(scaled)
    return Image.fromarray(grey).convert("RGB")


def has_bit_fields(data: bytes) -> bool:
    """Say whether a file is a BMP that has bit fields."""
    if not data.startswith(b"BM") or len(data) < 54:
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
