"""TIFFs of every layout, written from the specification (TIFF 6.0 and Adobe's supplements) tag by tag."""

import lzma
import struct
import zlib

import numpy as np

NONE, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA = 1, 5, 8, 32773, 32946, 34925
FORMATS = {"u": 1, "i": 2, "f": 3}


def write_tiff(
    values: np.ndarray, bits: int, kind: str = "u", *, photometric: int, extra: tuple[int, ...] = (),
    planar: bool = False, compression: int = NONE, predictor: int = 1, order: str = "<", fill_order: int = 1,
    rows: int | None = None, tile: tuple[int, int] | None = None, big: bool = False,
    colour_map: list[int] = [], **more: list[int],  # noqa: B006
) -> bytes:  # fmt: skip
    """values (H, W, S); more: tags as t123=[...], which take the place of ours."""
    height, width, samples = values.shape
    planes = [values[..., place : place + 1] for place in range(samples)] if planar else [values]
    cells = []
    for plane in planes:
        for block in tiles(plane, *tile) if tile else strips(plane, rows or height):
            raw = b"".join(row_bytes(row, bits, kind, order, predictor) for row in block)
            packed = pack(raw, compression)
            cells.append(bytes(mirrored(byte) for byte in packed) if fill_order == 2 else packed)
    tags = {
        256: [width], 257: [height], 258: [bits] * samples, 259: [compression], 262: [photometric],
        277: [samples], 284: [2 if planar else 1], 339: [FORMATS[kind]] * samples,
    }  # fmt: skip
    if fill_order != 1:
        tags[266] = [fill_order]
    if predictor != 1:
        tags[317] = [predictor]
    if extra:
        tags[338] = list(extra)
    if colour_map:
        tags[320] = colour_map
    if tile:
        tags |= {322: [tile[1]], 323: [tile[0]]}
    else:
        tags[278] = [rows or height]
    tags |= {int(name[1:]): content for name, content in more.items()}
    return assemble(tags, cells, (324, 325) if tile else (273, 279), order, big)


def strips(plane, rows):
    return [plane[top : top + rows] for top in range(0, len(plane), rows)]


def tiles(plane, height, width):
    down, across = -len(plane) % height, -plane.shape[1] % width
    padded = np.pad(plane, ((0, down), (0, across), (0, 0)), mode="edge")
    return [
        padded[top : top + height, left : left + width]
        for top in range(0, len(padded), height)
        for left in range(0, padded.shape[1], width)
    ]


def row_bytes(row: np.ndarray, bits: int, kind: str, order: str, predictor: int) -> bytes:
    """row (W, S)"""
    if predictor == 3:
        parts = row.astype(f">f{bits // 8}").view(np.uint8).reshape(-1, bits // 8).T.reshape(-1, row.shape[1])
        return differences(parts).tobytes()
    if bits in (8, 16, 32, 64):
        numbers = row.astype(f"={kind}{bits // 8}")
        if predictor == 2:
            numbers = differences(numbers.view(f"=u{bits // 8}"))
        return numbers.astype(numbers.dtype.newbyteorder(order)).tobytes()
    if bits == 24:
        return b"".join(
            int(value).to_bytes(3, "little" if order == "<" else "big", signed=kind == "i") for value in row.flat
        )
    text = "".join(f"{int(value) % (1 << bits):0{bits}b}" for value in row.flat)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def differences(numbers: np.ndarray) -> np.ndarray:
    out = numbers.copy()
    out[1:] = numbers[1:] - numbers[:-1]
    return out


def pack(raw: bytes, compression: int) -> bytes:
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.compress(raw)
    if compression == LZMA:
        return lzma.compress(raw)
    if compression == PACKBITS:
        # Runs of up to 128 literals.
        return b"".join(bytes([len(raw[at : at + 128]) - 1]) + raw[at : at + 128] for at in range(0, len(raw), 128))
    return lzw(raw) if compression == LZW else raw


def lzw(raw: bytes) -> bytes:
    """Codes of 9 bits, and the table cleared before they grow to 10."""
    codes = []
    for at in range(0, len(raw), 250):
        codes += [256, *raw[at : at + 250]]
    codes += [257]
    text = "".join(f"{code:09b}" for code in codes)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def mirrored(byte: int) -> int:
    return int(f"{byte:08b}"[::-1], 2)


def assemble(
    tags: dict[int, list[int]], cells: list[bytes], names: tuple[int, int], order: str, big: bool = False
) -> bytes:
    count, entry, number = ("Q", 20, "Q") if big else ("H", 12, "I")
    room = 8 if big else 4
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8))
    )
    tags = dict(tags) | {names[0]: [0] * len(cells), names[1]: [len(cell) for cell in cells]}
    free = len(head) + struct.calcsize(order + count) + entry * len(tags) + room
    sizes = {tag: len(values) * (4 if tag in names else 2) for tag, values in tags.items()}
    start = free + sum(size + size % 2 for size in sizes.values() if size > room)
    places = np.cumsum([0, *(len(cell) + len(cell) % 2 for cell in cells)])[:-1] + start
    tags[names[0]] = places.tolist()
    out, more = struct.pack(order + count, len(tags)), b""
    for tag in sorted(tags):
        kind = 4 if tag in names else 3
        raw = struct.pack(f"{order}{len(tags[tag])}{'I' if kind == 4 else 'H'}", *tags[tag])
        field = raw.ljust(room, b"\0")
        if len(raw) > room:
            field = struct.pack(order + number, free + len(more))
            more += raw + bytes(len(raw) % 2)
        out += struct.pack(f"{order}HH{number}", tag, kind, len(tags[tag])) + field
    return head + out + bytes(room) + more + b"".join(cell + bytes(len(cell) % 2) for cell in cells)
