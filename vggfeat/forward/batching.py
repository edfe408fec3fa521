"""Which images run through the net together. A batch is a tensor of one height and one width.

Images of other sizes either wait for their own batch, or are laid into one tensor with zeros around them (`padded`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

Batching = Literal["size", "padded"]
Size = tuple[int, int]
"""Height and width in pixels."""
WASTE = 0.125
"""Share of a padded batch that may be padding."""
GRAIN = 32
"""Sides of padded batches are multiples of it, so that few shapes recur: a GPU plans convolutions anew for each."""


def by_size(sizes: Sequence[Size], pixels: int) -> list[list[int]]:
    """Put images of equal size together, of at most so many pixels; a larger image is alone.

    Returns lists of numbers of images, each once; sizes ascending.
    """
    groups: dict[Size, list[int]] = defaultdict(list)
    for number, size in enumerate(sizes):
        groups[size].append(number)
    batches = []
    for (height, width), numbers in sorted(groups.items()):
        step = max(1, pixels // (height * width))
        batches += [numbers[start : start + step] for start in range(0, len(numbers), step)]
    return batches


def rounded_up(size: Size) -> Size:
    """Return sides that are multiples of `GRAIN`, and no shorter."""
    height, width = (-(-side // GRAIN) * GRAIN for side in size)
    return height, width


def padded(sizes: Sequence[Size], pixels: int, waste: float = WASTE) -> list[list[int]]:
    """Put images of similar size together, to be laid into tensors that hold the largest of them, its sides rounded up.

    Neighbours in the order of their sizes share a batch as long as it stays small and full enough: few batches, not
    the fewest.

    Parameters
    ----------
    sizes, pixels
        As for `by_size`; the padding counts.
    waste : float, 0 to 1
        Share of a batch that may be padding, besides what rounding up adds to each image.

    Returns
    -------
    list of list of int
        Numbers of images, each once.
    """
    sizes = [rounded_up(size) for size in sizes]
    batches: list[list[int]] = []
    height = width = used = 0
    # By the smaller side first: all images of one scale share it.
    for number in sorted(range(len(sizes)), key=lambda n: (min(sizes[n]), sizes[n])):
        tall, wide = sizes[number]
        most = (max(height, tall), max(width, wide))
        count = len(batches[-1]) + 1 if batches else 1
        area = count * most[0] * most[1]
        if count > 1 and area <= pixels and used + tall * wide >= (1 - waste) * area:
            batches[-1].append(number)
            (height, width), used = most, used + tall * wide
        else:
            batches.append([number])
            height, width, used = tall, wide, tall * wide
    return batches


def tensor_size(sizes: Sequence[Size], batching: Batching, pixels: int) -> Size:
    """Return the sides of the tensor that images of one batch lie in.

    In a padded batch they are rounded up, but for an image that would then have more than `pixels`: it goes through the
    net in strips, which can't be padded.
    """
    largest = max(height for height, _ in sizes), max(width for _, width in sizes)
    height, width = rounded_up(largest)
    rounded = batching == "padded" and (len(sizes) > 1 or height * width <= pixels)
    return (height, width) if rounded else largest
