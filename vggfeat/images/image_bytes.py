"""The bytes of an image: read, recognised, and freed of what is not pixels.

What is written beside the pixels is taken out before Pillow sees it, because a broken or very long text, profile or
EXIF block must not cost the image; `vggfeat.images.upright` reads the orientation, which alone is used.
"""

import errno
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator

from vggfeat.errors import ImageError, ResourceError, StoreError
from vggfeat.runtime.system import NO_WAIT, OPENED
from vggfeat.wording import with_bytes

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM")
"""The only formats that are tried: some of Pillow's others run programs or are seldom fuzzed."""
_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II", b"MM", b"RIFF", *(b"P%d" % n for n in range(1, 7)))
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")
# Where, what, name.
_OTHERS = (
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypcrx ", "camera raw (CR3)"),
    (8, b"CR\x02\0", "camera raw (CR2)"),
    (0, b"IIRO", "camera raw (ORF)"),
    (0, b"IIRS", "camera raw (ORF)"),
    (0, b"MMOR", "camera raw (ORF)"),
    (0, b"IIU\0", "camera raw (RW2)"),
    (0, b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (0, b"FOVb", "camera raw (X3F)"),
    (0, b"\0MRM", "camera raw (MRW)"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"8BPS", "Photoshop"),
    (12, b"CgBI", "PNG in Apple's own form (CgBI)"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"P7\n", "PAM"),
    (0, b"PF\n", "PFM in colour"),
    (128, b"DICM", "DICOM"),
)
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_HEIF_ANY = (b"mif1", b"mif2", b"msf1", b"miaf")
_AVIF = (b"avif", b"avis")
# Baseline, extended and progressive, by Huffman codes.
_COMMON_FRAMES = (0xC0, 0xC1, 0xC2)
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
_JPEG_METADATA = {*range(0xE0, 0xF0), 0xFE}
# JFIF and Adobe's transform of colours; shorter ones say nothing to libjpeg, and end Pillow.
_JPEG_KEPT = {0xE0: 14, 0xEE: 12}
# The entry of EXIF among the items of an AVIF, of version 2 or 3; it turns nothing, properties of the image do.
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def read_bytes(path: str, max_bytes: int, span: tuple[int, ...] | None) -> bytes:
    """Read the bytes of an image, all of its file or those of a span (first byte, number of bytes, their CRC-32).

    Raises ImageError if it is no regular file of 1 to `max_bytes` bytes, can't be read, or a span has another CRC-32.
    Raises ResourceError if this process may open no more files. Raises StoreError if a span is asked for, and its file
    can't be read now: that is no fault of the image, and of many others.
    """
    try:
        # Without NO_WAIT, opening a FIFO waits for a writer that may never come.
        descriptor = os.open(path, os.O_RDONLY | NO_WAIT | OPENED)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise ResourceError(
                f"{shown(path)}: expected to open one more file, found: {error.strerror}; "
                "raise the limit on open files (ulimit -n), or decode with fewer workers (--workers)"
            ) from None
        if span is not None:
            raise _closed_shard(path, error) from None
        raise ImageError(
            _reason_to_stay_closed(error),
            f"expected a readable file, found: {getattr(error, 'strerror', None) or error}",
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not-a-file", "expected a regular file, found a folder, FIFO, socket or device")
        start, length, *checksums = span or (0, status.st_size)
        check_length(length, max_bytes)
        if start + length > status.st_size:
            raise ImageError("truncated", f"expected at least {start + length} bytes, found {status.st_size}")
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(start)
            data = file.read(length)
        if any(zlib.crc32(data) != checksum for checksum in checksums):
            raise ImageError("damaged", "expected the bytes that were packed, found others; give `data pack` again")
        return data
    except OSError as error:
        if span is not None:
            raise _closed_shard(path, error) from None
        raise ImageError(
            "unreadable", f"expected a readable file, found: {getattr(error, 'strerror', None) or error}"
        ) from None
    finally:
        os.close(descriptor)


def _closed_shard(path: str, error: OSError | ValueError) -> StoreError:
    found = getattr(error, "strerror", None) or error
    return StoreError(
        f"{shown(path)}: expected a file of packed images that can be read, found: {found}; "
        "make it readable, then give the same command again"
    )


def check_length(length: int, max_bytes: int) -> None:
    """Check the number of bytes of an image.

    Raises ImageError if it is not from 1 to `max_bytes`.
    """
    if not 0 < length <= max_bytes:
        raise ImageError("too-large" if length > 0 else "empty", f"expected 1 to {max_bytes} bytes, found {length}")


def too_large(max_pixels: int, width: int | None = None, height: int | None = None) -> ImageError:
    """Make the error for an image of too many pixels."""
    found = f"found {f'{width}x{height}' if width else 'more'}; raise --max-pixels (max_pixels) to read it"
    return ImageError("too-large", f"expected at most {max_pixels} pixels, {found}")


def _reason_to_stay_closed(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError) or error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return "missing"
    return {errno.ELOOP: "link-loop", errno.ENXIO: "not-a-file"}.get(error.errno or 0, "unreadable")


def shown(text: str) -> str:
    """Make a text of a file's name or content fit for a message."""
    return "".join(char if char.isprintable() else "?" for char in with_bytes(text))


# What a file is by its first bytes


def is_tiff(data: bytes) -> bool:
    """Say whether a file begins as a TIFF does."""
    return data.startswith(_TIFF)


def is_read(data: bytes) -> bool:
    """Say whether a file begins like one of `FORMATS`."""
    return data.startswith(_SIGNATURES) or is_avif(data)


def refuse_other_formats(data: bytes) -> None:
    """Refuse a file whose format has a name but is not read.

    Raises ImageError "unsupported", with the name.
    """
    name = _name(data)
    if name:
        raise ImageError(
            "unsupported",
            f"expected an image of the formats {', '.join(FORMATS)}, found {name}; convert it to {_way_out(name)}",
        )


def _way_out(name: str) -> str:
    if name in ("PDF", "SVG"):
        return "PNG, one file a page" if name == "PDF" else "PNG at the size that is wanted"
    return "PNG, by the window of grey values that shows what matters" if name == "DICOM" else "JPEG or PNG"


def _name(data: bytes) -> str | None:
    for at, sign, name in _OTHERS:
        if data.startswith(sign, at):
            return name
    brands = _brands(data)
    if brands and not is_avif(data) and (brands[0] in _HEIF + _HEIF_ANY or set(brands) & set(_HEIF)):
        return "HEIC/HEIF"
    head = data[:4096]
    if b"%PDF-" in head[:1024] and not data.startswith(_SIGNATURES):
        return "PDF"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in text):
        return "SVG"
    return None


def _brands(data: bytes) -> list[bytes]:
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4], "big"), 256)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]


