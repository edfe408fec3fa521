"""Killed with SIGKILL at random moments, again and again into the same extraction, its resumptions included.

Full: 200 kills. Short: 3. Two at a time in a loop of the same output, so that most kills meet a run that goes on from
an earlier kill; runs that end before their kill are begun again.
"""

import os
import random
import signal
import time

from .common import Job, Options, Report, digest, scratch


def run(options: Options) -> Report:
    report, rng = Report(), random.Random(options.seed)
    wanted = options.cases or (200 if options.full else 3)
    with scratch() as folder:
        job = Job(folder, 20 if options.full else 6)
        report.figures |= {"shards": job.images, "kills": 0, "of a run that went on": 0, "while the file was made": 0}
        while report.figures["kills"] < wanted:
            kill(job, rng, report)
        job.finish(report, "after the last kill", len(job.named()))
    return report


def kill(job: Job, rng: random.Random, report: Report) -> None:
    before = job.named()
    running = job.start()
    time.sleep(rng.uniform(0, 1.1 * job.seconds))
    os.kill(running.pid, signal.SIGKILL)
    ended = running.wait()
    if ended.code == -signal.SIGKILL:
        report.count("kills")
        report.count("of a run that went on", bool(before))
        report.count("while the file was made", len(job.named()) == job.images or job.out.exists())
        report.check(job.out.exists() or before <= job.named(), f"lost {sorted(before - job.named())}")
        return
    report.check(ended.code == 0, f"expected to be killed or done, found {ended.code}: {ended.err[-300:]}")
    report.check(digest(job.out) == job.wanted, "a run that ended by itself has other bytes")
    if not before:
        job.seconds = ended.seconds  # as long as a whole run takes now
    report.count("finished")
    job.clear()
