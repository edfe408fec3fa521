"""Hostile and odd images through the real command: each ends exactly once, as a row or as a named failure.

    python -m tests.proofs images --full --folder DIR [--cases N] [--verdicts FILE]

DIR holds whatever files there are, of any kind and name: test suites of image libraries are a good choice. They are
filled up to N, 12,700 by default, with damaged copies of themselves and of our own images. With FILE, verdicts are
kept by SHA-256 of the image, and compared with those that stand there. Short: 200 damaged images of our own.
"""

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from odd_images import good_images
from vggfeat.images.decode import EXTRACTION_REASONS
from vggfeat.store.layout import Status
from vggfeat.store.reader import FeatureFile

from .common import NET, Options, Report, scratch
from .mutants import mutate

MOST_WORKER = 2 << 30
"""Bytes of memory that a worker may have."""
MOST_TO_DAMAGE = 200_000


def run(options: Options) -> Report:
    report = Report()
    given = [path for path in sorted(options.folder.rglob("*")) if path.is_file()] if options.folder else []
    count = options.cases or (12_700 if options.full else 200)
    with scratch() as folder:
        names = stage(folder / "in", given, count, options.seed)
        report.figures |= {
            "images": len(names),
            "of the folder": len(given),
            "damaged by us": len(names) - len(given),
        }
        code, said, most = extract(folder, report)
        report.check(code in (0, 3), f"expected exit code 0 or 3, found {code}: {said[-500:]}")
        report.check("Traceback" not in said, said[-1000:])
        report.check(most < MOST_WORKER, f"a worker took {most} bytes")
        if code in (0, 3):
            verdicts = judge(folder / "x.h5", names, report)
            if options.words:
                compare(folder / "in", verdicts, Path(options.words[0]), report)
    return report


def stage(place: Path, given: list[Path], count: int, seed: int) -> list[str]:
    """Put all under plain names, and list them; links lead to what was given."""
    place.mkdir()
    rng, own = random.Random(seed), list(good_images())
    small = [path for path in given if path.stat().st_size <= MOST_TO_DAMAGE]
    names = [f"{number:06d}.pic" for number in range(max(count, len(given)))]
    for name, path in zip(names, given, strict=False):
        (place / name).symlink_to(path.resolve())
    for name in names[len(given) :]:
        from_own = not small or rng.random() < 0.3
        content = rng.choice(own) if from_own else rng.choice(small).read_bytes()
        (place / name).write_bytes(mutate(rng, content, rng.choice(own), text=False))
    (place / "list.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    return names


def extract(folder: Path, report: Report) -> tuple[int, str, int]:
    """Run the command; return its exit code, what it said, and the most memory that a worker had."""
    words = [
        "extract",
        "--dataset",
        "manifest",
        "--root",
        folder / "in" / "list.csv",
        "--weights",
        NET,
        "--scales",
        224,
    ]
    words += ["--device", "cpu", "--workers", 2, "--out", folder / "x.h5", "--quiet", "--json", "--shard-rows", 256]
    begun = time.monotonic()
    with open(folder / "said", "w+") as said:
        command = [sys.executable, "-m", "vggfeat", *map(str, words)]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        most = {"run": 0, "worker": 0}
        while running.poll() is None:
            most["run"] = max(most["run"], memory(running.pid))
            most["worker"] = max([most["worker"], *map(memory, children(running.pid))])
            time.sleep(0.05)
        text = (folder / "said").read_text(errors="backslashreplace")
    report.figures |= {f"{name}_mib": round(size / 2**20) for name, size in most.items()}
    report.figures["extract_s"] = round(time.monotonic() - begun)
    return running.returncode, text, most["worker"]


def children(pid: int) -> list[int]:
    """Return the processes that any thread of a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def memory(pid: int) -> int:
    """Return the most memory that a process has had, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def judge(out: Path, names: list[str], report: Report) -> dict[str, str]:
    """Check that every image has one verdict; return them by name."""
    with FeatureFile(out) as file:
        problems = list(file.problems())
        report.check(not problems, f"the feature file: {problems[:3]}")
        report.check(list(file.dataset.paths) == names, "expected a row for each image, found others")
        verdicts = {}
        for name, status, reason in zip(file.dataset.paths, file.status.tolist(), file.reasons, strict=True):
            word = reason.partition(":")[0]
            kept = (status == Status.DONE and not reason) or (status == Status.FAILED and word in EXTRACTION_REASONS)
            report.check(kept, f"{name}: status {status}, reason {reason!r}")
            verdicts[name] = word or "done"
            if word in ("worker-died", "time-out"):
                report.figures.setdefault("named", []).append(f"{name}: {reason}")
    for word in sorted(set(verdicts.values())):
        report.figures[word] = list(verdicts.values()).count(word)
    return verdicts


def compare(place: Path, verdicts: dict[str, str], golden: Path, report: Report) -> None:
    """Compare verdicts with those that are kept; where none are, keep these."""
    found = {hashlib.sha256((place / name).read_bytes()).hexdigest(): word for name, word in verdicts.items()}
    if golden.exists():
        kept = json.loads(golden.read_text())
        other = {key: (kept[key], word) for key, word in found.items() if kept.get(key, word) != word}
        report.figures["verdicts compared"] = len(found.keys() & kept.keys())
        for key, (before, now) in other.items():
            report.failures.append(f"{key}: was {before}, is {now}")
    else:
        golden.write_text(json.dumps(found, indent=0, sort_keys=True))
