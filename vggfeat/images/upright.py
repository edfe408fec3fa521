"""Whatever Pillow found in a file becomes upright 8-bit RGB: turned, deep greys scaled, transparency laid over white.

So does a BMP whose colours are bit fields: any masks of 16 or 32 bits, where Pillow knows eleven. An image that is
*upright* is turned as its EXIF block says, in one of eight orientations; *stored* are the pixels of the file, which is
how the tools of PASCAL VOC and ILSVRC read images, and so how their boxes are meant.
"""

import re
import struct
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image

from vggfeat.errors import ImageError
from vggfeat.images.image_bytes import jpeg_segments, png_chunks, too_large

_INVERSE = {6: 8, 8: 6}
# Orientation: whether columns become rows, and along which sides of the upright image they then count backwards.
_BOX_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of an EXIF orientation upright; 1 needs nothing."""
TURNS_BACK = TURNS | {6: TURNS[8], 8: TURNS[6]}
"""What brings an upright image back to the stored pixels of an orientation."""

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_PNG_PROFILE, _PNG_XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
_MOST_TEXT = 1 << 26
_NUMBERS = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}  # of a tag: what struct calls its type


def written_orientation(data: bytes) -> int | None:
    """Return the orientation that is written into a JPEG or PNG, 1 if there is none; None for any other file.

    EXIF comes before XMP, as in Pillow, and whatever is broken counts as not there. Of a text that is packed, the
    first 64 MiB are looked at.
    """
    if data.startswith(b"\xff\xd8"):
        blocks, xmp = _jpeg_metadata(data)
    elif data.startswith(b"\x89PNG"):
        blocks, xmp = _png_metadata(data)
    else:
        return None
    for block in blocks:
        found = _exif_orientation(block)
        if found is not None:
            return known_orientation(found)
    return xmp_orientation(xmp)


def pillow_orientation(image: Image.Image) -> int:
    """Return the orientation that Pillow knows of an image that is open, 1 if there is none."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return known_orientation(found[0] if isinstance(found, bytes) else int(found))
    except Exception:
        # A broken EXIF block is no reason to lose the image.
        return 1


def xmp_orientation(xmp: bytes) -> int:
    """Return the orientation that an XMP packet gives, 1 if it gives none."""
    found = re.search(rb"tiff:Orientation(?:=\"|>)([0-9])", xmp)
    return known_orientation(int(found[1])) if found else 1


def known_orientation(value: int) -> int:
    """Return an orientation, or 1 for a number that is none."""
    return value if value in _BOX_TURNS else 1


def _jpeg_metadata(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the EXIF blocks and the XMP of a JPEG; a block that is longer than a segment goes on in the next."""
    bodies = [data[at:end] for marker, at, end in jpeg_segments(data) if marker == 0xE1]
    exif = b"".join(body.removeprefix(_EXIF) for body in bodies if body.startswith(_EXIF))
    return [exif], next((body.removeprefix(_XMP) for body in reversed(bodies) if body.startswith(_XMP)), b"")


def _png_metadata(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the EXIF blocks and the XMP of a PNG; of several that are sound, the last."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, at, end in png_chunks(data):
        if kind not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            continue
        name = kind if kind == b"eXIf" else data[at + 8 : min(at + 88, end - 4)].partition(b"\0")[0]
        sound = zlib.crc32(memoryview(data)[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if sound and name in (b"eXIf", _PNG_PROFILE, _PNG_XMP):
            found[name] = at, end
    blocks = []
    if b"eXIf" in found:
        at, end = found[b"eXIf"]
        blocks.append(data[at + 8 : end - 4])
    if _PNG_PROFILE in found:
        blocks.append(_from_hexadecimal(_png_text(data, *found[_PNG_PROFILE])))
    return blocks, _png_text(data, *found[_PNG_XMP]) if _PNG_XMP in found else b""


def _png_text(data: bytes, at: int, end: int) -> bytes:
    """Return the text of a chunk, without its keyword; nothing if it can't be unpacked."""
    kind, text = data[at + 4 : at + 8], data[at + 8 : end - 4].partition(b"\0")[2]
    packed = kind == b"zTXt" or (kind == b"iTXt" and text.startswith(b"\1"))
    if kind == b"zTXt":
        text = text[1:]  # the method
    elif kind == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]  # the flag, the method, language and translated keyword
    try:
        return zlib.decompressobj().decompress(text, _MOST_TEXT) if packed else text
    except zlib.error:
        return b""


def _from_hexadecimal(text: bytes) -> bytes:
    """Return the block in a raw profile of ImageMagick: a name and a length in lines of their own, then digits."""
    try:
        return bytes.fromhex(text.split(b"\n", 3)[-1].decode("ascii"))
    except ValueError:
        return b""


def _exif_orientation(block: bytes) -> int | None:
    """Return what the first directory of an EXIF block gives; None if it gives nothing."""
    while block.startswith(_EXIF):
        block = block.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == ExifTags.Base.Orientation and kind in _NUMBERS:
                return int(struct.unpack_from(order + _NUMBERS[kind], block, entry + 8)[0])
    except struct.error:
        pass
    return None


def turn_boxes(edges: ArrayLike, orientation: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Turn boxes of the stored pixels to where they are in the upright image of height and width `size`.

    `edges` (..., 4): left, top, right, bottom in pixels from 0. `orientation`: EXIF, 1 to 8.
    Returns edges (..., 4), float64, left before right and top before bottom.
    """
    across, backwards, upwards = _BOX_TURNS[orientation]
    left, top, right, bottom = np.moveaxis(np.asarray(edges, dtype=np.float64), -1, 0)
    if across:
        left, top, right, bottom = top, left, bottom, right
    if backwards:
        left, right = size[1] - right, size[1] - left
    if upwards:
        top, bottom = size[0] - bottom, size[0] - top
    return np.stack([left, top, right, bottom], axis=-1)


def turn_back(edges: ArrayLike, orientation: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Turn boxes of the upright image of height and width `size` to where they are in the stored pixels."""
    return turn_boxes(edges, _INVERSE.get(orientation, orientation), stored_size(size, orientation))


def stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return height and width of the stored pixels, or of the upright image given those of the stored pixels."""
    return (size[1], size[0]) if _BOX_TURNS[orientation][0] else size


def annotated_orientation(orientation: int, size: tuple[int, int], annotated: tuple[int, int]) -> int:
    """Return the orientation by which boxes of an annotation turn: 1 if they are meant in the upright image.

    They are meant in the stored pixels, unless the annotation's height and width say that it is the upright image that
    is upright or flat as they are.
    """
    turned = _BOX_TURNS[orientation][0]
    return 1 if turned and (annotated[0] - annotated[1]) * (size[0] - size[1]) > 0 else orientation


_STRIP = 1 << 20
_FIELDS, _FIELDS_AND_ALPHA = 3, 6


def upright_rgb(image: Image.Image, orientation: int | None = None) -> tuple[Image.Image, int]:
    """Load an image and bring it to RGB, and upright.

    `image`: best not loaded yet; apart from loading it is left as it is. `orientation`: by default the one that Pillow
    knows.
    Returns the image, which may be the same object, and the orientation by which it was turned, 1 to 8.
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
