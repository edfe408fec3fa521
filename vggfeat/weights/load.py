"""A net by what it is called, and all that is known of its file: what it holds, and whether it can be relied on.

PyTorch and the readers of the formats are imported when a net is loaded: names and classes don't wait for them.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggfeat.errors import ConfigError, WeightsError
from vggfeat.weights.reader_process import opened, start
from vggfeat.weights.sniff import FORMATS, digests, recognise
from vggfeat.weights.sources import BUNDLED, PUBLISHED, Published, find_file, hub_origin, identify

if TYPE_CHECKING:
    from vggfeat.nets.backbone import Backbone
    from vggfeat.weights.importing import Preprocessing

BUNDLED_SHA256 = "5cfc4bb0f2a9a394df5fad9ca41dfbfacd54d1a975d1ef2ed7644c9d0fc9c805"
"""Of the net that comes with the package."""
_FEATURES_ONLY = "88682ab5"
"""How the SHA-256 of torchvision's IMAGENET1K_FEATURES (vgg16_features-amdegroot-88682ab5.pth) begins."""
_FEATURES_MEAN = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)
"""RGB: what its documentation subtracts; nothing is divided by. Its names are those of nets with another mean."""
_LEAST_PUBLISHED = 400 << 20
"""Bytes: no published file has fewer."""


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Name the 1000 classes of ILSVRC-2012 classification.

    Returns 1000 pairs: WNID, for instance n01440764, and its words, the commonest first, separated by ", ". Sorted by
    WNID: the order of the fc8 channels in the nets of Caffe, MatConvNet, Keras, torchvision and timm, and not that of
    the numbers of the development kit.
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
        that comes with vggfeat; hf://OWNER/NAME[/FILE][@REVISION], a file on the Hugging Face Hub;
        random:NET[:SEED[:WIDTH]]; or None for the only file in `folder`.
    folder : Path, optional
        `weights_folder()` by default.

    Raises
    ------
    WeightsError
        If there is none, or it is damaged, of an unknown format, or of another network.
    ConfigError
        If random:... or hf://... is not understood.
    """
    if spec == BUNDLED:
        return load_bundled()
    if isinstance(spec, str) and spec.partition(":")[0] == "random":
        return random_backbone(spec)
    return load_file(find_file(spec, folder))


def load_file(path: Path, stated: "Preprocessing | None" = None) -> "Backbone":
    """Load a file in any format; its content says which.

    Files of other libraries are read in a process with limits (`vggfeat.weights.reader_process`), ours in this one.
    `stated` is which pixels the net of another library takes, where its file does not say it.

    Raises WeightsError if it is damaged, of an unknown format, or of another network. Raises ConfigError if what is
    stated can't be, or the file is one of ours.
    """
    return _load(path, recognise(path), stated)


def _load(path: Path, kind: str, stated: "Preprocessing | None") -> "Backbone":
    from vggfeat.runtime.devices import ordinary_tensors

    with ordinary_tensors():
        backbone = _load_own(path, stated) if kind == "vggfeat" else _load_other(path, kind, stated)
    if origin := hub_origin(path):
        return replace(backbone, source=origin, imported={**backbone.imported, "hub": origin})
    return backbone


def _load_own(path: Path, stated: "Preprocessing | None") -> "Backbone":
    if stated and stated.stated():
        raise ConfigError(
            f"{path}: expected a file of another library to state {', '.join(stated.stated())} of, found one of "
            "vggfeat, which says it itself; give the file that it was made from"
        )
    from vggfeat.weights.tensor_files import load_own

    backbone = load_own(path)
    return _checked_bundled(backbone) if path == find_file(BUNDLED) else backbone


def _load_other(path: Path, kind: str, stated: "Preprocessing | None") -> "Backbone":
    start()
    from vggfeat.weights.importing import ParsedNet, finish
    from vggfeat.weights.pytorch import parse_state

    with opened(kind, path) as found:
        parsed = found if isinstance(found, ParsedNet) else parse_state(path, found)
        hashes = digests(path, _checksum_kinds(path, kind))
        if hashes["sha256"].startswith(_FEATURES_ONLY):
            known = "torchvision's documentation of IMAGENET1K_FEATURES"
            parsed = replace(parsed, mean=_FEATURES_MEAN, std=(1.0, 1.0, 1.0), mean_from=known, assumed=False)
        parsed = stated.apply(path, parsed) if stated else parsed
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
    """Load the small net of the package, or of a file: it was trained on rendered images by vggfeat's own trainer.

    Raises WeightsError if the package was installed without it, or it is damaged.
    """
    one = file or resources.files("vggfeat.weights").joinpath(f"{BUNDLED}.safetensors")
    if not one.is_file():
        raise WeightsError(f"{BUNDLED}: expected the net of the package at {one}, found none; install vggfeat again")
    with resources.as_file(one) as path:
        backbone = replace(load_file(path), source=BUNDLED)
        return backbone if file else _checked_bundled(backbone)


def _checked_bundled(backbone: "Backbone") -> "Backbone":
    if backbone.sha256 != BUNDLED_SHA256:
        raise WeightsError(
            f"{BUNDLED}: expected the net of the package, SHA-256 {BUNDLED_SHA256}, found other bytes "
            f"({backbone.sha256}); install vggfeat again"
        )
    return backbone


def random_backbone(spec: str) -> "Backbone":
    """Build an untrained net from random:NET[:SEED[:WIDTH]], for instance random:A:0:0.25.

    The same spec gives the same weights on every machine with the same PyTorch.

    Raises ConfigError if the spec is not understood.
    """
    import torch

    from vggfeat.nets.backbone import Backbone
    from vggfeat.nets.families import allocated, build, initialise
    from vggfeat.runtime.devices import ordinary_tensors

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
    with ordinary_tensors():
        initialise(allocated(model), torch.Generator().manual_seed(seed))
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    canonical = f"random:{net}:{seed}:{repr(width).removesuffix('.0')}"
    return Backbone(
        model=model.eval().requires_grad_(False), source=canonical, sha256=digest.hexdigest(), trained=False
    )


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """All that is known of a file that could be loaded."""

    path: Path
    format: str
    """A key of `vggfeat.weights.sniff.FORMATS`."""
    bytes: int
    digests: Mapping[str, str]
    """sha256, sha1 and md5 of the file."""
    backbone: "Backbone"
    published: Published | None
    """Which published file it is, or which it was converted from."""

    def describe(self) -> dict[str, Any]:
        """Return it for JSON, with a row for every tensor."""
        tensors = [
            {"name": name, "shape": list(tensor.shape), "numbers": tensor.numel()}
            for name, tensor in self.backbone.model.layers.state_dict().items()
        ]
        return {
            "path": str(self.path),
            "format": FORMATS[self.format].words,
            "bytes": self.bytes,
            **self.digests,
            "published": self.published.name if self.published else None,
            **self.backbone.describe(),
            "imported": dict(self.backbone.imported),
            "facts": dict(self.backbone.facts),
            "classes": list(self.backbone.classes),
            "numbers": sum(tensor["numbers"] for tensor in tensors),
            "tensors": tensors,
        }


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Whether a file can be relied on."""

    path: Path
    file: WeightsFile | None
    """None if it can't be loaded."""
    problems: tuple[str, ...]
    """One line each; none in a sound file."""

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        about: dict[str, Any] = {"path": str(self.path), "sound": not self.problems, "problems": list(self.problems)}
        if self.file is None:
            return about | {"published": None}
        known = self.file.published
        fields = ("top1_error", "top5_error", "errors_from") if known else ()
        expected = {name: getattr(known, name) for name in fields}
        return about | dict(self.file.digests) | {"published": known.name if known else None} | expected


