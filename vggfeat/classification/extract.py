"""A validation set and a net become one file of class posteriors, through the same machinery as features.

K = classes of the data.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError
from vggfeat.extract import Job, Progress, RunSettings, run_job
from vggfeat.forward.posteriors import CROP, Mode, PosteriorSettings, posterior_runner
from vggfeat.images.decode import DecodeSettings
from vggfeat.nets.backbone import BOX_FACTS
from vggfeat.runtime.distributed import World
from vggfeat.samples import ClassificationSet, DataSet, Label, Task
from vggfeat.summary import Summary
from vggfeat.weights import Backbone
from vggfeat.wording import listed

NAME = "ilsvrc"
"""What a file of posteriors calls its data set."""
SCALES = (256, 384, 512)
"""Q of nets that don't say at which S they were trained: those of the paper's nets with S in [256;512]."""
CROP_SCALES = (256,)
"""The same for the centre crop."""
STEP = 32
"""Pixels between the test scales of a net trained at one S (Sect. 4.2)."""
SHOWN = 3
"""Classes that a message names."""


def default_scales(backbone: Backbone, mode: Mode) -> tuple[int, ...]:
    """Return the paper's test scales for a net, by the S that its file says it was trained at (Sect. 4.1 and 4.2).

    Parameters
    ----------
    backbone : Backbone
    mode : str
        crop takes one scale: S, or the middle of its range. The others take S - 32, S, S + 32, or least, middle and
        largest S.

    Returns
    -------
    tuple of int
        Q, smallest image sides in pixels, none below 224; 256, 384, 512, or 256 for crop, where the file doesn't say.
    """
    trained = _trained_scale(backbone)
    if trained is None:
        return CROP_SCALES if mode == "crop" else SCALES
    low, high = trained
    middle = round((low + high) / 2)
    if mode == "crop":
        return (middle,)
    sides = (low - STEP, low, low + STEP) if low == high else (low, middle, high)
    return tuple(sorted({max(side, CROP) for side in sides}))


def _trained_scale(backbone: Backbone) -> tuple[int, int] | None:
    found: Any = backbone.facts
    for name in ("training", "recipe", "scale"):
        found = found.get(name) if hasattr(found, "get") else None
    if isinstance(found, (list, tuple)) and len(found) == 2 and all(type(q) is int and 224 <= q <= 4000 for q in found):
        return int(found[0]), int(found[1])
    return None


def match_classes(backbone: Backbone, classes: Sequence[str]) -> NDArray[np.int64]:
    """Find the fc8 channel of every class, by name; by number where the net has no names.

    `classes`: K names of the data.
    Raises ConfigError if net and data have other classes, or another number of them, or the net answers with boxes.
    """
    if BOX_FACTS in backbone.facts:
        raise ConfigError(
            f"{backbone.source}: expected a net that answers with class scores, found a box net of `vggfeat localise "
            "train`; take a classification net"
        )
    outputs = backbone.model.num_classes
    if not backbone.classes:
        if outputs != len(classes):
            raise ConfigError(
                f"{backbone.source}: expected {len(classes)} classes, as the data have, found {outputs} without names; "
                "take a net that was trained on these classes"
            )
        return np.arange(outputs, dtype=np.int64)
    place = {name: channel for channel, name in enumerate(backbone.classes)}
    missing, more = sorted(set(classes) - place.keys()), sorted(place.keys() - set(classes))
    if missing or more or len(place) != outputs:
        sides = [
            f"{listed(names, SHOWN)} only in the {who}" for names, who in ((missing, "data"), (more, "net")) if names
        ]
        raise ConfigError(
            f"{backbone.source}: expected the {len(classes)} classes of the data, found {outputs}: "
            f"{'; '.join(sides) or 'some twice'}; take a net and data of the same classes"
        )
    return np.array([place[name] for name in classes], dtype=np.int64)


def as_dataset(data: ClassificationSet) -> DataSet:
    """Turn the validation images into a data set with one split, val."""
    val = data.val
    rows = np.arange(len(val), dtype=np.int64)
    labels = np.full((len(val), len(data.classes)), Label.NEGATIVE, dtype=np.int8)
    labels[rows, val.targets] = Label.POSITIVE
    return DataSet(
        name=NAME,
        task=Task.SINGLE_LABEL,
        classes=data.classes,
        ids=val.ids,
        paths=val.paths,
        labels=labels,
        splits={"val": rows},
        root=str(val.root),
        notes=(f"layout: {data.layout}",),
    )


def cache_posteriors(
    data: ClassificationSet,
    backbone: Backbone,
    out: Path,
    settings: PosteriorSettings,
    *,
    run: RunSettings | None = None,
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    progress: Progress | None = None,
    world: World = World(),  # noqa: B008  frozen
) -> Summary:
    """Compute the class posteriors of the validation images into one HDF5 file, or finish the run that did so.

    Parameters
    ----------
    data : ClassificationSet
        Columns of the file stand in the order of its classes, whatever order the net has.
    backbone : Backbone
    out : Path
        The file: features (N, S, 1, K) as in `vggfeat.store.layout`. Unfinished work is next to it in
        `out` + ".parts".
    settings : PosteriorSettings
    run : RunSettings, optional
    decode : DecodeSettings, optional
        Limits for an image. `largest_side` is set to the largest scale here.
    progress : callable, optional
    world : World
        The processes that do it together, as `vggfeat.extract.extract_features`.

    Returns
    -------
    Summary

    Raises
    ------
    StoreError
        As `vggfeat.extract.extract_features`.
    ConfigError
        If net and data have other classes, or the settings do not go together.
    """
    run = run or RunSettings()
    order = match_classes(backbone, data.classes)
    job = Job(
        dataset=as_dataset(data),
        images=data.val,
        runner=posterior_runner(backbone, settings, run.device, order),
        provenance=_provenance(data, backbone, settings),
    )
    return run_job(job, out, run=run, decode=decode, progress=progress, world=world)


def _provenance(data: ClassificationSet, backbone: Backbone, settings: PosteriorSettings) -> dict[str, Any]:
    averaged = {
        "crop": "the posteriors of one crop of 224 pixels in the middle, not mirrored",
        "dense": "posteriors of the image and of its mirror are averaged",
        "multi-crop": "posteriors of 5 x 5 crops of 224 pixels and of their mirrors are averaged",
    }
    trained = _trained_scale(backbone)
    return {
        "averaged": averaged[settings.mode],
        "class_order": "by name" if backbone.classes else "by number",
        "words": dict(data.words),
        "layout": data.layout,
        "trained_scale": None if trained is None else list(trained),
    }
