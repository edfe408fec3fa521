"""An image file becomes RGB pixels, or one named reason why not.

H, W = sides in pixels. Colours are taken as they are stored: ICC profiles and gamma are ignored, CMYK is turned into
RGB by (255 - ink) * (255 - black) / 255. CMYK JPEGs are taken as Adobe's, inverted, with or without its marker, as
browsers do. Whatever is transparent is laid over white. Of animations and of files with several pages, the first.
"""

import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

# Pillow would otherwise look for these by importing every plugin it has.
import PIL.AvifImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from vggfeat.checks import convert_fields
from vggfeat.errors import ConfigError, ImageError, ResourceError, StoreError
from vggfeat.images.image_bytes import (
    FORMATS,
    check_length,
    ends_early,
    is_read,
    is_tiff,
    odd_jpeg,
    read_bytes,
    refuse_other_formats,
    shown,
    too_large,
    without_metadata,
)
from vggfeat.images.memory import read_memory
from vggfeat.images.tiff import read_tiff
from vggfeat.images.upright import (
    TURNS_BACK,
    has_bit_fields,
    read_bit_fields,
    turn_boxes,
    upright_rgb,
    written_orientation,
)
from vggfeat.runtime.system import ForkSafeLock
from vggfeat.samples import Box, DataSet, LabelledImages

MEANINGS = {
    "missing": "There is no file of this name.",
    "link-loop": "The path runs through symbolic links that never end.",
    "changed": "The image has another size than when it was planned.",
    "not-a-file": "The path is a folder, a FIFO, a socket or a device.",
    "unreadable": "The system, or a server, refused to open or to read the file.",
    "unreachable": "The store or server did not give the file, as often as it was asked.",
    "empty": "The file has no bytes.",
    "too-large": "The file, or the image in it, is larger than the settings allow.",
    "unrecognised": "The content is none of the allowed formats, whatever the name says.",
    "truncated": "The file ends before the image does.",
    "damaged": "The file begins like an image, but its content is broken.",
    "unsupported": "The file is of a known format, or of a variant of one, that is not decoded.",
    "bad-box": "The box has no area inside the image.",
    "elongated": "The image is so long and thin that it would not fit into memory after rescaling.",
    "out-of-memory": "Decoding needed more memory than a worker may have.",
    "time-out": "Decoding took longer than the time limit.",
    "worker-died": "The image ended the process that decoded it, twice.",
    "non-finite": "The net gave NaN or infinity for the image.",
    "no-label": "The system that guesses the classes of images to localise failed for it.",
    "no-descriptor": "The descriptors that were given have none of the image.",
}
"""What each reason says, in one sentence."""
REASONS: tuple[str, ...] = tuple(MEANINGS)
"""Why an image has no pixels, features, boxes or descriptor; one word each."""
EXTRACTION_REASONS: tuple[str, ...] = tuple(word for word in REASONS if word not in ("no-label", "no-descriptor"))
"""Those with which an extraction counts an image; the others are of localisation, and of descriptors that are given."""

REDUCING_GAP = 3
"""Box reduction leaves at least so many pixels for each one that is asked for; the rest is done by anti-aliasing."""
# Pillow's limits and Python's warning filters belong to the whole process.
_ONE_AT_A_TIME = ForkSafeLock()


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """What may be spent on one image.

    Raises ConfigError if a limit is not above zero.
    """

    max_pixels: int = 89_478_485
    """Pixels of a whole image; the default is Pillow's own limit against decompression bombs."""
    max_bytes: int = 1 << 29
    """Size of a file."""
    largest_side: int | None = None
    """The largest Q that will be asked for. A region whose smaller side is at least twice 3 x Q is averaged over
    square blocks of whole pixels, and keeps at least 3 x Q; a last partial block is averaged over what it has.
    None: regions are never reduced."""
    timeout: float = 30.0
    """Seconds of wall clock per image; only where it is decoded in a worker."""
    allow_truncated: bool = False
    """Whether a file that ends too early gives an image that is partly grey or black."""
    memory: int = 2 << 30
    """Bytes of address space that a worker may add to what it has at its start (Linux only)."""

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in ("max_pixels", "max_bytes", "largest_side", "timeout", "memory"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name}: expected a value above 0, found {value}")


class DecodedImage(NamedTuple):
    """The pixels of the asked regions of one image."""

    regions: tuple[NDArray[np.uint8], ...]
    """(h, w, 3) RGB, 0 to 255, contiguous and writeable; one per asked region, in its order."""
    size: tuple[int, int]
    """Height and width of the whole upright image, before any reduction."""
    sha256: bytes
    """32 bytes, of the file as it is on the disk."""
    orientation: int = 1
    """EXIF orientation, 1 to 8, by which the image was turned; see `vggfeat.images.upright`."""


