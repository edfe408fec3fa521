"""One training run in several processes: who takes which rows of a batch, and how the processes agree.

PyTorch's DistributedDataParallel averages the gradients; this is the little that it leaves to the caller. torchrun
starts the processes and tells each its place by RANK, LOCAL_RANK and WORLD_SIZE.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vggfeat.devices import checked_device
from vggfeat.errors import TrainingError, VggfeatError
from vggfeat.training.draws import share

T = TypeVar("T")
LONGEST_WAIT = timedelta(hours=1)
"""For the first process, while it counts the mean pixel of a large training set, say."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. With a single process every method is trivial."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    """Group of the same processes for what is on the CPU, so that agreeing never waits for a GPU."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """Return which rows of a batch are this process's."""
        return share(batch, self.rank, self.size)

    def any(self, flag: bool) -> bool:
        """Say whether the flag is set in one of the processes; the answer is the same in all."""
        if self.size == 1:
            return flag
        found = torch.tensor([int(flag)])
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return bool(found.item())

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def least(self, value: int) -> int:
        """Return the smallest of the processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor([value])
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.control)
        return int(found.item())

    def copy_from_first(self, tensor: Tensor) -> None:
        """Set a tensor to what it is in the first process."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)

    def once(self, action: Callable[[], T]) -> T:
        """Do something in the first process only; all return its result, or raise its error.

        The result goes through pickle between our own processes, so it must be plain data.
        """
        if self.size == 1:
            return action()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = action()
            except VggfeatError as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0, group=self.control)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found


@contextmanager
def open_world(device: str, environ: Mapping[str, str]) -> Iterator[World]:
    """Join the processes that torchrun has started, and leave them at the end; without torchrun, be alone.

    Parameters
    ----------
    device : str
        cpu, cuda, cuda:1, ...; cuda becomes the GPU of LOCAL_RANK.
    environ : mapping
        `os.environ`.

    Raises
    ------
    ConfigError
        If the device is not there.
    TrainingError
        If another process has gone.
    """
    size, local = int(environ.get("WORLD_SIZE", 1)), int(environ.get("LOCAL_RANK", 0))
    if size == 1:
        yield World(device=checked_device(device))
        return
    place = checked_device(f"cuda:{local}" if device == "cuda" else device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    ended = False
    try:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        control = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        yield World(rank=dist.get_rank(), size=size, device=place, control=control)
        ended = True
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise TrainingError(
            f"process {environ.get('RANK')} of {size}: expected all processes of the run, lost touch with one; "
            "its own message says why; start all again with --resume"
        ) from error
    finally:
        # NCCL would wait for what the lost process can't do any more; the process ends anyway.
        if dist.is_initialized() and (ended or place.type == "cpu"):
            dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in text for sign in ("gloo", "nccl", "connection"))
