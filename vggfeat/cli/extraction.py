"""What `extract` and `plan` have in common: which images and net, how features are made of them, and who computes.

Another engine gets its options, and its line in `ENGINES`, here.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from vggfeat.cli.options import ForwardOptions, Numbers, Parsed, Words, load_net, option
from vggfeat.cli.output import say_note
from vggfeat.errors import ConfigError
from vggfeat.runtime.storage import StorageSettings, is_remote
from vggfeat.weights.load import BUNDLED

if TYPE_CHECKING:
    from vggfeat.engines.engine import Engine
    from vggfeat.forward.features import ExtractionSettings
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

    def settings(self) -> StorageSettings:
        """Return them as the stores take them."""
        return StorageSettings(attempts=self.attempts, allow_private=self.allow_private)


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


class EngineEntry(NamedTuple):
    """One line of the table of engines."""

    words: str
    """For the help of the command."""
    make: "Callable[[EngineOptions], Engine]"
    """Makes the engine; what it needs is imported then."""
    options: Sequence[str] = ()
    """Fields of `EngineOptions` that belong to it."""
    torchrun: bool = False
    """Whether it may run in processes that torchrun has started, each of which takes its share."""


def _local(options: "EngineOptions") -> "Engine":
    from vggfeat.engines.engine import LocalEngine

    return LocalEngine()


def _ray(options: "EngineOptions") -> "Engine":
    from vggfeat.engines.ray_engine import RayEngine

    least, most = options.nets or (1, None)
    return RayEngine(address=options.address, least=least, most=most, cores=options.cores)


ENGINES = {
    "local": EngineEntry("this process", _local, torchrun=True),
    "ray": EngineEntry(
        "actors of a cluster of Ray (pip install 'vggfeat[ray]')", _ray, options=("address", "nets", "cores")
    ),
}
"""Name -> engine. The first is the default; `vggfeat extract --engine` offers all."""


def _nets(text: str) -> tuple[int, int | None]:
    least, colon, most = text.partition(":")
    found = int(least), int(most) if most else None if colon else int(least)
    if not 1 <= found[0] <= (found[0] if found[1] is None else found[1]):
        raise ValueError
    return found


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Who computes shards: this process, or a cluster."""

    engine: str = option(
        "--engine", type=click.Choice(list(ENGINES)), default="local",
        help=f"With --plan, who computes: {'; '.join(f'{name}, {entry.words}' for name, entry in ENGINES.items())}.",
    )  # fmt: skip
    address: str | None = option(
        "--address", metavar="HOST:PORT|auto",
        help="With --engine ray: the head of the cluster, of which this machine is a node. [$RAY_ADDRESS, else this "
        "machine alone]",
    )  # fmt: skip
    nets: tuple[int, int | None] | None = option(
        "--nets", "--gpus", type=Parsed("LEAST[:MOST]", "one or two numbers from 1 on, such as 8:64, or 8:", _nets),
        help="With --engine ray: nets to begin with, and at most; each has a GPU, or CPU cores where there is none. "
        "[1:, as many as there is room for]",
    )  # fmt: skip
    cores: int | None = option(
        "--cores", type=click.IntRange(1),
        help="With --engine ray: CPU cores of a net. [its share of the smallest node]",
    )  # fmt: skip

    def chosen_engine(self) -> "Engine":
        """Return the engine; ConfigError for options that it has not, and under torchrun, where it is one itself."""
        entry = ENGINES[self.engine]
        self._check_options()
        if not entry.torchrun and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError(
                f"--engine {self.engine}: expected it or torchrun, found both; give the command to one process"
            )
        return entry.make(self)

    def _check_options(self) -> None:
        for one in fields(EngineOptions):
            owners = [name for name, other in ENGINES.items() if one.name in other.options]
            if owners and self.engine not in owners and getattr(self, one.name) != one.default:
                raise ConfigError(
                    f"{one.metadata['names'][0]}: expected --engine {' or '.join(owners)} with it, found the engine "
                    f"{self.engine}; leave one out"
                )
