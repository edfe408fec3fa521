"""How large a rendered set is."""

from collections.abc import Mapping
from dataclasses import dataclass

from vggfeat.errors import ConfigError

NAMES = ("voc2007", "voc2012", "voc2012-action", "caltech101", "caltech256", "ilsvrc", "folder")
"""The layouts that can be rendered."""

_SMALLEST_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Counts of one rendered set; fields that its layout does not have are not read.

    Raises
    ------
    ConfigError
        If a count is negative or `image_side` is below 32.
    """

    image_side: int
    """Longer side of the images, in pixels."""
    train: int = 0
    """Images of the training list (VOC), or of each class (ILSVRC)."""
    val: int = 0
    """Images of the validation list."""
    test: int = 0
    """Images of the test list."""
    unlisted: int = 0
    """Images that lie in VOC-2012's folder but belong to no list."""
    classes: int = 0
    """Classes (Caltech with its background or clutter, ILSVRC, folder)."""
    per_class: int = 0
    """Images of a class, or a few more (Caltech, folder)."""

    def __post_init__(self) -> None:
        if self.image_side < _SMALLEST_SIDE:
            raise ConfigError(f"image_side: expected at least {_SMALLEST_SIDE}, found {self.image_side}")
        for name in ("train", "val", "test", "unlisted", "classes", "per_class"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected 0 or more, found {getattr(self, name)}")

    def needs(self, name: str, **least: int) -> None:
        """Check fields against the least that a layout can do with.

        Raises
        ------
        ConfigError
            If one is smaller; the message names it.
        """
        for field, value in least.items():
            if getattr(self, field) < value:
                raise ConfigError(f"{name}: expected {field} of at least {value}, found {getattr(self, field)}")


SIZES: Mapping[str, Mapping[str, Settings]] = {
    "tiny": {
        "voc2007": Settings(image_side=96, train=40, val=40, test=40),
        "voc2012": Settings(image_side=96, train=40, val=40, test=20, unlisted=6),
        "voc2012-action": Settings(image_side=120, train=40, val=40, test=20),
        "caltech101": Settings(image_side=72, classes=6, per_class=32),
        "caltech256": Settings(image_side=72, classes=5, per_class=64),
        "ilsvrc": Settings(image_side=96, classes=6, train=12, val=24, test=6),
        "folder": Settings(image_side=96, classes=4, per_class=12),
    },
    "demo": {
        "voc2007": Settings(image_side=500, train=140, val=140, test=260),
        "voc2012": Settings(image_side=500, train=140, val=140, test=60, unlisted=20),
        "voc2012-action": Settings(image_side=500, train=140, val=140, test=60),
        "caltech101": Settings(image_side=300, classes=8, per_class=45),
        "caltech256": Settings(image_side=300, classes=5, per_class=80),
        "ilsvrc": Settings(image_side=300, classes=20, train=40, val=200, test=40),
        "folder": Settings(image_side=300, classes=8, per_class=40),
    },
    "large": {
        "voc2007": Settings(image_side=500, train=1000, val=1000, test=2000),
        "voc2012": Settings(image_side=500, train=1000, val=1000, test=400, unlisted=100),
        "voc2012-action": Settings(image_side=500, train=800, val=800, test=200),
        "caltech101": Settings(image_side=300, classes=102, per_class=45),
        "caltech256": Settings(image_side=300, classes=257, per_class=80),
        "ilsvrc": Settings(image_side=300, classes=100, train=200, val=2000, test=200),
        "folder": Settings(image_side=300, classes=40, per_class=60),
    },
}
"""Named sizes: tiny is for tests, demo for a first look in well under a minute, large for training small nets."""
