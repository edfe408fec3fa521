"""Several processes at one extraction, one killed at a random moment, then all started again, to the same file.

The killed one is any of two or three; the others are ended as torchrun ends them, and the next start has another
number. Full: 30 kills. Short: 2.
"""

import os
import random
import signal
import time

from rank_runs import start

from .common import Job, Options, Report, Run, digest, scratch


def run(options: Options) -> Report:
    report, rng = Report(), random.Random(options.seed)
    wanted = options.cases or (30 if options.full else 2)
    with scratch() as folder:
        job = Job(folder, 20 if options.full else 7)
        report.figures |= {"shards": job.images, "kills": 0, "of the first": 0, "of a run that went on": 0}
        report.figures["slowest end"] = 0.0
        seconds = together(job, 3, report, "undisturbed")
        while report.figures["kills"] < wanted:
            kill(job, rng, seconds, report)
        together(job, 2, report, "after the last kill")
    return report


def kill(job: Job, rng: random.Random, seconds: float, report: Report) -> None:
    before, count = job.named(), rng.choice((2, 3))
    victim = rng.randrange(count)
    runs = start(job, count)
    time.sleep(rng.uniform(0, 1.1 * seconds))
    os.kill(runs[victim].pid, signal.SIGKILL)
    begun = time.monotonic()
    stop([one for rank, one in enumerate(runs) if rank != victim], report)
    ended = [one.wait() for one in runs]
    report.figures["slowest end"] = max(report.figures["slowest end"], round(time.monotonic() - begun, 2))
    codes = [one.code for one in ended]
    if codes[victim] != -signal.SIGKILL:
        finished(job, codes, report)
        return
    where = f"kill {report.figures['kills']}, process {victim} of {count}"
    report.count("kills")
    report.count("of the first", victim == 0)
    report.count("of a run that went on", bool(before))
    report.check(job.out.exists() or before <= job.named(), f"{where}: lost {sorted(before - job.named())}")
    for rank, one in enumerate(ended):
        # One may have lost touch before it was ended, or have come to its end.
        kept = rank == victim or (one.code in (0, 6, 143, -signal.SIGKILL) and "Traceback" not in one.err)
        report.check(kept, f"{where}: process {rank} ended with {one.code}: {one.err[-300:]}")


def stop(runs: list[Run], report: Report) -> None:
    """End processes as torchrun does: by SIGTERM, and by SIGKILL if that takes too long."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in runs:
            if not one.ended():
                os.kill(one.pid, number)
                report.count("ended by SIGKILL", number == signal.SIGKILL)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(not one.ended() for one in runs):
            time.sleep(0.005)


def finished(job: Job, codes: list[int], report: Report) -> None:
    report.check(set(codes) <= {0, 143}, f"expected to be killed or done, found {codes}")
    report.check(digest(job.out) == job.wanted, "a run that ended by itself has other bytes")
    report.count("finished")
    job.clear()


def together(job: Job, count: int, report: Report, where: str) -> float:
    """Let them finish what was begun, and return how long that took."""
    kept, begun = len(job.named()), time.monotonic()
    ended = [one.wait() for one in start(job, count)]
    seconds = time.monotonic() - begun
    codes = [one.code for one in ended]
    if any(codes):
        report.failures.append(f"{where}: {codes}: {[one.err[-300:] for one in ended]}")
        return seconds
    report.check(ended[0].told["resumed"] >= kept, f"{where}: {kept} rows were kept, {ended[0].told['resumed']} found")
    report.check(digest(job.out) == job.wanted, f"{where}: the file has other bytes")
    left = sorted(path.name for path in job.out.parent.iterdir())
    report.check(left == [job.out.name], f"{where}: left behind: {left}")
    job.clear()
    return seconds
