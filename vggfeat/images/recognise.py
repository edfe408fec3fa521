"""What a file is by its first bytes: a format that is read, one that is not but has a name, or neither."""

import struct
from collections.abc import Iterator

from vggfeat.errors import ImageError

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
)
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_HEIF_ANY = (b"mif1", b"mif2", b"msf1", b"miaf")
_AVIF = (b"avif", b"avis")
# Baseline, extended and progressive, by Huffman codes.
_COMMON_FRAMES = (0xC0, 0xC1, 0xC2)


def is_tiff(data: bytes) -> bool:
    """Say whether a file begins as a TIFF does."""
    return data.startswith(_TIFF)


def is_read(data: bytes) -> bool:
    """Say whether a file begins like one of `FORMATS`."""
    return data.startswith(_SIGNATURES) or is_avif(data)


def refuse_other_formats(data: bytes) -> None:
    """Refuse a file whose format has a name but is not read.

    Raises
    ------
    ImageError
        "unsupported", with the name.
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
    return "JPEG or PNG"


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
    for marker, body in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(body) < 6:
                return None
            precision, height, _, components = struct.unpack_from(">BHHB", body)
            common = marker in _COMMON_FRAMES and precision == 8 and height and components in (1, 3, 4)
            return None if common else f"SOF{marker - 0xC0}, {precision} bits, {components} components, height {height}"
        if marker == 0xF7:
            return "JPEG-LS"
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield marker and body of each segment of a JPEG up to its first scan, as far as they are sound."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xD9, 0xDA) or length < 2 or at + 2 + length > len(data):
            return
        yield marker, memoryview(data)[at + 4 : at + 2 + length]
        at += 2 + length


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
