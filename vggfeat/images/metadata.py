"""What a file says next to its pixels is taken out before Pillow sees it, all but the orientation.

Nothing of it is used, and a broken or very long text or colour profile must not cost the image.
"""

import re
import zlib
from collections.abc import Iterator

from vggfeat.images.recognise import is_avif, jpeg_segments

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
_ORIENTED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
_MOST_TEXT = 1 << 20
# The entry of EXIF among the items of an AVIF, of version 2 or 3; it turns nothing, properties of the image do.
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)
# JFIF, EXIF and XMP, and Adobe's transform of colours.
_JPEG_APPLICATION, _JPEG_KEPT, _JPEG_COMMENT = range(0xE0, 0xF0), (0xE0, 0xE1, 0xEE), 0xFE
# Shorter ones say nothing to libjpeg, and end Pillow.
_JPEG_LEAST = {0xE0: 14, 0xEE: 12}


def without_metadata(data: bytes) -> bytes:
    """Return a PNG, JPEG or AVIF without what is not used; any other file as it is."""
    if data.startswith(_PNG):
        return _joined(data, _png_pieces(data))
    if data.startswith(b"\xff\xd8"):
        return _joined(data, _jpeg_pieces(data))
    return _AVIF_EXIF.sub(rb"\1none", data) if is_avif(data) else data


def _joined(data: bytes, pieces: Iterator[tuple[int, int, bool]]) -> bytes:
    found = list(pieces)
    if all(kept for _, _, kept in found):
        return data
    view = memoryview(data)
    end = found[-1][1]
    start = found[0][0]
    return b"".join([view[:start], *(view[first:last] for first, last, kept in found if kept), view[end:]])


def _png_pieces(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield where each chunk begins and ends, and whether it is kept, up to the first that is cut off."""
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        kind = data[at + 4 : at + 8]
        yield at, end, kind in _PNG_KEPT or _gives_orientation(kind, data, at + 8, end - 4)
        if kind == b"IEND":
            return
        at = end


def _gives_orientation(kind: bytes, data: bytes, start: int, end: int) -> bool:
    if kind not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
        return False
    if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
        return False
    if kind == b"eXIf":
        return True
    if not data.startswith(_ORIENTED, start) or end - start > _MOST_TEXT:
        return False
    text = data[start:end]
    packed = text.partition(b"\0")[2]
    if kind == b"iTXt":
        # Compression flag, method, language and translated keyword come before the text.
        packed = packed[2:].split(b"\0", 2)[-1] if packed[:1] == b"\1" else b""
    elif kind == b"zTXt":
        packed = packed[1:]
    else:
        packed = b""
    return not packed or _unpacks(packed)


def _unpacks(packed: bytes) -> bool:
    try:
        inflater = zlib.decompressobj()
        inflater.decompress(packed, _MOST_TEXT)
    except zlib.error:
        return False
    return not inflater.unconsumed_tail


def _jpeg_pieces(data: bytes) -> Iterator[tuple[int, int, bool]]:
    at = 2
    yield 0, at, True
    for marker, body in jpeg_segments(data):
        # Fill bytes may come before the marker.
        end = data.index(bytes((0xFF, marker)), at) + 4 + len(body)
        used = marker in _JPEG_KEPT and len(body) >= _JPEG_LEAST.get(marker, 0)
        yield at, end, marker != _JPEG_COMMENT and (marker not in _JPEG_APPLICATION or used)
        at = end
