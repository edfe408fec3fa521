"""Files of a result for other programs: the SVMs, the scores, and the archive that the VOC evaluation server takes.

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
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import numpy as np

from vggfeat.datasets.catalogue import DATASETS
from vggfeat.errors import FitError
from vggfeat.protocols.results import Result, Submission
from vggfeat.samples import DataSet
from vggfeat.svm import LinearModel
from vggfeat.svm.model import model_bytes


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
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue()


def server_archive(dataset: DataSet, submission: Submission) -> bytes:
    """Make the archive that the VOC evaluation server takes: a text file per class under results/, gzipped tar.

    A line is "<image id> <confidence>", for actions "<image id> <object index> <confidence>"; only rows that the
    class's own list contains are written (VOC2012 development kit). Equal results give equal bytes.

    Raises
    ------
    FitError
        If there is no server for the data set.
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
