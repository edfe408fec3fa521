"""Killed at every call that changes the disk, before it and half-way through each write; then given again.

Every call of an extraction of 20 shards goes through one seam (`vggfeat.runtime.durable.Files`), where it dies.
Full: at each call. Short: at each 37th, of 3 shards.
"""

from crash_runs import killing

from .common import Job, Options, Report, scratch


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        job = Job(folder, 20 if options.full else 3)
        names = job.calls()
        report.figures |= {"shards": job.images, "calls": len(names)}
        for number in range(1, len(names) + 1, 1 if options.full else 37):
            for torn in (False, True) if names[number - 1] == "write" else (False,):
                kill(job, number, torn, f"call {number}, {names[number - 1]}{', torn' * torn}", report)
    return report


def kill(job: Job, number: int, torn: bool, where: str, report: Report) -> None:
    died = job.start(files=killing(number, torn)).wait()
    report.count("points")
    report.count("torn", torn)
    report.check(died.code == 9, f"{where}: ended with {died.code} instead of dying: {died.err[-300:]}")
    job.finish(report, where, len(job.named()))
