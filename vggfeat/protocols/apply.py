"""A saved model on new images: the same features, joined in the same way, or a refusal that names the difference.

N = samples, K = classes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import FitError
from vggfeat.runtime.run_files import RunFiles
from vggfeat.samples import DataSet, Task
from vggfeat.store.reader import FeatureFile
from vggfeat.svm.model import load_model
from vggfeat.table import read_descriptors

MADE_WITH = (
    "net", "width", "weights_sha256", "pool_rounding", "channel_order", "mean", "std", "layer", "interpolation",
    "sides",
)  # fmt: skip
"""Fields of a feature file's provenance that must be those of the model's; scales, regions and channels as well."""

MODEL_NAMES = ("model.safetensors", "model-split-*.safetensors", "model-fold-*.safetensors")
"""Patterns of the names of models in a folder of `vggfeat svm`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Scores of new images by a saved model."""

    about: Mapping[str, Any]
    """What the model's file says of it: classes, plan, features, and more."""
    task: Task
    """Of the model; whether an image has one class or any number."""
    classes: tuple[str, ...]
    """K names."""
    dataset: DataSet
    """The new images; their labels, if they have some, are not used."""
    scores: NDArray[np.float64]
    """(N, K); -inf where the image failed."""
    reasons: Mapping[str, str]
    """Id -> why the image failed at extraction."""
    notes: tuple[str, ...]
    """What a reader of the scores must know, a sentence each."""


def find_model(path: str | os.PathLike[str]) -> Path:
    """Return the file of a model that is given by its name or by the folder of its run.

    Raises
    ------
    FitError
        If there is none; the models that the folder holds are named.
    """
    path = Path(path)
    found = path / MODEL_NAMES[0] if path.is_dir() else path
    if os.path.lexists(found):
        return found
    folder = found.parent
    there = sorted(file.name for pattern in MODEL_NAMES for file in folder.glob(pattern)) if folder.is_dir() else []
    others = f"; {folder} holds {', '.join(there)}: give one of them, or " if there else "; "
    raise FitError(
        f"{found}: expected a model file, found none{others}train one on all images with `vggfeat svm --fit-all`"
    )


def apply_model(path: str | os.PathLike[str], files: Sequence[str | os.PathLike[str]]) -> Predictions:
    """Score the images of feature files with a saved model.

    Parameters
    ----------
    path : path
        A model that `vggfeat svm` wrote, or the folder with its `model.safetensors`.
    files : paths
        Feature files of the new images, one for each that the model was trained on, in the same order of nets.

    Raises
    ------
    FitError
        If the model can't be read, or a file was made with another net, layer, scales, regions or preprocessing; the
        field is named, with what was expected and found.
    StoreError
        If a feature file is damaged, the files are of different images, or the model is next to files of another run.
    """
    path = find_model(path)
    model, about = load_model(path)
    _check_run(Path(os.path.realpath(path)))
    recipe, task = _recipe(Path(path), about)
    made = recipe["files"]
    if len(made) != len(files):
        nets = ", ".join(str(one["provenance"].get("net")) for one in made)
        raise FitError(f"{path}: expected a feature file of each of the nets {nets}, in this order, found {len(files)}")
    notes: list[str] = []
    reasons: dict[str, str] = {}
    for expected, file in zip(made, files, strict=True):
        with FeatureFile(file) as opened:
            notes += _compare(expected, opened)
            found = zip(opened.dataset.ids, opened.reasons, strict=True)
            reasons |= {name: why for name, why in found if why and name not in reasons}
    regions = made[0]["regions"] if all(one["regions"] == made[0]["regions"] for one in made) else None
    table = read_descriptors(files, join=recipe["join"], normalisation=recipe["normalisation"], regions=regions)
    scores = model.scores(table.descriptors)
    scores[~table.ok] = -np.inf
    if not model.converged.all():
        names = ", ".join(about["classes"][k] for k in np.flatnonzero(~model.converged).tolist())
        notes.append(f"The model's solver gave up before its tolerance for {names}.")
    return Predictions(
        about=about,
        task=task,
        classes=tuple(about["classes"]),
        dataset=table.dataset,
        scores=scores,
        reasons=reasons,
        notes=tuple(dict.fromkeys(notes)),
    )


def _check_run(model: Path) -> None:
    """Refuse a model in the folder of a run that it is not part of; one that was copied elsewhere is as good."""
    run = RunFiles(model.parent)
    run.check()
    if run.sums and model.name not in run.sums and any(fnmatch(model.name, pattern) for pattern in MODEL_NAMES):
        raise run.refused(model.name, "a model that an earlier run left")


def _recipe(path: Path, about: Mapping[str, Any]) -> tuple[dict[str, Any], Task]:
    """How the model's features were made, and what kind of labels it gives."""
    try:
        recipe, task = about["features"], Task(about["task"])
        known = {"join", "normalisation", "files"} <= recipe.keys() and len(recipe["files"]) > 0
        for made in recipe["files"]:
            known &= isinstance(made["provenance"]["weights_sha256"], str)
            known &= isinstance(made["regions"], list) and {"scales", "channels"} <= made.keys()
    except (AttributeError, KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise FitError(
            f"{path}: expected a model that says how its features were made, found none of that; train it with "
            f"`vggfeat svm` on feature files"
        )
    return recipe, task


def _compare(expected: Mapping[str, Any], file: FeatureFile) -> Iterator[str]:
    """Refuse features that were made in another way; yield what differs without changing more than rounding."""
    theirs = expected["provenance"]
    fields = [(name, theirs.get(name), file.provenance.get(name)) for name in MADE_WITH]
    fields += [("scales", expected["scales"], list(file.scales)), ("channels", expected["channels"], file.channels)]
    for name, wanted, found in fields:
        if wanted != found:
            if name == "weights_sha256":  # Names say more than digits.
                name, wanted, found = "weights", *_weights(theirs, file.provenance)
            raise FitError(
                f"{file.path}: {name}: expected {_short(wanted)}, as in {_short(expected.get('file'))} that the model "
                f"was trained on, found {_short(found)}; extract it in the same way"
            )
    missing = [region for region in expected["regions"] if region not in file.regions]
    if missing:
        raise FitError(
            f"{file.path}: regions: expected {', '.join(map(str, expected['regions']))}, found "
            f"{', '.join(file.regions)}; extract it with the same regions"
        )
    precisions = theirs.get("precision"), file.provenance.get("precision")
    if precisions[0] != precisions[1]:
        yield f"{file.path.name} was extracted in {precisions[1]}, the model's features in {precisions[0]}."


def _weights(*made: Mapping[str, Any]) -> list[str]:
    """Name the weights of two provenances; where the names are equal, with the beginnings of their SHA-256."""
    names = [f"{one.get('weights')} (net {one.get('net')})" for one in made]
    if len(set(names)) == len(names):
        return names
    return [f"{name} of SHA-256 {str(one.get('weights_sha256'))[:8]}..." for name, one in zip(names, made, strict=True)]


def _short(value: object) -> str:
    return f"{value}"[:100]