def examine(path: Path, stated: "Preprocessing | None" = None) -> WeightsFile:
    """Load a file in any format and say what it holds; `stated` is for `load_file`.

    Raises WeightsError if it can't be loaded.
    """
    kind = recognise(path)
    backbone, found = _load(path, kind, stated), digests(path)
    source = PUBLISHED.get(str(backbone.imported.get("published"))) if kind == "vggfeat" else None
    return WeightsFile(
        path=path, format=kind, bytes=path.stat().st_size, digests=found, backbone=backbone,
        published=identify(found) or source,
    )  # fmt: skip


def verify(path: Path) -> Verification:
    """Check a file: its structure, that its numbers are finite and no layer is blank, and its checksum if it is known.

    A file with the name of a published one and another checksum is not sound; one with neither is just not known.
    """
    try:
        file = examine(path)
    except WeightsError as error:
        return Verification(path=path, file=None, problems=(str(error),))
    return Verification(path=path, file=file, problems=tuple(_problems(file)))


def convert(
    source: Path, target: Path, *, dtype: str = "float32", stated: "Preprocessing | None" = None
) -> WeightsFile:
    """Write a file in any format as a file of ours, with all that is known of where it came from.

    What is known stays as it is, so that converting a second time changes nothing. `dtype` is float32 or float16;
    `stated` is what pixels the net takes, where its file does not say it. Returns what is known of the source.

    Raises WeightsError if the source can't be loaded. Raises ConfigError if what is stated can't be. Raises StoreError
    if the target can't be written.
    """
    from vggfeat.weights.tensor_files import save_weights

    file = examine(source, stated)
    net = file.backbone
    imported = {**net.imported, **({"published": file.published.name} if file.published else {})}
    facts = {**net.facts, **({"imported": imported} if imported else {})}
    save_weights(target, net.model, mean=net.mean, std=net.std, classes=net.classes, dtype=dtype, **facts)
    return file


def _problems(file: WeightsFile) -> Iterator[str]:
    from vggfeat.nets.backbone import NOT_FINITE

    if names := file.backbone.imported.get(NOT_FINITE):
        yield f"{names}: expected finite numbers, found NaN or infinity"
    for name, tensor in file.backbone.model.layers.state_dict().items():
        if tensor.ndim > 1 and bool((tensor == tensor.flatten()[0]).all()):
            value = tensor.flatten()[0].item()
            yield f"{name}: expected the weights of a trained layer, found {value:g} {tensor.numel()} times"
    if file.published:
        return
    for published in PUBLISHED.values():
        if (published.file, published.format) == (file.path.name, file.format):
            kind, value = published.checksum
            yield (
                f"expected {kind} {value}, which {published.name} of that name has, found {file.digests[kind]}; "
                f"fetch it again: vggfeat weights fetch {published.name}"
            )
