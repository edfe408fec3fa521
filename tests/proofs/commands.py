"""Every command that writes: killed, or short of disk, at calls that change the disk; then given again.

A command that died leaves nothing that keeps it from its work: given again (with --overwrite or --resume where it asks
for that) it ends well, with the files of an undisturbed run and no others. A disk that is full or broken ends it with
one line and the exit code of its kind, never with a traceback or a signal. Full: each command at 40 calls, and under
limits on the size of files. Short: three commands at one call each.
"""

import random
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from crash_runs import Hooked, failing, killing
from image_files import draw
from vggfeat.cli import group

from .common import NET, Ended, Options, Report, Run, digest, load_all, load_late, scratch

ENDINGS = ((), ("--overwrite",), ("--resume",))
"""Words with which a command is given again, the first that serve."""
QUIETLY = ("--device", "cpu", "--workers", "0", "--quiet")
SIZES = (0, 1 << 9, 1 << 14)
"""Limits on the size of files, in bytes."""
TIMED = ("results.json", "run.sha256")
"""Files that hold how long a run took, and the checksums of these."""
FAULTS = ("full", "full for good", "broken", "nothing")


@dataclass(frozen=True)
class Case:
    """One command: its words, given the folder of inputs and the place of its output."""

    command: str
    words: Callable[[Path, Path], list[object]]
    out: str
    """Name of the file or folder that it writes."""
    needs: tuple[str, ...] = ()
    """Outputs of other cases that its words name."""
    same: str = "**/*"
    """Files of it that are equal to the byte in every run,"""
    timed: tuple[str, ...] = ()
    """but for these, which hold times."""
    codes: tuple[int, ...] = (6,)
    """Exit codes for a disk that fails."""


def svm(made: Path, out: Path) -> list[object]:
    return ["svm", made / "f.h5", "--grid", "1", "--quiet", "--out", out]


def train(made: Path, out: Path) -> list[object]:
    words = ["--net", "A", "--width", "0.03125", "--batch", "4", "--steps", "2", "--log-every", "1"]
    return ["train", "--root", made / "ilsvrc", *words, *QUIETLY, "--out", out]


def train_boxes(made: Path, out: Path) -> list[object]:
    words = ["--weights", made / "net" / "weights.safetensors", "--batch", "4", "--steps", "2"]
    return ["localise", "train", "--root", made / "ilsvrc", *words, *QUIETLY, "--out", out]


def located(made: Path) -> list[object]:
    return ["--boxes", made / "boxes" / "weights.safetensors", "--classifier", made / "net" / "weights.safetensors"]


