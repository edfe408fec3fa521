"""Two of the same command at once, and a reader meanwhile: one writes, the other ends at once and says who it is.

The reader sees no feature file until it sees a whole one. A lock is free at once when its holder is killed. Full: 20
races.
"""

import time

from feature_rows import crash_run
from vggfeat.errors import StoreError
from vggfeat.store.reader import validate

from .common import Job, Options, Report, digest, scratch


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        job = Job(folder, 10)
        for race in range(20 if options.full else 2):
            meet(job, f"race {race}", report)
        report.figures |= crash_run("orphans", folder)
    report.check(report.figures["free at once"], "a lock outlived its holder")
    return report


def meet(job: Job, where: str, report: Report) -> None:
    report.count("races")
    runs = [job.start() for _ in range(2)]
    while sum(not run.ended() for run in runs):  # each is asked each time
        look(job, where, report)
        time.sleep(0.002)
    ended = sorted((run.wait() for run in runs), key=lambda found: found.code)
    codes = [found.code for found in ended]
    # Without a loser, the second came when the first had finished, and found its file.
    late = codes == [0, 0] and max(found.told["resumed"] for found in ended) == job.images
    report.check(codes == [0, 6] or late, f"{where}: exit codes {codes}: {[found.err[-200:] for found in ended]}")
    report.count("one refused", codes == [0, 6])
    if codes == [0, 6]:
        report.check("expected to be its only writer, found process" in ended[1].err, f"{where}: {ended[1].err}")
        quicker = ended[1].seconds < ended[0].seconds
        report.check(quicker, f"{where}: the refusal took {ended[1].seconds:.2f} s, and the run {ended[0].seconds:.2f}")
        report.figures["slowest refusal"] = round(max(report.figures.get("slowest refusal", 0), ended[1].seconds), 2)
    report.check(job.out.exists() and digest(job.out) == job.wanted, f"{where}: the file has other bytes")
    job.clear()


def look(job: Job, where: str, report: Report) -> None:
    report.count("looks")
    try:
        found = validate(job.out)
    except StoreError as error:
        report.check("found none" in str(error), f"{where}: a reader met {error}")
    else:
        report.count("looks at the whole file")
        report.check(not found.problems, f"{where}: a reader found {found.problems}")