def is_avif(data: bytes) -> bool:
    """Say whether a file begins as an AVIF does."""
    brands = _brands(data)
    return bool(brands) and (brands[0] in _AVIF or (brands[0] in _HEIF_ANY and bool(set(brands) & set(_AVIF))))


def odd_jpeg(data: bytes) -> str | None:
    """Say what is uncommon in the frame of a JPEG, which libraries may refuse; None if nothing is."""
    if not data.startswith(b"\xff\xd8"):
        return None
    for marker, at, end in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if end - at < 6:
                return None
            precision, height, _, components = struct.unpack_from(">BHHB", data, at)
            common = marker in _COMMON_FRAMES and precision == 8 and height and components in (1, 3, 4)
            return None if common else f"SOF{marker - 0xC0}, {precision} bits, {components} components, height {height}"
        if marker == 0xF7:
            return "JPEG-LS"
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, begin and end of the body of each segment of a JPEG up to its first scan, as far as they are sound.

    What lies between segments is passed over, as libjpeg does.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xD9, 0xDA) or end < at + 4 or end > len(data):
            return
        yield marker, at + 4, end
        at = end


def ends_early(data: bytes) -> bool:
    """Say whether the mark or the length that tells the end of a file is not kept; it only refines a failure."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"BM"):
        return len(data) < int.from_bytes(data[2:6], "little")
    if is_avif(data):
        return _boxes_end_early(data)
    ends = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND", b"GIF8": b";"}
    return any(data.startswith(start) and end not in data[-64:] for start, end in ends.items())


def _boxes_end_early(data: bytes) -> bool:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:
            return False  # to the end of the file, or of 64 bits
        at += size
    return at != len(data)


# Without what is not pixels


def without_metadata(data: bytes) -> bytes:
    """Return a PNG, JPEG or AVIF without what is not used; any other file as it is."""
    if data.startswith(_PNG):
        pieces = [(at, end, kind in _PNG_KEPT) for kind, at, end in png_chunks(data)]
    elif data.startswith(b"\xff\xd8"):
        pieces, last = [], 2
        for marker, at, end in jpeg_segments(data):
            kept = marker not in _JPEG_METADATA or end - at >= _JPEG_KEPT.get(marker, len(data))
            pieces.append((last, end, kept))
            last = end
    else:
        return _AVIF_EXIF.sub(rb"\1none", data) if is_avif(data) else data
    if all(kept for _, _, kept in pieces):
        return data
    view = memoryview(data)
    first, last = pieces[0][0], pieces[-1][1]
    return b"".join([view[:first], *(view[at:end] for at, end, kept in pieces if kept), view[last:]])


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of each chunk of a PNG, up to the first that is cut off.

    Before the body are 8 bytes, its length and kind; after it 4, their CRC-32.
    """
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        kind = data[at + 4 : at + 8]
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end
