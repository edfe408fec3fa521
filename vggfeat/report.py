"""Results as a person reads them, as a program reads them, as a picture, and as the VOC server takes them.

K = classes, m = rows of a test.
"""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggfeat.errors import FitError
from vggfeat.results import METRICS, Result, Submission
from vggfeat.samples import DataSet

PAPER: Mapping[str, Mapping[tuple[tuple[str, ...], tuple[str, ...]], str]] = {
    "voc2007": {
        (("D",), ("image",)): "89.3",
        (("E",), ("image",)): "89.3",
        (("D", "E"), ("image",)): "89.7",
    },
    "voc2012": {
        (("D",), ("image",)): "89.0",
        (("E",), ("image",)): "89.0",
        (("D", "E"), ("image",)): "89.3",
    },
    "caltech101": {
        (("D",), ("image",)): "91.8 +- 1.0",
        (("E",), ("image",)): "92.3 +- 0.5",
        (("D", "E"), ("image",)): "92.7 +- 0.5",
    },
    "caltech256": {
        (("D",), ("image",)): "85.0 +- 0.2",
        (("E",), ("image",)): "85.1 +- 0.3",
        (("D", "E"), ("image",)): "86.2 +- 0.3",
    },
    "voc2012-action": {
        (("D", "E"), ("image",)): "79.2",
        (("D", "E"), ("image", "box")): "84.0",
    },
}
"""Per cent, by data set, then (nets, regions): Tables 11 and 12 of the VGG paper."""

OFFICIAL_SAMPLES = {
    "voc2007": 9963,
    "voc2012": 11540,
    "voc2012-action": 6278,
    "caltech101": 9144,
    "caltech256": 30607,
}
"""A copy with fewer is not the paper's set, and nothing is compared."""

SERVER_FILES = {
    "voc2012": "results/VOC2012/Main/comp2_cls_test_{name}.txt",
    "voc2012-action": "results/VOC2012/Action/comp10_action_test_{name}.txt",
}
"""comp2 and comp10: trained on other data as well, as ImageNet weights are (VOC2012 development kit)."""


def paper_rows(result: Result) -> list[tuple[str, str, bool]]:
    """Return the paper's numbers for the same data set.

    Returns
    -------
    list of (what, number in per cent, whether nets and regions are those of `result`)
        Empty if the data set is not the paper's, or only an imitation of it.
    """
    name = str(result.dataset["name"])
    if int(result.dataset["samples"]) < OFFICIAL_SAMPLES.get(name, 2**31):
        return []
    files = result.settings["features"]["files"]
    nets = tuple(str(file["provenance"].get("net")) for file in files)
    regions = tuple(files[0]["regions"])
    rows = PAPER[name].items()
    return [(f"{' & '.join(n)}, {' and '.join(r)}", number, (n, r) == (nets, regions)) for (n, r), number in rows]


def text_table(result: Result) -> str:
    """Return the table of classes and the headline as plain text, a line each, never wrapped."""
    metrics = [key for key in (result.metric, *result.secondary) if key in result.class_rows()[0].values]
    header = ["class", "train", "test", "C", *metrics]
    body = [
        [
            row.name,
            str(row.train_positives[0]),
            str(row.test_positives[0]),
            "/".join(f"{value:g}" for value in dict.fromkeys(row.C)) + ("" if all(row.converged) else "!"),
            *(_percent(row.values[key]) for key in metrics),
        ]
        for row in result.class_rows()
    ]
    lines = align([header, *body], left=1)
    if any("!" in line[3] for line in body):
        lines.append("! the solver stopped before it converged")
    lines.append("")
    lines.extend(f"note: {note}" for note in result.notes)
    lines.append(headline(result))
    lines.extend(f"  {METRICS[key]}: {_percent(value)} %" for key, value in result.secondary.items())
    for what, number, same in paper_rows(result):
        lines.append(f"  VGG paper, {what}: {number} %{'  (the same nets and regions)' if same else ''}")
    return "\n".join(lines)


def headline(result: Result) -> str:
    """Return the one line that is quoted: data set, measure by name, value, deviation, chance level."""
    deviation = result.deviation(result.metric)
    spread = "" if deviation is None else f" +- {_percent(deviation)} over {len(result.runs)} runs"
    return (
        f"{result.dataset['name']}: {result.metric_name}: {_percent(result.headline)} %{spread} "
        f"(chance {_percent(result.chance)} %)"
    )


