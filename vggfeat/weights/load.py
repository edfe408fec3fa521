"""Which net is meant: a file in any format, a name, the small net of the package, or a seed.

PyTorch and the readers of the formats are imported when a net is loaded: names and classes don't wait for them.
"""

import hashlib
import os
from dataclasses import replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

from vggfeat.errors import ConfigError, WeightsError
from vggfeat.weights.isolated import opened, start
from vggfeat.weights.preprocessing import Preprocessing
from vggfeat.weights.published import PUBLISHED, identify
from vggfeat.weights.sniff import digests, recognise

if TYPE_CHECKING:
    from vggfeat.nets.backbone import Backbone

BUNDLED = "small"
"""The name of the net that comes with the package."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".caffemodel", ".mat", ".h5", ".hdf5", ".keras")
"""Of what counts as a net in the folder of nets. What a file is, its content says."""
_LEAST_PUBLISHED = 400 << 20
"""Bytes: no published file has fewer."""


def weights_folder() -> Path:
    """Return the folder of nets known by name: $VGGFEAT_WEIGHTS, else `weights` in the current folder."""
    return Path(os.environ.get("VGGFEAT_WEIGHTS") or "weights")


def nets_in(folder: Path) -> list[Path]:
    """List the files of a folder that count as nets, sorted by name."""
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Name the 1000 classes of ILSVRC-2012 classification.

    Returns
    -------
    tuple of 1000 pairs
        WNID, for instance n01440764, and its words, the commonest first, separated by ", ". Sorted by WNID: the
        order of the fc8 channels in the nets of Caffe, MatConvNet, Keras, torchvision and timm, and not that of the
        numbers of the development kit.
    """
    text = resources.files("vggfeat.weights").joinpath("ilsvrc_classes.txt").read_text(encoding="utf-8")
    rows = (line.partition("\t") for line in text.splitlines())
    return tuple((wnid, words) for wnid, _, words in rows)


def load_backbone(spec: str | os.PathLike[str] | None = None, folder: Path | None = None) -> "Backbone":
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


def load_file(path: Path, stated: Preprocessing | None = None) -> "Backbone":
    """Load a file in any format; its content says which.

    Files of other libraries are read in a process with limits (`vggfeat.weights.isolated`), ours in this one.

    Parameters
    ----------
    path : Path
    stated : Preprocessing, optional
        Which pixels the net of another library takes, where its file does not say.

    Raises
    ------
    WeightsError
        If it is damaged, of an unknown format, or of another network.
    ConfigError
        If what is stated can't be, or the file is one of ours.
    """
    kind = recognise(path)
    if kind == "vggfeat":
        if stated and stated.stated():
            raise ConfigError(
                f"{path}: expected a file of another library to state {', '.join(stated.stated())} of, found one of "
                "vggfeat, which says it itself; give the file that it was made from"
            )
        from vggfeat.weights.native import load_own

        return load_own(path)
    start()
    from vggfeat.weights.importing import ParsedNet, finish
    from vggfeat.weights.pytorch import parse_state

    with opened(kind, path) as found:
        parsed = found if isinstance(found, ParsedNet) else parse_state(path, found)
        parsed = stated.apply(path, parsed) if stated else parsed
        hashes = digests(path, _checksum_kinds(path, kind))
        published = identify(hashes)
        backbone = finish(path, parsed, sha256=hashes["sha256"], published=published.name if published else "")
    wnids = tuple(wnid for wnid, _ in imagenet_classes())
    if backbone.classes or backbone.model.num_classes != len(wnids):
        return backbone
    note = "ILSVRC-2012 sorted by WNID, because there are 1000 without names"
    return replace(backbone, classes=wnids, imported={**backbone.imported, "classes_from": note})


def _checksum_kinds(path: Path, kind: str) -> set[str]:
    """Return which checksums tell whether it is a published file: each takes a second for 500 MB."""
    large = path.stat().st_size >= _LEAST_PUBLISHED
    return {"sha256"} | {one.checksum[0] for one in PUBLISHED.values() if one.format == kind and large}


def load_bundled(file: Traversable | None = None) -> "Backbone":
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
        raise WeightsError(f"{BUNDLED}: expected the net of the package at {file}, found none; install vggfeat again")
    with resources.as_file(file) as path:
        return replace(load_file(path), source=BUNDLED)


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


def random_backbone(spec: str) -> "Backbone":
    """Build an untrained net from random:NET[:SEED[:WIDTH]], for instance random:A:0:0.25.

    The same spec gives the same weights on every machine with the same PyTorch.

    Raises
    ------
    ConfigError
        If the spec is not understood.
    """
    import torch

    from vggfeat.nets.backbone import Backbone
    from vggfeat.nets.families import allocated, build, initialise

    fields = spec.split(":")
    try:
        net, seed = fields[1], int(fields[2]) if len(fields) > 2 else 0
        width = float(fields[3]) if len(fields) > 3 else 1.0
        if len(fields) > 4 or not 0 <= seed < 2**63:
            raise ValueError
        with torch.device("meta"):  # PyTorch's own first weights would cost time and move its random state.
            model = build(net, width=width)
    except (ValueError, IndexError):
        raise ConfigError(
            f"weights: expected random:NET[:SEED[:WIDTH]], for instance random:A:0:0.25, found {spec!r}"
        ) from None
    initialise(allocated(model), torch.Generator().manual_seed(seed))
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    canonical = f"random:{net}:{seed}:{repr(width).removesuffix('.0')}"
    return Backbone(model=model.eval(), source=canonical, sha256=digest.hexdigest(), trained=False)
