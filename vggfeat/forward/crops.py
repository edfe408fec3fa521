"""Where the crops of an image lie (VGG paper, Sect. 3.2: a regular grid of 5 x 5, each crop mirrored as well)."""

CROP = 224
"""Side in pixels of the input that the nets were trained with (Sect. 2.1)."""
GRID = 5
"""Positions along either side."""


def grid(height: int, width: int) -> list[tuple[int, int]]:
    """Place 25 crops of 224 x 224 on an image, from edge to edge.

    Along a side of L pixels they begin at floor(i (L - 224) / 4) for i = 0 to 4: the first touches one edge, the last
    the other. The paper says "regular", no more; rounding down gives the middle crop the place that `centre` has.

    Parameters
    ----------
    height, width : int
        From 224 on. At 224 all five places along the side are one, and count five times.

    Returns
    -------
    list of (top, left)
        25, row by row.
    """
    tops, lefts = ([i * (side - CROP) // (GRID - 1) for i in range(GRID)] for side in (height, width))
    return [(top, left) for top in tops for left in lefts]


def centre(height: int, width: int) -> list[tuple[int, int]]:
    """Place one crop in the middle; a spare odd pixel lies below or right, as in the validation of the trainer."""
    return [((height - CROP) // 2, (width - CROP) // 2)]