def write_results(result: Result, dataset: DataSet, folder: Path, *, plots: bool = True) -> list[Path]:
    """Write the results: JSON, table, scores, a picture, and the server's archive where test labels are withheld.

    Parameters
    ----------
    result : Result
    dataset : DataSet
        That of the descriptors.
    folder : Path
        Made if needed; files of the same names are replaced.
    plots : bool
        Whether to draw.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    FitError
        If the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [_replace(folder / "results.json", json.dumps(results_json(result), indent=2).encode() + b"\n")]
        written.append(_replace(folder / "table.txt", text_table(result).encode() + b"\n"))
        written.append(_replace(folder / "scores.npz", _scores(result, dataset)))
        if plots:
            written.append(_replace(folder / "results.png", draw(result)))
        if result.submission is not None and dataset.name in SERVER_FILES:
            archive = server_archive(dataset, result.submission)
            written.append(_replace(folder / f"results-{dataset.name}-test.tar.gz", archive))
    except OSError as error:
        raise FitError(f"{folder}: can't write results: {error.strerror or error}") from error
    return written


def results_json(result: Result) -> dict[str, Any]:
    """Return everything but the scores, ready for JSON, with the paper's numbers beside ours."""
    paper = [
        {"what": what, "percent": number, "same_nets_and_regions": same} for what, number, same in paper_rows(result)
    ]
    return {"format": "vggfeat-results", "version": 1, **result.to_json(), "paper": paper}


def server_archive(dataset: DataSet, submission: Submission) -> bytes:
    """Make the archive that the VOC evaluation server takes: a text file per class under results/, gzipped tar.

    A line is "<image id> <confidence>", for actions "<image id> <object index> <confidence>"; only rows that the
    class's own list contains are written (VOC2012 development kit). Equal results give equal bytes.
    """
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for k, name in enumerate(dataset.classes):
            lines = (
                f"{dataset.ids[row].replace('/', ' ')} {score:.12f}\n"
                for row, score, listed in zip(
                    submission.rows, submission.scores[:, k], submission.listed[:, k], strict=True
                )
                if listed
            )
            text = "".join(lines).encode()
            entry = tarfile.TarInfo(SERVER_FILES[dataset.name].format(name=name))
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return packed.getvalue()


def draw(result: Result) -> bytes:
    """Draw the classes from best to worst, and the curves that C was chosen by. Returns a PNG file."""
    import matplotlib

    with matplotlib.rc_context({"backend": "Agg", "font.size": 8}):
        from matplotlib.figure import Figure

        rows = sorted(result.class_rows(), key=lambda row: np.nan_to_num(row.values[result.metric], nan=-1))
        figure = Figure(figsize=(10, max(3.0, 0.16 * len(rows) + 1)), layout="constrained")
        left, right = figure.subplots(1, 2)
        values = [100 * row.values[result.metric] for row in rows]
        left.barh([_plain_text(row.name) for row in rows], np.nan_to_num(values), color="#4c72b0")
        left.axvline(100 * result.headline, color="black", linewidth=1, label=f"mean {100 * result.headline:.1f} %")
        left.axvline(100 * result.chance, color="grey", linestyle=":", label=f"chance {100 * result.chance:.1f} %")
        left.set(xlim=(0, 100), xlabel=f"{result.metric_name}, %".removeprefix("mean "))
        left.margins(y=0.01)
        left.legend(loc="lower right")
        for run in result.runs:
            right.semilogx(run.choice.grid, 100 * run.choice.curve, linewidth=0.8, alpha=0.8)
        right.set(xlabel="C", ylabel="measure on held-out rows, %", title="Choice of C, a line a class or run")
        figure.suptitle(headline(result))
        drawn = io.BytesIO()
        # No version of the drawing library in the file: equal results give equal bytes.
        figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    return drawn.getvalue()


def align(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Pad columns to equal width; the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _scores(result: Result, dataset: DataSet) -> bytes:
    arrays: dict[str, Any] = {"classes": np.array(result.classes, dtype=np.str_)}
    for number, run in enumerate(result.runs, start=1):
        arrays[f"ids_{number}"] = np.array([dataset.ids[row] for row in run.rows], dtype=np.str_)
        arrays[f"scores_{number}"] = run.scores
        arrays[f"labels_{number}"] = run.truth
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue()


def _replace(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
    return path


def _percent(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{100 * value:.1f}"


def _plain_text(name: str) -> str:
    # A dollar sign begins mathematics in matplotlib.
    return name.replace("$", r"\$")
