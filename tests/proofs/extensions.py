"""Every disk call of a run that extends a finished file is its last, or fails; then the same command is given again.

Of the images some have come, one has gone and one has changed since the file was made. At every moment the old file or
the new one must stand there, whole; a disk that fails is told in one line with exit code 6; and the command given again
keeps what is known and ends with the file of a new run. Full: of 8 images, at each call. Short: of 4, at each 61st.
"""

import shutil
from pathlib import Path

from crash_runs import failing, killing
from image_files import draw

from .common import Ended, Job, Options, Report, digest, scratch

FAULTS = ("killed", "torn", "full", "broken")


def run(options: Options) -> Report:
    report, step = Report(), 1 if options.full else 61
    with scratch() as folder:
        job = Job(folder, 8 if options.full else 4)
        old, known = folder / "old.h5", make_old(job, folder / "old.h5", report)
        job.options = ("--extend",)
        shutil.copyfile(old, job.out)
        names = job.calls()
        report.figures |= {"images": job.images, "kept": known, "calls": len(names)}
        for index, kind in enumerate(FAULTS):
            for number in range(1 + index * step // len(FAULTS), len(names) + 1, step):
                if kind != "torn" or names[number - 1] == "write":
                    shutil.copyfile(old, job.out)
                    fault(job, number, kind, digest(old), known, f"call {number}, {names[number - 1]}, {kind}", report)
    return report


def make_old(job: Job, out: Path, report: Report) -> int:
    """Extract what was there before, and return how many images are still the same."""
    paths = sorted(job.root.glob("*/*.png"))
    come, changed, gone = (paths[0], paths[job.images // 2]), paths[-1], paths[0].with_name("gone.png")
    now = {path: path.read_bytes() for path in (*come, changed)}
    for path in come:
        path.unlink()
    for number, path in enumerate((changed, gone), 100):
        draw(path, number)
    report.check(job.start(out).wait().code == 0, "the old file was not made")
    gone.unlink()
    for path, content in now.items():
        path.write_bytes(content)
    return job.images - len(now)


def fault(job: Job, number: int, kind: str, old: str, known: int, where: str, report: Report) -> None:
    kills = kind in ("killed", "torn")
    ended = job.start(files=killing(number, kind == "torn") if kills else failing(number, kind)).wait()
    report.count(kind)
    found = digest(job.out) if job.out.exists() else None
    report.check(found in (old, job.wanted), f"{where}: neither the old file nor the new one")
    report.count("new file already", found == job.wanted)
    check_end(ended, kills, found == job.wanted, where, report)
    job.finish(report, where, known)


def check_end(ended: Ended, kills: bool, finished: bool, where: str, report: Report) -> None:
    # The new file may have its name already when the last of the tidying fails.
    codes = (9,) if kills else (6, 0) if finished else (6,)
    report.check(ended.code in codes, f"{where}: ended with {ended.code}: {ended.err[-300:]}")
    report.check(ended.clean, f"{where}: said more than one line: {ended.err[-500:]}")
    if ended.code == 6:
        report.check("x.h5" in ended.err, f"{where}: the file is not named: {ended.err}")