CASES = (
    Case("extract", lambda made, out: ["extract", "--dataset", "folder", "--root", made / "in", "--weights", NET,
         "--scales", "224", *QUIETLY, "--shard-rows", "4", "--out", out], "f.h5"),
    Case("svm", svm, "run", needs=("f.h5",), timed=("results.json", "run.sha256")),
    Case("svm", lambda made, out: ["svm", made / "f.h5", "--apply", made / "run" / "model.safetensors",
         "--out", out], "applied", needs=("run",)),
    Case("predict", lambda made, out: ["predict", made / "in" / "train", "--model", made / "run", "--weights", NET,
         *QUIETLY, "--out", out], "scores.csv", needs=("run",)),
    Case("report", lambda made, out: ["report", made / "run", "--quiet", "--out", out], "page.html", needs=("run",)),
    Case("similar", lambda made, out: ["similar", made / "f.h5", "--query", "train/a/000.png", "--out", out],
         "near.html", needs=("f.h5",)),
    Case("audit", lambda made, out: ["audit", made / "f.h5", "--quiet", "--out", out], "audit.html", needs=("f.h5",)),
    Case("map", lambda made, out: ["map", made / "f.h5", "--method", "pca", "--out", out], "map.html",
         needs=("f.h5",)),
    Case("explain", lambda made, out: ["explain", made / "in" / "train" / "a" / "000.png", "--model", made / "run",
         "--weights", NET, "--device", "cpu", "--out", out], "why.png", needs=("run",)),
    *(Case("export", lambda made, out, kind=kind: ["export", made / "f.h5", "--to", kind, "--out", out], f"x.{kind}",
           needs=("f.h5",))
      for kind in ("npz", "csv", "parquet", "mat")),
    *(Case("weights export", lambda made, out, kind=kind: ["weights", "export", made / "net" / "weights.safetensors",
           "--to", kind, "--out", out], f"net.{kind}", needs=("net",), codes=(5, 6))
      for kind in ("torchvision", "onnx")),
    Case("weights convert", lambda made, out: ["weights", "convert", made / "net.torchvision", out],
         "net.safetensors", needs=("net.torchvision",), codes=(5, 6)),
    Case("classify", lambda made, out: ["classify", "--root", made / "ilsvrc", "--weights",
         made / "net" / "weights.safetensors", "--scales", "256", *QUIETLY, "--out", out], "classified",
         needs=("net",), timed=TIMED),
    Case("localise evaluate", lambda made, out: ["localise", "evaluate", "--root", made / "ilsvrc", *located(made),
         *QUIETLY, "--out", out], "located", needs=("boxes",), timed=TIMED),
    Case("localise predict", lambda made, out: ["localise", "predict", made / "in" / "train" / "a" / "000.png",
         *located(made), *QUIETLY, "--out", out], "drawn", needs=("boxes",)),
    Case("train", train, "net", needs=("ilsvrc",), same="**/*.safetensors", codes=(6, 8)),
    Case("localise train", train_boxes, "boxes", needs=("net",), same="**/*.safetensors", codes=(6, 8)),
    *(Case("data synth", lambda made, out, name=name: ["data", "synth", name, "--size", "tiny", "--quiet", "--root",
           out], out)
      for name, out in (("ilsvrc", "ilsvrc"), ("caltech101", "caltech"))),
    Case("data splits", lambda made, out: ["data", "splits", "caltech101", "--root", made / "caltech", "--out", out],
         "splits", needs=("caltech",)),
    Case("data pack", lambda made, out: ["data", "pack", "--root", made / "ilsvrc", "--side", "40", "--shard-images",
         "8", "--workers", "0", "--quiet", "--out", out], "packed", needs=("ilsvrc",)),
)  # fmt: skip
ELSEWHERE = {
    "bench gpu": "keeps each part in a journal, as `localise evaluate` does",
    "merge": "appends to the same `FeatureWriter` as extract does",
    "plan": "tests/store/test_plan_crashes.py fails and kills it, and the shards of a plan, at every call",
    "demo": "runs data synth, extract, svm and report",
    "weights fetch": "tests/weights/test_download.py cuts and kills it",
}
"""Other commands that write, and what holds them."""


def writing() -> Iterator[str]:
    """Yield the commands that write a file or folder that the user names."""
    for name, command in group.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {}
        for path, one in {f"{name} {word}": sub for word, sub in inner.items()}.items() if inner else [(name, command)]:
            if {"out", "target"} & {param.name for param in one.params} or path == "data synth":
                yield path


