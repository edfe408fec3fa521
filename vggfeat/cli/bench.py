"""`vggfeat bench`: measurements of speed, each next to what it has to be compared with."""

from typing import TYPE_CHECKING

import click

from vggfeat.cli.output import say, say_json
from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from vggfeat.benchmarks.svm import Comparison, Timing

PEER_SAMPLE = {"tiny": None, "voc": None}
"""How many problems of each stage the peer solves by default: all at these sizes."""
OTHER_SAMPLE = 24


@click.group()
def bench() -> None:
    """Measure speed, next to other programs or what the machine can do."""


@bench.command("svm")
@click.option(
    "--size", type=click.Choice(["tiny", "voc", "caltech101", "caltech256", "caltech256-part"]), default="voc",
    show_default=True, help="Of the made-up descriptors. caltech256-part: a quarter of its classes, one split.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), help="Cores for either solver. [all]")
@click.option("--device", help="Of vggfeat's solver: cpu, cuda, cuda:1, ... [the CPU, by NumPy]")
@click.option(
    "--sample", type=click.IntRange(1),
    help="SVMs a stage that LinearSVC solves; all times follow from theirs. [tiny, voc: all; else 24]",
)  # fmt: skip
@click.option("--no-peer", "alone", is_flag=True, help="Time vggfeat's solver only.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the descriptors.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def bench_svm(
    size: str, threads: int | None, device: str | None, sample: int | None, alone: bool, seed: int, as_json: bool
) -> None:
    """Time the SVM stage of a protocol by vggfeat's solver and by scikit-learn's LinearSVC, on the same arrays.

    C is chosen among 12 values on held-out rows, then all classes are fitted again. LinearSVC is taken in its fastest
    form (float32 or float64, dual or primal, with and without reducing the rows by QR first), its problems in parallel
    over the cores. Objectives and duality gaps are computed from the weights of both.

    \b
    Examples:
      vggfeat bench svm
      vggfeat bench svm --size caltech101 --device cuda --json
    """
    if alone and sample:
        raise ConfigError("--sample: expected without --no-peer, found both; leave one out")
    from vggfeat.benchmarks.features import make_problem
    from vggfeat.benchmarks.svm import compare
    from vggfeat.runtime.devices import cores

    problem = make_problem(size, seed)
    solved = sample or PEER_SAMPLE.get(size, OTHER_SAMPLE)
    found = compare(problem, threads=threads or cores(), device=device, sample=solved, alone=alone)
    if as_json:
        say_json(found.to_json())
        return
    for line in _lines(found):
        say(line)


def _lines(found: "Comparison") -> list[str]:
    from vggfeat.results.text import align

    rows, length = found.shape
    splits = f", {found.splits} splits" if found.splits > 1 else ""
    header = ["", "choice s", "fit s", "all s", "ratio", "gap", "not converged", "objective", "same C", "memory GB"]
    ratios = (1.0, *found.ratios)
    cells = [_cells(one, ratio) for one, ratio in zip((found.own, *found.peers), ratios, strict=True)]
    lines = [
        f"{found.note}",
        f"{rows} x {length} float32, {found.classes} classes, {len(found.grid)} values of C{splits}; "
        f"{found.threads} {'core' if found.threads == 1 else 'cores'}; made-up descriptors",
        "",
        *align([header, *cells], left=1),
        "",
        "gap: the largest relative duality gap. objective: the largest excess over vggfeat's on the same problem.",
    ]
    for peer in found.peers:
        if peer.solved < peer.problems:
            lines.append(f"{peer.solver}: {peer.solved} of {peer.problems} problems solved, seconds extrapolated")
        lines.append(f"{peer.solver}: vggfeat's objective exceeds its by {peer.lead:.1e} at most, relative")
    if not found.tried:
        return lines
    tried = ", ".join(f"{one.form} {one.seconds:.2f} s" for one in found.tried)
    lines.append(f"LinearSVC on one class, three values of C: {tried}")
    return lines


def _cells(one: "Timing", ratio: float) -> list[str]:
    return [
        one.solver,
        f"{one.choice_seconds:.2f}",
        f"{one.fit_seconds:.2f}",
        f"{one.total_seconds:.2f}",
        f"{ratio:.1f}",
        f"{one.worst_gap:.1e}",
        f"{one.solved - one.converged} of {one.solved}",
        "-" if one.excess is None else f"{one.excess:+.1e}",
        f"{one.same_choices} of {one.choices}" if one.same_choices is not None else "-",
        f"{one.memory / 1e9:.2f}",
    ]