class Request(NamedTuple):
    """Which parts of which file are wanted."""

    path: str
    """Absolute."""
    boxes: tuple[Box | None, ...]
    """In pixels of the upright image, that is after the EXIF orientation has been applied, unless `stored` says
    otherwise. Each is rounded outwards to whole pixels and clipped to the image; None is the whole of it."""
    span: tuple[int, ...] | None = None
    """First byte and number of bytes of the image in the file, and their CRC-32 if known; None: the whole file."""
    side: int | None = None
    """The smallest side that will be asked for, where a reduced image will do: it takes the place of
    `DecodeSettings.largest_side`, and if only the whole is asked for, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
    as long as no side falls below this."""
    stored: bool = False
    """Whether boxes are in the pixels of the file as they are stored, and are turned with the image."""
    data: bytes | None = None
    """The bytes of the file where they are in memory; nothing is read then, and `path` is what messages call them."""
    size: int | None = None
    """Bytes that the image had when it was planned, -1: it was not there; None if that is not known."""

    @property
    def name(self) -> str:
        """What a message calls the image."""
        if self.span is None:
            return self.path
        first, length, *_ = self.span
        return f"{self.path}, bytes {first} to {first + length - 1}"


def row_requests(
    dataset: DataSet, rows: Iterable[int], regions: Sequence[str], images: DataSet | LabelledImages | None = None
) -> Iterator[Request]:
    """Say for each row of a data set which file is to be decoded, and which parts of it: "image" or "box".

    Each row has a box if one is asked for. `images` says where the image of a row is, by default the data set itself.
    """
    for row in rows:
        box = dataset[row].box
        file, span = (images or dataset).place(row)
        yield Request(
            file, tuple(box if region == "box" else None for region in regions), span, stored=dataset.boxes_as_stored
        )


def decode(request: Request, settings: DecodeSettings) -> DecodedImage:
    """Decode one image in this process, without limits of time and memory.

    Threads take turns, because the limits that Pillow knows are those of the process. The C libraries below Pillow
    may write complaints to standard error.

    Raises ImageError for every fault of the file or of a box, with one of `REASONS`.
    """
    boxes = [None if box is None else Box(*box) for box in request.boxes]
    with loaded(request, settings) as found:
        if request.stored:
            turned = partial(turn_boxes, orientation=found.orientation, size=found.size)
            boxes = [None if box is None else Box(*turned(box).tolist()) for box in boxes]
        largest = request.side or settings.largest_side
        regions = tuple(_region(found.upright, box, largest) for box in boxes)
    return DecodedImage(regions, found.size, hashlib.sha256(found.data).digest(), found.orientation)


class Loaded(NamedTuple):
    """An image file in memory, and what Pillow made of it."""

    data: bytes
    """The file's bytes, as they are on the disk."""
    upright: Image.Image
    """The upright image, of mode RGB."""
    size: tuple[int, int]
    """Height and width before any reduction."""
    ready: bool
    """Whether it is a JPEG of RGB or grey that is upright, so that others will read the same from `data`."""
    orientation: int
    """EXIF orientation by which it was turned."""


@contextmanager
def loaded(request: Request, settings: DecodeSettings) -> Iterator[Loaded]:
    """Load an image for a block, as `decode` does; an error of the block too is one of the image.

    Raises ImageError for every fault of the file or of what is done with it, with one of `REASONS`. Raises
    ResourceError and StoreError as `vggfeat.images.image_bytes.read_bytes`.
    """
    data = b""
    try:
        data = _bytes(request, settings.max_bytes)
        with _pillow(settings):
            yield _loaded(data, request, settings)
    except ImageError as error:
        raise failure(request.name, error.reason, str(error)) from None
    except (ResourceError, StoreError):
        raise
    except Image.DecompressionBombError:
        raise failure(request.name, "too-large", str(too_large(settings.max_pixels))) from None
    except Exception as error:
        # Hostile files make Pillow raise far more than it documents, and none of that may stop a run.
        raise failure(request.name, _reason(error, data), _text(error, data)) from error


def _bytes(request: Request, max_bytes: int) -> bytes:
    data = read_bytes(request.path, max_bytes, request.span) if request.data is None else request.data
    check_length(len(data), max_bytes)
    if request.size is not None and len(data) != request.size:
        raise ImageError("changed", f"expected {request.size} bytes, as planned, found {len(data)}; plan again")
    return data


def _loaded(data: bytes, request: Request, settings: DecodeSettings) -> Loaded:
    refuse_other_formats(data)
    if is_tiff(data):
        upright, turned = read_tiff(data, settings.max_pixels, partial=settings.allow_truncated)
        return Loaded(data, upright, (upright.height, upright.width), False, turned)
    if has_bit_fields(data):
        upright = read_bit_fields(data, settings.max_pixels, partial=settings.allow_truncated)
        return Loaded(data, upright, (upright.height, upright.width), False, 1)
    opened = Image.open(io.BytesIO(without_metadata(data)), formats=FORMATS)
    full, mode = opened.size, opened.mode
    if full[0] * full[1] > settings.max_pixels:
        raise too_large(settings.max_pixels, *full)
    if request.side and all(box is None for box in request.boxes):
        opened.draft(None, (request.side, request.side))
    reduced = opened.size != full
    upright, turned = upright_rgb(opened, written_orientation(data))
    width, height = upright.size if not reduced else full if turned <= 4 else full[::-1]
    ready = opened.format == "JPEG" and mode in ("RGB", "L") and turned == 1
    return Loaded(data, upright, (height, width), ready, turned)


