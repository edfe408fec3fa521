"""Killed at every call of a run that tries failed pictures again, before it and half-way; then given again.

A finished file with two failed pictures, which are sound by then, is replaced by `--retry-failed`: at every moment the
old file or the new one must stand there, whole. Full: of 20 shards, at each call. Short: of 3, at each 37th.
"""

import shutil

from crash_runs import killing

from .common import Job, Options, Report, digest, scratch


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        job = Job(folder, 20 if options.full else 3)
        old = folder / "old.h5"
        report.check(fail_two(job, old) == 3, "the run with two bad pictures did not end with exit code 3")
        job.options = ("--retry-failed",)
        shutil.copyfile(old, job.out)
        names = job.calls()
        report.figures |= {"shards": job.pictures, "calls": len(names)}
        for number in range(1, len(names) + 1, 1 if options.full else 37):
            for torn in (False, True) if names[number - 1] == "write" else (False,):
                shutil.copyfile(old, job.out)
                kill(job, number, torn, digest(old), f"call {number}, {names[number - 1]}{', torn' * torn}", report)
    return report


def fail_two(job: Job, out) -> int:
    """Extract while the first and the last picture are none; return the exit code."""
    paths = sorted(job.root.glob("*/*.png"), key=lambda path: path.name)
    sound = {path: path.read_bytes() for path in (paths[0], paths[-1])}
    for path, content in sound.items():
        path.write_bytes(bytes(len(content)))
    code = job.start(out).wait().code
    for path, content in sound.items():
        path.write_bytes(content)
    return code


def kill(job: Job, number: int, torn: bool, old: str, where: str, report: Report) -> None:
    died = job.start(files=killing(number, torn)).wait()
    report.count("points")
    report.count("torn", torn)
    report.check(died.code == 9, f"{where}: ended with {died.code} instead of dying: {died.err[-300:]}")
    found = digest(job.out)
    report.check(found in (old, job.wanted), f"{where}: neither the old file nor the new one")
    report.count("new file already", found == job.wanted)
    job.finish(report, where, 0)