def run(options: Options) -> Report:
    report, rng = Report(), random.Random(options.seed)
    unknown = set(options.words) - {case.command for case in CASES}
    report.check(not unknown, f"expected commands that write, found {', '.join(sorted(unknown))}")
    cases = [case for case in CASES if not options.words or case.command in options.words]
    if not options.full and not options.words:
        cases = [case for case in CASES if case.out in ("run", "applied", "x.npz")]
    with scratch() as folder:
        load_all()
        load_late()
        for number in range(12):
            split = ("train", "val", "test")[number // 2 % 3]
            draw(folder / "in" / split / "ab"[number % 2] / f"{number:03d}.png", number)
        for case in cases:
            prepare(case.needs, folder)
            undisturbed(Trial(case, folder, report), rng, options.cases or (40 if options.full else 1))
    return report


def prepare(needs: tuple[str, ...], folder: Path) -> None:
    """Make what a command takes, and what that takes."""
    for name in needs:
        if not (folder / name).exists():
            case = next(case for case in CASES if case.out == name)
            prepare(case.needs, folder)
            ended = Run([str(word) for word in case.words(folder, folder / name)], folder).wait()
            assert ended.code == 0, ended.err


class Trial:
    """One command on one set of inputs, again and again."""

    def __init__(self, case: Case, made: Path, report: Report) -> None:
        self.case, self.made, self.report = case, made, report
        self.folder = made / "work"
        self.out = self.folder / case.out

    def start(self, *more: str, files: Hooked | None = None) -> Ended:
        words = [str(word) for word in (*self.case.words(self.made, self.out), *more)]
        return Run(words, self.made, files).wait()

    def names(self) -> list[str]:
        """Return what is there, but for folders, and for the logs of training that died before its first checkpoint."""
        found = [path for path in self.folder.rglob("*") if not path.is_dir() and not path.match("log.[0-9]*.jsonl")]
        return sorted(str(path.relative_to(self.folder)) for path in found)

    def contents(self) -> dict[str, str]:
        """Return the SHA-256 of the files that are equal in every run."""
        if not self.case.same:
            return {}
        found = [self.out] if self.out.is_file() else [path for path in self.out.glob(self.case.same) if path.is_file()]
        kept = [path for path in found if path.name not in self.case.timed and not path.name.endswith(".tmp")]
        return {str(path.relative_to(self.folder)): digest(path) for path in kept}

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def again(self, where: str, names: list[str], contents: dict[str, str]) -> None:
        """Give the command again, as it asks for, and compare what it ends with; then clear up."""
        for ending in ENDINGS:
            ended = self.start(*ending)
            if ended.code == 0:
                break
        where = f"{self.case.command} ({self.case.out}), {where}"
        self.report.check(ended.code == 0, f"{where}: given again, it ended with {ended.code}: {ended.err[-300:]}")
        if ended.code == 0:
            self.report.check(self.names() == names, f"{where}: given again, it leaves {self.names()}, not {names}")
            self.report.check(self.contents() == contents, f"{where}: given again, it makes other bytes")
        self.clear()


def undisturbed(trial: Trial, rng: random.Random, points: int) -> None:
    """Run a command once, to see what it does, and then with a fault at some of its calls."""
    trial.clear()
    log = trial.made / "calls"

    def hook(number, name, call, arguments):
        with open(log, "a") as file:
            print(name, file=file)
        return call(*arguments)

    whole = trial.start(files=Hooked(hook))
    trial.report.check(whole.code == 0, f"{trial.case.command}: undisturbed, it ended with {whole.code}: {whole.err}")
    if whole.code:
        return
    calls = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    names, contents = trial.names(), trial.contents()
    trial.report.check(bool(calls), f"{trial.case.command}: no call of it goes through the seam")
    trial.clear()
    for number in sorted(rng.sample(range(1, len(calls) + 1), min(points, len(calls)))):
        torn = calls[number - 1] == "write" and rng.random() < 0.5
        where = f"killed at call {number} of {len(calls)}, {calls[number - 1]}{', torn' * torn}"
        died = trial.start(files=killing(number, torn))
        trial.report.count("killed")
        trial.report.check(died.code == 9, f"{trial.case.command}, {where}: ended with {died.code} instead of dying")
        trial.again(where, names, contents)
        kind = rng.choice(FAULTS)
        if kind != "nothing" or calls[number - 1] == "write":
            where = f"{kind} at call {number} of {len(calls)}, {calls[number - 1]}"
            fault(trial, where, trial.start(files=failing(number, kind)))
            trial.again(where, names, contents)
    for size in SIZES if points > 1 else SIZES[:1]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            ended = trial.start()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        fault(trial, f"files of at most {size} bytes", ended, fits=trial.names() == names)
        trial.again(f"files of at most {size} bytes", names, contents)


def fault(trial: Trial, where: str, ended: Ended, *, fits: bool = True) -> None:
    """Check how a command ended whose disk failed: the last of the tidying may fail when all is done."""
    trial.report.count("faults")
    where, codes = f"{trial.case.command} ({trial.case.out}), {where}", (*trial.case.codes, *(0,) * fits)
    trial.report.check(ended.code in codes, f"{where}: expected one of {codes}, found {ended.code}: {ended.err[-300:]}")
    trial.report.check(ended.clean, f"{where}: said more than one line: {ended.err[-500:]}")
