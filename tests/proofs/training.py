"""Training: killed at random, resumed to the same bits; and of two processes one is lost, stopped, or short of memory.

Full: 20 kills. Short: 3. The runs themselves are in tests/support/train_runs.py.
"""

from train_runs import run_script

from .common import Options, Report, scratch


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        killed(run_script("kill", folder, 20 if options.full else 3, options.seed), report)
    with scratch() as folder:
        lost(run_script("world", folder, 2), report)
    return report


def killed(found: dict, report: Report) -> None:
    report.figures |= {"kills": found["killed"], "steps at the kills": found["steps"]}
    report.check((found["first"], found["last"]) == (0, 0), f"exit codes {found['first']}, {found['last']}")
    report.check(found["weights"][0] == found["weights"][1], "the weights of the killed run have other bytes")
    report.check(found["logs"][0] == found["logs"][1], "the log of the killed run has other figures")
    report.check(not any(name.endswith((".tmp", "LOCK")) for name in found["left"]), f"left behind: {found['left']}")


def lost(found: dict, report: Report) -> None:
    codes, seconds = found["lost"]["codes"], found["lost"]["seconds"]
    report.figures |= {"codes when one process is killed": codes, "seconds until all had ended": round(seconds, 1)}
    report.check(codes[-1] == -9 and all(codes) and seconds < 30, f"one process killed: {codes} after {seconds:.0f} s")
    stopped = found["stopped"]
    report.check(stopped["weights"][0] == stopped["weights"][1], "a stopped and resumed world has other weights")
