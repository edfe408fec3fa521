"""Which engine computes the shards of a plan; another one gets its options and its line in `ENGINES` here."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import click

from vggfeat.cli.options import Parsed, option
from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from vggfeat.engines.engine import Engine


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
    from vggfeat.engines.local import LocalEngine

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
