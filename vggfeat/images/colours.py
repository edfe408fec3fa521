"""Whatever Pillow found in a file becomes upright 8-bit RGB: deep greys scaled, transparency laid over white."""

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 1 << 20
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


def upright_rgb(image: Image.Image) -> Image.Image:
    """Load an image and bring it to RGB and to the orientation that its EXIF block tells.

    A broken EXIF block, or an orientation that is none of 1 to 8, is ignored.

    Parameters
    ----------
    image : Image
        Best not loaded yet; apart from loading it is left as it is.

    Returns
    -------
    Image
        Of mode RGB; it may be the same object.
    """
    loaded = _load(image)
    # Only now: PNG may hold the EXIF block after the pixels, and TIFF is turned by Pillow while it loads.
    turn = _TURNS.get(orientation(loaded))
    rgb = to_rgb(loaded)
    return rgb if turn is None else rgb.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a loaded image into RGB.

    Alpha, and colours that PNG or GIF declare transparent, are laid over white: (value * a + 255 * (255 - a)) / 255,
    rounded. Greys of more than 8 bits are scaled by the range that their file gives them, see `grey_range`; of
    colours of 16 bits Pillow keeps the higher 8.

    Parameters
    ----------
    image : Image
        Of any mode.

    Returns
    -------
    Image
        Of mode RGB; the same object if it was plain RGB.

    Raises
    ------
    ValueError
        If Pillow knows no way from this mode to RGB.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def grey_range(image: Image.Image, values: NDArray) -> tuple[float, float]:
    """Say which values of a grey image of more than 8 bits are black and white.

    0 and 2**bits - 1 for unsigned integers of up to 16 bits; 0 and 1 for floats that all lie there. Other floats,
    and integers that are signed or of 32 bits, have no customary range: their own smallest and largest finite values,
    and a constant image is mid-grey. A TIFF that says "white is zero" has the two exchanged.

    Parameters
    ----------
    image : Image
        Of mode I;16 (any byte order), I or F.
    values : ndarray (H, W)
        Its pixels.

    Returns
    -------
    tuple of float
        Black and white; never equal.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") or (image.mode == "I" and not tags):
        low, high = 0.0, 2.0 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    else:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
    if low == high:
        low, high = low - 1, high + 1
    return (high, low) if tags.get(_PHOTOMETRIC) == 0 else (low, high)


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
    elif rawmode == "RGB;16B" and isinstance(key, tuple):
        mended = tuple(value >> 8 for value in key)
    else:
        return image
    copy = image.copy()
    copy.info["transparency"] = mended
    return copy


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8 in sound files; from 5 on, the sides change places. 1 if there is none."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # A broken EXIF block is no reason to lose the image.
        return 1


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    black, white = grey_range(image, values)
    key = image.info.get("transparency")
    grey = np.empty(values.shape, np.uint8)
    # In strips, because the arithmetic takes many times the memory of the result.
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = values[top : top + rows]
        scaled = np.clip((strip.astype(np.float64) - black) * 255 / (white - black), 0, 255)
        scaled[np.isnan(scaled)] = 0
        if isinstance(key, int):
            scaled[strip == key] = 255
        grey[top : top + rows] = np.rint(scaled)
    return Image.fromarray(grey).convert("RGB")
