"""Weights: a file, or a seed, becomes a net together with all that one must know to use it."""

import hashlib
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vggfeat.errors import ConfigError, WeightsError
from vggfeat.models import BLOCK_CHANNELS, NETS, VGG, initialise

IMAGENET_MEAN = (123.68, 116.779, 103.939)
"""Mean RGB pixel of the ILSVRC training set, 0 to 255, as published with the authors' nets."""
TORCHVISION_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
TORCHVISION_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

METADATA_VERSION = 1
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A net and the preprocessing that its weights ask for."""

    model: VGG
    """In evaluation mode, on the CPU."""
    source: str
    """What was asked for: a file name without its folder, or random:NET:SEED:WIDTH."""
    sha256: str
    """Of the file's bytes; of the tensors for random weights. 64 hex digits."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """RGB, 0 to 255, subtracted from every pixel (Sect. 2.1)."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB, 0 to 255, divided by after that: 1 in the paper."""
    classes: tuple[str, ...] = ()
    """Names of the fc8 channels, where the file holds them."""
    trained: bool = True
    """False for random weights."""

    def describe(self) -> dict[str, Any]:
        """Return what belongs into the provenance of anything computed with the net, ready for JSON."""
        return {
            "weights": self.source,
            "weights_sha256": self.sha256,
            "net": self.model.config,
            "width": self.model.width,
            "num_classes": self.model.num_classes,
            "pool_rounding": self.model.pool,
            "channel_order": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "trained": self.trained,
        }


def weights_folder() -> Path:
    """Return the folder of nets known by name: $VGGFEAT_WEIGHTS, else `weights` in the current folder."""
    return Path(os.environ.get("VGGFEAT_WEIGHTS") or "weights")


def load_backbone(spec: str | os.PathLike[str] | None = None, folder: Path | None = None) -> Backbone:
    """Find and load a net.

    Parameters
    ----------
    spec : str, path or None
        A file; the name of a file in `folder`, with or without suffix; random:NET[:SEED[:WIDTH]]; or None for the
        only file in `folder`.
    folder : Path, optional
        `weights_folder()` by default.

    Raises
    ------
    WeightsError
        If there is none, or it is damaged, of an unknown format, or of another network.
    ConfigError
        If random:... is not understood.
    """
    if isinstance(spec, str) and spec.partition(":")[0] == "random":
        return random_backbone(spec)
    path = _find(spec, Path(folder) if folder is not None else weights_folder())
    loader = _load_safetensors if _starts_like_safetensors(path) else _load_state_dict
    return loader(path)


def random_backbone(spec: str) -> Backbone:
    """Build an untrained net from random:NET[:SEED[:WIDTH]], for instance random:A:0:0.25.

    The same spec gives the same weights on every machine with the same PyTorch.
    """
    fields = spec.split(":")
    try:
        net, seed = fields[1], int(fields[2]) if len(fields) > 2 else 0
        width = float(fields[3]) if len(fields) > 3 else 1.0
        if len(fields) > 4 or not 0 <= seed < 2**63:
            raise ValueError
        with torch.device("meta"):  # PyTorch's own first weights would cost time and move its random state.
            model = VGG(net, width=width)
    except (ValueError, IndexError):
        raise ConfigError(
            f"weights: expected random:NET[:SEED[:WIDTH]], for instance random:A:0:0.25, found {spec!r}"
        ) from None
    initialise(model.to_empty(device="cpu"), torch.Generator().manual_seed(seed))
    canonical = f"random:{net}:{seed}:{width:g}"
    return Backbone(model=model.eval(), source=canonical, sha256=_hash_tensors(model.state_dict()), trained=False)


