"""How C is chosen, what is trained on and what is tested on, data set by data set.

The order of events is that of the VGG paper, Appendix B, where it says one, else that of the toolkits of the time:
choose C on held-out training rows, fit again on all training rows, test once.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from vggfeat.checks import check_given
from vggfeat.datasets.catalogue import DATASETS
from vggfeat.datasets.record import ProtocolName
from vggfeat.descriptor_stream import DescriptorSet
from vggfeat.errors import FitError
from vggfeat.metrics.bootstrap import BootstrapSettings
from vggfeat.protocols.experiment import Experiment, Progress
from vggfeat.protocols.folds import SplitPlan, hold_out, k_folds, label_notes, names_of
from vggfeat.protocols.results import Result
from vggfeat.protocols.settings import Evaluation, ProtocolSettings, Rows, choose_metric, choose_protocol, split_numbers
from vggfeat.protocols.spread import headline_interval, learning_curve
from vggfeat.samples import DataSet, Label
from vggfeat.wording import counted


def run_protocol(
    table: DescriptorSet,
    settings: ProtocolSettings | None = None,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Choose C, fit and test as the data set's protocol says.

    Parameters
    ----------
    table : DescriptorTable or DescriptorStream
        Descriptors with the labels and splits of their data set; of a stream with a solver that streams.
    progress : callable, optional
        See `vggfeat.protocols.experiment.Progress`.
    clock : callable, optional
        Seconds from any start, for the times in the result.

    Returns
    -------
    Result
        Two calls with the same arguments differ in `seconds` only.

    Raises
    ------
    FitError
        If there are no labels, a split is missing, labels of a test are withheld, a sample is trained and tested
        on, or a class has no positive or no negative to train on.
    ConfigError
        If the protocol doesn't go with the data set, or a path is given for a table.
    """
    check_given("table", table, DescriptorSet, "what vggfeat.read_descriptors makes of feature files")
    settings = settings or ProtocolSettings()
    dataset, (name, evaluation, plans) = table.dataset, plan_protocol(table.dataset, settings)
    metric, server = evaluation.metric, plans.server
    experiment = Experiment(
        table=table,
        evaluation=evaluation,
        grid=settings.grid,
        svm=settings.svm,
        progress=progress,
        clock=clock,
        notes=[*label_notes(table), *plans.notes],
    )
    start = clock()
    runs, submission = experiment.runs(plans.splits), None
    if server is not None:
        (run,) = runs
        words = {"chosen": run.plan["chosen"], "fitted": "train + val", "scored": "test"}
        submission = experiment.submit(run.choice, server[0], server[1], **words)
    final = experiment.fit_all(_labelled(dataset), runs) if settings.fit_all else None
    interval = headline_interval(dataset, metric, runs, BootstrapSettings(seed=settings.seed))
    curve = None
    if settings.learning_curve:
        with experiment.timed("learning curve"):
            curve = learning_curve(experiment, metric, runs, settings.seed)
    return Result(
        protocol=name,
        description=plans.description,
        metric=metric,
        dataset=_describe(table),
        classes=dataset.classes,
        runs=tuple(runs),
        interval=interval,
        learning_curve=curve,
        submission=submission,
        final=final,
        notes=(*_reading_notes(settings), *_condensed(experiment.notes, experiment.named)),
        settings={"protocol": _describe_settings(settings, name), "features": dict(table.settings)},
        seconds={**experiment.seconds, "total": clock() - start},
    )


class Plans(NamedTuple):
    """What a protocol does with the rows of a data set; nothing is trained yet."""

    description: str
    splits: Sequence[SplitPlan]
    """One for each run."""
    notes: Sequence[str] = ()
    server: tuple[Rows, Rows] | None = None
    """Rows to fit a last model on, and rows whose scores go to a server."""


def plan_protocol(dataset: DataSet, settings: ProtocolSettings) -> tuple[ProtocolName, Evaluation, Plans]:
    """Return the protocol, how it measures, and which rows each run trains on, chooses C on, and is tested on.

    Raises FitError or ConfigError as `run_protocol`, where the splits or labels don't suit it.
    """
    name = choose_protocol(dataset, settings)
    evaluation = Evaluation(
        dataset=dataset,
        metric=choose_metric(dataset, settings, name),
        difficult_in_training=settings.difficult_in_training,
        difficult_in_scoring=settings.difficult_in_scoring,
    )
    plans = PROTOCOLS[name](evaluation, settings)
    if settings.folds is not None and name not in FOLDING:
        ignored = f"folds = {settings.folds} was given, and decides nothing: the protocol {name} has fixed splits."
        plans = plans._replace(notes=[*plans.notes, ignored])
    return name, evaluation, plans


