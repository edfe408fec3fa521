"""The eight EXIF orientations: what a file says of its own, and how images and boxes turn.

An image that is *upright* is turned as its EXIF block says; *stored* are the pixels of the file, which is how the tools
of PASCAL VOC and ILSVRC read images, and so how their boxes are meant.
"""

import re
import struct
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image

from vggfeat.images.image_bytes import jpeg_segments, png_chunks

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
    """Turn boxes of the stored pixels to where they are in the upright image.

    Returns edges (..., 4), float64, left before right and top before bottom.

    `edges` (..., 4) array: left, top, right, bottom in pixels from 0.
    `orientation`: EXIF, 1 to 8.
    `size` (int, int): height and width of the upright image.
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
