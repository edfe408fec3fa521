"""Killed at every call of a run that tries failed images again, before it and half-way; then given again.

A finished file with two failed images, of which one is sound by then, is replaced by `--retry-failed`: at every
moment the old file or the new one must stand there, whole, and what was finished since is kept. Given again with the
flag and without it, in turn. Full: of 20 shards of two images, at each call. Short: of 3, at each 37th.
"""

import shutil
from pathlib import Path

from crash_runs import killing
from vggfeat.store.failures import failures_path

from .common import Job, Options, Report, digest, scratch


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        job = Job(folder, 40 if options.full else 6, "--shard-rows", "2")
        old, new = folder / "old.h5", folder / "new.h5"
        fail(job, old, (0, -1), report)
        fail(job, new, (-1,), report, for_good=True)
        job.wanted = digest(new)
        job.options = (*job.options, "--retry-failed")
        begin(job, old)
        names = job.calls()
        report.figures |= {"shards": job.images // 2, "calls": len(names)}
        for number in range(1, len(names) + 1, 1 if options.full else 37):
            for torn in (False, True) if names[number - 1] == "write" else (False,):
                begin(job, old)
                kill(job, number, torn, digest(old), f"call {number}, {names[number - 1]}{', torn' * torn}", report)
    return report


def fail(job: Job, out: Path, which: tuple[int, ...], report: Report, *, for_good: bool = False) -> None:
    """Extract while some images are none."""
    paths = sorted(job.root.glob("*/*.png"), key=lambda path: path.name)
    sound = {paths[number]: paths[number].read_bytes() for number in which}
    for path, content in sound.items():
        path.write_bytes(bytes(len(content)))
    report.check(job.start(out).wait().code == 3, f"{out.name}: did not end with exit code 3")
    for path, content in sound.items():
        if not for_good:
            path.write_bytes(content)


def begin(job: Job, old: Path) -> None:
    """Put the old file where the new one will be, and the list of what failed."""
    shutil.copyfile(old, job.out)
    shutil.copyfile(failures_path(old), failures_path(job.out))


def kill(job: Job, number: int, torn: bool, old: str, where: str, report: Report) -> None:
    died = job.start(files=killing(number, torn)).wait()
    report.count("points")
    report.count("torn", torn)
    report.check(died.code == 9, f"{where}: ended with {died.code} instead of dying: {died.err[-300:]}")
    found = digest(job.out)
    report.check(found in (old, job.wanted), f"{where}: neither the old file nor the new one")
    report.check(failures_path(job.out).exists(), f"{where}: the list of what failed has gone")
    report.count("new file already", found == job.wanted)
    noted = all((job.parts / name).exists() for name in ("manifest.json", "retrying"))
    kept, flagged = 2 * len(job.named()), job.options
    if noted and number % 2:
        report.count("went on without the flag")
        job.options = flagged[:-1]
    again = job.start().wait()
    job.options = flagged
    if again.code != 3:
        report.failures.append(f"{where}: giving the command again ended with {again.code}: {again.err[-300:]}")
    else:
        report.check(again.told["resumed"] >= kept * noted, f"{where}: {kept} kept, {again.told['resumed']} found")
        report.check(digest(job.out) == job.wanted, f"{where}: the file has other bytes")
        left = sorted(path.name for path in job.out.parent.iterdir())
        report.check(left == [job.out.name, failures_path(job.out).name], f"{where}: left behind: {left}")
    job.clear()