def _plan_voc(evaluation: Evaluation, settings: ProtocolSettings) -> Plans:
    """VOC2007: C by val, trained on trainval, tested on test."""
    train, val, test = (_split(evaluation.dataset, name) for name in ("train", "val", "test"))
    words = {"chosen": "trained on train, measured on val", "fitted": "train + val", "tested": "test"}
    plan = SplitPlan(name="test", parts=[(train, val)], fit_rows=_union(train, val), test_rows=test, **words)
    return Plans(
        "C was chosen for each class by average precision on val after training on train; then the SVM was "
        "trained on train + val and tested on test.",
        [plan],
    )


def _plan_voc_server(evaluation: Evaluation, settings: ProtocolSettings) -> Plans:
    """VOC2012: C by cross-validation inside train, tested on val; test is scored for the server."""
    dataset = evaluation.dataset
    train, val = _split(dataset, "train"), _split(dataset, "val")
    fold = _fold_of(dataset, train, settings)
    chosen = f"{settings.fold_count}-fold cross-validation in train"
    parts = [(train[fold != part], train[fold == part]) for part in range(settings.fold_count)]
    words = {"chosen": chosen, "fitted": "train", "tested": "val"}
    plan = SplitPlan(name="val", parts=parts, fit_rows=train, test_rows=val, **words)
    description = (
        f"C was chosen for each class by average precision in a {settings.fold_count}-fold cross-validation inside "
        "train (rows of one image stay together); then the SVM was trained on train and tested on val."
    )
    if not len(dataset.splits.get("test", ())):
        return Plans(description, [plan])
    return Plans(
        f"{description} For the server, test was scored after training on train + val.",
        [plan],
        server=(_union(train, val), dataset.splits["test"]),
    )


def _plan_caltech(evaluation: Evaluation, settings: ProtocolSettings) -> Plans:
    """Caltech: for every split one C by held-out training images, trained on all of them, tested on the rest."""
    dataset = evaluation.dataset
    plans = []
    if not split_numbers(dataset):
        _split(dataset, "train-1")
    for number in split_numbers(dataset):
        train, test = _split(dataset, f"train-{number}"), _split(dataset, f"test-{number}")
        held = dataset.splits.get(f"held-out-{number}", np.zeros(0, dtype=np.int64))
        if not len(held):
            held = _held_out(dataset, train, settings)
        chosen = f"trained on train-{number} without its held-out part, measured on that"
        words = {"chosen": chosen, "fitted": f"train-{number}", "tested": f"test-{number}"}
        parts = [(np.setdiff1d(train, held), held)]
        plans.append(SplitPlan(name=f"split {number}", parts=parts, fit_rows=train, test_rows=test, **words))
    read = {f"{kind}-{number}" for kind in ("train", "held-out", "test") for number in split_numbers(dataset)}
    unused = {name: len(rows) for name, rows in dataset.splits.items() if name not in read}
    return Plans(
        f"For each of {len(plans)} splits one C for all classes was chosen by mean class recall on held-out training "
        "images; then the SVM was trained on all training images and tested on the test images.",
        plans,
        _note_unused(unused),
    )


def _plan_given_splits(evaluation: Evaluation, settings: ProtocolSettings) -> Plans:
    """Own splits: tested on test, or on val where there is no test."""
    dataset = evaluation.dataset
    train = _split(dataset, "train")
    has_val, has_test = (len(dataset.splits.get(name, ())) > 0 for name in ("val", "test"))
    if not has_test and not has_val:
        _split(dataset, "test")
    if has_val and has_test:
        held, fit_rows, fitted = dataset.splits["val"], _union(train, dataset.splits["val"]), "train + val"
        rest, chosen = train, "trained on train, measured on val"
    else:
        held, fit_rows, fitted = _held_out(dataset, train, settings), train, "train"
        rest, chosen = np.setdiff1d(train, held), f"{settings.held_out:.0%} of train, after training on its rest"
    tested = "test" if has_test else "val"
    words = {"chosen": chosen, "fitted": fitted, "tested": tested}
    plan = SplitPlan(name=tested, parts=[(rest, held)], fit_rows=fit_rows, test_rows=dataset.splits[tested], **words)
    lost = {name: len(np.setdiff1d(rows, _union(fit_rows, plan.test_rows))) for name, rows in dataset.splits.items()}
    return Plans(
        f"C was chosen {_by(evaluation)} ({chosen}); then the SVM was trained on {fitted} and tested on {tested}.",
        [plan],
        _note_unused(lost),
    )


def _note_unused(lost: dict[str, int]) -> list[str]:
    names = ", ".join(f"{name} ({counted(count, 'sample{s}')})" for name, count in lost.items() if count)
    return [f"Splits that were not used: {names}."] * bool(names)


