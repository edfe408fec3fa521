"""What `extract` and `plan` have in common: which images, which net, and how features are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.options import ForwardOptions, Numbers, Words, load_net, option
from vggfeat.cli.output import say_note

if TYPE_CHECKING:
    from vggfeat.forward.features import ExtractionSettings
    from vggfeat.runtime.storage import StorageSettings
    from vggfeat.weights import Backbone

PHOTOGRAPHS = (
    "small has seen rendered images only, so that features of photographs say little, those of --layer fc6 the most; "
    "a net that has seen photographs: vggfeat weights fetch vgg16-caffe"
)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(ForwardOptions):
    """What decides a feature, apart from the net and the image."""

    scales: tuple[int, ...] | None = option(
        "--scales", type=Numbers(int), help="Q, smallest image sides in pixels. [the paper's for the data set]"
    )
    regions: tuple[str, ...] | None = option(
        "--regions", type=Words(), help="image, box, or image,box. [the paper's for the data set]"
    )
    layer: str = option("--layer", default="fc7", help="A map of the net: of a VGG relu1_1 to pool5, fc6 to fc8.")
    batching: str = option(
        "--batching", type=click.Choice(["size", "padded"]), default="size",
        help="Which images run together: of equal size, or of similar size, padded with zeros.",
    )  # fmt: skip
    compiled: bool = option(
        "--compile", is_flag=True,
        help="Compile the net first, for a minute or two; `vggfeat bench extract` shows if it pays.",
    )  # fmt: skip

    def settings(self, name: str, device: str) -> "ExtractionSettings":
        """Return them for a data set, with what the paper took for it where nothing was given."""
        from vggfeat.datasets.catalogue import DATASETS
        from vggfeat.forward.features import ExtractionSettings

        record = DATASETS.get(name, DATASETS["folder"])
        return ExtractionSettings(
            scales=self.scales or record.scales,
            regions=self.regions or record.regions,  # type: ignore[arg-type]
            layer=self.layer,
            batching=self.batching,  # type: ignore[arg-type]
            compiled=self.compiled,
            **self.given(device),
        )


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """How what is not on this machine is read."""

    attempts: int = option(
        "--attempts", type=click.IntRange(1), default=5, help="Of each request to a store or server, if it fails."
    )
    allow_private: bool = option(
        "--allow-private", is_flag=True,
        help="Read http(s) addresses of this machine and of the own network; lists of others may lead there.",
    )  # fmt: skip

    def settings(self) -> "StorageSettings":
        """Return them as the stores take them."""
        from vggfeat.runtime.storage import StorageSettings

        return StorageSettings(attempts=self.attempts, allow_private=self.allow_private)


def load_noted_net(weights: str | None, *, rendered: bool) -> "Backbone":
    """Load a net, and note what its user should know of it."""
    from vggfeat.weights.load import BUNDLED

    backbone = load_net(weights)
    if backbone.source == BUNDLED and not rendered:
        say_note(PHOTOGRAPHS)
    if not backbone.trained:
        say_note(f"{backbone.source} is an untrained net: good for trials, not for results")
    return backbone


def named_after(file: Path, suffix: str) -> Path:
    """Return what an output is called by default: next to its input, or here if that is at an address."""
    from vggfeat.runtime.storage import is_remote

    return (Path(file.name) if is_remote(file) else file).with_suffix(suffix)


def note_all(notes: Sequence[str]) -> None:
    """Note what a user should know of a copy of the data."""
    for note in notes:
        say_note(note)


def stem(name: str, root: Path | None) -> str:
    """Return what outputs are called: a user's own images are better known by their folder than by "folder"."""
    if name in ("folder", "manifest") and root is not None:
        place = root.resolve()
        return (place.stem if place.is_file() else place.name) or name
    return name
