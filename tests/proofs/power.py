"""Power lost at a random moment: what was not synced is lost, kept or torn, names included.

One run is recorded, call by call. A state of the disk is what stands after some call: bytes that were synced, and of
the others none, all, or some sectors of 512 bytes (the rest zeros); names that were synced with their folder, and of
the later makings, renamings and removals none, all, the first few, or any of them. From each state the command is given
again. The same is done to checkpoints, of which the last that was finished, or a later one, must be found sound.
"""

import pickle
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch

from crash_runs import FILES, FOLDERS, Hooked
from vggfeat.runtime.durable import DISK
from vggfeat.training.checkpoints import Checkpoints

from .common import Job, Options, Report, scratch

SECTOR = 512


@dataclass
class Inode:
    """A file without a name."""

    content: bytearray = field(default_factory=bytearray)
    """What is on the disk."""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(place, bytes) that were written since the last sync; bytes None: the file was cut there."""

    def write(self, place: int, data: bytes | None) -> None:
        if data is None:
            del self.content[place:]
            data = b""
        self.content.extend(bytes(max(0, place + len(data) - len(self.content))))
        self.content[place : place + len(data)] = data

    def settle(self) -> None:
        for place, data in self.pending:
            self.write(place, data)
        self.pending = []

    def crash(self, rng: random.Random) -> None:
        """Lose, keep or tear what was not synced."""
        way = rng.choice(("none", "all", "some", "some"))
        for place, data in self.pending:
            if data is None:
                if way == "all" or (way == "some" and rng.random() < 0.5):
                    self.write(place, None)
                continue
            for start in range(0, len(data), SECTOR):
                part = data[start : start + SECTOR]
                if way == "all" or (way == "some" and rng.random() < 0.5):
                    self.write(place + start, part)


class Model:
    """A disk to which recorded calls are done again."""

    def __init__(self) -> None:
        self.names: dict[Path, Inode | None] = {}
        """On the disk; None stands for a folder."""
        self.pending: list[tuple[str, Path, Path | None, Inode | None]] = []
        self.live: dict[Path, Inode | None] = {}
        """As the running system sees them."""
        self.open: dict[int, Inode] = {}

    def do(self, name: str, *given) -> None:
        getattr(self, name, lambda *_: None)(*given)

    def create(self, path, fd):
        self.open[fd] = Inode()
        self._name("link", path, None, self.open[fd])

    def write(self, fd, data, place):
        self.open[fd].pending.append((place, data))

    def truncate(self, fd, size):
        self.open[fd].pending.append((size, None))

    def sync(self, fd):
        self.open[fd].settle()

    def sync_folder(self, folder):
        touched = [op for op in self.pending if folder in (op[1].parent, op[2] and op[2].parent)]
        self.pending = [op for op in self.pending if op not in touched]
        for op in touched:
            apply(self.names, op)

    def rename(self, source, target):
        self._name("rename", source, target, self.live.get(source))

    def remove(self, path):
        self._name("unlink", path, None, None)

    def make_folder(self, path):
        self._name("link", path, None, None)

    def remove_folder(self, path):
        self._name("unlink", path, None, None)

    def _name(self, *op) -> None:
        apply(self.live, op)
        self.pending.append(op)

    def crash(self, rng: random.Random) -> dict[Path, Inode | None]:
        """Lose power; return the names that are left."""
        way = rng.choice(("none", "all", "first", "any", "any"))
        count = {"none": 0, "first": rng.randrange(len(self.pending) + 1)}.get(way, len(self.pending))
        for op in self.pending[:count]:
            if way != "any" or rng.random() < 0.5:
                apply(self.names, op)
        for inode in {id(inode): inode for inode in self.names.values() if inode is not None}.values():
            inode.crash(rng)
        return self.names


def apply(names: dict[Path, Inode | None], op) -> None:
    kind, path, target, inode = op
    if kind == "link":
        names[path] = inode
    else:
        names.pop(path, None)
        if kind == "rename":
            names[target] = inode


def recording(log: Path) -> Hooked:
    """Carry out calls, and write each down once it is done."""

    def hook(number, name, call, arguments):
        given = [bytes(item) if isinstance(item, memoryview) else item for item in arguments]
        found = call(*arguments)
        with open(log, "ab") as file:
            if name == "create":
                given.append(found)
            elif name == "write":
                given[1] = given[1][:found]
            pickle.dump((name, given), file)
        return found

    return Hooked(hook)


def read_log(log: Path) -> list[tuple[str, list]]:
    events = []
    with open(log, "rb") as file:
        while file.peek(1):
            events.append(pickle.load(file))
    return events


def lose(events: list, number: int, rng: random.Random, base: Path) -> None:
    """Put on the disk what is left if power is lost after so many calls."""
    model = Model()
    for name, given in events[:number]:
        model.do(name, *given)
    names = model.crash(rng)
    for path in sorted(names):
        assert path.is_relative_to(base)
        if names[path] is None:
            path.mkdir(exist_ok=True)
        elif path.parent.is_dir():  # else its folder's own name was lost
            path.write_bytes(names[path].content)


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        rng = random.Random(options.seed)
        extractions(Job(folder, 20 if options.full else 3), 300 if options.full else 4, rng, report)
    with scratch() as folder:
        checkpoints(folder, 300 if options.full else 60, rng, report)
    return report


def extractions(job: Job, states: int, rng: random.Random, report: Report) -> None:
    log = job.folder / "log"
    job.start(files=recording(log)).wait()
    job.clear()
    events = read_log(log)
    for state in range(states):
        number = rng.randrange(len(events) + 1)
        kept = promised(events[:number], job)
        lose(events, number, rng, job.out.parent)
        job.finish(report, f"state {state}, power lost after call {number} of {len(events)}", kept)
    report.figures |= {"calls": len(events), "states": states}


def promised(events: list, job: Job) -> int:
    """Count the rows that the run had been told are on the disk."""
    waiting, kept = set(), set()
    for name, given in events:
        if name == "rename":
            waiting.add(given[1])
        elif name == "sync_folder":
            kept |= {path for path in waiting if path.parent == given[0]}
    return job.images if job.out in kept else len([path for path in kept if path.name.startswith("s0")])


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(700, generator=generator) for name in "ab"}


def checkpoints(folder: Path, states: int, rng: random.Random, report: Report) -> None:
    steps, log = 6, folder / "log"
    place, done = folder / "run" / "checkpoints", []
    place.parent.mkdir()
    for step in range(1, steps + 1):
        Checkpoints(place, recording(log)).save(step, tensors(step), {"step": step})
        done.append(len(read_log(log)))
    events = read_log(log)
    for state in range(states):
        for path in place.iterdir() if place.exists() else ():
            path.unlink()
        number = rng.randrange(done[0], len(events) + 1)
        lose(events, number, rng, place.parent)
        least = sum(number >= last for last in done)
        where = f"checkpoints, state {state}, power lost after call {number}"
        try:
            found, _ = Checkpoints(place, DISK).newest()
        except Exception as error:
            report.failures.append(f"{where}: {error!r}")
            continue
        sound = found is not None and found.about["step"] >= least
        equal = sound and all(torch.equal(found.tensors[k], v) for k, v in tensors(found.about["step"]).items())
        report.check(sound and equal, f"{where}: step {least} was saved, found {found and found.about}")
    report.figures |= {"checkpoint states": states}


assert set(FILES + FOLDERS) - {"free"} == {name for name in vars(Model) if name in FILES + FOLDERS}
