"""The eight EXIF orientations: boxes turn as their images do.

An image that is *upright* is turned as its EXIF block says; *stored* are the pixels of the file, which is how the tools
of PASCAL VOC and ILSVRC read images, and so how their boxes are meant.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

_INVERSE = {6: 8, 8: 6}
# Orientation: whether columns become rows, and along which sides of the upright image they then count backwards.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


TURNS_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What brings an upright image back to the stored pixels of an orientation."""


def known_orientation(value: int) -> int:
    """Return an orientation, or 1 for a number that is none."""
    return value if value in _TURNS else 1


def turn_boxes(edges: ArrayLike, orientation: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Turn boxes of the stored pixels to where they are in the upright image.

    Parameters
    ----------
    edges : (..., 4) array
        left, top, right, bottom in pixels from 0.
    orientation : int
        EXIF, 1 to 8.
    size : (int, int)
        Height and width of the upright image.

    Returns
    -------
    (..., 4) float64
        Edges, left before right and top before bottom.
    """
    across, backwards, upwards = _TURNS[orientation]
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
    return (size[1], size[0]) if _TURNS[orientation][0] else size


def annotated_orientation(orientation: int, size: tuple[int, int], annotated: tuple[int, int]) -> int:
    """Return the orientation by which boxes of an annotation turn: 1 if they are meant in the upright image.

    They are meant in the stored pixels, unless the annotation's height and width say that it is the upright image that
    is upright or flat as they are.
    """
    turned = _TURNS[orientation][0]
    return 1 if turned and (annotated[0] - annotated[1]) * (size[0] - size[1]) > 0 else orientation
