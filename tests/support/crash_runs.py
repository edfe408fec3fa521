"""Runs that are killed, starved or raced, in a process of their own: `python crash_runs.py MODE FOLDER [ARGUMENT]`.

Prints one JSON object of what was seen. Everything here runs in one thread, so that fork is safe.
"""

import errno
import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

from feature_rows import FAILED, KEY, PROVENANCE, finish, finished, make_block, make_dataset, open_parts
from vggfeat.errors import StoreError
from vggfeat.runtime.durable import Files
from vggfeat.store import reader as store
from vggfeat.store.failures import failures_path
from vggfeat.store.layout import Shape
from vggfeat.store.writer import FeatureWriter

FILES = ("create", "write", "truncate", "sync", "rename", "remove")
FOLDERS = ("sync_folder", "make_folder", "remove_folder", "free")


class Hooked(Files):
    """Counts the calls, and lets `hook` carry them out: hook(number, name, real call, arguments)."""

    def __init__(self, hook):
        self.hook, self.calls = hook, 0


def _hooked(name):
    def call(self, *arguments):
        self.calls += 1
        return self.hook(self.calls, name, getattr(Files, name), arguments)

    return call


for _name in FILES + FOLDERS:
    setattr(Hooked, _name, _hooked(_name))


def killing(number, torn):
    """Die before call `number`; if torn, half-way through it where it is a write."""

    def hook(count, name, call, arguments):
        if count == number:
            if torn and name == "write":
                fd, data, offset = arguments
                call(fd, data[: data.nbytes // 2], offset)
            os._exit(9)
        return call(*arguments)

    return Hooked(hook)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unbroken(folder):
    """SHA-256 of the file of a run that nothing befell, how many calls it made, and which."""
    names = []
    files = Hooked(lambda count, name, call, arguments: names.append(name) or call(*arguments))
    out = finish(folder / "unbroken.h5", files=files)
    return digest(out), files.calls, names


def in_child(action):
    """Run `action(tell)` in a forked child; return its process number and a pipe of what it tells."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            action(lambda text: os.write(writing, f"{text}\n".encode()))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, os.fdopen(reading)


def reap(child, pipe):
    with pipe:
        lines = pipe.read().split()
    return lines, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lost_or_different(out, committed, wanted):
    """Resume after a death: is everything committed still there, and the end the same to the byte? Then clear up."""
    with open_parts(out) as parts:
        lost = sorted(set(committed) & {str(shard) for shard in parts.pending})
    finish(out)
    left = {path.name for path in out.parent.iterdir() if path.name.startswith(out.name)}
    failed = [json.loads(line)["reason"] for line in failures_path(out).read_text().splitlines()]
    different = digest(out) != wanted or left != finished(out) or failed != list(FAILED.values())
    out.unlink()
    failures_path(out).unlink()
    return lost, different


def die(out, number, torn):
    """Go on in a child that is killed at a call; return the shards it had committed, and its exit code."""
    return reap(*in_child(lambda tell: finish(out, files=killing(number, torn), committed=tell)))


def sweep(folder, stride):
    """Deaths at every `stride`th call, torn in the midst of a write from another one on."""
    wanted, calls, names = unbroken(folder)
    seen = {"calls": calls, "points": 0, "died": 0, "lost": [], "different": []}
    for torn in (False, True):
        for number in range(1 + torn, calls + 1, int(stride)):
            if torn and names[number - 1] != "write":
                continue
            out = folder / "k.h5"
            committed, code = die(out, number, torn)
            lost, different = lost_or_different(out, committed, wanted)
            seen["points"] += 1
            seen["died"] += code == 9
            seen["lost"] += [(number, torn, shard) for shard in lost]
            seen["different"] += [(number, torn)] if different else []
    return seen


def stacked(folder, stride):
    """Deaths during the recovery from a death."""
    wanted, calls, _ = unbroken(folder)
    seen = {"points": 0, "different": []}
    for first in range(1, calls + 1, int(stride)):
        for second in range(1, calls + 1, int(stride) + 2):
            out = folder / "k.h5"
            for number in (first, second):
                die(out, number, torn=True)
            _, different = lost_or_different(out, [], wanted)
            seen["points"] += 1
            seen["different"] += [(first, second)] if different else []
    return seen


def failing(number, kind):
    def hook(count, name, call, arguments):
        if count == number or (count > number and kind == "full for good"):
            if kind == "short":
                return call(arguments[0], arguments[1][: max(1, arguments[1].nbytes // 3)], *arguments[2:])
            if kind == "interrupt":
                raise KeyboardInterrupt
            if kind == "nothing":
                return 0
            raise OSError(errno.EIO if kind == "broken" else errno.ENOSPC, "no")
        return call(*arguments)

    return Hooked(hook)


def suffer(out, number, kind):
    """Go on with a disk that fails at a call; return the shards committed, the outcome, and what was said."""
    committed = []
    try:
        finish(out, files=failing(number, kind), committed=lambda shard: committed.append(str(shard)))
    except StoreError as error:
        return committed, "refused", str(error)
    except KeyboardInterrupt:
        return committed, "interrupted", ""
    return committed, "success", ""


def faults(folder, stride):
    """Errors of the disk, all in this one interpreter, which must then still end in peace.

    Each kind at every `stride`th call, each from another one on.
    """
    wanted, calls, names = unbroken(folder)
    seen = {"calls": calls, "points": 0, "silent": [], "different": [], "messages": []}
    for first, kind in enumerate(("full", "full for good", "broken", "interrupt", "short", "nothing")):
        for number in range(1 + first % int(stride), calls + 1, int(stride)):
            if kind in ("short", "nothing") and names[number - 1] != "write":
                continue
            out = folder / "f.h5"
            committed, outcome, message = suffer(out, number, kind)
            seen["messages"] += [message] if message else []
            expected = {"short": "success", "interrupt": "interrupted"}.get(kind, "refused")
            seen["silent"] += [(number, kind, names[number - 1], outcome)] if outcome != expected else []
            lost, different = lost_or_different(out, committed, wanted)
            seen["points"] += 1
            seen["different"] += [(number, kind, names[number - 1])] if different or lost else []
    seen["messages"] = sorted(set(seen["messages"]))[:20]
    return seen


def slowly(tell):
    def committed(shard):
        tell(shard)
        time.sleep(0.01)

    return committed


def random_kills(folder, count):
    """Real kill -9 at random times, again and again into the same run until it ends."""
    wanted, *_ = unbroken(folder)
    times = random.Random(5)
    seen = {"kills": 0, "runs": 0, "lost": [], "different": 0}
    while seen["kills"] < int(count):
        out = folder / f"r{seen['runs']}.h5"
        committed = set()
        for _ in range(6):
            child, pipe = in_child(lambda tell, out=out: finish(out, committed=slowly(tell)))
            time.sleep(times.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
            lines, code = reap(child, pipe)
            seen["kills"] += code == -signal.SIGKILL
            committed |= set(lines)
            with open_parts(out) as parts:
                seen["lost"] += sorted(committed & {str(shard) for shard in parts.pending})
        finish(out)
        seen["different"] += digest(out) != wanted
        seen["runs"] += 1
    return seen


def races(folder, count):
    """Two writers at once: one goes on, the other is refused at once and says who has it."""
    seen = {"races": 0, "winners": [], "slowest": 0.0, "messages": []}
    for race in range(int(count)):
        out = folder / f"{race}.h5"
        gate, opened = os.pipe()

        def contend(tell, out=out, gate=gate):
            begun = time.monotonic()
            try:
                with open_parts(out):
                    tell("won")
                    os.read(gate, 1)
            except StoreError as error:
                tell(f"{time.monotonic() - begun} {os.getpid()} {error}".replace(" ", "_"))

        pair = [in_child(contend) for _ in range(2)]
        first = os.waitpid(-1, 0)[0]  # The loser ends at once; the winner waits for the gate.
        os.write(opened, b"xx")
        lines = []
        for child, pipe in pair:
            with pipe:
                text = pipe.read().strip()
            if child != first:
                os.waitpid(child, 0)
                winner = child
            lines.append(text)
        loser = next((line for line in lines if line != "won"), "0_0_none")
        seen["races"] += 1
        seen["winners"].append(lines.count("won"))
        seen["slowest"] = max(seen["slowest"], float(loser.split("_")[0]))
        seen["messages"].append(f"process_{winner}_" in loser)
        os.close(gate)
        os.close(opened)
    return seen


def orphans(folder, _):
    """The holder is killed while a worker that it forked lives on: the lock must be free at once."""
    out = folder / "o.h5"

    def hold(tell):
        open_parts(out)
        if os.fork() == 0:
            tell(os.getpid())  # By now the fork has left the lock to its parent; the parent may say so too early.
            signal.pause()
            os._exit(0)
        signal.pause()

    child, pipe = in_child(hold)
    worker = int(pipe.readline())
    held = not opens(out)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pipe.close()
    os.kill(worker, 0)  # Fails if it were not alive.
    free = opens(out)
    os.kill(worker, signal.SIGKILL)
    return {"refused while held": held, "free at once": free}


def opens(out):
    try:
        open_parts(out).close()
    except StoreError:
        return False
    return True


class Boundless(Files):
    """Does not know how small its disk is."""

    def free(self, folder):
        return 1 << 60


def attempt(out, rows, shape, files):
    """Commit and consolidate as far as the disk goes; say how far, and what was said."""
    committed = 0
    try:
        with open_parts(out, make_dataset(rows), shape=shape, shard_rows=32, files=files) as parts:
            for shard in parts.pending:
                parts.append(shard, make_block(parts.rows(shard), shape, {}))
                committed += 1
            parts.finish(PROVENANCE)
    except StoreError as error:
        return committed, str(error)
    return committed, "finished"


def full_disk(folder, _):
    """On a real disk of 8 MiB: too small for all the shards, then for the feature file."""
    seen = {}
    for name, channels in (("shards", 4096), ("file", 1250)):
        shape = Shape(scales=(256,), regions=("image",), channels=channels)
        out = folder / f"{name}.h5"
        seen[f"{name} asked first"] = attempt(out, 1000, shape, Files())[1]
        seen[f"{name} found out"] = attempt(out, 1000, shape, Boundless())
        with open_parts(out, make_dataset(1000), shape=shape, shard_rows=32, files=Boundless()) as parts:
            seen[f"{name} kept"] = parts.done_rows
        for path in sorted(parts.folder.iterdir()):
            path.unlink()
    return seen


def file_limit(folder, _):
    """RLIMIT_FSIZE: the system refuses to let a file grow."""
    shape = Shape(scales=(256,), regions=("image",), channels=1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    first = attempt(folder / "l.h5", 1000, shape, Files())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"first": first, "second": attempt(folder / "l.h5", 1000, shape, Files())}


def many_rows(folder, count):
    """Peak memory of consolidating, beyond what the data set itself takes."""
    rows, shape = int(count), Shape(scales=(256,), regions=("image",), channels=256)
    dataset = make_dataset(rows)
    out = folder / "m.h5"
    with FeatureWriter.open(out, dataset, KEY, shape, shard_rows=4096) as parts:
        for shard in parts.pending:
            parts.append(shard, make_block(parts.rows(shard), shape, {}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        parts.finish(PROVENANCE)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"grown_mib": (after - before) / 1024, "file_mib": out.stat().st_size / 2**20, "peak_mib": after / 1024}


def contents(path):
    """Everything that a reader gets from a file, and the problems it reports."""
    with store.FeatureFile(path) as file:
        arrays = [file.read(), file.status, file.sizes, file.sha256]
        texts = (file.reasons, file.dataset.fingerprint(), file.key, file.provenance, file.scales, file.regions)
        problems = store.validate(path).problems
    return [array.tobytes() for array in arrays] + [texts], problems


def mutate(good, choice):
    """Damage some bytes, in one of five ways."""
    bad = bytearray(good)
    way = choice.randrange(5)
    if way == 0:
        return bad[: choice.randrange(len(bad))]
    place = choice.randrange(len(bad))
    length = choice.choice((1, 2, 4, 8, 64))
    if way == 1:
        bad[place] ^= 1 << choice.randrange(8)
    elif way == 2:
        bad[place : place + length] = choice.randbytes(len(bad[place : place + length]))
    elif way == 3:
        bad[place : place + length] = choice.choice((b"\0", b"\xff")) * len(bad[place : place + length])
    else:
        source = choice.randrange(len(bad))
        bad[place : place + length] = bad[source : source + len(bad[place : place + length])]
    return bad


def mutants(folder, count):
    """Damaged feature files are refused, or tell of it, or are as good as before."""
    good = finish(folder / "good.h5").read_bytes()
    wanted, _ = contents(folder / "good.h5")
    soft = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    choice = random.Random(11)
    seen = {"refused": 0, "told": 0, "as good": 0, "wrong": []}
    path = folder / "mutant.h5"
    for number in range(int(count)):
        path.write_bytes(mutate(good, choice))
        try:
            found, problems = contents(path)
        except StoreError:
            seen["refused"] += 1
            continue
        if problems:
            seen["told"] += 1
        elif found == wanted:
            seen["as good"] += 1
        else:
            seen["wrong"].append(number)
    seen["grown_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - soft) / 1024
    return seen


MODES = (sweep, stacked, faults, random_kills, races, orphans, full_disk, file_limit, many_rows, mutants)

if __name__ == "__main__":
    mode, folder, *rest = sys.argv[1:]
    chosen = next(choice for choice in MODES if choice.__name__ == mode)
    print(json.dumps(chosen(Path(folder), *(rest or [None]))))
