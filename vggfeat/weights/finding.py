"""Which net is meant: a file, a name, the small net of the package, or a seed."""

import os
from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from vggfeat.errors import WeightsError
from vggfeat.weights.backbone import Backbone
from vggfeat.weights.own import load_own, starts_like_safetensors
from vggfeat.weights.torchvision import load_torchvision
from vggfeat.weights.untrained import random_backbone

SUFFIXES = (".safetensors", ".pth", ".pt")
BUNDLED = "small"
"""The name of the net that comes with the package."""


def weights_folder() -> Path:
    """Return the folder of nets known by name: $VGGFEAT_WEIGHTS, else `weights` in the current folder."""
    return Path(os.environ.get("VGGFEAT_WEIGHTS") or "weights")


def load_backbone(spec: str | os.PathLike[str] | None = None, folder: Path | None = None) -> Backbone:
    """Find and load a net.

    Parameters
    ----------
    spec : str, path or None
        A file; the name of a file in `folder`, with or without suffix; small, the net that comes with vggfeat;
        random:NET[:SEED[:WIDTH]]; or None for the only file in `folder`.
    folder : Path, optional
        `weights_folder()` by default.

    Raises
    ------
    WeightsError
        If there is none, or it is damaged, of an unknown format, or of another network.
    ConfigError
        If random:... is not understood.
    """
    if spec == BUNDLED:
        return load_bundled()
    if isinstance(spec, str) and spec.partition(":")[0] == "random":
        return random_backbone(spec)
    path = _find(spec, Path(folder) if folder is not None else weights_folder())
    return load_own(path) if starts_like_safetensors(path) else load_torchvision(path)


def load_bundled(file: Traversable | None = None) -> Backbone:
    """Load the small net that comes with the package: it was trained on rendered pictures by vggfeat's own trainer.

    Parameters
    ----------
    file : Traversable, optional
        By default the one in the package.

    Raises
    ------
    WeightsError
        If the package was installed without it, or it is damaged.
    """
    file = file or resources.files("vggfeat.weights").joinpath(f"{BUNDLED}.safetensors")
    if not file.is_file():
        raise WeightsError(f"{BUNDLED}: expected the net of the package at {file}, found none; install vggfeat anew")
    with resources.as_file(file) as path:
        return replace(load_own(path), source=BUNDLED)


def _find(spec: str | os.PathLike[str] | None, folder: Path) -> Path:
    remedy = (
        "ways to get one: --weights FILE (a safetensors file, or a torchvision VGG state dict such as "
        f"vgg16-397923af.pth), a file put into {folder}/, --weights small for the small net that comes with vggfeat, "
        "or --weights random:D:0 for a trial without training"
    )
    if spec is None:
        files = sorted(p for p in folder.glob("*") if p.suffix in SUFFIXES and p.is_file())
        if len(files) == 1:
            return files[0]
        found = ", ".join(p.name for p in files) if files else "none"
        raise WeightsError(f"{folder}/: expected one net to use by default, found {found}; {remedy}")
    candidates = [Path(spec)] + [folder / f"{spec}{suffix}" for suffix in ("", *SUFFIXES)]
    for path in candidates:
        if path.is_file():
            return path
    raise WeightsError(f"{spec}: found neither as a file nor in {folder}/; {remedy}")
