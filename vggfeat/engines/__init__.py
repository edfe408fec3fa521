"""Who computes which shards of a plan: this process alone, one of many that know their number, or another engine.

Another engine gets its line in `ENGINES` here.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vggfeat.engines.engine import Engine


class EngineEntry(NamedTuple):
    """One line of the table of engines."""

    words: str
    """For the help of the command."""
    make: "Callable[..., Engine]"
    """Makes the engine of its options; what it needs is imported then."""
    options: Sequence[str] = ()
    """What it takes, as fields of the command's options are called."""
    torchrun: bool = False
    """Whether it may run in processes that torchrun has started, each of which takes its share."""


def _local_engine() -> "Engine":
    from vggfeat.engines.engine import LocalEngine

    return LocalEngine()


def _ray_engine(address: str | None, nets: tuple[int, int | None] | None, cores: int | None) -> "Engine":
    from vggfeat.engines.ray_engine import RayEngine

    least, most = nets or (1, None)
    return RayEngine(address=address, least=least, most=most, cores=cores)


ENGINES = {
    "local": EngineEntry("this process", _local_engine, torchrun=True),
    "ray": EngineEntry("actors of a cluster of Ray (the extra ray)", _ray_engine, options=("address", "nets", "cores")),
}
"""Name -> engine. The first is the default; `vggfeat extract --engine` offers all."""
