"""The files in which nets of the VGG paper were published: where they lie, how to know them, what to expect of them.

Facts only; nothing here reads a file or asks a server. The same facts for people: data/weights.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["sha256", "sha1", "md5"]

AUTHORS_LICENCE = "CC BY 4.0 (the authors: Karen Simonyan and Andrew Zisserman)"
TORCHVISION_LICENCE = "BSD 3-Clause (torchvision)"
_MATCONVNET = "MatConvNet's table of pretrained models"
_KERAS = "the error table of Keras Applications"
_TORCHVISION = "torchvision's documentation of the weights"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published file."""

    name: str
    """By which the commands know it."""
    file: str
    """Under which it is kept: its own name, unless that says too little or another has it too."""
    format: str
    """A key of `vggfeat.weights.sniff.FORMATS`."""
    net: str
    """Column of Table 1 of the VGG paper, with -BN where batch normalisation was added."""
    addresses: tuple[str, ...]
    """Where it was published, tried in this order."""
    checksum: tuple[Kind, str]
    """Kind, and hex digits: all of them, or for SHA-256 at least the first 8, which is what PyTorch publishes."""
    bytes: int | None = None
    """Its exact size, where it is known."""
    licence: str
    top1_error: float
    """Percent of ILSVRC-2012 validation, single centre crop."""
    top5_error: float
    errors_from: str
    """Who measured that. Resizing and decoding differ between libraries: figures within 0.5 % agree."""
    authors: bool
    """Holds the numbers that the authors published: D or E of the paper, trained with scale jittering."""


def _authors(
    name: str,
    net: str,
    errors: tuple[float, float] | None = None,
    errors_from: str = f"{_MATCONVNET}, for the same numbers",
    **facts: Any,
) -> Published:
    top1, top5 = errors or {"D": (28.5, 9.9), "E": (28.7, 9.9)}[net]
    return Published(
        name=name, net=net, licence=AUTHORS_LICENCE, authors=True, top1_error=top1, top5_error=top5,
        errors_from=errors_from, **facts,
    )  # fmt: skip


def _caffe(number: int, net: str, sha1: str, size: int) -> Published:
    file = f"VGG_ILSVRC_{number}_layers.caffemodel"
    place = "www.robots.ox.ac.uk/~vgg/software/very_deep/caffe"
    addresses = (f"https://{place}/{file}", f"http://{place}/{file}")
    name = f"vgg{number}-caffe"
    return _authors(
        name, net, file=file, format="caffe", addresses=addresses, checksum=("sha1", sha1), bytes=size,
    )  # fmt: skip


def _matconvnet(number: int, net: str, md5: str, release: str = "") -> Published:
    file = f"imagenet-vgg-verydeep-{number}"
    place = f"www.vlfeat.org/matconvnet/models/{release and release + '/'}{file}.mat"
    addresses, kept = (f"https://{place}", f"http://{place}"), "-".join(filter(None, (file, release)))
    name = "-".join(filter(None, (f"vgg{number}-matconvnet", release)))
    return _authors(
        name, net, file=f"{kept}.mat", format="matconvnet", addresses=addresses, checksum=("md5", md5),
        errors_from=_MATCONVNET,
    )  # fmt: skip


def _keras(number: int, net: str, md5: str, errors: tuple[float, float]) -> Published:
    file = f"vgg{number}_weights_tf_dim_ordering_tf_kernels.h5"
    addresses = (
        f"https://storage.googleapis.com/tensorflow/keras-applications/vgg{number}/{file}",
        f"https://github.com/fchollet/deep-learning-models/releases/download/v0.1/{file}",
    )
    return _authors(
        f"vgg{number}-keras", net, file=file, format="keras", addresses=addresses, checksum=("md5", md5),
        errors=errors, errors_from=_KERAS,
    )  # fmt: skip


