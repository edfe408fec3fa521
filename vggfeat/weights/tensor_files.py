"""Files of tensors with names: safetensors, ours and those of others, and what `torch.save` wrote.

Ours have everything that the net needs to be known of in their metadata, and a checksum. Of the others, which net they
hold is said by the names of the tensors (`vggfeat.weights.pytorch`).

Nothing that a pickle holds is run: PyTorch's `weights_only` unpickler makes tensors and plain containers. It may still
be kept busy or swell, so `vggfeat.weights.reader_process` opens the files of others in a process with limits.
"""

import argparse
import collections
import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vggfeat.checks import check_choice
from vggfeat.errors import WeightsError
from vggfeat.formats.archive import list_members
from vggfeat.nets.backbone import Backbone, Net
from vggfeat.runtime.durable import DISK, LatchedFile, atomic_write, disk_errors
from vggfeat.weights.importing import StateDict, check_shapes, empty_model, fill, hash_file
from vggfeat.wording import listed, quoted

METADATA_VERSION = 1
MOST_TENSORS = 1 << 14
"""In a state dict; the nets of torchvision and timm have some hundred, and their largest two thousand."""
_NEEDED = ("format", "config", "width", "pool", "num_classes", "mean", "std", "classes")
_DTYPES = {"float32": torch.float32, "float16": torch.float16}

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "backbone", "module", "weights")
"""Under which checkpoints keep the weights, the first that is there; then the averaged ones, then whatever is there."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_LEVELS, _MOST_ENTRIES = 3, 100
"""Of dictionaries in a checkpoint, and what is looked through in each."""
_ALONE = "save the net's state_dict() alone, with torch.save(net.state_dict(), FILE)"
# What training scripts put next to the weights, and what has no method that does anything.
_NUMPY = tuple(getattr(np.dtypes, name) for name in np.dtypes.__all__)
_PLAIN = (argparse.Namespace, collections.defaultdict, np.dtype, *_NUMPY)


def _scalar(kind: Any, content: Any = b"") -> Any:
    """Stand for NumPy's number that a checkpoint has as its accuracy: nobody reads it."""
    return None


