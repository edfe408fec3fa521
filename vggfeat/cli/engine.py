"""Which engine computes the shards of a plan; another one gets its name, its options and its line here."""

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.options import Parsed, option
from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from vggfeat.engines.engine import Engine


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
        "--engine", type=click.Choice(["local", "ray"]), default="local",
        help="With --plan: this process, or actors of a cluster of Ray (pip install 'vggfeat[ray]').",
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
        """Return the engine; ConfigError for options that it has not, and under torchrun, which is one itself."""
        if self.engine == "local":
            from vggfeat.engines.local import LocalEngine

            given = [one.metadata["names"][0] for one in fields(EngineOptions) if self._given(one)]
            if given:
                raise ConfigError(f"{given[0]}: expected --engine ray with it, found the engine local; leave one out")
            return LocalEngine()
        from vggfeat.engines.ray_engine import RayEngine

        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError("--engine ray: expected it or torchrun, found both; give the command to one process")
        least, most = self.nets or (1, None)
        return RayEngine(address=self.address, least=least, most=most, cores=self.cores)

    def _given(self, one: Any) -> bool:
        return getattr(self, one.name) != one.default
