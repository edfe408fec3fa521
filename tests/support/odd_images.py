"""Image files written byte by byte from their format's rules, so that no encoder vouches for the decoder."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tiffs import write_tiff


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA. chunks stand before the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*c) for c in chunks) + pixels + chunk(b"IEND", b"")


def tiff(width: int, height: int, bits: int, data: bytes, photometric: int = 1, sample_format: int = 1) -> bytes:
    """One grey strip, little endian. photometric: 0 white is zero, 1 black is zero. sample_format: 1 unsigned,
    2 signed, 3 float."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 134), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + data


def flat_jpeg(samples: tuple[int, ...], adobe_transform: int | None = None) -> bytes:
    """8x8 pixels of one colour: a baseline JPEG of 1, 3 or 4 components with these stored samples, 0 to 255.

    The quantisation step of the mean is 8, so a mean of 128 + d is stored as the number d.
    """

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 255, marker, len(body) + 2) + body

    count = len(samples)
    components = b"".join(bytes([index + 1, 0x11, 0]) for index in range(count))
    out = b"\xff\xd8"
    if adobe_transform is not None:
        out += segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe_transform))
    out += segment(0xDB, bytes([0] + [8] * 64))
    out += segment(0xC0, struct.pack(">BHHB", 8, 8, 8, count) + components)
    # Codes of 4 bits for numbers of 0 to 8 bits, and the one-bit code 0 for "the rest of the block is zero".
    out += segment(0xC4, bytes([0x00, 0, 0, 0, 9] + [0] * 12) + bytes(range(9)))
    out += segment(0xC4, bytes([0x10, 1] + [0] * 15) + b"\0")
    out += segment(0xDA, bytes([count]) + b"".join(bytes([i + 1, 0]) for i in range(count)) + bytes([0, 63, 0]))
    bits = ""
    for sample in samples:
        difference = sample - 128
        size = abs(difference).bit_length()
        number = difference if difference > 0 else difference + (1 << size) - 1
        bits += f"{size:04b}" + (f"{number:0{size}b}" if size else "") + "0"
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return out + scan + b"\xff\xd9"


def bit_fields(rows, bits, masks, *, header=40, compression=3, top_down=False):
    """A BMP of 16 or 32 bits a pixel. rows: numbers (H, W), the highest first; masks: of red, green, blue, alpha."""
    height, width = len(rows), len(rows[0])
    lines = [np.array(row, f"<u{bits // 8}").tobytes() for row in (rows if top_down else rows[::-1])]
    pixels = b"".join(line + bytes(-len(line) % 4) for line in lines)
    head = struct.pack(
        "<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, compression, len(pixels), 0, 0, 0, 0
    )
    fields = struct.pack(f"<{len(masks)}I", *masks)
    if header > 40:
        fields = fields.ljust(header - 40, b"\0")
    start = 14 + len(head) + len(fields)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + fields + pixels


def scan_bomb(side: int, repeats: int) -> bytes:
    """A small progressive JPEG whose last scan is repeated, each time at the price of the whole image."""
    jpeg = encode(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xc4")
    assert jpeg.index(b"\xff\xda", last) > last
    return jpeg[:last] + jpeg[last:-2] * repeats + jpeg[-2:]


def good_images():
    """Small images of many kinds, with texture so that damage shows."""
    noise = np.random.default_rng(1).integers(0, 256, (40, 30, 4), np.uint8)
    colour, alpha = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield encode(colour, "JPEG", exif=exif)
    yield encode(colour, "JPEG", progressive=True)
    yield encode(colour.convert("CMYK"), "JPEG")
    yield encode(colour.convert("L"), "JPEG", optimize=True)
    yield encode(alpha, "PNG", exif=exif)
    yield encode(colour.quantize(16), "PNG", transparency=3)
    yield png(30, 40, 16, 0, [row.tobytes() for row in noise[:, :, :2]])
    yield encode(colour, "GIF", save_all=True, append_images=[colour.rotate(180)])
    yield encode(colour, "BMP")
    yield encode(colour, "TIFF", compression="tiff_lzw", exif=exif)
    yield encode(colour, "TIFF", compression="jpeg")
    yield tiff(15, 40, 32, noise[..., :2].tobytes()[:2400], sample_format=3)
    yield encode(alpha, "WEBP", lossless=True)
    yield encode(colour, "WEBP", exif=exif)
    yield encode(colour, "PPM")
    yield encode(colour, "AVIF", quality=90, exif=exif)
    deep = noise[..., :3].astype(int) * 257
    yield write_tiff(deep, 16, photometric=2, planar=True, compression=5, predictor=2, rows=16)
    yield write_tiff(deep // 16, 12, photometric=2, order=">", tile=(16, 16), compression=8)
    yield write_tiff(noise[..., :1], 8, photometric=3, colour_map=(noise.ravel()[:768].astype(int) * 257).tolist())
    yield bit_fields(deep[..., 0], 16, (0xF800, 0x7E0, 0x1F))
