"""How C is chosen, what is trained on and what is tested on, data set by data set.

The order of events is that of the VGG paper, Appendix B, where it says one, else that of the toolkits of the time:
choose C on held-out training rows, fit again on all training rows, test once.
"""

import re
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from vggfeat.datasets.catalogue import DATASETS
from vggfeat.datasets.record import ProtocolName
from vggfeat.errors import ConfigError, FitError
from vggfeat.metrics.bootstrap import BootstrapSettings
from vggfeat.protocols.evaluation import Evaluation, Metric, Rows
from vggfeat.protocols.experiment import Experiment, Progress, SplitPlan
from vggfeat.protocols.folds import hold_out, k_folds, names_of
from vggfeat.protocols.leaks import label_notes
from vggfeat.protocols.results import Result, Run, Submission
from vggfeat.protocols.settings import ProtocolSettings
from vggfeat.protocols.spread import headline_interval, learning_curve
from vggfeat.samples import DataSet, Label, Task
from vggfeat.table import DescriptorTable


def run_protocol(
    table: DescriptorTable,
    settings: ProtocolSettings | None = None,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Choose C, fit and test as the data set's protocol says.

    Parameters
    ----------
    table : DescriptorTable
        Descriptors with the labels and splits of their data set.
    settings : ProtocolSettings, optional
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
        If the protocol doesn't go with the data set.
    """
    settings = settings or ProtocolSettings()
    dataset = table.dataset
    name = choose_protocol(dataset, settings)
    metric = choose_metric(dataset, settings, name)
    experiment = Experiment(
        table=table,
        evaluation=Evaluation(
            dataset=dataset,
            metric=metric,
            difficult_in_training=settings.difficult_in_training,
            difficult_in_scoring=settings.difficult_in_scoring,
        ),
        grid=settings.grid,
        svm=settings.svm,
        progress=progress,
        clock=clock,
    )
    start = clock()
    experiment.notes += label_notes(table)
    outcome = PROTOCOLS[name](experiment, settings)
    final = experiment.fit_all(_labelled(dataset), outcome.runs) if settings.fit_all else None
    interval = headline_interval(dataset, metric, outcome.runs, BootstrapSettings(seed=settings.seed))
    curve = None
    if settings.learning_curve:
        with experiment.timed("learning curve"):
            curve = learning_curve(experiment, metric, outcome.runs, settings.seed)
    return Result(
        protocol=name,
        description=outcome.description,
        metric=metric,
        dataset=_describe(table),
        classes=dataset.classes,
        runs=tuple(outcome.runs),
        interval=interval,
        learning_curve=curve,
        submission=outcome.submission,
        final=final,
        notes=(*_reading_notes(settings), *_condensed(experiment.notes)),
        settings={"protocol": asdict(settings) | {"protocol": name}, "features": dict(table.settings)},
        seconds={**experiment.seconds, "total": clock() - start},
    )


class _Outcome(NamedTuple):
    description: str
    runs: list[Run]
    submission: Submission | None = None


def _run_voc(experiment: Experiment, settings: ProtocolSettings) -> _Outcome:
    """VOC2007: C by val, trained on trainval, tested on test."""
    train, val, test = (_split(experiment.table.dataset, name) for name in ("train", "val", "test"))
    words = {"chosen": "trained on train, measured on val", "fitted": "train + val", "tested": "test"}
    plan = SplitPlan(name="test", parts=[(train, val)], fit_rows=_union(train, val), test_rows=test, **words)
    return _Outcome(
        "C was chosen for each class by average precision on val after training on train; then the SVM was "
        "trained on train + val and tested on test.",
        experiment.runs([plan]),
    )


def _run_voc_server(experiment: Experiment, settings: ProtocolSettings) -> _Outcome:
    """VOC2012: C by cross-validation inside train, tested on val; test is scored for the server."""
    dataset = experiment.table.dataset
    train, val = _split(dataset, "train"), _split(dataset, "val")
    fold = _fold_of(dataset, train, settings)
    chosen = f"{settings.folds}-fold cross-validation in train"
    parts = [(train[fold != part], train[fold == part]) for part in range(settings.folds)]
    words = {"chosen": chosen, "fitted": "train", "tested": "val"}
    (run,) = experiment.runs([SplitPlan(name="val", parts=parts, fit_rows=train, test_rows=val, **words)])
    description = (
        f"C was chosen for each class by average precision in a {settings.folds}-fold cross-validation inside "
        "train (rows of one image stay together); then the SVM was trained on train and tested on val."
    )
    if not len(dataset.splits.get("test", ())):
        return _Outcome(description, [run])
    submission = experiment.submit(
        run.choice, _union(train, val), dataset.splits["test"], chosen=chosen, fitted="train + val", scored="test"
    )
    return _Outcome(f"{description} For the server, test was scored after training on train + val.", [run], submission)


def _run_caltech(experiment: Experiment, settings: ProtocolSettings) -> _Outcome:
    """Caltech: for every split one C by held-out training images, trained on all of them, tested on the rest."""
    dataset = experiment.table.dataset
    plans = []
    if not _split_numbers(dataset):
        _split(dataset, "train-1")
    for number in _split_numbers(dataset):
        train, test = _split(dataset, f"train-{number}"), _split(dataset, f"test-{number}")
        held = dataset.splits.get(f"held-out-{number}", np.zeros(0, dtype=np.int64))
        if not len(held):
            held = _held_out(dataset, train, settings)
        chosen = f"trained on train-{number} without its held-out part, measured on that"
        words = {"chosen": chosen, "fitted": f"train-{number}", "tested": f"test-{number}"}
        parts = [(np.setdiff1d(train, held), held)]
        plans.append(SplitPlan(name=f"split {number}", parts=parts, fit_rows=train, test_rows=test, **words))
    read = {f"{kind}-{number}" for kind in ("train", "held-out", "test") for number in _split_numbers(dataset)}
    experiment.notes += _note_unused({name: len(rows) for name, rows in dataset.splits.items() if name not in read})
    return _Outcome(
        f"For each of {len(plans)} splits one C for all classes was chosen by mean class recall on held-out training "
        "images; then the SVM was trained on all training images and tested on the test images.",
        experiment.runs(plans),
    )


def _run_given_splits(experiment: Experiment, settings: ProtocolSettings) -> _Outcome:
    """Own splits: tested on test, or on val where there is no test."""
    dataset = experiment.table.dataset
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
    experiment.notes += _note_unused(lost)
    return _Outcome(
        f"C was chosen {_by(experiment)} ({chosen}); then the SVM was trained on {fitted} and tested on {tested}.",
        experiment.runs([plan]),
    )


def _note_unused(lost: dict[str, int]) -> list[str]:
    names = ", ".join(f"{name} ({count} samples)" for name, count in lost.items() if count)
    return [f"Splits that were not used: {names}."] * bool(names)


def _run_k_fold(experiment: Experiment, settings: ProtocolSettings) -> _Outcome:
    """Without splits: every fold is tested on once, with a C that is chosen inside the others."""
    dataset = experiment.table.dataset
    rows = _labelled(dataset)
    fold = _fold_of(dataset, rows, settings)
    plans = []
    for part in range(settings.folds):
        fit_rows, test_rows = rows[fold != part], rows[fold == part]
        held = _held_out(dataset, fit_rows, settings)
        fitted, tested = f"the folds other than {part + 1}", f"fold {part + 1}"
        chosen = f"{settings.held_out:.0%} of {fitted}, after training on their rest"
        words = {"chosen": chosen, "fitted": fitted, "tested": tested}
        parts = [(np.setdiff1d(fit_rows, held), held)]
        plans.append(SplitPlan(name=tested, parts=parts, fit_rows=fit_rows, test_rows=test_rows, **words))
    left_out = f" {len(dataset) - len(rows)} samples without labels took no part." if len(rows) < len(dataset) else ""
    together = "" if dataset.groups is None else " Samples of one group stay together."
    names = ", ".join(dataset.splits)
    experiment.notes += [f"Splits that were not used, because folds are drawn from all samples: {names}."] * bool(names)
    return _Outcome(
        f"Stratified {settings.folds}-fold test: each fold was tested on after training on the others, with C chosen "
        f"{_by(experiment)} on {settings.held_out:.0%} of these.{together}{left_out}",
        experiment.runs(plans),
    )


PROTOCOLS: dict[str, Callable[[Experiment, ProtocolSettings], _Outcome]] = {
    "voc": _run_voc,
    "voc-server": _run_voc_server,
    "caltech": _run_caltech,
    "given-splits": _run_given_splits,
    "k-fold": _run_k_fold,
}


def choose_protocol(dataset: DataSet, settings: ProtocolSettings) -> ProtocolName:
    """Return the protocol that is asked for, or else that of the data set.

    Raises
    ------
    FitError
        If the data set has no labels.
    """
    if dataset.task == Task.UNLABELLED or not dataset.classes or (dataset.labels == Label.WITHHELD).all():
        raise FitError(
            f"{dataset.name}: expected labels to train on, found none; arrange the images in a folder a class, or "
            f"list them with labels in a CSV manifest, and extract again; without labels the features can be "
            f"exported, or loaded with vggfeat.load_features"
        )
    if settings.protocol != "auto":
        return settings.protocol
    record = DATASETS.get(dataset.name)
    if record is not None and record.protocol != "auto":
        return record.protocol
    if dataset.task == Task.SINGLE_LABEL and _split_numbers(dataset):
        return "caltech"
    return "given-splits" if len(dataset.splits.get("train", ())) else "k-fold"


def choose_metric(dataset: DataSet, settings: ProtocolSettings, protocol: ProtocolName) -> Metric:
    """Return the measure of a data set under a protocol.

    Raises
    ------
    ConfigError, FitError
        If the protocol or the rule doesn't go with its labels.
    """
    single = dataset.task == Task.SINGLE_LABEL
    if protocol == "caltech" and not single:
        raise ConfigError(
            f"protocol: caltech measures recall, so it expects one class a sample, found {dataset.task} samples"
        )
    if single and protocol not in ("voc", "voc-server"):
        if settings.rule != "auto":
            raise ConfigError(f"rule: {dataset.name} is measured by mean class recall, found {settings.rule!r}")
        if len(dataset.classes) < 2:
            raise FitError(f"{dataset.name}: expected at least 2 classes, found {', '.join(dataset.classes)}")
        return "recall"
    rule = settings.rule
    if rule == "auto":
        record = DATASETS.get(dataset.name)
        official = record.average_precision if record is not None and record.protocol == protocol else None
        rule = official or ("11-point" if protocol == "voc" else "area")
    return "ap-11-point" if rule == "11-point" else "ap-area"


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


def _split_numbers(dataset: DataSet) -> list[int]:
    matches = [re.fullmatch(r"train-(\d+)", name) for name in dataset.splits]
    return sorted(int(match[1]) for match in matches if match)


def _labelled(dataset: DataSet) -> Rows:
    return np.flatnonzero(~(dataset.labels == Label.WITHHELD).any(axis=1)).astype(np.int64)


def _union(*parts: Rows) -> Rows:
    return np.unique(np.concatenate(parts))


def _fold_of(dataset: DataSet, rows: Rows, settings: ProtocolSettings) -> Rows:
    paths, groups = names_of(dataset, rows)
    return k_folds(paths, dataset.labels[rows] == 1, settings.folds, settings.seed, groups)


def _held_out(dataset: DataSet, rows: Rows, settings: ProtocolSettings) -> Rows:
    paths, groups = names_of(dataset, rows)
    return rows[hold_out(paths, dataset.labels[rows] == 1, settings.held_out, settings.seed, groups)]


def _by(experiment: Experiment) -> str:
    if experiment.evaluation.metric == "recall":
        return "once for all classes by mean class recall"
    return "for each class by average precision"


def _condensed(notes: list[str]) -> list[str]:
    """Return one note for those that differ in their numbers only, as the folds of a test make them."""
    alike: dict[str, list[str]] = {}
    for note in notes:
        alike.setdefault(re.sub(r"\d[\d.]*", "#", note), []).append(note)
    more = " The same holds, with other numbers, {} times more."
    return [group[0] + (more.format(len(group) - 1) if len(group) > 1 else "") for group in alike.values()]


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


def _describe(table: DescriptorTable) -> dict[str, Any]:
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