def save_weights(
    path: str | os.PathLike[str],
    model: VGG,
    *,
    mean: Sequence[float],
    std: Sequence[float] = (1.0, 1.0, 1.0),
    classes: Sequence[str] = (),
    **facts: Any,
) -> None:
    """Write a net as safetensors, in the form that `load_backbone` reads.

    Parameters
    ----------
    path : path
        Written under a temporary name, synced, and renamed.
    model : VGG
    mean, std : 3 numbers
        RGB, 0 to 255: what is subtracted from every pixel, and what it is divided by then.
    classes : num_classes names, optional
    facts
        Anything else that is to be known of the net and that JSON can hold.

    Raises
    ------
    WeightsError
        If mean, std or classes can't belong to the net, or the file can't be written.
    """
    path = Path(path)
    about = {"format": METADATA_VERSION, "config": model.config, "width": model.width, "pool": model.pool}
    about |= {"num_classes": model.num_classes, "mean": [float(v) for v in mean], "std": [float(v) for v in std]}
    about |= {"classes": [str(name) for name in classes], **facts}
    _check_about(path, about)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in model.layers.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"vggfeat": json.dumps(about, sort_keys=True)})
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: can't write weights: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _find(spec: str | os.PathLike[str] | None, folder: Path) -> Path:
    remedy = (
        "ways to get one: --weights FILE (a safetensors file, or a torchvision VGG state dict such as "
        f"vgg16-397923af.pth), a file put into {folder}/, or --weights random:D:0 for a trial without training"
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


def _starts_like_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path}: can't read: {error.strerror or error}") from error
    return len(start) == 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100 << 20


def _load_safetensors(path: Path) -> Backbone:
    try:
        with safe_open(path, "pt") as file:
            about = _read_metadata(path, file.metadata() or {})
            model = _empty_model(path, about)
            expected = model.layers.state_dict()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_shapes(path, expected, shapes)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: expected a safetensors file, found a damaged one: {error}") from error
    _fill(path, model, tensors)
    mean, std, classes = (tuple(about[name]) for name in ("mean", "std", "classes"))
    return Backbone(model=model, source=path.name, sha256=_hash_file(path), mean=mean, std=std, classes=classes)


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(metadata["vggfeat"])
        version = about["format"]
    except (KeyError, TypeError, ValueError):
        raise WeightsError(
            f"{path}: expected metadata of a vggfeat net (config, width, pool, mean), found none that can be read; "
            "it was written by another program"
        ) from None
    if version != METADATA_VERSION:
        raise WeightsError(f"{path}: expected metadata version {METADATA_VERSION}, found {version}")
    _check_about(path, about)
    return dict(about)


def _check_about(path: Path, about: Mapping[str, Any]) -> None:
    # Nothing here has a default: features with a guessed mean look fine and are wrong.
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        values = about.get(name)
        numbers = isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) for v in values)
        if not numbers or not all(math.isfinite(v) and v > least for v in values):  # type: ignore[union-attr]
            raise WeightsError(f"{path}: {name}: expected 3 finite numbers (RGB, 0 to 255), found {values}")
    classes = about.get("classes")
    if not isinstance(classes, list) or len(classes) not in (0, about.get("num_classes")):
        raise WeightsError(f"{path}: classes: expected a name for each of the fc8 channels or none, found others")


def _empty_model(path: Path, about: Mapping[str, Any]) -> VGG:
    try:
        with torch.device("meta"):
            return VGG(about["config"], int(about["num_classes"]), width=float(about["width"]), pool=about["pool"])
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise WeightsError(f"{path}: its metadata describe no net of the VGG paper: {error}") from None


