"""The three steps that every protocol is made of: choose C on held-out rows, fit, test.

K = classes, G = values of C.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptor_stream import DescriptorSet, score
from vggfeat.errors import FitError
from vggfeat.metrics import mean_defined
from vggfeat.protocols.folds import SplitPlan, leak_notes, shared_path_note
from vggfeat.protocols.results import Choice, FinalModel, Run, Submission
from vggfeat.protocols.settings import Evaluation, Rows
from vggfeat.samples import Label
from vggfeat.svm import LinearModel, Split, SvmProblemSet, SvmSettings, Sweep, fittable_classes
from vggfeat.wording import counted

Progress = Callable[[str, int, int], None]
"""Called with the stage in words, the number of solved SVMs and the number of all in this stage."""


class _Measured(NamedTuple):
    """What one pair of rows says of the values of C."""

    curve: NDArray[np.float64]
    """(G, K) or (G, 1), NaN for classes that can't be trained."""
    decided: NDArray[np.bool_]
    """(K,) or (1,) whether scores decide the value."""
    converged: NDArray[np.bool_]
    """(G, K)"""
    gap: NDArray[np.float64]
    """(G, K), NaN where nothing was solved."""


@dataclass(kw_only=True)
class Experiment:
    """Samples with their descriptors and everything needed to choose, fit and test on rows of it."""

    table: DescriptorSet
    evaluation: Evaluation
    grid: Sequence[float]
    """Values of C, ascending."""
    svm: SvmSettings
    progress: Progress | None = None
    clock: Callable[[], float] = time.perf_counter
    """Seconds, for `seconds`."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the reader of the numbers; grows."""
    named: dict[str, str] = field(default_factory=dict)
    """Sentence -> the names in it, which tell it from other sentences that differ in numbers only; grows."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage (choice, fit, test) -> time in seconds; grows."""

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.table.dataset.classes

    @cached_property
    def problems(self) -> SvmProblemSet:
        """The descriptors, with what all fits on rows of them have in common."""
        return SvmProblemSet(self.table.descriptors, self.svm)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a `with` statement to those of a stage."""
        start = self.clock()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + self.clock() - start

    def runs(self, plans: Sequence[SplitPlan]) -> list[Run]:
        """Choose C on parts of the training rows, fit on all of them, test on others.

        What can be refused is refused before the first fit.

        Raises FitError if a row is both trained and tested on, labels of the test are withheld, or a class can't be
        fitted.
        """
        for plan in plans:
            self._check_apart(plan.fit_rows, plan.test_rows, plan.fitted, plan.tested)
            self.evaluation.truth(plan.test_rows, plan.tested)
            self._fittable_labels(plan.fit_rows, plan.fitted)
        self.notes += leak_notes(self.table, plans)
        choices = self._choose(plans)
        return [self._run(plan, choice) for plan, choice in zip(plans, choices, strict=True)]

    def submit(
        self, choice: Choice, fit_rows: Rows, test_rows: Rows, *, chosen: str, fitted: str, scored: str
    ) -> Submission:
        """Fit on some rows and score others, whose labels are not needed.

        Raises FitError as `runs`, labels of the test apart.
        """
        self._check_apart(fit_rows, test_rows, fitted, scored)
        model = self._fit(fit_rows, choice, fitted)
        scores = self._score(model, test_rows, scored)
        known = np.isfinite(scores)
        lowest = np.min(scores, axis=0, where=known, initial=np.inf)
        return Submission(
            rows=test_rows,
            scores=np.where(known, scores, np.where(np.isfinite(lowest), lowest, 0) - 1),
            listed=self.table.dataset.labels[test_rows] != Label.UNLISTED,
            model=model,
            plan={"chosen": chosen, "fitted": fitted, "scored": scored},
        )

    def fit_all(self, rows: Rows, runs: Sequence[Run]) -> FinalModel:
        """Fit on all labelled rows, with the C of a run, or with the one that is best on average over several.

        Raises FitError if a class can't be fitted.
        """
        from vggfeat.svm.calibration import calibrate

        fitted = f"all {counted(len(rows), 'labelled sample{s}')}"
        choice, chosen, tests = runs[0].choice, runs[0].plan["chosen"], f"the test on {runs[0].plan['tested']}"
        if len(runs) > 1:
            chosen, tests = f"on average over the choices of {len(runs)} runs", f"{len(runs)} tests"
            if len(self.grid) > 1:
                curve = np.apply_along_axis(mean_defined, 0, np.stack([run.choice.curve for run in runs]))
                choice = replace(choice, C=self._best(curve, choice.grid, chosen), curve=curve)
        model = self._fit(rows, choice, fitted)
        most = max(int((run.train_positives + run.train_negatives).max()) for run in runs)
        self._note(
            f"model.safetensors was trained on {fitted} and has no test of its own: the figures are those of SVMs that "
            f"were trained on at most {most} of them."
        )
        plan = {"chosen": chosen, "fitted": fitted, "estimated": f"{tests}, by SVMs trained on fewer"}
        scores, truth = (np.concatenate([getattr(run, name) for run in runs]) for name in ("scores", "truth"))
        return FinalModel(rows=rows, choice=choice, model=model, plan=plan, calibration=calibrate(scores, truth))

    def _run(self, plan: SplitPlan, choice: Choice) -> Run:
        truth = self.evaluation.truth(plan.test_rows, plan.tested)
        signs = self._fittable_labels(plan.fit_rows, plan.fitted)
        model = self._fit(plan.fit_rows, choice, plan.fitted)
        scores = self._score(model, plan.test_rows, plan.tested)
        values = self.evaluation.values(truth, scores)
        for note, names in self.evaluation.weak_points(truth, self.table.ok[plan.test_rows], plan.tested):
            self._note(note, names)
        return Run(
            name=plan.name,
            plan={"chosen": plan.chosen, "fitted": plan.fitted, "tested": plan.tested},
            choice=choice,
            model=model,
            fit_rows=plan.fit_rows,
            train_positives=(signs == 1).sum(axis=0),
            train_negatives=(signs == -1).sum(axis=0),
            test_positives=(truth == 1).sum(axis=0),
            test_negatives=(truth == -1).sum(axis=0),
            values=values,
            means=self.evaluation.means(values, truth, scores),
            chance=self.evaluation.chance(truth),
            rows=plan.test_rows,
            scores=scores,
            truth=truth,
            confusion=self.evaluation.confusion(truth, scores),
        )

    def _choose(self, plans: Sequence[SplitPlan]) -> list[Choice]:
        """Choose C by training on the first rows of each pair and measuring on the second, all plans in one solve.

        Average precision chooses one C for each class, recall one for all. Of equally good values it is the
        smallest; over several pairs the mean counts.
        """
        grid = np.array(self.grid)
        if len(grid) == 1:
            return [self._given(grid) for _ in plans]
        for plan in plans:
            for fit_rows, held_rows in plan.parts:
                self._check_apart(fit_rows, held_rows, "the training part", f"the part to choose C on ({plan.chosen})")
        what = plans[0].chosen if len(plans) == 1 else f"{len(plans)} runs"
        with self.timed("choice"):
            measured = self._sweep([(*pair, plan.chosen) for plan in plans for pair in plan.parts], what)
            return [self._choice(plan, grid, [next(measured) for _ in plan.parts]) for plan in plans]

    def _fit(self, rows: Rows, choice: Choice, what: str) -> LinearModel:
        """Fit all classes on rows, each with its C; `what` names the rows."""
        labels = self._fittable_labels(rows, what)
        with self.timed("fit"):
            model = self.problems.fit(
                rows[self.table.ok[rows]],
                labels,
                choice.C,
                classes=self.classes,
                progress=self._stage(f"training on {what}"),
            )
        if not model.converged.all():
            self._note(
                f"On {what} the solver gave up before its tolerance for {self._names(~model.converged)}: the relative "
                f"duality gap is up to {model.gap[~model.converged].max():.0e}.", self._names(~model.converged),
            )  # fmt: skip
        self._note_failed(rows, what)
        return model

    def _given(self, grid: NDArray[np.float64]) -> Choice:
        self._note(f"C = {grid[0]:g} was given, not chosen.")
        count = len(self.classes)
        nothing = np.full((1, count), np.nan)
        return Choice(
            C=np.full(count, grid[0]),
            grid=grid,
            curve=nothing[:, :1] if self.evaluation.metric == "recall" else nothing,
            converged=np.ones((1, count), dtype=bool),
            gap=nothing,
        )

    def _choice(self, plan: SplitPlan, grid: NDArray[np.float64], measured: Sequence[_Measured]) -> Choice:
        curves = np.stack([part.curve for part in measured])
        telling = np.where(np.stack([part.decided for part in measured])[:, None], curves, np.nan)
        curve = np.apply_along_axis(mean_defined, 0, curves if np.isnan(telling).all() else telling)
        converged = np.logical_and.reduce([part.converged for part in measured])
        gap = np.fmax.reduce([part.gap for part in measured])
        if not converged.all():
            self._note(
                f"In the choice of C ({plan.chosen}) the solver gave up before its tolerance for "
                f"{(~converged).sum()} of {converged.size} pairs of class and C: the relative duality gap is up to "
                f"{gap[~converged].max():.0e}."
            )
        best = self._best(curve, grid, plan.chosen)
        return Choice(C=best, grid=grid, curve=curve, converged=converged, gap=gap)

    def _sweep(self, pairs: Sequence[tuple[Rows, Rows, str]], stage: str) -> Iterator[_Measured]:
        """Solve all pairs (rows to fit, rows held out, in words) at once, and measure one after the other."""
        ok, splits, trainable = self.table.ok, [], []
        for fit_rows, held_rows, what in pairs:
            labels = self.evaluation.training_labels(fit_rows, what)[ok[fit_rows]]
            trainable.append(fittable_classes(labels) & ok[held_rows].any())
            if trainable[-1].any():
                held_out = held_rows[ok[held_rows]]
                splits.append(Split(rows=fit_rows[ok[fit_rows]], labels=labels[:, trainable[-1]], held_out=held_out))
        progress = self._stage(f"choosing C: {stage}")
        sweeps = iter(self.problems.sweep(splits, self.grid, progress=progress) if splits else ())
        for (_, held_rows, what), columns in zip(pairs, trainable, strict=True):
            yield self._measure(held_rows, what, columns, next(sweeps) if columns.any() else None)

    def _measure(self, held_rows: Rows, what: str, trainable: NDArray[np.bool_], sweep: Sweep | None) -> _Measured:
        """Measure held-out rows (m,) by every C; rows that failed, and classes that can't be trained, have no score."""
        truth, ok = self.evaluation.truth(held_rows, what), self.table.ok[held_rows]  # (m, K), (m,)
        scores = np.full((len(held_rows), len(self.classes)), -np.inf)
        converged = np.ones((len(self.grid), len(self.classes)), dtype=bool)
        gap = np.full(converged.shape, np.nan)
        if sweep is not None:
            converged[:, trainable], gap[:, trainable] = sweep.converged, sweep.gap
        values = []
        for g in range(len(self.grid)):  # Scores of all C together may not fit into memory.
            if sweep is not None:
                scores[np.ix_(ok, trainable)] = sweep.scores[g].T
            values.append(self.evaluation.curve_values(truth, scores))
        curve = np.array(values)
        if self.evaluation.metric != "recall":
            curve[:, ~trainable] = np.nan
        elif not trainable.any():
            curve[:] = np.nan
        return _Measured(curve, self.evaluation.decided(truth, ok)[: curve.shape[1]], converged, gap)

    def _best(self, curve: NDArray[np.float64], grid: NDArray[np.float64], what: str) -> NDArray[np.float64]:
        # Rounded, so that values which differ by the order of a summation only count as equal.
        ranked = np.where(np.isnan(curve), -np.inf, np.round(curve, 12))
        best = ranked.argmax(axis=0)
        without = np.asarray(np.isnan(curve).all(axis=0))
        if without.all():
            raise FitError(
                f"choice of C ({what}): expected positives to train and to measure on, found none in any class; "
                f"add samples, or give one C"
            )
        ends = ~without & ((best == len(grid) - 1) | ((best == 0) & (ranked[0] > ranked[1])))
        if ends.any():
            whose = (
                "all classes together" if self.evaluation.metric == "recall" else f"{ends.sum()} of {len(ends)} classes"
            )
            self._note(
                f"In the choice of C ({what}) the best value is the smallest or the largest that was tried "
                f"({grid[0]:g}, {grid[-1]:g}) for {whose}: a wider grid may do better."
            )
        if without.any():
            best[without] = np.round(curve[:, ~without].mean(axis=1), 12).argmax()
            self._note(
                f"In the choice of C ({what}) there are too few positives or negatives with a descriptor of "
                f"{self._names(without)}: the C that is best on average was taken.", self._names(without),
            )  # fmt: skip
        return np.broadcast_to(grid[best], len(self.classes)).copy()

    def _fittable_labels(self, rows: Rows, what: str) -> NDArray[np.int8]:
        """Labels (n, K) to train on, of the rows that have a descriptor."""
        given, ok = self.evaluation.training_labels(rows, what), self.table.ok[rows]
        labels = given[ok]
        without = ~fittable_classes(labels)
        if without.any():
            # Of two classes one without positives leaves the other without negatives: the former is at fault.
            positives = (labels == 1).sum(axis=0)
            k = int(np.where(without, positives, len(labels) + 1).argmin())
            raise FitError(self._unfittable(k, labels, given[~ok], what))
        return labels

    def _unfittable(self, k: int, labels: NDArray[np.int8], failed: NDArray[np.int8], what: str) -> str:
        """Say what a class lacks in rows to train on: `labels` (n, K) of those in use, and of those that failed."""
        dataset = self.table.dataset
        positive = np.flatnonzero(dataset.labels[:, k] == Label.POSITIVE).tolist()
        in_groups = 0 if dataset.groups is None else len({dataset.groups[row] for row in positive})
        groups = f" in {counted(in_groups, 'group{s}')}" * (dataset.groups is not None)
        lost = int((failed[:, k] == 1).sum())
        images = f", because {counted(lost, 'image{s}')} of it failed" if lost else ""
        return (
            f"class {self.classes[k]}: expected positive and negative samples in {what} to train on, found "
            f"{(labels[:, k] == 1).sum()} positive and {(labels[:, k] == -1).sum()} negative{images}; the data set has "
            f"{len(positive)} of it{groups}: add samples of it, or leave the class out of the data set"
        )

    def _score(self, model: LinearModel, rows: Rows, what: str) -> NDArray[np.float64]:
        with self.timed("test"):
            scores = score(self.table, rows, model, self.svm.jobs)
        self._note_failed(rows, what)
        return scores

    def _check_apart(self, fit_rows: Rows, test_rows: Rows, fitted: str, tested: str) -> None:
        both = np.intersect1d(fit_rows, test_rows)
        if len(both):
            raise FitError(
                f"splits: expected no sample both in {fitted} and in {tested}, found {len(both)}, the first is "
                f"{self.table.dataset.ids[both[0]]!r}; correct the splits"
            )
        for note in shared_path_note(self.table.dataset, fit_rows, test_rows, fitted, tested):
            self._note(note, note)

    def _note_failed(self, rows: Rows, what: str) -> None:
        failed = (~self.table.ok[rows]).sum()
        if failed:
            fate = "count as wrong" if self.evaluation.metric == "recall" else "rank last"
            self._note(
                f"{failed} of {len(rows)} samples of {what} have no descriptor, because their image failed: they "
                f"take no part in training and {fate} in a test."
            )

    def _names(self, chosen: NDArray[np.bool_]) -> str:
        return ", ".join(self.classes[k] for k in np.flatnonzero(chosen).tolist())

    def _note(self, sentence: str, names: str = "") -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.named[sentence] = names

    def _stage(self, stage: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, total: progress(stage, done, total)
