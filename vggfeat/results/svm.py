"""What a protocol found, as a record and in files: the SVMs, the scores, and the archive of the VOC evaluation server.

The SVMs are the fits whose scores are reported, and where it was asked for one that is trained on all labelled samples.
One run (VOC, own splits): `model.safetensors`, its last fit. With a test for the server: the fit on train + val that
the archive's scores come from. Several runs: `model-split-1.safetensors` or `model-fold-1.safetensors` and so on, each
trained on what its run trained on. The model on all samples is `model.safetensors`, in the place of the other of this
name if there is one.

K = classes, m = rows of a test.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vggfeat.datasets.catalogue import DATASETS
from vggfeat.datasets.record import DatasetRecord, PaperRow
from vggfeat.errors import FitError
from vggfeat.protocols.results import METRICS, ClassRow, Result, Submission
from vggfeat.results.paper import LAYER, authors_net
from vggfeat.results.plots import draw, draw_learning_curve
from vggfeat.results.record import STAGES, Record, align, npz_bytes, percent, unsolved
from vggfeat.samples import DataSet
from vggfeat.svm import LinearModel
from vggfeat.svm.model import MODEL_NAMES, model_bytes
from vggfeat.wording import counted


class PaperNumber(NamedTuple):
    """One number of the VGG paper for the data set of a result."""

    row: PaperRow
    same: bool
    """Whether the result was made as the number was: by its nets, as the authors published them, its layer, regions,
    scales and join, under its protocol."""


def paper_numbers(result: Result) -> list[PaperNumber]:
    """Return the paper's numbers for the same data set; none if it is another, or a part or an imitation of it."""
    record = DATASETS.get(result.dataset["name"])
    if record is None or record.paper is None or not _is_official(result, record):
        return []
    made = result.settings.get("features", {})
    nets = [authors_net(file["provenance"]) for file in made.get("files", [])]
    alike = result.protocol == record.protocol and _is_their_way(made, record)
    return [
        PaperNumber(row, alike and sorted(map(str, nets)) == sorted(row.nets) and _has_regions(made, row))
        for row in record.paper.rows
    ]


def _is_their_way(made: Mapping[str, Any], record: DatasetRecord) -> bool:
    """Say whether descriptors were made of features as Appendix B does for a data set, by whatever nets."""
    return (made.get("join"), made.get("normalisation") == "none") == (record.join, False) and all(
        file["provenance"].get("layer") == LAYER and sorted(file["scales"]) == sorted(record.scales)
        for file in made.get("files", [])
    )


def _has_regions(made: Mapping[str, Any], row: PaperRow) -> bool:
    return all(sorted(file["regions"]) == sorted(row.regions) for file in made.get("files", []))


def svm_record(result: Result) -> Record:
    """Gather what a protocol found: classes, convergence, notes, headline and the paper's numbers.

    A class has its positives in training and test (a range where runs differ), the C that was chosen, one a run
    where they differ, and its measures averaged over runs. A "!" marks a C whose SVM did not converge.
    """
    rows = result.class_rows()
    metrics = [key for key in (result.metric, *result.secondary) if key in rows[0].values]
    return Record(
        content=results_json(result),
        columns={"name": "class", "train": "train pos", "test": "test pos", "C": "C"} | {k: f"{k} %" for k in metrics},
        classes=[_class_json(row) for row in rows],
        remarks=[*_learning_lines(result), *_convergence(result)],
        notes=result.notes,
        headline=[
            headline(result),
            *_interval_lines(result),
            *(f"  {METRICS[key]}: {_with_deviation(result, key)}" for key in result.secondary),
        ],
        paper=_paper_lines(result),
    )


def headline(result: Result) -> str:
    """Return the line to quote: data set, measure by name, value, deviation, what was tested, chance level."""
    count, known = len(result.runs), sum(not np.isnan(run.means[result.metric]) for run in result.runs)
    tested = f"over {count} runs" if known == count else f"over {known} of {count} runs"
    if count == 1:
        tested = f"on {result.runs[0].plan['tested']}"
    return (
        f"{result.dataset['name']}: {result.metric_name}: {_with_deviation(result, result.metric)} {tested} "
        f"(chance {percent(result.chance)} %)"
    )


