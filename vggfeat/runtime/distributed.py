"""Several processes that do one job: who takes what, and how they agree.

torchrun starts the processes, on one machine or several, and tells each its place by RANK, LOCAL_RANK and WORLD_SIZE.
What they send each other is numbers and JSON, never a pickle: a stranger who joins as one of them can send wrong
values, but no code.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.errors import ConfigError, VggfeatError
from vggfeat.runtime.devices import checked_device
from vggfeat.runtime.rendezvous import LONGEST_START, Point, Watch, join, point_of, talking_on_loopback, wait_for
from vggfeat.runtime.system import processes_of_all, torchrun_number

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=100)
"""For the slowest process. One that has gone is noticed at once, so that this is no more than "for ever"."""
LONGEST_TALK = timedelta(minutes=2)
"""For an exchange when all are there; one that dies in its first moments may be missed for so long."""
RESUMES = "what is finished is kept: start all again (training: with --resume)"
MOST_MESSAGE = 1 << 28
"""Bytes that a process takes from another one."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. With a single process every method is trivial."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    """Group of the same processes for what is on the CPU, so that agreeing never waits for a GPU."""
    watch: Watch | None = None
    """Says for whom the others wait."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes what there is one of."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """Return which rows of a batch are this process's."""
        return share(batch, self.rank, self.size)

    def any(self, flag: bool) -> bool:
        """Say whether the flag is set in one of the processes; the answer is the same in all."""
        if self.size == 1:
            return flag
        return bool(self._agree_on(int(flag), dist.ReduceOp.MAX))

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            with self.together():
                dist.all_reduce(values)
        return values

    def all_reduce_min(self, value: int) -> int:
        """Return the smallest of the processes' values."""
        if self.size == 1:
            return value
        return self._agree_on(value, dist.ReduceOp.MIN)

    def broadcast(self, tensor: Tensor) -> None:
        """Set a tensor to what it is in the first process."""
        if self.size > 1:
            with self.together():
                dist.broadcast(tensor, src=0)

    def broadcast_array(self, values: NDArray[Any], source: int = 0) -> None:
        """Set a contiguous array to what it is in one of the processes; shape and dtype are the same in all."""
        if self.size > 1 and values.size:
            with self.together():
                dist.broadcast(_bytes_of(values), src=source, group=self.control)

    def send_to_main(self, values: NDArray[Any], source: int) -> None:
        """Set a contiguous array of the first process to what it is in another, which calls this as well."""
        if source == 0 or not values.size:
            return
        with self.together():
            if self.is_main:
                dist.recv(_bytes_of(values), source, group=self.control)
            elif self.rank == source:
                dist.send(_bytes_of(values), 0, group=self.control)

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something in the first process only; all return its result, or raise its error.

        The result must be ready for JSON. The others get what JSON makes of it: lists for tuples, strings for keys.
        """
        if self.size == 1:
            return action()
        value: Any = None
        failed: VggfeatError | None = None
        if self.is_main:
            try:
                value = action()
            except VggfeatError as error:
                failed = error
        self.barrier()
        answer, error_of_main = self._send([value, failed and [type(failed).__name__, str(failed)]], 0)
        if error_of_main is not None:
            raise failed or _error_of(*error_of_main)
        return value if self.is_main else answer

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, as JSON makes them: lists for tuples, strings for keys."""
        if self.size == 1:
            return [value]
        self.barrier()
        return [self._send(value, rank) for rank in range(self.size)]

    def together(self) -> AbstractContextManager[None]:
        """Within this, all processes come to the same place; who does not is named after a while."""
        return self.watch.waiting() if self.watch else nullcontext()

    def barrier(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until all processes are here, however long that takes; `meanwhile` is called again and again.

        A signal ends the wait, as it would end any other work.
        """
        if self.size == 1:
            return
        settings = dist.AllreduceOptions()
        settings.timeout, settings.asyncOp = LONGEST_WAIT, True
        with self.together():
            work = self.control.allreduce([torch.zeros(1)], settings)
            wait_for(work.is_completed, LONGEST_WAIT, meanwhile)
            work.wait()

    def _agree_on(self, value: int, reduce: "dist.ReduceOp.RedOpType") -> int:
        found = torch.tensor([value])
        with self.together():
            dist.all_reduce(found, reduce, group=self.control)
        return int(found.item())

    def _send(self, value: Any, source: int) -> Any:
        """Return a value of one process in all of them."""
        raw = bytearray(json.dumps(value).encode() if self.rank == source else b"")
        length = torch.tensor([len(raw)])
        with self.together():
            dist.broadcast(length, src=source, group=self.control)
            if not 0 < (count := int(length.item())) <= MOST_MESSAGE:
                raise MessageError(f"process {source}: expected a message of 1 to {MOST_MESSAGE} bytes, found {count}")
            data = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(count, dtype=torch.uint8)
            dist.broadcast(data, src=source, group=self.control)
        try:
            return json.loads(data.numpy().tobytes())
        except (ValueError, RecursionError) as error:
            raise MessageError(f"process {source}: expected a message in JSON, found {error}") from None


def _bytes_of(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.view(np.uint8).reshape(-1))


class MessageError(RuntimeError):
    """A process has sent what none of a run sends."""


def _error_of(kind: str, message: str) -> VggfeatError:
    classes = [VggfeatError]
    for one in classes:
        classes += one.__subclasses__()
    found = next((one for one in classes if one.__name__ == kind), VggfeatError)
    error = found.__new__(found)
    VggfeatError.__init__(error, message)
    return error


def share(count: int, rank: int, world: int) -> slice:
    """Return the part of `count` things that is one process's; those of all, in the order of ranks, are the whole."""
    return slice(count * rank // world, count * (rank + 1) // world)


@contextmanager
def open_world(
    device: str, environ: Mapping[str, str], *, lost: type[VggfeatError], sums: bool = False, advice: str = RESUMES
) -> Iterator[World]:
    """Join the processes that torchrun has started, and leave them at the end; without torchrun, be alone.

    Parameters
    ----------
    device : str
        cpu, cuda, cuda:1, ...; cuda becomes the GPU of LOCAL_RANK.
    environ : mapping
        `os.environ`: WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun sets them.
    lost : class of error
        What is raised if another process has gone.
    sums : bool
        Whether `sum` and `broadcast` will be asked for, which on GPUs takes NCCL.
    advice : str
        What to do if another process has gone.

    Raises
    ------
    ConfigError
        If the device is not there, or a variable of `environ` is missing or wrong.
    VggfeatError
        Of class `lost`, if another process has gone.
    """
    size = processes_of_all(environ)
    if sums and device.startswith("mps"):
        raise ConfigError("device: to train, expected cpu or cuda, found mps, which can't sum the losses in float64")
    if size == 1:
        yield World(device=checked_device(device))
        return
    point = point_of(environ, size)
    local = torchrun_number(environ, "LOCAL_RANK", 0, size - 1, "0")
    place = checked_device(f"cuda:{local}" if device == "cuda" else device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    nccl = sums and place.type == "cuda"
    with ExitStack() as stack:
        if point.one_machine:
            stack.enter_context(talking_on_loopback())
        try:
            watch, control = join(point, "nccl" if nccl else "gloo", LONGEST_START if sums else LONGEST_TALK, stack)
            yield World(rank=point.rank, size=size, device=place, control=control, watch=watch)
        # After an interrupt, groups stay as they are: to end one waits for all that was asked of it.
        except Exception as error:
            if dist.is_initialized() and not nccl:  # NCCL would wait for what the lost process can't do any more.
                dist.destroy_process_group()
            if not (isinstance(error, RuntimeError) and _lost(error)):
                raise
            raise _error_of_lost(error, point, lost, advice) from error
        else:
            dist.destroy_process_group()


def _error_of_lost(error: RuntimeError, point: Point, lost: type[VggfeatError], advice: str) -> VggfeatError:
    found = str(error) if isinstance(error, MessageError) else "lost touch with one; its own message says why"
    farewell = lost(f"process {point.rank} of {point.size}: expected all processes of the run, {found}; {advice}")
    for note in getattr(error, "__notes__", ()):
        farewell.add_note(note)
    return farewell


def _lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, (dist.DistError, MessageError)) or any(
        sign in text for sign in ("gloo", "nccl", "connection")
    )