def _plan_k_fold(evaluation: Evaluation, settings: ProtocolSettings) -> Plans:
    """Without splits: every fold is tested on once, with a C that is chosen inside the others."""
    dataset = evaluation.dataset
    rows = _labelled(dataset)
    fold = _fold_of(dataset, rows, settings)
    plans = []
    for part in range(settings.fold_count):
        fit_rows, test_rows = rows[fold != part], rows[fold == part]
        held = _held_out(dataset, fit_rows, settings)
        fitted, tested = f"the folds other than {part + 1}", f"fold {part + 1}"
        chosen = f"{settings.held_out:.0%} of {fitted}, after training on their rest"
        words = {"chosen": chosen, "fitted": fitted, "tested": tested}
        parts = [(np.setdiff1d(fit_rows, held), held)]
        plans.append(SplitPlan(name=tested, parts=parts, fit_rows=fit_rows, test_rows=test_rows, **words))
    bare = len(dataset) - len(rows)
    left_out = f" {counted(bare, 'sample{s}')} without labels took no part." * (bare > 0)
    together = "" if dataset.groups is None else " Samples of one group stay together."
    names = ", ".join(dataset.splits)
    return Plans(
        f"Stratified {settings.fold_count}-fold test: each fold was tested on after training on the others, with C "
        f"chosen {_by(evaluation)} on {settings.held_out:.0%} of these.{together}{left_out}",
        plans,
        [f"Splits that were not used, because folds are drawn from all samples: {names}."] * bool(names),
    )


PROTOCOLS: dict[str, Callable[[Evaluation, ProtocolSettings], Plans]] = {
    "voc": _plan_voc,
    "voc-server": _plan_voc_server,
    "caltech": _plan_caltech,
    "given-splits": _plan_given_splits,
    "k-fold": _plan_k_fold,
}

FOLDING = ("voc-server", "k-fold")
"""Protocols that make a cross-validation."""


def _split(dataset: DataSet, name: str) -> Rows:
    rows = dataset.splits.get(name, np.zeros(0, dtype=np.int64))
    if len(rows):
        return rows
    found = ", ".join(split for split, there in dataset.splits.items() if len(there)) or "none"
    record = DATASETS.get(dataset.name)
    archive = None if record is None else record.archive_of(name)
    remedy = (
        "choose the protocol k-fold, or name splits in a CSV manifest" if archive is None else f"unpack {archive.file}"
    )
    raise FitError(
        f"{dataset.name}: expected samples in the split {name}, found the splits {found}; {remedy}, and extract again"
    )


def _labelled(dataset: DataSet) -> Rows:
    return np.flatnonzero(~(dataset.labels == Label.WITHHELD).any(axis=1)).astype(np.int64)


def _union(*parts: Rows) -> Rows:
    return np.unique(np.concatenate(parts))


def _fold_of(dataset: DataSet, rows: Rows, settings: ProtocolSettings) -> Rows:
    paths, groups = names_of(dataset, rows)
    return k_folds(paths, dataset.labels[rows] == 1, settings.fold_count, settings.seed, groups)


def _held_out(dataset: DataSet, rows: Rows, settings: ProtocolSettings) -> Rows:
    paths, groups = names_of(dataset, rows)
    return rows[hold_out(paths, dataset.labels[rows] == 1, settings.held_out, settings.seed, groups)]


def _by(evaluation: Evaluation) -> str:
    if evaluation.metric == "recall":
        return "once for all classes by mean class recall"
    return "for each class by average precision"


def _condensed(notes: list[str], named: Mapping[str, str]) -> list[str]:
    """Return one note for those that differ in their numbers only, as folds of a test make them; a class may be "1"."""
    alike: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        alike.setdefault((re.sub(r"\d[\d.]*", "#", note), named.get(note, note)), []).append(note)
    more = [
        f" The same holds, with other numbers, {counted(len(group) - 1, 'time{s}')} more." for group in alike.values()
    ]
    return [group[0] + addition * (len(group) > 1) for group, addition in zip(alike.values(), more, strict=True)]


def _reading_notes(settings: ProtocolSettings) -> list[str]:
    notes = []
    if settings.difficult_in_training != "ignore":
        notes.append(f"Difficult samples (label 0) were trained on as {settings.difficult_in_training}s.")
    if settings.difficult_in_scoring != "ignore":
        notes.append(
            f"Difficult samples (label 0) were counted as {settings.difficult_in_scoring}s in average precision: the "
            f"values are not comparable with VOC's, which ignores them."
        )
    return notes


def _describe_settings(settings: ProtocolSettings, name: ProtocolName) -> dict[str, Any]:
    return asdict(settings) | {"protocol": name, "folds": settings.fold_count if name in FOLDING else None}


def _describe(table: DescriptorSet) -> dict[str, Any]:
    dataset = table.dataset
    return {
        "name": dataset.name,
        "task": str(dataset.task),
        "fingerprint": dataset.fingerprint(),
        "samples": len(dataset),
        "classes": len(dataset.classes),
        "failed": int((~table.ok).sum()),
        "failures": [
            {"id": dataset.ids[row], "reason": table.reasons.get(row, "")} for row in np.flatnonzero(~table.ok).tolist()
        ],
        "length": table.descriptors.shape[1],
        "splits": {name: len(rows) for name, rows in dataset.splits.items()},
        **({} if dataset.groups is None else {"groups": len(set(dataset.groups))}),
    }