def write_results(result: Result, dataset: DataSet, folder: Path, *, plots: bool = True) -> list[Path]:
    """Write the results: JSON, table, scores, models, an image, and the server's archive for withheld labels.

    `dataset`: that of the descriptors. `folder`: made if needed; files of the same names are replaced, all of them in
    one step. `plots`: whether to draw. Returned are the paths of results.json, table.txt, scores.npz, results.png, the
    models (see above), results-NAME-test.tar.gz, as far as there is one, and run.sha256. Raises StoreError if the
    folder can't be made or written.
    """
    found = svm_record(result)
    contents = {"scores.npz": scores_npz(result, dataset)}
    if plots:
        contents["results.png"] = draw(found.content, headline(result))
        if result.learning_curve is not None:
            drawn = draw_learning_curve(result.learning_curve, result.metric_name, headline(result))
            contents["learning-curve.png"] = drawn
    contents |= model_files(result)
    record = DATASETS.get(dataset.name)
    if result.submission is not None and record is not None and record.server_file is not None:
        contents[f"results-{dataset.name}-test.tar.gz"] = server_archive(dataset, result.submission)
    drawings = ("results.png", "learning-curve.png")
    return found.write(folder, contents, own=(*drawings, "results-*-test.tar.gz", *MODEL_NAMES))


def results_json(result: Result) -> dict[str, Any]:
    """Return everything but the scores, ready for JSON, with the paper's numbers next to ours."""
    paper = [
        {
            "measure": _paper_title(result),
            "nets": list(row.nets),
            "regions": list(row.regions),
            "percent": row.percent,
            "deviation": row.deviation,
            "same_nets_and_regions": same,
        }
        for row, same in paper_numbers(result)
    ]
    return {"format": "vggfeat-results", "version": 1, **result.to_json(), "paper": paper}


def _paper_title(result: Result) -> str:
    paper = DATASETS[result.dataset["name"]].paper
    return "" if paper is None else paper.title


def _is_official(result: Result, record: DatasetRecord) -> bool:
    sizes = result.dataset.get("splits", {}) | {"all": result.dataset["samples"]}
    totals = [count for count in record.counts if count.what == record.unit and count.verified]
    # The splits of Caltech are anybody's own; those of VOC-2012's test can be missing.
    official = [count for count in totals if count.split in ("all", "train", "val", "test")]
    return all(sizes.get(count.split) == count.expected for count in official)


def _class_json(row: ClassRow) -> dict[str, Any]:
    costs = "/".join(f"{value:g}" for value in dict.fromkeys(row.C))
    return {
        "name": row.name,
        "train": _range(row.train_positives),
        "test": _range(row.test_positives),
        "C": costs if all(row.converged) else f"{costs}!",
        **row.values,
    }


def _paper_lines(result: Result) -> list[str]:
    numbers = paper_numbers(result)
    if not numbers:
        return []
    named = [[f"  {' & '.join(row.nets)}, {' and '.join(row.regions)}:", f"{row.text} %"] for row, _ in numbers]
    marks = ["  <- these nets and regions" if same else "" for _, same in numbers]
    lines = [line + mark for line, mark in zip(align(named, left=2), marks, strict=True)]
    return [f"VGG paper, {_paper_title(result)}:", *lines]


def _convergence(result: Result) -> list[str]:
    """Say how well the SVMs were solved, and aloud if some were not."""
    solved = result.convergence()
    gaps = ", ".join(f"{one.worst_gap:.1e} in {STAGES[stage]}" for stage, one in solved.items() if one.problems)
    failed = " and ".join(unsolved({stage: one._asdict() for stage, one in solved.items()}))
    warning = [f"! NOT CONVERGED: {failed}; their numbers may not be final"] if failed else []
    return [*warning, f"largest relative duality gap: {gaps}"]


def _learning_lines(result: Result) -> list[str]:
    """Tabulate the learning curve, and what the last doubling of the training images gave."""
    if result.learning_curve is None:
        return []
    rows = result.learning_curve.rows()
    cells = [["training images", "samples", "mean %", "+-", "lowest", "highest"]]
    for row in rows:
        numbers = (percent(row[name]) for name in ("mean", "deviation", "low", "high"))
        share = Fraction(row["share"]).limit_denominator(64)
        cells.append([f"{share} of them" if share < 1 else "all", f"{row['samples']:.0f}", *numbers])
    gain = 100 * (rows[-1]["mean"] - rows[-2]["mean"])
    gain_line = [] if np.isnan(gain) else [f"from half of the training images to all of them: {gain:+.1f} points"]
    return [f"learning curve, {result.metric_name}, C as on all images:", *align(cells, left=1), *gain_line, ""]