def _jcjohnson(number: int, net: str, start: str) -> Published:
    file = f"vgg{number}-{start}.pth"
    addresses = (
        f"https://web.eecs.umich.edu/~justincj/models/{file}",
        f"https://s3-us-west-2.amazonaws.com/jcjohns-models/{file}",
    )
    return _authors(
        f"vgg{number}-jcjohnson", net, file=file, format="pytorch", addresses=addresses, checksum=("sha256", start),
    )  # fmt: skip


def _torchvision(model: str, net: str, sha256: str, errors: tuple[float, float], size: int | None = None) -> Published:
    file = f"{model}-{sha256[:8]}.pth"
    return Published(
        name=f"{model.replace('_', '-')}-torchvision", file=file, format="pytorch", net=net,
        addresses=(f"https://download.pytorch.org/models/{file}",), checksum=("sha256", sha256), bytes=size,
        licence=TORCHVISION_LICENCE, top1_error=errors[0], top5_error=errors[1], errors_from=_TORCHVISION,
        authors=False,
    )  # fmt: skip


def _timm(number: int, net: str, sha256: str, errors: tuple[float, float]) -> Published:
    return Published(
        name=f"vgg{number}-timm", file=f"vgg{number}.tv_in1k.safetensors", format="timm", net=net,
        addresses=(f"https://huggingface.co/timm/vgg{number}.tv_in1k/resolve/main/model.safetensors",),
        checksum=("sha256", sha256), licence=TORCHVISION_LICENCE, top1_error=errors[0], top5_error=errors[1],
        errors_from=f"{_TORCHVISION}, for the same numbers", authors=False,
    )  # fmt: skip


_ERRORS = {11: (30.98, 11.372), 13: (30.072, 10.754), 16: (28.408, 9.618), 19: (27.624, 9.124)}
_VGG16 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"

_ALL = (
    _caffe(16, "D", "9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24", 553432081),
    _caffe(19, "E", "239785e7862442717d831f682bb824055e51e9ba", 574671192),
    _matconvnet(16, "D", "f72d927587ca4c97fbd165ec9cb9997f"),
    _matconvnet(19, "E", "106118b7cf60435e6d8e04f6a6dc3657"),
    _matconvnet(19, "E", "8ee3263992981a1d26e73b3ca028a123", "beta16"),
    _keras(16, "D", "64373286793e3c8b2b4e3219cbf3544b", (28.732, 9.950)),
    _keras(19, "E", "cbe5617147190e668d6c5d5026f83318", (28.744, 10.012)),
    _jcjohnson(16, "D", "00b39a1b"),
    _jcjohnson(19, "E", "d01eb7cb"),
    _torchvision("vgg11", "A", "8a719046", _ERRORS[11]),
    _torchvision("vgg13", "B", "19584684", _ERRORS[13]),
    _torchvision("vgg16", "D", _VGG16, _ERRORS[16], 553433881),
    _torchvision("vgg19", "E", "dcbb9e9d", _ERRORS[19]),
    _torchvision("vgg11_bn", "A-BN", "6002323d", (29.63, 10.19)),
    _torchvision("vgg13_bn", "B-BN", "abd245e5", (28.414, 9.626)),
    _torchvision("vgg16_bn", "D-BN", "6c64b313", (26.64, 8.484)),
    _torchvision("vgg19_bn", "E-BN", "c79401a0", (25.782, 8.158)),
    _timm(11, "A", "682c023808812148d4e60c76d80ad83dbeaf5d50eb1a952a0b836895003151e5", _ERRORS[11]),
    _timm(16, "D", "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8", _ERRORS[16]),
)

PUBLISHED: Mapping[str, Published] = {published.name: published for published in _ALL}
"""All of them by name: first the authors' own numbers, in whatever format, then nets that others trained."""


def identify(digests: Mapping[str, str]) -> Published | None:
    """Say which published file has these checksums, if any.

    Parameters
    ----------
    digests : {"sha256": ..., "sha1": ..., "md5": ...}
        Hex digits of the complete file, of all kinds or of some.
    """
    for published in _ALL:
        kind, value = published.checksum
        if digests.get(kind, "").startswith(value):
            return published
    return None