def _load_state_dict(path: Path) -> Backbone:
    _check_zip(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file makes it raise
        other = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
        reason = "other objects than tensors, which is not safe to load" if other else "a damaged file"
        raise WeightsError(
            f"{path}: expected safetensors or a state dict saved by torch.save, found {reason}"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        entries = f" with {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        raise WeightsError(
            f"{path}: expected a state dict of tensors, found {type(state).__name__}{entries}; "
            "save the net's state_dict() alone"
        )
    model, names = _recognise(path, state)
    expected = model.layers.state_dict()
    tensors = {ours: state[theirs] for ours, theirs in names.items()}
    for name in ("fc6.weight", "fc7.weight", "fc8.weight"):
        # Linear (out, in) with in = C,H,W becomes a convolution (out, C, H, W) without moving a value.
        if tensors[name].numel() == expected[name].numel():
            tensors[name] = tensors[name].reshape(expected[name].shape)
    _check_shapes(path, expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    _fill(path, model, tensors)
    sha256 = _hash_file(path)
    return Backbone(model=model, source=path.name, sha256=sha256, mean=TORCHVISION_MEAN, std=TORCHVISION_STD)


def _check_zip(path: Path) -> None:
    # Deflated members would unpack to any size before the first tensor is looked at.
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(f"{path}: expected a PyTorch file, found a damaged archive: {error}") from None
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path}: expected a PyTorch file with uncompressed members, found compressed ones")


def torchvision_names(config: str) -> dict[str, str]:
    """Map our layer names to torchvision's: features.N counts convolutions, ReLUs and poolings in a row."""
    names, position = {}, 0
    for number, kernels in enumerate(NETS[config].blocks, start=1):
        for index in range(1, len(kernels) + 1):
            names[f"conv{number}_{index}"] = f"features.{position}"
            position += 2
        position += 1
    return names | {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}


def _recognise(path: Path, state: Mapping[str, Tensor]) -> tuple[VGG, dict[str, str]]:
    keys = {str(key) for key in state}
    if any(re.fullmatch(r"features\.\d+\.running_mean", key) for key in keys):
        raise WeightsError(f"{path}: expected a net of the VGG paper, found batch normalisation (a vgg*_bn net)")
    if "classifier.1.weight" in keys:
        raise WeightsError(
            f"{path}: found fully connected layers named classifier.1, .4 and .6, as in nets that were converted "
            "from Caffe and take BGR pixels; expected torchvision's classifier.0, .3 and .6, which take RGB"
        )
    for config in NETS:
        layers = torchvision_names(config)
        names = {f"{our}.{kind}": f"{their}.{kind}" for our, their in layers.items() for kind in ("weight", "bias")}
        if set(names.values()) == keys and config != "A-LRN" and _same_kernels(config, layers, state):
            width = state["features.0.weight"].shape[0] / BLOCK_CHANNELS[0]
            about = {"config": config, "num_classes": state["classifier.6.weight"].shape[0], "width": width}
            return _empty_model(path, about | {"pool": "floor"}), names
    raise WeightsError(
        f"{path}: expected the keys of torchvision's vgg11, vgg13, vgg16 or vgg19, found {len(keys)} others, "
        f"for instance {min(keys, default='none')!r}"
    )


def _same_kernels(config: str, layers: Mapping[str, str], state: Mapping[str, Tensor]) -> bool:
    for number, kernels in enumerate(NETS[config].blocks, start=1):
        for index, kernel in enumerate(kernels, start=1):
            shape = state[f"{layers[f'conv{number}_{index}']}.weight"].shape
            if len(shape) != 4 or shape[-1] != kernel:
                return False
    return True


def _check_shapes(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected:
            verb = "misses" if name not in found else "has an unexpected"
            raise WeightsError(f"{path}: {verb} tensor {name}; it is of another network or damaged")
        if tuple(expected[name].shape) != found[name]:
            raise WeightsError(f"{path}: {name}: expected shape {tuple(expected[name].shape)}, found {found[name]}")


def _fill(path: Path, model: VGG, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point or tensor.layout is not torch.strided:
            raise WeightsError(f"{path}: {name}: expected floating-point numbers, found {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name}: expected finite numbers, found NaN or infinity; take other weights")
    ready = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    model.layers.load_state_dict(ready, strict=True, assign=True)
    model.eval().requires_grad_(False)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
