"""Which net is meant: a file in any format, a name, the small net of the package, or a seed."""

import os
from dataclasses import replace
from importlib import import_module, resources
from importlib.resources.abc import Traversable
from pathlib import Path

from vggfeat.errors import WeightsError
from vggfeat.nets.backbone import Backbone
from vggfeat.weights.classes import imagenet_wnids
from vggfeat.weights.native import load_own
from vggfeat.weights.paths import SUFFIXES, nets_in, weights_folder
from vggfeat.weights.published import PUBLISHED
from vggfeat.weights.random_init import random_backbone
from vggfeat.weights.sniff import recognise

BUNDLED = "small"
"""The name of the net that comes with the package."""

# Loaded when they are needed: each brings a library of its own.
_READERS = {
    "timm": ("vggfeat.weights.pytorch", "load_timm"),
    "pytorch": ("vggfeat.weights.pytorch", "load_torchvision"),
    "keras": ("vggfeat.weights.keras", "load_keras"),
    "matconvnet": ("vggfeat.weights.matconvnet", "load_matconvnet"),
    "caffe": ("vggfeat.weights.caffe", "load_caffe"),
}


def load_backbone(spec: str | os.PathLike[str] | None = None, folder: Path | None = None) -> Backbone:
    """Find and load a net.

    Parameters
    ----------
    spec : str, path or None
        A file in any format of `vggfeat.weights.sniff.FORMATS`; the name of a file in `folder`, with or without
        suffix; the name of a published net that was fetched into `folder`, for instance vgg16-caffe; small, the net
        that comes with vggfeat; random:NET[:SEED[:WIDTH]]; or None for the only file in `folder`.
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
    return load_file(find_file(spec, folder))


def load_file(path: Path) -> Backbone:
    """Load a file in any format; its content says which.

    Raises
    ------
    WeightsError
        If it is damaged, of an unknown format, or of another network.
    """
    kind = recognise(path)
    if kind == "vggfeat":
        return load_own(path)
    module, function = _READERS[kind]
    backbone: Backbone = getattr(import_module(module), function)(path)
    if backbone.classes or backbone.model.num_classes != len(imagenet_wnids()):
        return backbone
    told = {**backbone.imported, "classes_from": "ILSVRC-2012 sorted by WNID, because there are 1000 without names"}
    return replace(backbone, classes=imagenet_wnids(), imported=told)


def load_bundled(file: Traversable | None = None) -> Backbone:
    """Load the small net that comes with the package: it was trained on rendered images by vggfeat's own trainer.

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


def find_file(spec: str | os.PathLike[str] | None = None, folder: Path | None = None) -> Path:
    """Find the file that `load_backbone` would load, if it would load one.

    Raises
    ------
    WeightsError
        If there is none, or more than one without a name.
    """
    folder = Path(folder) if folder is not None else weights_folder()
    remedy = (
        "ways to get one: --weights FILE (Caffe, MatConvNet, Keras, PyTorch or safetensors, for instance "
        f"vgg16-397923af.pth), a file put into {folder}/, a published net by name (vggfeat weights list), --weights "
        "small for the small net that comes with vggfeat, or --weights random:D:0 for a trial without training"
    )
    if spec is None:
        files = nets_in(folder)
        if len(files) == 1:
            return files[0]
        found = ", ".join(path.name for path in files) if files else "none"
        raise WeightsError(f"{folder}/: expected one net to use by default, found {found}; {remedy}")
    if spec == BUNDLED:
        return Path(str(resources.files("vggfeat.weights").joinpath(f"{BUNDLED}.safetensors")))
    published = PUBLISHED.get(str(spec))
    names = [f"{spec}{suffix}" for suffix in ("", *SUFFIXES)] + ([published.file] if published else [])
    for path in (Path(spec), *(folder / name for name in names)):
        if path.is_file():
            return path
    if published:
        raise WeightsError(f"{spec}: found no {published.file} in {folder}/; get it with vggfeat weights fetch {spec}")
    if Path(spec).exists():
        return Path(spec)  # a folder or a device: the reader says so
    raise WeightsError(f"{spec}: found neither as a file nor in {folder}/; {remedy}")
