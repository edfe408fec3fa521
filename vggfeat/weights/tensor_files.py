"""Files of tensors with names: state dicts and checkpoints that `torch.save` wrote, and safetensors.

Nothing that a pickle holds is run: PyTorch's `weights_only` unpickler makes tensors and plain containers. It may still
be kept busy or swell, so `vggfeat.weights.isolated` calls these functions in a process with limits.
"""

import argparse
import collections
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vggfeat.errors import WeightsError, quoted
from vggfeat.formats.archive import list_members
from vggfeat.weights.importing import StateDict

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "backbone", "module", "weights")
"""Under which checkpoints keep the weights, the first that is there; then the averaged ones, then whatever is there."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_LEVELS = 2
_ALONE = "save the net's state_dict() alone, with torch.save(net.state_dict(), FILE)"
_SHOWN = 5
# What training scripts put next to the weights, and what has no method that does anything.
_DTYPES = tuple(getattr(np.dtypes, name) for name in np.dtypes.__all__)
_PLAIN = (argparse.Namespace, collections.defaultdict, np.dtype, *_DTYPES)


def _scalar(kind: Any, content: Any = b"") -> Any:
    """Stand for NumPy's number that a checkpoint has as its accuracy: nobody reads it."""
    return None


_SCALARS = [(_scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]


@contextmanager
def open_pickled(path: Path) -> Iterator[StateDict]:
    """Open what `torch.save` wrote: a state dict, or a checkpoint with one in it.

    Raises
    ------
    WeightsError
        If it is damaged, not safe to load, or has no tensors with names.
    """
    state, notes = _find_state(path, _unpickled(path))
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor) and isinstance(name, str)}
    if left_out := [quoted(name) for name in state if name not in tensors]:
        notes |= {"left_out": _listed(left_out)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    yield StateDict(shapes=shapes, read=lambda name: _plain(path, name, tensors[name]), notes=notes)


@contextmanager
def open_safetensors(path: Path) -> Iterator[StateDict]:
    """Open safetensors of another library.

    Raises
    ------
    WeightsError
        If it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            yield StateDict(shapes=shapes, read=lambda name: _plain(path, name, file.get_tensor(name)))
    except (SafetensorError, OSError) as error:
        found = quoted(str(error))
        raise WeightsError(f"{path}: expected a safetensors file, found a damaged one: {found}") from error


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


def _find_state(path: Path, found: Any) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """Return the state dict of a checkpoint, and what was passed over."""
    way = _way_to_state(found, _LEVELS)
    if way is None:
        entries = f" with {_listed([quoted(name) for name in found])}" if isinstance(found, Mapping) and found else ""
        raise WeightsError(
            f"{path}: expected a state dict of tensors, or a checkpoint with one, found {type(found).__name__}"
            f"{entries}; {_ALONE}"
        )
    others: list[str] = []
    for name in way:
        others += [quoted(other) for other in found if other != name]
        found = found[name]
    notes = {"taken_from": " / ".join(map(quoted, way))} if way else {}
    return found, notes | ({"next_to": _listed(others)} if others else {})


def _way_to_state(value: Any, levels: int) -> tuple[str, ...] | None:
    """Return the names that lead to a state dict; none if it is one itself, None if there is none."""
    if not isinstance(value, Mapping):
        return None
    for name in (*WRAPPERS, *AVERAGED) if levels else ():
        below = _way_to_state(value.get(name), levels - 1)
        if below is not None:
            return (name, *below)
    if _is_state(value):
        return ()
    states = [name for name, inner in value.items() if isinstance(name, str) and _is_state(inner)]
    return (states[0],) if levels and len(states) == 1 else None


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    # Sparse, quantised and meta tensors, and subclasses, pass through weights_only and fail much later.
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter)
    if not plain or not tensor.dtype.is_floating_point:
        kind = str(tensor.dtype) if plain else f"{tensor.dtype} in another form"
        raise WeightsError(f"{path}: {quoted(name)}: expected floating-point numbers, found {kind}")
    return tensor.detach()


def _check_members(path: Path) -> None:
    # Deflated members would unpack to any size before the first tensor is checked.
    members = list_members(path)
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path}: expected a PyTorch file with uncompressed members, found compressed ones")
