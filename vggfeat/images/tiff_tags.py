"""What the tags of a TIFF say about its pixels, as far as it can be read; everything else is refused by name.

Pillow picks one of its modes for every TIFF, and some of its picks give other pixels than the tags describe. So the
tags are read here, and they alone decide.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ImageError
from vggfeat.images.upright import known_orientation, xmp_orientation

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
"""Values of PhotometricInterpretation."""
ASSOCIATED, UNASSOCIATED = 1, 2
"""Values of ExtraSamples: alpha by which the colours have been multiplied, or not."""
UNCOMPRESSED = 1
_BYTEWISE = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, deflate, PackBits, deflate, LZMA, Zstandard
_PREDICTED = {5, 8, 32946, 34925, 50000}
_FAX = {2, 3, 4, 32771}
_JPEG = 7
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3}
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned"}
_TYPES = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 13: "u4", 16: "u8", 18: "u8"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_COUNTS, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 317, 320, 322, 323, 324, 325
_INK_SET, _EXTRA, _FORMAT = 332, 338, 339
_TYPE, _SUB_DIRECTORIES, _XMP, _DNG_VERSION = 254, 330, 700, 50706
_WANTED = frozenset((
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS,
    _STRIP_COUNTS, _PLANAR, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _INK_SET,
    _EXTRA, _FORMAT, _TYPE, _SUB_DIRECTORIES, _XMP, _DNG_VERSION,
))  # fmt: skip
_MOST_VALUES = 1 << 22
_MOST_SAMPLES = 32
_CUT = "expected the tags of a TIFF, found the end of the file"

Tags = dict[int, NDArray[Any]]
"""Number of the tag -> its values, int64; of XMP as they are in the file."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the pixels of a TIFF are stored."""

    order: str
    """"<" or ">"."""
    width: int
    height: int
    samples: int
    """Numbers a pixel, extra ones included."""
    bits: int
    """Bits of a sample; the same for all."""
    kind: str
    """unsigned, signed or float."""
    photometric: int
    extra: tuple[int, ...]
    """What the numbers after the colours mean."""
    planes: int
    """1 if the numbers of a pixel lie side by side; else `samples`, and each plane holds one number a pixel."""
    compression: int
    predictor: int
    fill_order: int
    orientation: int
    tiled: bool
    cell_height: int
    """Height of a strip or tile."""
    cell_width: int
    """Width of a tile; else `width`."""
    offsets: NDArray[np.int64]
    """Offsets of the strips or tiles, plane after plane."""
    counts: NDArray[np.int64]
    """Their bytes; empty if the file does not say."""
    colour_map: NDArray[np.int64]
    """(3 * 2**bits,) reds, then greens, then blues; empty without a palette."""

    @property
    def colours(self) -> int:
        """Numbers a pixel that are colours."""
        return _COLOURS[self.photometric]

    @property
    def by_pillow(self) -> bool:
        """Whether the codec gives pixels rather than bytes, or the colours need one; Pillow reads these rightly."""
        return self.compression not in _BYTEWISE or self.photometric in (YCBCR, CIELAB)

    @property
    def cells_across(self) -> int:
        """Tiles in a row of them; 1 for strips."""
        return -(-self.width // self.cell_width)

    @property
    def cells_down(self) -> int:
        """Strips, or rows of tiles."""
        return -(-self.height // self.cell_height)

    @property
    def cell_bytes(self) -> int:
        """Bytes of a row of a strip or tile."""
        return (self.cell_width * self.samples // self.planes * self.bits + 7) // 8


def read_tags(data: bytes, at: int | None = None) -> tuple[str, Tags]:
    """Read the tags that matter from the first directory of a TIFF, or from the one at an offset.

    Returns the byte order, "<" or ">", and number of the tag -> its values.
    Raises ImageError "truncated" if the file ends before its tags do.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    try:
        if at is None:
            at = int(
                struct.unpack_from(order + "Q", data, 8)[0] if big else struct.unpack_from(order + "I", data, 4)[0]
            )
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        at += 8 if big else 2
        size = 20 if big else 12
        if at + count * size > len(data):
            raise ImageError("truncated", _CUT)
        entries = (_entry(data, at + index * size, order, big=big) for index in range(min(count, 4096)))
        return order, {tag: values for tag, values in entries if values is not None}
    except (struct.error, OverflowError):
        raise ImageError("truncated", _CUT) from None


def _entry(data: bytes, at: int, order: str, *, big: bool) -> tuple[int, NDArray[Any] | None]:
    tag, number, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
    if tag not in _WANTED or number not in _TYPES or not count:
        return tag, None
    kind = np.dtype(order + _TYPES[number])
    count = count if tag == _XMP else min(count, _MOST_VALUES)
    place, room = (at + 12, 8) if big else (at + 8, 4)
    if count * kind.itemsize > room:
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
    if place + count * kind.itemsize > len(data):
        if tag == _XMP:
            return tag, None
        raise ImageError("truncated", _CUT)
    values = np.frombuffer(data, kind, count, place)
    return tag, values if tag == _XMP else values.astype(np.int64)


def read_layout(order: str, tags: Tags) -> Layout:
    """Work out from its tags how the pixels of a TIFF are stored.

    Parameters
    ----------
    order : str
        Byte order, "<" or ">".
    tags : dict
        As from `read_tags`.

    Raises
    ------
    ImageError
        "damaged" if the tags contradict each other; "unsupported" if vggfeat reads no such TIFF.
    """

    def one(tag: int, default: int) -> int:
        return int(tags[tag][0]) if tag in tags else default

    if _DNG_VERSION in tags or (_SUB_DIRECTORIES in tags and one(_TYPE, 0) & 1):
        raise unsupported("a camera raw file, or one that begins with a reduced copy of its image")
    xmp = tags[_XMP].astype(np.uint8).tobytes() if _XMP in tags else b""
    none = np.zeros(0, np.int64)
    width, height, tiled = one(_WIDTH, 0), one(_HEIGHT, 0), _TILE_OFFSETS in tags
    samples, compression = one(_SAMPLES, 1), one(_COMPRESSION, UNCOMPRESSED)
    layout = Layout(
        order=order,
        width=width,
        height=height,
        samples=samples,
        bits=_same(tags.get(_BITS, np.ones(1, np.int64)), samples, "bits of its samples"),
        kind=_KINDS.get(_same(tags.get(_FORMAT, np.ones(1, np.int64)), samples, "kinds of samples"), "complex"),
        photometric=one(_PHOTOMETRIC, WHITE_IS_ZERO if samples == 1 else -1),
        extra=tuple(map(int, tags.get(_EXTRA, none)[:_MOST_SAMPLES])),
        planes=samples if one(_PLANAR, 1) == 2 else 1,
        compression=compression,
        predictor=one(_PREDICTOR, 1) if compression in _PREDICTED else 1,
        fill_order=one(_FILL_ORDER, 1),
        orientation=known_orientation(one(_ORIENTATION, xmp_orientation(xmp))),
        tiled=tiled,
        cell_height=one(_TILE_HEIGHT, 0) if tiled else min(one(_ROWS, height), height),
        cell_width=one(_TILE_WIDTH, 0) if tiled else width,
        offsets=tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, none),
        counts=tags.get(_TILE_COUNTS if tiled else _STRIP_COUNTS, none),
        colour_map=tags.get(_COLOUR_MAP, none),
    )
    _check(layout, one(_INK_SET, 1))
    return layout


def _same(values: NDArray[np.int64], samples: int, what: str) -> int:
    """Return the value that all samples have; for 16 bits too, three are sometimes written once."""
    if (values[:samples] != values[0]).any():
        raise unsupported(f"different {what}: {', '.join(map(str, values[:8]))}")
    return int(values[0])


def _check(layout: Layout, ink_set: int) -> None:
    sides = min(layout.width, layout.height, layout.cell_width, layout.cell_height, layout.samples, layout.bits)
    if sides < 1 or not len(layout.offsets):
        raise ImageError("damaged", "expected sides and the places of the pixels in the tags of the TIFF, found none")
    photometric, compression = layout.photometric, layout.compression
    if photometric not in _COLOURS or (photometric == CMYK and ink_set != 1):
        raise unsupported(f"photometric interpretation {photometric}, ink set {ink_set}")
    if compression not in _BYTEWISE | _FAX | {_JPEG}:
        raise unsupported(f"compression {compression}")
    missing = layout.samples - layout.colours
    # Alpha is often left undeclared in RGBA.
    undeclared = not layout.extra and photometric == RGB and missing == 1
    if not (missing == len(layout.extra) or undeclared) or layout.samples > _MOST_SAMPLES:
        raise unsupported(f"{layout.samples} samples a pixel, of which {len(layout.extra)} are declared as extra")
    _check_samples(layout)
    if layout.fill_order not in (1, 2) or layout.predictor not in (1, 2, 3):
        raise unsupported(f"fill order {layout.fill_order}, predictor {layout.predictor}")
    if layout.tiled and layout.cell_width * layout.samples // layout.planes * layout.bits % 8:
        raise unsupported(f"tiles of {layout.cell_width} samples of {layout.bits} bits")


def _check_samples(layout: Layout) -> None:
    bits, kind, photometric = layout.bits, layout.kind, layout.photometric
    found = f"{kind} samples of {bits} bits, photometric interpretation {photometric}, compression {layout.compression}"
    if layout.by_pillow:
        fax = layout.compression in _FAX and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
        jpeg = layout.compression == _JPEG and photometric in (BLACK_IS_ZERO, RGB, CMYK, YCBCR)
        bytewise = layout.compression in _BYTEWISE  # and YCbCr or Lab
        plain = kind == "unsigned" and layout.planes == 1 and not layout.extra and layout.samples == layout.colours
        known = plain and ((fax and bits == 1) or ((jpeg or bytewise) and bits == 8))
    elif photometric in (PALETTE, CMYK):
        known = kind == "unsigned" and bits <= 16
    elif kind == "float":
        known = bits in (16, 32, 64)
    else:
        known = kind in ("unsigned", "signed") and (bits <= 32 or bits == 64)
    if layout.predictor == 2 and not layout.by_pillow:
        known &= bits in (8, 16, 32, 64)
    if layout.predictor == 3:
        known &= kind == "float"
    if not known:
        raise unsupported(found)
    if photometric == PALETTE and len(layout.colour_map) != 3 << bits:
        raise ImageError("damaged", f"expected {3 << bits} numbers in the palette, found {len(layout.colour_map)}")


def unsupported(found: str) -> ImageError:
    """Make the error for a TIFF of a kind that is not read."""
    return ImageError(
        "unsupported",
        f"expected a TIFF of grey, RGB, CMYK, palette, YCbCr or Lab in a common form, found {found}; convert it to PNG",
    )
