"""A saved model on new images: the same features, joined in the same way, or a refusal that names the difference.

N = samples, K = classes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptor_stream import DescriptorSet, Paths, memory_for, path_list, score, stream_descriptors
from vggfeat.errors import ConfigError, FitError
from vggfeat.runtime.checksums import RunFiles
from vggfeat.samples import DataSet, Task
from vggfeat.store.reader import Features
from vggfeat.store.sharded import open_features
from vggfeat.svm.calibration import Calibration
from vggfeat.svm.model import MODEL_NAMES, LinearModel, load_model
from vggfeat.table import read_descriptors

MADE_WITH = (
    "net", "width", "weights_sha256", "pool_rounding", "channel_order", "mean", "std", "layer", "interpolation",
    "sides",
)  # fmt: skip
"""Fields of a feature file's provenance that must be those of the model's; scales, regions and channels as well."""


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """What is said of scores.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    probabilities: bool = False
    """Whether scores are turned into probabilities as well, as the model's file says."""
    abstain_below: float | None = None
    """Least probability, 0 to 1, with which a class is given to an image; it needs probabilities."""

    def __post_init__(self) -> None:
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise ConfigError(f"abstain_below: expected a probability from 0 to 1, found {self.abstain_below}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Scores of new images by a saved model."""

    about: Mapping[str, Any]
    """What the model's file says of it: classes, plan, features, and more."""
    task: Task
    """Task of the model; whether an image has one class or any number."""
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
    probabilities: NDArray[np.float64] | None = None
    """(N, K) if they were asked for; NaN where the image failed, and for classes of which nothing is known."""
    settings: PredictionSettings = PredictionSettings()

    @cached_property
    def failed(self) -> NDArray[np.bool_]:
        """(N,)."""
        return np.asarray(np.isneginf(self.scores).all(axis=1))

    @cached_property
    def given(self) -> NDArray[np.bool_]:
        """(N, K) which classes an image is given: that of the highest score, or all of a score above 0.

        None that is less probable than `PredictionSettings.abstain_below`.
        """
        best = np.eye(len(self.classes), dtype=bool)[self.scores.argmax(axis=1)]
        found = (best if self.task == Task.SINGLE_LABEL else self.scores > 0) & ~self.failed[:, None]
        least = self.settings.abstain_below
        return found if self.probabilities is None or least is None else found & (self.probabilities >= least)

    def best(self, row: int, most: int) -> list[int]:
        """Return the classes of the highest scores of an image, best first; none if it failed."""
        order = [] if self.failed[row] else np.argsort(-self.scores[row], kind="stable")[:most].tolist()
        return [int(k) for k in order]


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedModel:
    """A model's file, and what it says of the features that it takes."""

    path: Path
    model: LinearModel
    about: Mapping[str, Any]
    """See `Predictions`."""
    recipe: Mapping[str, Any]
    """join, normalisation and files: for each net its regions, scales, channels and provenance."""
    task: Task

    def predict(
        self,
        dataset: DataSet,
        scores: NDArray[np.float64],
        reasons: Mapping[str, str],
        settings: PredictionSettings,
        notes: Sequence[str] = (),
    ) -> Predictions:
        """Say what scores (N, K) of images mean.

        Raises FitError if probabilities are asked for, and the model's file keeps nothing to compute them with.
        """
        said, asked = list(notes), settings.probabilities or settings.abstain_below is not None
        if not self.model.converged.all():
            names = ", ".join(self.about["classes"][k] for k in np.flatnonzero(~self.model.converged).tolist())
            said.append(f"The model's solver gave up before its tolerance for {names}.")
        single = self.task == Task.SINGLE_LABEL
        calibration = self.calibration(said) if asked else None
        return Predictions(
            about=self.about,
            task=self.task,
            classes=tuple(self.about["classes"]),
            dataset=dataset,
            scores=scores,
            reasons=reasons,
            notes=tuple(dict.fromkeys(said)),
            probabilities=None if calibration is None else calibration.probabilities(scores, single=single),
            settings=settings,
        )

    def calibration(self, notes: list[str]) -> Calibration:
        """Return what turns scores into probabilities; to `notes` is added of which classes nothing is known.

        Raises FitError if the file keeps none, or lacks a class where each is needed.
        """
        if "calibration" not in self.about:
            raise FitError(
                f"{self.path}: expected a model that keeps how its scores become probabilities, which takes scores of "
                f"images that it was not trained on, found none; train it with `vggfeat svm --fit-all`"
            )
        try:
            found = Calibration.from_json(self.about["calibration"])
            unknown = [name for name, value in zip(self.about["classes"], found.slope, strict=True) if np.isnan(value)]
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(f"{self.path}: calibration: expected a sigmoid a class, found another: {error}") from None
        if unknown and (self.task == Task.SINGLE_LABEL or len(unknown) == len(found.slope)):
            raise FitError(
                f"{self.path}: expected tested images with and without each class to fit probabilities on, found none "
                f"for {', '.join(unknown)}; add images of it, or train by --protocol k-fold"
            )
        if unknown:
            notes.append(f"There are no probabilities of {', '.join(unknown)}, of which too few images were tested.")
        return found


def find_model(path: str | os.PathLike[str]) -> Path:
    """Return the file of a model that is given by its name or by the folder of its run.

    Raises FitError if there is none; the models that the folder holds are named.
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


def open_model(path: str | os.PathLike[str]) -> SavedModel:
    """Read a model that `vggfeat svm` wrote, given by its file or by the folder with its `model.safetensors`.

    Raises
    ------
    FitError
        If there is none, it can't be read, or it does not say how its features were made.
    StoreError
        If it is next to files of another run.
    """
    path = find_model(path)
    model, about = load_model(path)
    _check_run(Path(os.path.realpath(path)))
    recipe, task = _recipe(path, about)
    return SavedModel(path=path, model=model, about=about, recipe=recipe, task=task)


def apply_model(
    path: str | os.PathLike[str], files: Paths, settings: PredictionSettings = PredictionSettings()
) -> Predictions:
    """Score the images of feature files with a saved model.

    Parameters
    ----------
    path : path
        As for `open_model`.
    files : path, or sequence of paths
        Feature files of the new images, one for each that the model was trained on, in the same order of nets.

    Raises
    ------
    FitError
        If the model can't be read, or a file was made with another net, layer, scales, regions or preprocessing; the
        field is named, with what was expected and found. If it keeps no probabilities that are asked for.
    StoreError
        If a feature file is damaged, the files are of different images, or the model is next to files of another run.
    """
    saved, files = open_model(path), path_list(files)
    recipe, made = saved.recipe, saved.recipe["files"]
    if len(made) != len(files):
        nets = ", ".join(str(one["provenance"].get("net")) for one in made)
        raise FitError(
            f"{saved.path}: expected a feature file of each of the nets {nets}, in this order, found {len(files)}"
        )
    notes: list[str] = []
    for expected, file in zip(made, files, strict=True):
        with open_features(file) as opened:
            notes += _compare(expected, opened)
    regions = made[0]["regions"] if all(one["regions"] == made[0]["regions"] for one in made) else None
    options = {"join": recipe["join"], "normalisation": recipe["normalisation"], "regions": regions}
    table: DescriptorSet
    if memory_for(files, join=recipe["join"], regions=regions).exceeded:
        with stream_descriptors(files, **options) as table:
            scores = score(table, np.arange(len(table.dataset)), saved.model, jobs=-1)
    else:
        table = read_descriptors(files, **options)
        scores = saved.model.scores(table.descriptors)
        scores[~table.ok] = -np.inf
    reasons = {table.dataset.ids[row]: why for row, why in table.reasons.items()}
    return saved.predict(table.dataset, scores, reasons, settings, notes)


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


def _compare(expected: Mapping[str, Any], file: Features) -> Iterator[str]:
    """Refuse features that were made in another way; yield what differs without changing more than rounding."""
    theirs = expected["provenance"]
    check_made(str(file.path), expected, file.provenance, list(file.scales), file.channels)
    missing = [region for region in expected["regions"] if region not in file.regions]
    if missing:
        raise FitError(
            f"{file.path}: regions: expected {', '.join(map(str, expected['regions']))}, found "
            f"{', '.join(file.regions)}; extract it with the same regions"
        )
    precisions = theirs.get("precision"), file.provenance.get("precision")
    if precisions[0] != precisions[1]:
        yield f"{file.path.name} was extracted in {precisions[1]}, the model's features in {precisions[0]}."


def check_made(
    where: str, expected: Mapping[str, Any], provenance: Mapping[str, Any], scales: list[int], channels: int
) -> None:
    """Check that features are made as those of an entry of `SavedModel.recipe`.

    Raises FitError if they are not; the field is named.
    """
    theirs = expected["provenance"]
    fields = [(name, theirs.get(name), provenance.get(name)) for name in MADE_WITH]
    fields.insert(-1, ("scales", expected["scales"], scales))  # of which "sides", which no option is called, follows
    fields.append(("channels", expected["channels"], channels))
    for name, wanted, found in fields:
        if wanted != found:
            if name == "weights_sha256":  # Names say more than digits.
                name, wanted, found = "weights", *_weights(theirs, provenance)
            raise FitError(
                f"{where}: {name}: expected {_short(wanted)}, as in {_short(expected.get('file'))} that the model "
                f"was trained on, found {_short(found)}; extract it in the same way"
            )


def _weights(*made: Mapping[str, Any]) -> list[str]:
    """Name the weights of two provenances; where the names are equal, with the beginnings of their SHA-256."""
    names = [f"{one.get('weights')} (net {one.get('net')})" for one in made]
    if len(set(names)) == len(names):
        return names
    return [f"{name} of SHA-256 {str(one.get('weights_sha256'))[:8]}..." for name, one in zip(names, made, strict=True)]


def _short(value: object) -> str:
    return f"{value}"[:100]
