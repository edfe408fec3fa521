"""Extraction by several processes, as torchrun starts them, each a fork away: `rank_runs.py FOLDER`.

Prints one JSON object of what was seen.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

if __name__ == "__main__":
    for _name in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{_name}_NUM_THREADS", "1")

import torch.distributed as dist

from crash_runs import Hooked
from tests.proofs.common import Ended, Job, Run, digest
from vggfeat.errors import StoreError
from vggfeat.runtime import distributed, rendezvous
from vggfeat.runtime.distributed import open_world
from vggfeat.training.trainer import Stopped
from vggfeat.weights import random_backbone, save_weights

SEVEN = 7
"""Images, one a shard: no multiple of 2 or 3."""


@contextmanager
def ranks(count: int) -> Iterator[Callable[[int], None]]:
    """Give what tells the next fork its rank, as torchrun does, and a meeting point until the last of them has gone."""
    life, alive = os.pipe()
    world = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "TORCHELASTIC_USE_AGENT_STORE": True}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting_point(life, alive)}
    try:
        yield lambda rank: os.environ.update({name: str(value) for name, value in (world | places(rank)).items()})
    finally:
        os.close(life)
        os.close(alive)
        for name in world | places(0):
            os.environ.pop(name, None)


def places(rank: int) -> dict[str, int]:
    return {"RANK": rank, "LOCAL_RANK": rank}


def meeting_point(life: int, alive: int) -> int:
    """Host the processes' store until all of them have gone, and so have closed `alive`; return its port."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.close(alive)
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            os.write(writing, f"{store.port}\n".encode())
            os.read(life, 1)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        return int(told.readline())


def start(job: Job, count: int, files: dict[int, Hooked] | None = None, more: dict[int, list[str]] | None = None):
    """Start the command in some processes, each with its disk and with what more it is told."""
    with ranks(count) as next_is:
        runs = []
        for rank in range(count):
            next_is(rank)
            words = [*job.words(), *(more or {}).get(rank, [])]
            runs.append(Run(words, job.folder, (files or {}).get(rank)))
        return runs


def wait(runs: list[Run]) -> list[Ended]:
    return [run.wait() for run in runs]


class Gate:
    """Holds a process before it gives a shard its name, until it is opened."""

    def __init__(self, folder: Path, shard: int) -> None:
        self.shard = f"s{shard:05d}.h5"
        self.reached, self.opened = folder / f"reached {shard}", folder / f"open {shard}"

    @property
    def files(self) -> Hooked:
        def hook(number, name, call, arguments):
            if name == "rename" and Path(arguments[1]).name == self.shard:
                self.reached.touch()
                wait_for(self.opened)
            return call(*arguments)

        return Hooked(hook)


def wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.002)


def dying(shard: int) -> Hooked:
    """Be killed before a shard gets its name."""

    def hook(number, name, call, arguments):
        if name == "rename" and Path(arguments[1]).name == f"s{shard:05d}.h5":
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

    return Hooked(hook)


def full() -> Hooked:
    """A disk that takes no shard."""

    def hook(number, name, call, arguments):
        if name == "write":
            raise OSError(28, "No space left on device")
        return call(*arguments)

    return Hooked(hook)


def seen(job: Job, ended: list[Ended]) -> dict:
    return {
        "codes": [one.code for one in ended],
        "out": [one.out for one in ended],
        "err": [one.err for one in ended],
        "shards": sorted(job.named()),
        "equal": job.out.exists() and digest(job.out) == job.wanted,
        "left": sorted(path.name for path in job.out.parent.iterdir()),
    }


def together(job: Job, count: int) -> dict:
    found = seen(job, wait(start(job, count)))
    job.clear()
    return found


def killed(job: Job) -> dict:
    """One of three is killed at its second shard; two go on."""
    found = {"first": seen(job, wait(start(job, 3, {1: dying(4)})))}
    return found | {"again": together(job, 2)}


def refused(job: Job) -> dict:
    """Another run while two processes are at it, and while only the second is left of them."""
    gate = Gate(job.folder, 3)
    runs = start(job, 2, {1: gate.files})
    wait_for(gate.reached)
    found = {"pids": [run.pid for run in runs], "alone": seen(job, [job.start().wait()])}
    found["two"] = seen(job, wait(start(job, 2)))
    os.kill(runs[0].pid, signal.SIGKILL)
    first = runs[0].wait()
    found["orphan"] = seen(job, [job.start().wait()])
    gate.opened.touch()
    found["ended"] = seen(job, [first, runs[1].wait()])
    return found | {"again": together(job, 3)}