_SCALARS = [(_scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]


def save_weights(
    path: str | os.PathLike[str],
    model: Net,
    *,
    mean: Sequence[float],
    std: Sequence[float] = (1.0, 1.0, 1.0),
    classes: Sequence[str] = (),
    dtype: str = "float32",
    **facts: Any,
) -> None:
    """Write a net as safetensors, in the form that `load_backbone` reads.

    Parameters
    ----------
    path : path
        Written under a temporary name, synced, and renamed.
    model : Net
    mean, std : 3 numbers
        RGB, 0 to 255: what is subtracted from every pixel, and what it is divided by then.
    classes : num_classes names, optional
    dtype : "float32" or "float16"
        How the numbers are stored. float16 halves the file and rounds to 11 bits; they are loaded as float32.
    facts
        Anything else that is to be known of the net and that JSON can hold; `Backbone.facts` after loading.

    Raises
    ------
    ConfigError
        If dtype is another.
    WeightsError
        If mean, std or classes can't belong to the net, or a weight is not finite in `dtype`.
    StoreError
        If the file can't be written.
    """
    path = Path(path)
    check_choice("dtype", dtype, _DTYPES)
    about = {**facts, "format": METADATA_VERSION, "config": model.config, "width": model.width, "pool": model.pool}
    about |= {"num_classes": model.num_classes, "mean": [float(v) for v in mean], "std": [float(v) for v in std]}
    about |= {"classes": [str(name) for name in classes], **({"last": model.last} if model.last else {})}
    _check_about(path, about)
    tensors = {}
    for name, tensor in model.layers.state_dict().items():
        tensors[name] = tensor.detach().to("cpu", _DTYPES[dtype], memory_format=torch.contiguous_format)
        if not torch.isfinite(tensors[name]).all():
            raise WeightsError(f"{path}: {name}: expected numbers that {dtype} can hold, found NaN or infinity")
    about["checksum"] = _checksum(about, tensors)
    content = save(tensors, metadata={"vggfeat": json.dumps(about, sort_keys=True)})
    with writing_weights(path) as file:
        file.write(content)


@contextmanager
def writing_weights(path: Path) -> Iterator[LatchedFile]:
    """Open a file of weights for a block, under its name once that is done; StoreError if it can't be written."""
    with disk_errors(path, "writing the weights", "fix it, or choose another place"), atomic_write(DISK, path) as file:
        yield file


def load_own(path: Path) -> Backbone:
    """Load a file that `save_weights` wrote.

    Raises WeightsError if it is damaged, or another program's.
    """
    with _safetensors(path) as file:
        about = _read_metadata(path, file.metadata() or {})
        model = empty_model(path, about)
        shapes = _shapes(file)
        check_shapes(path, model.layers.state_dict(), shapes)
        tensors = {name: file.get_tensor(name) for name in shapes}
    # Files of before have none.
    if about.get("checksum") not in (None, _checksum(about, tensors)):
        raise WeightsError(
            f"{path}: expected the numbers that its checksum is of, found others: it is damaged; copy it again"
        )
    fill(path, model, tensors)
    mean, std, classes = (tuple(about[name]) for name in ("mean", "std", "classes"))
    facts = {name: value for name, value in about.items() if name not in (*_NEEDED, "last", "imported", "checksum")}
    return Backbone(
        model=model, source=path.name, sha256=hash_file(path), mean=mean, std=std, classes=classes, facts=facts,
        imported=about.get("imported", {}),
    )  # fmt: skip


@contextmanager
def open_safetensors(path: Path) -> Iterator[StateDict]:
    """Open safetensors of another library.

    Raises WeightsError if it is damaged, or has more tensors than any net.
    """
    with _safetensors(path) as file:
        _check_count(path, len(file.keys()))
        yield StateDict(shapes=_shapes(file), read=lambda name: _plain(path, name, file.get_tensor(name)))


@contextmanager
def open_pickled(path: Path) -> Iterator[StateDict]:
    """Open what `torch.save` wrote: a state dict, or a checkpoint with one in it.

    Raises WeightsError if it is damaged, not safe to load, or has no tensors with names.
    """
    state, notes = _find_state(path, _unpickled(path))
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor) and isinstance(name, str)}
    _check_count(path, len(tensors))
    if left_out := [quoted(name) for name in state if name not in tensors]:
        notes |= {"left_out": listed(left_out)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    yield StateDict(shapes=shapes, read=lambda name: _plain(path, name, tensors[name]), notes=notes)


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: expected a safetensors file, found a damaged one: {quoted(str(error))}") from error


def _shapes(file: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _check_count(path: Path, count: int) -> None:
    if count > MOST_TENSORS:
        raise WeightsError(f"{path}: expected the tensors of a net, at most {MOST_TENSORS}, found {count}")


def _checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over all that is known of a net, and its tensors as they are stored."""
    known = {name: value for name, value in about.items() if name != "checksum"}
    return hash_tensors(json.dumps(known, sort_keys=True), tensors)


def hash_tensors(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a text and the names, types, shapes and bytes of tensors on the CPU, as 64 hex digits."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(metadata["vggfeat"])
        version = about["format"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise WeightsError(
            f"{path}: expected metadata of a vggfeat net (config, width, pool, mean), found none that can be read; "
            "it was written by another program"
        ) from None
    if version != METADATA_VERSION:
        raise WeightsError(f"{path}: expected metadata version {METADATA_VERSION}, found {quoted(str(version))}")
    _check_about(path, about)
    return dict(about)


def _check_about(path: Path, about: Mapping[str, Any]) -> None:
    # Nothing here has a default: features with a guessed mean look fine and are wrong.
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        values = about.get(name)
        numbers = isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) for v in values)
        if not numbers or not all(math.isfinite(v) and v > least for v in values):  # type: ignore[union-attr]
            raise WeightsError(
                f"{path}: {name}: expected 3 finite numbers (RGB, 0 to 255), found {quoted(str(values))}"
            )
    if not isinstance(about.get("imported", {}), dict):
        raise WeightsError(
            f"{path}: imported: expected what is known of the source, found {quoted(str(about['imported']))}"
        )
    classes = about.get("classes")
    if not isinstance(classes, list) or len(classes) not in (0, about.get("num_classes")):
        raise WeightsError(f"{path}: classes: expected a name for each of the fc8 channels or none, found others")


def _unpickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        _check_members(path)
    try:
        with torch.serialization.safe_globals([*_PLAIN, *_SCALARS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file makes it raise
        other = re.search(r"GLOBAL (\S{1,200}?)[,\s]", str(error))
        objects = f"{quoted(other[1])} in it, other than tensors" if other else "other objects than tensors"
        unsafe = other or "weights_only" in str(error)
        reason = f"{objects}, which is not safe to load: {_ALONE}" if unsafe else "a damaged file; take it again"
        raise WeightsError(
            f"{path}: expected safetensors or a state dict saved by torch.save, found {reason}"
        ) from None


def _check_members(path: Path) -> None:
    # Deflated members would unpack to any size before the first tensor is checked.
    members = list_members(path)
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path}: expected a PyTorch file with uncompressed members, found compressed ones")


def _find_state(path: Path, found: Any) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """Return the state dict of a checkpoint, and what was passed over."""
    ways = _ways_to_states(found, _LEVELS)
    if len(ways) > 1:  # one of a net has kernels
        ways = [way for way in ways if _has_kernels(_below(found, way))] or ways
    if len(ways) != 1:
        entries = f" with {listed([quoted(name) for name in found])}" if isinstance(found, Mapping) and found else ""
        several = f", {len(ways)} of them at {listed([_shown(way) for way in ways])}" if ways else ""
        raise WeightsError(
            f"{path}: expected a state dict of tensors, or a checkpoint with one, found {type(found).__name__}"
            f"{entries}{several}; {_ALONE}"
        )
    (way,) = ways
    others = [quoted(other) for at, name in enumerate(way) for other in _below(found, way[:at]) if other != name]
    notes = {"taken_from": _shown(way)} if way else {}
    return _below(found, way), notes | ({"next_to": listed(others)} if others else {})


def _ways_to_states(value: Any, levels: int) -> list[tuple[str, ...]]:
    """Return the names that lead to state dicts, those of one under a usual name alone; none if it is one itself."""
    if not isinstance(value, Mapping):
        return []
    for name in (*WRAPPERS, *AVERAGED) if levels else ():
        if below := _ways_to_states(value.get(name), levels - 1):
            return [(name, *way) for way in below]
    if any(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()):
        return [()]
    names = [name for name in value if isinstance(name, str)] if levels and len(value) <= _MOST_ENTRIES else []
    return [(name, *way) for name in names for way in _ways_to_states(value[name], levels - 1)]


def _below(value: Any, way: tuple[str, ...]) -> Any:
    for name in way:
        value = value[name]
    return value


def _has_kernels(state: Mapping[Any, Any]) -> bool:
    return any(isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in state.values())


def _shown(way: tuple[str, ...]) -> str:
    return " / ".join(map(quoted, way))


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    # Sparse, quantised and meta tensors, and subclasses, pass through weights_only and fail much later.
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter)
    if not plain or not tensor.dtype.is_floating_point:
        kind = str(tensor.dtype) if plain else f"{tensor.dtype} in another form"
        raise WeightsError(f"{path}: {quoted(name)}: expected floating-point numbers, found {kind}")
    return tensor.detach()
