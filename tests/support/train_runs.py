"""Small training runs for the tests: made-up images of a few classes, and processes to be killed.

    python tests/support/train_runs.py kill FOLDER KILLS SEED
    python tests/support/train_runs.py world FOLDER PROCESSES

`kill` trains once undisturbed, then kills the same run with SIGKILL at random moments until it has been killed often
enough, and lets it finish. `world` trains by one process and by several. Each prints one JSON line. The parent has
loaded everything and computed nothing, so that a run is a fork away.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch

from vggfeat.errors import TrainingError, VggfeatError
from vggfeat.runtime import rendezvous
from vggfeat.runtime.distributed import World, open_world, share
from vggfeat.training import train as loop
from vggfeat.training import trainer
from vggfeat.training.data import LabelledBatch
from vggfeat.training.learner import Learner
from vggfeat.training.objective import Classification
from vggfeat.training.recipe import Recipe, TrainingSettings

SIDE = 224
CLASSES = ("ant", "bee", "cat", "dog")


class StripeFeed:
    """Stripes, another width for every class, with noise; a batch depends on its step alone."""

    classes = CLASSES

    def __init__(self, recipe: Recipe, world: World | None = None, *, images=32, unreadable=()) -> None:
        self.recipe, self.world, self.images, self.validation_images = recipe, world or World(), images, 12
        self.fingerprint = {"train": "stripes", "validation": str(images)}
        self._unreadable = list(unreadable)
        self.asked: list[int] = []

    def prepare(self, folder, progress):
        progress(self.images, self.images)
        return (120.0, 121.0, 122.0)

    @contextmanager
    def training(self, first_step):
        yield self._training(first_step)

    def _training(self, step):
        while True:
            self.asked.append(step)
            images, targets = stripes(self.recipe.batch, step)
            mine = share(self.recipe.batch, self.world.rank, self.world.size)
            yield LabelledBatch(step, images[mine], targets[mine], 0.001)
            step += 1

    @contextmanager
    def validation(self):
        images, targets = stripes(self.validation_images, 10**6)
        mine = share(self.validation_images, self.world.rank, self.world.size)
        yield iter([LabelledBatch(0, images[mine], targets[mine], 0.0)])

    def lost(self, unreadable):
        return []

    def unreadable(self):
        return self._unreadable


def stripes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(len(CLASSES), (count,), generator=generator)
    places = torch.arange(SIDE)
    waves = torch.stack([80.0 * torch.sin(places / 2.0 ** (k + 1)) for k in range(len(CLASSES))])
    noise = 10 * torch.randn((count, 3, SIDE, SIDE), generator=generator)
    return waves[targets][:, None, None, :] + noise, targets


def small_recipe(**other) -> Recipe:
    fields = {"width": 1 / 64, "batch": 4, "max_steps": 10, "validate_every": 4}
    return Recipe(**{**fields, "dropout": 0.2, "initialisation": "glorot", **other})


def run_small(out: Path, recipe: Recipe, run=None, *, feed=None, world=None, curves=False, **other):
    """Train; unless they are wanted, without the curves, whose drawing takes as long as the training."""
    world = world or World()
    run = run or TrainingSettings(checkpoint_every=3, log_every=2)
    objective, feed = Classification(recipe, CLASSES), feed or StripeFeed(recipe, world)
    with nullcontext() if curves else mock.patch.object(trainer, "draw_curves", return_value=b"not drawn"):
        return loop.learn(objective, feed, out, world=world, run=run, **other)


def load_all() -> None:
    """Import what torch imports late: seconds that a fork need not spend again."""
    objective = Classification(small_recipe(), CLASSES)
    Learner(objective.first_weights()[0], objective, TrainingSettings(), World(), None, [].append)


def start(action) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            action()
            code = 0
        except VggfeatError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    return child


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_script(*words: object) -> dict:
    """Run this file in a process of its own, which must end in peace, and return what it saw."""
    command = [sys.executable, "-W", "error", __file__, *map(str, words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def kill(folder: Path, kills: int, seed: int) -> dict:
    recipe, run = small_recipe(), TrainingSettings(checkpoint_every=1, log_every=2)
    whole, out = folder / "whole", folder / "killed"
    first = finish(start(lambda: run_small(whole, recipe, run)))
    rng = random.Random(seed)
    killed, early, steps = 0, 0, []
    out.mkdir()
    while killed < kills:
        child = start(lambda: run_small(out, recipe, run, resume=True))
        wait_for(child, out, newest(out) + rng.randint(0, 3))
        time.sleep(rng.uniform(0, 0.1))  # Two or three steps, each with its checkpoint.
        os.kill(child, signal.SIGKILL)
        if finish(child) == -signal.SIGKILL:
            killed += 1
            steps.append(newest(out))
        else:
            early += 1
            shutil.rmtree(out)
            out.mkdir()
    last = finish(start(lambda: run_small(out, recipe, run, resume=True)))
    return {
        "first": first,
        "last": last,
        "killed": killed,
        "finished_early": early,
        "steps": steps,
        "weights": [hash_of(place / "weights.safetensors") for place in (whole, out)],
        "logs": [figures(place) for place in (whole, out)],
        # Not counted: the logs of those that were killed before their first checkpoint.
        "left": sorted(
            str(path.relative_to(out))
            for path in out.rglob("*")
            if path.is_file() and not re.fullmatch(r"log\.\d+\.jsonl", path.name)
        ),
    }


def wait_for(child: int, out: Path, step: int) -> None:
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while newest(out) < step and os.waitid(os.P_PID, child, ended) is None:
        time.sleep(0.001)


def newest(out: Path) -> int:
    """Step of the newest checkpoint, 0 if there is none."""
    return max((int(path.stem[5:]) for path in (out / "checkpoints").glob("step-*.safetensors")), default=0)


def figures(out: Path) -> list[dict]:
    """Lines of the log, without times and notes."""
    lines = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    timed = ("images_per_s", "waiting", "checksum")  # of a line with times
    return [{k: v for k, v in line.items() if k not in timed} for line in lines if line["kind"] != "note"]


def world(folder: Path, processes: int) -> dict:
    recipe = small_recipe(batch=6, learning_rate=1e-3, max_steps=6)
    codes = [finish(start(lambda: run_small(folder / "one", recipe)))]
    codes += [finish(child) for child in start_world(folder / "many", processes, recipe)]
    return {
        "codes": codes,
        "logs": [figures(folder / name) for name in ("one", "many")],
        "stopped": stopped(folder, processes, recipe),
        "lost": lost(folder, processes),
        "paused": paused(folder, processes, recipe),
        "micro_batches": [finish(child) for child in start_world(folder / "narrow", processes, recipe, action=narrow)],
        "others": others(folder / "others", processes, recipe),
    }


def narrow(recipe: Recipe, found: World) -> None:
    """Let memory hold two images in the last process; leave with the number of images at a time."""
    part = Learner._part

    def full(self, images, targets, masks):
        if found.rank and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return part(self, images, targets, masks)

    Learner._part = full
    objective = Classification(recipe, CLASSES)
    learner = Learner(objective.first_weights()[0], objective, TrainingSettings(), found, None, [].append)
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    os._exit(learner.micro_batch)


def others(out: Path, processes: int, recipe: Recipe) -> dict:
    """The last process has other images."""

    def run(recipe: Recipe, found: World) -> None:
        try:
            run_small(out, recipe, feed=StripeFeed(recipe, found, images=32 + found.rank), world=found)
        except TrainingError as error:
            out.with_name(f"others {found.rank}").write_text(str(error))
            raise

    codes = [finish(child) for child in start_world(out, processes, recipe, action=run)]
    said = [out.with_name(f"others {rank}").read_text() for rank in range(processes)]
    return {"codes": codes, "begun": out.exists(), "said": said}


def stopped(folder: Path, processes: int, recipe: Recipe) -> dict:
    """Only the last process is asked to stop, before its third step ends: all do, and save; then all go on."""
    out = folder / "stopped"
    children = start_world(out, processes, recipe, stop=lambda rank, step: rank and step == 2)
    codes, step = [finish(child) for child in children], newest(out)
    codes += [finish(child) for child in start_world(out, processes, recipe, resume=True)]
    weights = [hash_of(folder / name / "weights.safetensors") for name in ("many", "stopped")]
    return {"codes": codes, "step": step, "weights": weights}


def lost(folder: Path, processes: int) -> dict:
    """The last process dies: the others say so and end."""
    recipe, begun = small_recipe(batch=6, max_steps=10**6, validate_every=10**6), time.monotonic()
    children = start_world(folder / "lost", processes, recipe, stop=lambda rank, step: rank and step == 2 and die())
    return {"codes": [finish(child) for child in children], "seconds": time.monotonic() - begun}


def paused(folder: Path, processes: int, recipe: Recipe) -> dict:
    """The last process is stopped by SIGSTOP before its third step, until another one has named it."""
    rendezvous.LONGEST_SILENCE = timedelta(seconds=1)

    def progress(rank: int, step: int) -> bool:
        if step == 0:
            sys.stderr = (folder / f"said {rank}").open("w")
        if rank and step == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return False

    children = start_world(folder / "paused", processes, recipe, stop=progress)
    os.waitid(os.P_PID, children[-1], os.WSTOPPED | os.WNOWAIT)
    deadline = time.monotonic() + 60
    while "waiting" not in (folder / "said 0").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    addresses = sorted({address for child in children for address in listening(child)})
    os.kill(children[-1], signal.SIGCONT)
    codes = [finish(child) for child in children]
    rendezvous.LONGEST_SILENCE = timedelta(seconds=10)
    weights = [hash_of(folder / name / "weights.safetensors") for name in ("many", "paused")]
    return {
        "codes": codes,
        "said": [(folder / f"said {rank}").read_text() for rank in range(processes)],
        "listening": addresses,
        "weights": weights,
    }


def listening(child: int) -> list[str]:
    """Return the addresses, in hexadecimal, at which a process takes connections."""
    links = [link for link in Path(f"/proc/{child}/fd").iterdir() if link.is_symlink()]
    own = {os.readlink(link).removeprefix("socket:[").rstrip("]") for link in links}
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    return [words[1].partition(":")[0] for words in lines if words[3] == "0A" and words[9] in own]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start_world(out: Path, processes: int, recipe: Recipe, stop=None, action=None, **other) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(processes))
        with open_world("cpu", os.environ, lost=TrainingError, sums=True) as found:
            if action is not None:
                action(recipe, found)
            feed = StripeFeed(recipe, found)

            def progress(*_):
                return bool(stop and stop(rank, max(feed.asked, default=-1)))

            run_small(out, recipe, feed=feed, world=found, progress=progress, **other)

    return [start(lambda rank=rank: one(rank)) for rank in range(processes)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_all()
    kind, place, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(kill(place, number, int(sys.argv[4])) if kind == "kill" else world(place, number)))
