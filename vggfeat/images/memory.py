"""An image that is in memory already becomes what its file would have given, or is refused where that can't be known.

Copies, crops and pickles of an image have its pixels, but not the tags of its file.
"""

from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vggfeat.errors import ImageError
from vggfeat.images.tiff import read_tiff
from vggfeat.images.tiff_tags import Layout, read_layout
from vggfeat.images.upright import upright_rgb

_PLANAR, _IN_PLANES = 284, 2
_SCALE = "np.rint(np.clip((np.asarray(image, float) - black) * 255 / (white - black), 0, 255)).astype(np.uint8)"


def read_memory(image: Image.Image, max_pixels: int, *, partial: bool = False) -> Image.Image:
    """Bring an image to RGB and upright.

    A TIFF that has been opened but not loaded is read by its tags, as its file would be. Of images of more than 8 bits,
    only such a TIFF, a PNG and a PNM say what is black and white; others are refused.

    Parameters
    ----------
    image : Image
        It may be loaded, and is otherwise left as it is.
    max_pixels : int
        Of a TIFF that is not loaded.
    partial : bool
        As for `read_tiff`.

    Returns
    -------
    Image
        Of mode RGB; it may be the same object.

    Raises
    ------
    ImageError
        If what its values mean can't be known, or its file can't be read.
    """
    if not min(image.size):
        raise ImageError("damaged", f"expected sides above 0, found {image.width}x{image.height}")
    if isinstance(image, TiffImageFile):
        if image.tile and image.fp is not None:
            return _by_tags(image, max_pixels, partial=partial)
        _check_loaded_tiff(image)
    deep = image.mode.startswith("I") or image.mode == "F"
    if deep and not isinstance(image, PngImageFile | PpmImageFile):
        raise _refusal(f"mode {image.mode}, whose black and white are not known without the tags of its file")
    _check_transparency(image)
    return upright_rgb(image)[0]


def _by_tags(image: TiffImageFile, max_pixels: int, *, partial: bool) -> Image.Image:
    file: Any = image.fp
    place = file.tell()
    try:
        file.seek(0)
        data = file.read()
    finally:
        file.seek(place)
    return read_tiff(data, max_pixels, partial=partial, at=image.tag_v2.offset, page=image.tell())[0]


def _check_loaded_tiff(image: TiffImageFile) -> None:
    """Refuse a TIFF whose pixels Pillow has loaded in a way that its tags may not mean."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    try:
        layout = _layout(tags)
    except ImageError as error:
        raise _refusal(str(error)) from None
    if layout.bits > 8 or layout.kind != "unsigned":
        raise _refusal(f"a TIFF of {layout.kind} samples of {layout.bits} bits that has been loaded already")
    misread = {
        "planes of grey, a palette or reversed bits": tags.get(_PLANAR) == _IN_PLANES
        and (layout.colours == 1 or layout.fill_order != 1),
        "a palette of 8 bits": len(layout.colour_map) > 0 and layout.colour_map.max() < 256,
    }
    for what, found in misread.items():
        if found:
            raise _refusal(f"a TIFF with {what} that has been loaded already")


def _layout(tags: Any) -> Layout:
    known = {}
    for tag in tags:
        values = tags[tag] if isinstance(tags[tag], tuple) else (tags[tag],)
        if all(isinstance(value, int) for value in values):
            known[tag] = np.array(values, np.int64)
    return read_layout("<", known)


def _check_transparency(image: Image.Image) -> None:
    """Refuse a grey that is to be transparent where it may be of 2 or 4 bits, but the pixels have become 8."""
    key = image.info.get("transparency")
    if image.mode != "L" or not isinstance(key, int) or not 0 < key < 16 or getattr(image, "tile", None):
        return
    if not (np.asarray(image) % 17).any():
        raise _refusal(f"grey {key} as transparent, which may be of 2, 4 or 8 bits")


def _refusal(found: str) -> ImageError:
    remedy = f"give its path or the image as opened, or scale it with PIL.Image.fromarray({_SCALE})"
    return ImageError("unsupported", f"expected an image whose values are known, found {found}; {remedy}")
