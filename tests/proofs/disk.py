"""A disk that is full, broken or slow to take bytes, at every call; a small real disk; a limit on the size of files.

The command must end with exit code 6 and one line that names the file, never by a signal; what was finished is kept,
and the command given again, with the disk mended, ends with the file of an undisturbed run. Interrupts are among the
faults, because one may arrive within any call. Full: at each call. Short: at each 43rd.
"""

import resource
import subprocess

from crash_runs import failing

from .common import Ended, Job, Options, Report, scratch

KINDS = {"full": 6, "full for good": 6, "broken": 6, "interrupt": 130, "short": 0, "nothing": 6}
"""Fault -> exit code."""


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        job = Job(folder, 2 if options.full else 1)
        names = job.calls()
        report.figures |= {"shards": job.images, "calls": len(names)}
        step = 1 if options.full else 43
        for index, (kind, code) in enumerate(KINDS.items()):
            for number in range(1 + index % step, len(names) + 1, step):
                if kind not in ("short", "nothing") or names[number - 1] == "write":
                    where = f"call {number}, {names[number - 1]}, {kind}"
                    fault(job, where, job.start(files=failing(number, kind)).wait(), code, report)
        limit(job, report)
    if options.full:
        small_disk(report)
    return report


def fault(job: Job, where: str, ended: Ended, code: int, report: Report) -> None:
    report.count("faults")
    # The file may have its name already when the last of the tidying fails.
    expected = (code,) if not job.out.exists() else (code, 0)
    report.check(ended.code in expected, f"{where}: expected exit code {code}, found {ended.code}: {ended.err[-300:]}")
    report.check(ended.clean, f"{where}: said more than one line: {ended.err[-500:]}")
    if ended.code == 6:
        report.check("x.h5" in ended.err, f"{where}: the file is not named: {ended.err}")
    job.finish(report, where, len(job.named()))


def limit(job: Job, report: Report) -> None:
    """RLIMIT_FSIZE: the system refuses to let a file grow beyond the size of a shard."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        ended = job.start().wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    fault(job, "limit on the size of files", ended, 6, report)


def small_disk(report: Report) -> None:
    """Extract onto a real disk that is too small for the file, and then onto the same one made larger."""
    with scratch() as folder:
        job = Job(folder, 40)
        size = sum(8192 for _ in range(job.images)) // 3
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(job.out.parent)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            report.figures["small disk"] = "no right to mount one"
            return
        try:
            ended = job.start().wait()
            report.check(ended.code == 6, f"small disk: expected exit code 6, found {ended.code}: {ended.err}")
            report.check("disk" in ended.err and ended.clean, f"small disk: said {ended.err}")
            subprocess.run(["mount", "-o", "remount,size=64m", str(job.out.parent)], check=True)
            job.finish(report, "small disk", len(job.named()))
            report.figures["small disk"] = "refused, then finished"
        finally:
            subprocess.run(["umount", str(job.out.parent)], check=True)
