"""Groups of options that several commands take, each of which arrives as one object; and the nets that they name."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import click

from vggfeat.cli.commands import COUNT, INTEGERS, WORDS, flag, option
from vggfeat.cli.output import say_note
from vggfeat.errors import VggfeatError
from vggfeat.runtime.devices import Precision, default_batch_pixels, default_workers
from vggfeat.runtime.storage import StorageSettings, is_remote
from vggfeat.weights import load_backbone
from vggfeat.weights.load import BUNDLED
from vggfeat.weights.sources import find_file

if TYPE_CHECKING:
    from vggfeat.extract import RunSettings
    from vggfeat.forward.features import ExtractionSettings
    from vggfeat.images.decode import DecodeSettings
    from vggfeat.nets.backbone import Backbone


NET = "FILE|NAME|small|random:NET:SEED:WIDTH"
"""What the help calls the value of --weights."""


@dataclass(frozen=True, kw_only=True)
class ForwardOptions:
    """How a net runs over images."""

    title: ClassVar[str] = "The net"
    precision: Precision = option(type=get_args(Precision), default="fp32",
        help="Precision of the convolutions; winograd is float32 with fewer multiplications, on the CPU. For all but "
        "fp32, some images are also computed in fp32 and compared.")  # fmt: skip
    interpolation: str = option(type=["bilinear", "bicubic"], default="bilinear", help="How images are rescaled.")
    batch_pixels: int | None = option(
        type=COUNT, help="Pixels in one batch, which bounds the memory. [2^20 on the CPU, 2^22 to 2^24 on a GPU]"
    )

    def given(self, device: str) -> dict[str, Any]:
        """Return the fields of `vggfeat.forward.settings.ForwardSettings` that they decide."""
        return {**vars(self), "batch_pixels": self.batch_pixels or default_batch_pixels(device)}


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Who decodes image files."""

    workers: int | None = option(type=click.IntRange(0, 256),
        help="Processes that decode images. [one a core, at most 16]")  # fmt: skip

    def processes(self) -> int:
        """Return how many processes decode."""
        return default_workers() if self.workers is None else self.workers


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """Which images are taken."""

    title: ClassVar[str] = "Decoding"
    max_pixels: int | None = option(type=COUNT, help="Images with more pixels are counted as failed. [89478485]")
    allow_truncated: bool = flag(help="Accept truncated images, the missing part of which is grey.")

    def settings(self) -> "DecodeSettings":
        """Return the limits for an image."""
        from vggfeat.images.decode import DecodeSettings

        limits = {"max_pixels": self.max_pixels} if self.max_pixels else {}
        return DecodeSettings(allow_truncated=self.allow_truncated, **limits)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(LimitOptions, WorkerOptions):
    """How image files are decoded."""

    time_limit: float = option(
        type=click.FloatRange(0.1), default=30.0, help="Time limit for decoding one image, in seconds."
    )

    def settings(self) -> "DecodeSettings":
        """Return the limits for an image."""
        return replace(super().settings(), timeout=self.time_limit)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is cut up, resumed and repeated."""

    title: ClassVar[str] = "Resuming and failures"
    shard_rows: int | None = option(type=click.IntRange(1, 65536),
        help="Images between two restart points. [32, on a GPU 256]")  # fmt: skip
    allow_failed: int = option(
        type=click.IntRange(0), default=0, help="Number of failed images up to which the exit code is 0."
    )
    retry_failed: bool = flag(help="Compute again the images that failed, or have changed since.")
    overwrite: bool = flag(help="Replace an output that is damaged or was made with other settings.")

    def settings(self, device: str, workers: int) -> "RunSettings":
        """Return them as `vggfeat.extract_features` takes them."""
        from vggfeat.extract import RunSettings

        given = {name: value for name, value in vars(self).items() if name != "allow_failed"}
        return RunSettings(device=device, workers=workers, **given)


def load_net(spec: str | None) -> "Backbone":
    """Load a net by `vggfeat.load_backbone`, and note what its user should know of it."""
    backbone = load_backbone(spec)
    print_notes(backbone)
    return backbone


def print_notes(backbone: "Backbone") -> None:
    """Write to standard error what was assumed of a net's file, and what was passed over in it."""
    from vggfeat.weights.importing import notes

    note_all(notes(backbone))


def net_files(*specs: str | None) -> list[Path]:
    """Return the files of nets that are given by file or name; of others there are none."""
    found = []
    for spec in specs:
        with contextlib.suppress(VggfeatError):  # Whoever loads it says what is wrong.
            found.append(find_file(spec, download=False))
    return found


PHOTOGRAPHS = (
    "small has seen rendered images only, so that features of photographs say little, those of --layer fc6 the most; "
    "a net that has seen photographs: vggfeat weights fetch vgg16-caffe"
)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(ForwardOptions):
    """What decides a feature, apart from the net and the image."""

    title: ClassVar[str] = "Features"
    scales: tuple[int, ...] | None = option(type=INTEGERS,
        help="Q, smallest image sides in pixels. [the paper's for the data set]")  # fmt: skip
    regions: tuple[str, ...] | None = option(type=WORDS,
        help="Regions to extract: image, box, or image,box. [the paper's for the data set]")  # fmt: skip
    layer: str = option(default="fc7", help="Layer of the net: relu1_1 to pool5, fc6, fc7 or fc8 of a VGG net.")
    batching: str = option(type=["size", "padded"], default="size",
        help="Images that share a batch: those of equal size, or those of similar size, padded "
        "with zeros.")  # fmt: skip
    compiled: bool = flag("--compile",
        help="Compile the net first, which takes a minute or two; `vggfeat bench extract` shows whether "
        "it pays.")  # fmt: skip

    def settings(self, name: str, device: str) -> "ExtractionSettings":
        """Return them for a data set, with what the paper took for it where nothing was given."""
        from vggfeat.forward.features import ExtractionSettings

        return ExtractionSettings.for_dataset(name, device, **vars(self))


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """How what is not on this machine is read."""

    title: ClassVar[str] = "Stores and servers"
    attempts: int = option(type=COUNT, default=5, help="Attempts at each request to a store or server.")
    allow_private: bool = flag(
        help="Allow http(s) addresses of this machine and of the local network; lists from others may "
        "point there.")  # fmt: skip

    def settings(self) -> StorageSettings:
        """Return them as the stores take them."""
        return StorageSettings(**vars(self))


def load_noted_net(weights: str | None, *, rendered: bool) -> "Backbone":
    """Load a net, and note what its user should know of it."""
    backbone = load_net(weights)
    if backbone.source == BUNDLED and not rendered:
        say_note(PHOTOGRAPHS)
    if not backbone.trained:
        say_note(f"{backbone.source} is an untrained net: good for trials, not for results")
    return backbone


def named_after(file: Path, suffix: str) -> Path:
    """Return what an output is called by default: next to its input, or here if that is at an address."""
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
