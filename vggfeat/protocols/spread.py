"""How far a headline would move: with other test images, and with fewer training images.

m = rows of a test, K = classes, S = shares of the training images, V = values of a share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptor_stream import score
from vggfeat.metrics import mean_defined
from vggfeat.metrics.bootstrap import BootstrapSettings, Interval, TestScores, bootstrap_interval
from vggfeat.protocols.experiment import Experiment
from vggfeat.protocols.folds import hold_out, names_of, unit_names
from vggfeat.protocols.results import Run
from vggfeat.protocols.settings import Metric
from vggfeat.samples import DataSet
from vggfeat.svm import fittable_classes

MOST_WORK, LEAST_RESAMPLES = 5 * 10**8, 200
"""Resamples times scores above which there are fewer resamples, at 9 s for 10**9 on one core, but not fewer than so
many. VOC-2007 has 10**8, 0.9 s."""


SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the training images, besides all of them; each is twice the one before, as the curve is about straight then."""
LEAST_VALUES = 5
"""Parts of the training images that each share is drawn in, in one run or one after another in several."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningCurve:
    """The headline's measure over the share of the training images, with the C that was chosen on all of them."""

    shares: tuple[float, ...]
    """S, ascending; the last is 1."""
    samples: tuple[float, ...]
    """S mean numbers of samples that were trained on."""
    values: tuple[NDArray[np.float64], ...]
    """S of (V,): of the last share one a run, of the others one a part that was drawn; NaN where a class had none."""

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a share: share, samples, mean, deviation (divisor: values - 1), low, high, values."""
        rows = []
        for share, samples, values in zip(self.shares, self.samples, self.values, strict=True):
            known = values[~np.isnan(values)]
            ends = {"low": known.min(), "high": known.max()} if len(known) else {"low": np.nan, "high": np.nan}
            spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
            row = {"share": share, "samples": samples, "mean": mean_defined(values), "deviation": spread}
            rows.append({**row, **ends, "values": values})
        return rows


def headline_interval(dataset: DataSet, metric: Metric, runs: Sequence[Run], settings: BootstrapSettings) -> Interval:
    """Return the interval of the mean over runs, by resamples of the tested images, or of groups if there are some."""
    work = sum(run.scores.size for run in runs)
    resamples = min(settings.resamples, max(LEAST_RESAMPLES, MOST_WORK // max(1, work)))
    # Of the whole data set: which groups share an image must not depend on which of its rows a run tests.
    units = unit_names(dataset.paths, dataset.groups)
    tests = [TestScores(images=[units[row] for row in run.rows], labels=run.truth, scores=run.scores) for run in runs]
    return bootstrap_interval(
        tests, metric, BootstrapSettings(resamples=resamples, seed=settings.seed, level=settings.level)
    )


def learning_curve(experiment: Experiment, metric: Metric, runs: Sequence[Run], seed: int) -> LearningCurve:
    """Train on shares of the training images of runs, with the C of each run, and test as the runs did.

    The parts are drawn as `vggfeat.protocols.folds.hold_out` draws: stratified, groups whole, at least one image of
    every class.
    """
    shares = (*SHARES, 1.0)
    draws = max(1, -(-LEAST_VALUES // len(runs)))
    values, samples, done, total = [], [], 0, len(SHARES) * draws * len(runs)
    for share in SHARES:
        found = []
        for run, draw in product(runs, range(draws)):
            found.append(_value_of_share(experiment, metric, run, share, seed + draw))
            done += 1
            if experiment.progress is not None:
                experiment.progress("learning curve", done, total)
        values.append(np.array([value for value, _ in found]))
        samples.append(float(np.mean([count for _, count in found])))
    values.append(np.array([run.means[metric] for run in runs]))
    samples.append(float(np.mean([experiment.table.ok[run.fit_rows].sum() for run in runs])))
    return LearningCurve(shares=shares, samples=tuple(samples), values=tuple(values))


def _value_of_share(experiment: Experiment, metric: Metric, run: Run, share: float, seed: int) -> tuple[float, int]:
    """Return the measure of one part, NaN where a class has no image with a descriptor in it, and its samples."""
    table, evaluation = experiment.table, experiment.evaluation
    dataset, fit_rows = table.dataset, run.fit_rows
    paths, groups = names_of(dataset, fit_rows)
    left_out = hold_out(paths, dataset.labels[fit_rows] == 1, 1 - share, seed, groups)
    rows = fit_rows[~left_out]
    rows = rows[table.ok[rows]]
    labels = evaluation.training_labels(rows, f"{share:.0%} of {run.plan['fitted']}")
    if not fittable_classes(labels).all():
        return float("nan"), len(rows)
    scores = score(table, run.rows, experiment.problems.fit(rows, labels, run.choice.C), experiment.svm.jobs)
    means = evaluation.means(evaluation.values(run.truth, scores), run.truth, scores)
    return means[metric], len(rows)