def region_of(image: Image.Image, settings: DecodeSettings) -> DecodedImage:
    """Bring an image that is in memory already to what `decode` would have made of its file.

    `image`: of any mode, opened by any means; it is loaded, and otherwise left as it is. `settings`: of these,
    `largest_side`, `max_pixels` and `allow_truncated` count.
    Returns an image with one region, the whole; `sha256` is 32 zeros, because there is no file.
    Raises ImageError if it can't be loaded or turned into RGB, or what its values mean can't be known, see
    `read_memory`.
    """
    name = str(getattr(image, "filename", "") or "image in memory")
    try:
        with _pillow(settings):
            whole = read_memory(image, settings.max_pixels, partial=settings.allow_truncated)
            region = _region(whole, None, settings.largest_side)
    except ImageError as error:
        raise failure(name, error.reason, str(error)) from None
    except Exception as error:
        if "closed" in str(error):  # of Pillow's image, or of the file below it
            text = "expected an open image, found a closed one; load it (image.load()) before its file is closed"
            raise failure(name, "unreadable", text) from None
        raise failure(name, _reason(error, b""), _text(error, b"")) from error
    return DecodedImage((region,), (whole.height, whole.width), bytes(32))


def failure(path: str, reason: str, text: str) -> ImageError:
    """Make the error of one image, in a line that is fit for a terminal and for a table of UTF-8.

    `path` may hold bytes that are not UTF-8, as Python names such files; `text` may quote the file.
    """
    return ImageError(reason, shown(f"{path}: {text}")[:500])


@contextmanager
def _pillow(settings: DecodeSettings) -> Iterator[None]:
    with _ONE_AT_A_TIME.held(), warnings.catch_warnings():
        # Pillow warns of odd metadata, which says nothing of the pixels.
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = settings.max_pixels, settings.allow_truncated
        # Else AVIF takes a thread, and memory, for each core.
        threads, PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = PIL.AvifImagePlugin.DEFAULT_MAX_THREADS, 1
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before
            PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = threads


def _region(whole: Image.Image, box: Box | None, largest_side: int | None) -> NDArray[np.uint8]:
    region = whole
    if box is not None:
        edges = box.within(whole.width, whole.height)
        if edges is None:
            found = f"expected a box with an area inside {whole.width}x{whole.height} pixels, found {tuple(box)}"
            raise ImageError("bad-box", found)
        region = whole.crop(edges)
    factor = min(region.size) // (REDUCING_GAP * largest_side) if largest_side else 1
    if factor > 1:
        region = region.reduce(factor)
    return np.array(region)


def _reason(error: Exception, data: bytes) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text:
        return "out-of-memory"
    if isinstance(error, Image.DecompressionBombError):
        return "too-large"
    if isinstance(error, UnidentifiedImageError) and not is_read(data):
        return "unrecognised"
    if odd_jpeg(data):
        return "unsupported"
    if isinstance(error, EOFError) or "truncated" in text or "not enough" in text or ends_early(data):
        return "truncated"
    if isinstance(error, NotImplementedError) or "not supported" in text or "unsupported" in text:
        return "unsupported"
    return "damaged"


def _text(error: Exception, data: bytes) -> str:
    odd = odd_jpeg(data)
    if odd:
        return f"expected a JPEG of 8 bits and Huffman codes, found {odd}; convert it to PNG"
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own words hold an address in memory, and equal runs must give equal reasons.
        return f"expected an image of the formats {', '.join(FORMATS)}, found none"
    return f"expected an image that can be decoded, found {type(error).__name__}: {error}"


def shrink(request: Request, settings: DecodeSettings, *, side: int, quality: int) -> DecodedImage:
    """Shrink an image so that its smallest side is `side`; it is never enlarged.

    What is small enough already, and an upright JPEG of RGB or grey, is kept byte for byte. Anything else is decoded
    (a JPEG at 1/2, 1/4 or 1/8 of its size where that is no less than `side`), resampled bilinearly with anti-aliasing
    and stored as a JPEG of RGB with 4:2:0 colours; in the EXIF orientation that it had, which boxes depend on.

    Boxes and side of the request are not read. `side` is in pixels, `quality` 1 to 95, in the scale of libjpeg.
    Returns an image whose one region is (bytes,) uint8: the JPEG file. Raises ImageError as `decode`.
    """
    with loaded(request._replace(boxes=(None,), side=side), settings) as found:
        height, width = found.size
        shortest = min(height, width)
        if found.ready and shortest <= side:
            data = found.data
        else:
            image = found.upright
            if shortest > side:
                sides = [(2 * edge * side + shortest) // (2 * shortest) for edge in (width, height)]
                image = image.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
            exif = Image.Exif()
            if found.orientation != 1:
                exif[ExifTags.Base.Orientation] = found.orientation
                image = image.transpose(TURNS_BACK[found.orientation])
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality, subsampling="4:2:0", exif=exif)
            data = file.getvalue()
    return DecodedImage((np.frombuffer(data, np.uint8),), found.size, hashlib.sha256(found.data).digest())