def _interval_lines(result: Result) -> list[str]:
    found = result.interval
    if found is None or np.isnan(found.low):
        return []
    drawn = f"{result.units.removesuffix('s')}{{s}}"
    return [
        f"  {100 * found.settings.level:g} % interval: {percent(found.low)} to {percent(found.high)} % "
        f"({found.settings.resamples} resamples of {counted(found.images, drawn)})"
    ]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}-{high}"


def _with_deviation(result: Result, metric: str) -> str:
    deviation = result.deviation(metric)
    return f"{percent(result.mean(metric))} %" + ("" if deviation is None else f" +- {percent(deviation)}")


def model_files(result: Result) -> dict[str, bytes]:
    """Return file name -> content, as `vggfeat.svm.load_model` reads it."""
    several = result.runs if len(result.runs) > 1 else ()
    models = {f"model-{run.name.replace(' ', '-')}.safetensors": (run.model, run.plan) for run in several}
    last = result.submission or (None if several else result.runs[0])
    if last is not None:
        models["model.safetensors"] = (last.model, last.plan)
    files = {name: _file(result, model, plan) for name, (model, plan) in models.items()}
    if result.final is not None:
        more = {"calibration": result.final.calibration.to_json()}
        files["model.safetensors"] = _file(result, result.final.model, result.final.plan, more)
    return files


def _file(
    result: Result, model: LinearModel, plan: Mapping[str, str], more: Mapping[str, Any] = MappingProxyType({})
) -> bytes:
    about: dict[str, Any] = {
        "classes": list(result.classes),
        "task": result.dataset["task"],
        "dataset": {name: result.dataset[name] for name in ("name", "fingerprint")},
        "protocol": result.protocol,
        "metric": result.metric,
        "plan": dict(plan),
        "svm": result.settings["protocol"]["svm"],
        "features": result.settings["features"],
        "vggfeat": version("vggfeat"),
        **more,
    }
    return model_bytes(model, about)


def scores_npz(result: Result, dataset: DataSet) -> bytes:
    """Return the scores as an npz file without pickle.

    It holds classes (K,); for run i, from 1: ids_i and paths_i (m,), scores_i (m, K), -inf where an image failed,
    labels_i (m, K) of 1, -1, 0 as they were scored, groups_i (m,) and boxes_i (m, 4) where the samples have some; and
    for withheld labels ids_submission, scores_submission and listed_submission, False where a row is not in the list of
    the class.
    """
    arrays: dict[str, Any] = {"classes": np.array(result.classes, dtype=np.str_)}
    for number, run in enumerate(result.runs, start=1):
        arrays[f"ids_{number}"] = np.array([dataset.ids[row] for row in run.rows], dtype=np.str_)
        arrays[f"paths_{number}"] = np.array([dataset.paths[row] for row in run.rows], dtype=np.str_)
        if dataset.groups is not None:
            arrays[f"groups_{number}"] = np.array([dataset.groups[row] for row in run.rows], dtype=np.str_)
        if dataset.boxes is not None:
            arrays[f"boxes_{number}"] = dataset.boxes[run.rows]
        arrays[f"scores_{number}"] = run.scores
        arrays[f"labels_{number}"] = run.truth
    if result.submission is not None:
        arrays["ids_submission"] = np.array([dataset.ids[row] for row in result.submission.rows], dtype=np.str_)
        arrays["scores_submission"] = result.submission.scores
        arrays["listed_submission"] = result.submission.listed
    return npz_bytes(arrays)


def server_archive(dataset: DataSet, submission: Submission) -> bytes:
    """Make the archive that the VOC evaluation server takes: a text file per class under results/, gzipped tar.

    A line is "<image id> <confidence>", for actions "<image id> <object index> <confidence>"; only rows that the
    class's own list contains are written (VOC2012 development kit). Equal results give equal bytes.

    Raises FitError if there is no server for the data set.
    """
    record = DATASETS.get(dataset.name)
    if record is None or record.server_file is None:
        known = ", ".join(name for name, record in DATASETS.items() if record.server_file)
        raise FitError(f"{dataset.name}: expected one of {known}, which the server takes")
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for k, name in enumerate(dataset.classes):
            listed = submission.listed[:, k]
            pairs = zip(submission.rows[listed].tolist(), submission.scores[listed, k].tolist(), strict=True)
            # The id of a person is image/object.
            lines = (f"{dataset.ids[row].replace('/', ' ')} {score:.12f}\n" for row, score in pairs)
            text = "".join(lines).encode()
            entry = tarfile.TarInfo(record.server_file.format(name=name))
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return packed.getvalue()
