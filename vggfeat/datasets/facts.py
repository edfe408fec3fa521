"""What is known of each data set before a copy is at hand: official numbers, archives, defaults.

The counts are those of the development kits (VOC2007 and VOC2012, Sect. 2) and of the Caltech pages; `data/`
has a page per set that says where each comes from. The defaults are those of the VGG paper, App. B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vggfeat.datasets import caltech, voc
from vggfeat.samples import Task


class Archive(NamedTuple):
    """A file to download and unpack."""

    file: str
    algorithm: str
    checksum: str
    page: str
    """Where it is published."""


class Count(NamedTuple):
    """One number to compare."""

    split: str
    """A split, "trainval" for the union of train and val, or "all"."""
    what: str
    """"images", "people", "classes", or a class name: the number of its positives."""
    found: int | None
    """None before a copy was looked at, and for classes whose labels are not published."""
    expected: int | None
    """None where no official number is known."""
    verified: bool = True
    """False for numbers that were not checked against the data: they never make a copy incomplete."""

    @property
    def agrees(self) -> bool:
        """Whether nothing speaks against this number."""
        return self.expected is None or not self.verified or self.found == self.expected


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """What is known of a data set before a copy is at hand."""

    name: str
    """What the command line calls it."""
    title: str
    """What people call it."""
    task: Task | None
    """None where the copy decides."""
    unit: str
    """What a row is: images or people."""
    scales: tuple[int, ...]
    """Default smallest sides Q, in pixels."""
    regions: tuple[str, ...]
    """Default regions: the whole image, the box, or both."""
    join: str
    """Default way to join scales."""
    protocol: str
    """Name of the protocol that its figures are made by; auto where the copy decides."""
    counts: tuple[Count, ...] = ()
    """Official numbers; `found` is None."""
    archives: tuple[Archive, ...] = ()
    """Files to download; empty for your own images."""


_VOC2007 = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/"
_VOC2012 = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
_VOC2012_ARCHIVES = (
    Archive("VOCtrainval_11-May-2012.tar", "md5", "6cd6e144f989b92b3379bac3b3de84fd", _VOC2012),
    Archive("VOC2012test.tar", "md5", "9065beb292b6c291fad82b2725749fda", _VOC2012),
)
_VOC_SCALES = (256, 384, 512, 640, 768)
_SCALES = (256, 384, 512)


def _per_class(split: str, classes: tuple[str, ...], numbers: str) -> tuple[Count, ...]:
    pairs = zip(classes, numbers.split(), strict=True)
    return tuple(Count(split, cls, None, int(number)) for cls, number in pairs)


def _caltech_counts(images: int, classes: int, rule: caltech.SplitRule) -> tuple[Count, ...]:
    total = (Count("all", "images", None, images), Count("all", "classes", None, classes))
    sizes = {"train": rule.train * classes, "held-out": rule.held_out * classes}
    if rule.test is None:
        sizes["test"] = images - sizes["train"]
    splits = tuple(Count(f"{part}-{k}", "images", None, n) for k in (1, 2, 3) for part, n in sizes.items())
    return total + splits


_ALL_FACTS = (
    Facts(
        name="voc2007",
        title="PASCAL VOC 2007 classification",
        task=Task.MULTI_LABEL,
        unit="images",
        scales=_VOC_SCALES,
        regions=("image",),
        join="mean",
        protocol="voc",
        counts=(
            Count("train", "images", None, 2501),
            Count("val", "images", None, 2510),
            Count("trainval", "images", None, 5011),
            Count("test", "images", None, 4952),
            *_per_class(
                "trainval",
                voc.CLASSES,
                "238 243 330 181 244 186 713 337 445 141 200 421 287 245 2008 245 96 229 261 256",
            ),
            *_per_class(
                "test",
                voc.CLASSES,
                "204 239 282 172 212 174 721 322 417 127 190 418 274 222 2007 224 97 223 259 229",
            ),
        ),
        archives=(
            Archive("VOCtrainval_06-Nov-2007.tar", "md5", "c52e279531787c972589f7e41ab4ae64", _VOC2007),
            Archive("VOCtest_06-Nov-2007.tar", "md5", "b6e924de25625d8de591ea690078ad9f", _VOC2007),
        ),
    ),
    Facts(
        name="voc2012",
        title="PASCAL VOC 2012 classification",
        task=Task.MULTI_LABEL,
        unit="images",
        scales=_VOC_SCALES,
        regions=("image",),
        join="mean",
        protocol="voc-server",
        counts=(
            Count("train", "images", None, 5717),
            Count("val", "images", None, 5823),
            Count("trainval", "images", None, 11540),
            Count("test", "images", None, 10991, verified=False),
            *_per_class(
                "trainval",
                voc.CLASSES,
                "670 552 765 508 706 421 1161 1080 1119 303 538 1286 482 526 4087 527 325 507 544 575",
            ),
        ),
        archives=_VOC2012_ARCHIVES,
    ),
    Facts(
        name="voc2012-action",
        title="PASCAL VOC 2012 action classification",
        task=Task.MULTI_LABEL,
        unit="people",
        scales=_VOC_SCALES,
        regions=("image", "box"),
        join="mean",
        protocol="voc-server",
        counts=(
            Count("train", "images", None, 2296),
            Count("train", "people", None, 3134),
            Count("val", "images", None, 2292),
            Count("val", "people", None, 3144),
            Count("trainval", "images", None, 4588),
            Count("trainval", "people", None, 6278),
            Count("test", "images", None, 4569, verified=False),
            Count("test", "people", None, 6283, verified=False),
            *_per_class("trainval", voc.ACTIONS, "495 457 619 530 578 534 561 456 476 597"),
        ),
        archives=_VOC2012_ARCHIVES,
    ),
    Facts(
        name="caltech101",
        title="Caltech-101",
        task=Task.SINGLE_LABEL,
        unit="images",
        scales=_SCALES,
        regions=("image",),
        join="stack",
        protocol="caltech",
        counts=(
            *_caltech_counts(9144, 102, caltech.OFFICIAL[101]),
            Count("all", "BACKGROUND_Google", None, 467),
            Count("all", "airplanes", None, 800),
            Count("all", "inline_skate", None, 31),
        ),
        archives=(
            Archive(
                "caltech-101.zip",
                "md5",
                "3138e1922a9193bfa496528edbbc45d0",
                "https://data.caltech.edu/records/mzrjq-6wc02",
            ),
        ),
    ),
    Facts(
        name="caltech256",
        title="Caltech-256",
        task=Task.SINGLE_LABEL,
        unit="images",
        scales=_SCALES,
        regions=("image",),
        join="stack",
        protocol="caltech",
        counts=(
            *_caltech_counts(30607, 257, caltech.OFFICIAL[256]),
            Count("all", "257.clutter", None, 827, verified=False),
        ),
        archives=(
            Archive(
                "256_ObjectCategories.tar",
                "md5",
                "67b4f42ca05d46448c6bb8ecd2220f6d",
                "https://data.caltech.edu/records/nyy15-4j048",
            ),
        ),
    ),
    Facts(
        name="folder",
        title="Your own images, a folder per class",
        task=None,
        unit="images",
        scales=_SCALES,
        regions=("image",),
        join="mean",
        protocol="auto",
    ),
    Facts(
        name="manifest",
        title="Your own images, listed in a CSV file",
        task=None,
        unit="images",
        scales=_SCALES,
        regions=("image",),
        join="mean",
        protocol="auto",
    ),
)

FACTS: Mapping[str, Facts] = {facts.name: facts for facts in _ALL_FACTS}
"""By name, in the order in which they are shown."""
