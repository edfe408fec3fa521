"""The 1000 classes of ILSVRC-2012, in the order in which published nets have them."""

from functools import cache
from importlib import resources

LIST = "ilsvrc_classes.txt"


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Name the 1000 classes of ILSVRC-2012 classification.

    Returns
    -------
    tuple of 1000 pairs
        WNID, for instance n01440764, and its words, the commonest first, separated by ", ". Sorted by WNID: the
        order of the fc8 channels in the nets of Caffe, MatConvNet, Keras, torchvision and timm, and not that of the
        numbers of the development kit.
    """
    text = resources.files("vggfeat.weights").joinpath(LIST).read_text(encoding="utf-8")
    rows = (line.partition("\t") for line in text.splitlines())
    return tuple((wnid, words) for wnid, _, words in rows)


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the first column of `imagenet_classes`."""
    return tuple(wnid for wnid, _ in imagenet_classes())