def stopped(job: Job) -> dict:
    """SIGTERM while the first process waits for the second."""
    gate = Gate(job.folder, 5)
    runs = start(job, 2, {1: gate.files})
    wait_for(gate.reached)
    wait_for(job.parts / "s00006.h5")
    time.sleep(0.3)
    begun = time.monotonic()
    os.kill(runs[0].pid, signal.SIGTERM)
    first = runs[0].wait()
    seconds = time.monotonic() - begun
    gate.opened.touch()
    return {"seconds": seconds, **seen(job, [first, runs[1].wait()]), "again": together(job, 2)}


def others(job: Job) -> dict:
    """The second process has another command; or its disk is full."""
    found = {"other": seen(job, wait(start(job, 2, more={1: ["--layer", "fc6"]})))}
    found["full"] = seen(job, wait(start(job, 2, {1: full()})))
    job.clear()
    return found


def classify(job: Job) -> dict:
    data = job.folder / "data"
    data.mkdir()
    for name in ("train", "val"):
        (data / name).symlink_to(job.root)
    net = job.folder / "net.safetensors"
    random = random_backbone("random:A:0:0.03125")
    model = type(random.model)("A", 2, width=1 / 32)
    save_weights(net, model, mean=random.mean)
    words = ["classify", "--root", data, "--weights", net, "--scales", "224", "--device", "cpu", "--workers", "0"]
    words = [str(word) for word in (*words, "--shard-rows", "1", "--quiet", "--mode", "both", "--out")]
    one = Run([*words, str(job.folder / "one")], job.folder).wait()
    with ranks(2) as next_is:
        runs = []
        for rank in range(2):
            next_is(rank)
            runs.append(Run([*words, str(job.folder / "two")], job.folder))
    ended = wait(runs)
    files = [sorted((job.folder / name).glob("*.h5")) for name in ("one", "two")]
    return {
        "codes": [one.code, *(run.code for run in ended)],
        "err": [one.err, *(run.err for run in ended)],
        "out": [run.out for run in ended],
        "digests": [[digest(path) for path in paths] for paths in files],
    }


def worlds() -> list[int]:
    """Two worlds one after the other, which the first process leaves late; return the exit codes."""
    children = []
    with ranks(2) as next_is:
        for rank in range(2):
            next_is(rank)
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    for number in range(2):
                        with open_world("cpu", os.environ, lost=StoreError) as world:
                            assert world.gather(10 * number + rank) == [10 * number, 10 * number + 1]
                            time.sleep(0.2 * world.is_main)
                    os._exit(0)
                finally:
                    os._exit(1)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def messages(job: Job) -> list:
    """What two processes return of what they send each other, of an error, and of a message that is too long."""
    with ranks(2) as next_is:
        children = []
        for rank in range(2):
            next_is(rank)
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    (job.folder / f"told {rank}").write_text(json.dumps(exchange(rank)))
                    os._exit(0)
                finally:
                    os._exit(1)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0]
    return [json.loads((job.folder / f"told {rank}").read_text()) for rank in range(2)]


def exchange(rank: int) -> list:
    def fail() -> None:
        raise Stopped("enough")

    found: list = []
    try:
        with open_world("cpu", os.environ, lost=StoreError) as world:
            told = world.gather({"rank": rank, "x": [1.5, "\udc80"] if rank else None})
            found.append([told, json.loads(json.dumps(world.on_main(lambda: {1: (2, 3)})))])
            try:
                world.on_main(fail)
            except Stopped as error:
                found.append([type(error).__name__, str(error)])
            distributed.MOST_MESSAGE = 1000
            world.gather("x" * 2000)
    except StoreError as error:
        found.append(str(error).partition(": ")[2])
    return found


def by_hand(job: Job) -> dict:
    """Started without torchrun: all come; the first, or another, waits for those that don't, until a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def begin(rank: int, size: int) -> Run:
        os.environ.update(address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)})
        return job.start()

    try:
        found = {"together": seen(job, wait([begin(rank, 2) for rank in (1, 0)]))}
        job.clear()
        rendezvous.LONGEST_SILENCE = timedelta(seconds=0.5)
        for name, ranks_there in (("first", (0, 2)), ("other", (1,))):
            runs = [begin(rank, 4) for rank in ranks_there]
            found[name] = []
            while "waiting for" not in runs[0].said() and not runs[0].ended():
                time.sleep(0.01)
            time.sleep(1)  # A second note would come by now.
            for run, number in zip(runs, (signal.SIGINT, signal.SIGTERM), strict=False):
                os.kill(run.pid, number)
                ended = run.wait()
                found[name].append([ended.code, ended.err])
        return found
    finally:
        rendezvous.LONGEST_SILENCE = timedelta(seconds=10)
        for name in (*address, "RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)


def main(folder: Path) -> dict:
    job = Job(folder, SEVEN)
    found = {f"together {count}": together(job, count) for count in (2, 3)}
    for scenario in (killed, refused, stopped, others, by_hand, classify, messages):
        found[scenario.__name__] = scenario(job)
    return found | {"worlds": worlds()}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
