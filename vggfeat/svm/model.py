"""The fitted model, and its file.

K = classes, D = length of a descriptor, G = values of C, m = rows to score.

The file is safetensors with JSON next to the numbers, never pickle, and a checksum over every byte. Its tensors are
those of `LinearModel`: coef (K, D), intercept, C and gap (K,) float64, converged (K,) bool. float64, so that a model
that was read gives the scores of the one that was written. The metadata entry `vggfeat-svm` is JSON; its first field,
sha256, is the SHA-256 of the file with 64 zeros in its place.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vggfeat.checks import check_unmasked
from vggfeat.errors import FitError, without_number
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors
from vggfeat.svm.arrays import times
from vggfeat.wording import short_repr

MODEL_NAMES = ("model.safetensors", "model-split-*.safetensors", "model-fold-*.safetensors")
"""Patterns of the names of models in a folder of `vggfeat svm`; the first is the one to use."""
VERSION = 1
_ENTRY = "vggfeat-svm"
_BLANK = b"0" * 64
# As JSON within JSON; the first match is the entry's own, as nothing of the user's comes before it.
_DIGEST = re.compile(rb'\{\\"sha256\\":\\"([0-9a-f]{64})\\"')
_TYPES = {"coef": np.float64, "intercept": np.float64, "C": np.float64, "gap": np.float64, "converged": np.bool_}


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel:
    """K linear functions of a descriptor."""

    coef: NDArray[np.float64]
    """(K, D)"""
    intercept: NDArray[np.float64]
    """(K,)"""
    C: NDArray[np.float64]
    """(K,) the value that each class was fitted with."""
    converged: NDArray[np.bool_]
    """(K,) False where the solver gave up before its tolerance."""
    gap: NDArray[np.float64]
    """(K,) relative duality gap: at most this part of the objective is above the optimum. 0 = exact,
    1 = nothing is known."""

    __repr__ = short_repr

    def scores(self, descriptors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Score descriptors (m, D): signed, above 0 where the class is more likely than not; (m, K) float64.

        Raises
        ------
        FitError
            If descriptors have another length, or numbers that are not finite.
        """
        x = check_descriptors(descriptors, "to score")
        if x.shape[1] != self.coef.shape[1]:
            raise FitError(f"descriptors to score: expected length {self.coef.shape[1]}, found {x.shape[1]}")
        return times(x, np.arange(len(x)), self.coef) + self.intercept


class Sweep(NamedTuple):
    """Scores of held-out rows, for every value of C."""

    scores: NDArray[np.float64]
    """(G, K, m)"""
    converged: NDArray[np.bool_]
    """(G, K)"""
    gap: NDArray[np.float64]
    """(G, K) relative duality gap, see `LinearModel`."""


def check_descriptors(descriptors: NDArray[np.floating], what: str) -> NDArray[np.floating]:
    """Return descriptors (n, D) as an array; FitError if they are of another kind or not finite."""
    check_unmasked(f"descriptors {what}", descriptors)
    x = np.asarray(descriptors)
    if x.ndim != 2 or not x.shape[1] or not np.issubdtype(x.dtype, np.floating):
        raise FitError(f"descriptors {what}: expected numbers of shape (rows, length), found {x.dtype} {x.shape}")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise FitError(f"descriptors {what}: expected finite numbers, found others in row {row}")
    return x


def save_model(path: str | os.PathLike[str], model: LinearModel, about: Mapping[str, Any]) -> None:
    """Write a model to a file; a file there is replaced in one step.

    Parameters
    ----------
    path : path
        Written under a temporary name, synced, and renamed.
    model : LinearModel
    about : mapping
        What is to be known of it, ready for JSON: "classes", its K names, and anything else.

    Raises
    ------
    FitError
        If `about` has not K classes, or is no JSON.
    StoreError
        If the file can't be written.
    """
    path = Path(path)
    content = model_bytes(model, about)
    with disk_errors(path, "writing the model", "choose another place"), atomic_write(DISK, path) as file:
        file.write(content)


def model_bytes(model: LinearModel, about: Mapping[str, Any]) -> bytes:
    """Return the file that `save_model` writes; equal models give equal bytes.

    Raises
    ------
    FitError
        As `save_model`.
    """
    _check_classes("model", model, about)
    head = {"sha256": _BLANK.decode(), "format": VERSION, "about": dict(about)}
    try:
        text = json.dumps(head, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FitError(f"model: expected texts, finite numbers, lists and dictionaries about it: {error}") from None
    arrays: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(getattr(model, name), dtype=kind) for name, kind in _TYPES.items()
    }
    # One entry only: safetensors writes several in any order.
    blank = save(arrays, metadata={_ENTRY: text})
    start, stop = _digest_place(blank)
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[stop:]


def load_model(path: str | os.PathLike[str]) -> tuple[LinearModel, dict[str, Any]]:
    """Read a model, after checking every byte of the file.

    Returns
    -------
    model, about
        As they were given to `save_model`.

    Raises
    ------
    FitError
        If there is no such file, it is damaged, or written by another program or a newer version.
    """
    path = Path(path)
    content = _read(path)
    start, stop = _digest_place(content)
    if start < 0:
        raise FitError(f"{path}: expected a model that `vggfeat svm` wrote, found another file, or a damaged one")
    digest = hashlib.sha256(content[:start] + _BLANK + content[stop:]).hexdigest()
    if digest.encode() != content[start:stop]:
        raise FitError(f"{path}: expected the bytes that its SHA-256 is of, found others; write or copy it again")
    try:
        arrays = load(content)
        head = json.loads(json.loads(content[8 : 8 + _head_bytes(content)])["__metadata__"][_ENTRY])
        version, about = head["format"], head["about"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FitError(f"{path}: expected a model that `vggfeat svm` wrote, found one it can't read: {error}") from None
    if version != VERSION:
        raise FitError(f"{path}: expected a model of format {VERSION}, found {version!r}; update vggfeat")
    _check_arrays(path, arrays)
    model = LinearModel(**{name: arrays[name] for name in _TYPES})
    _check_classes(str(path), model, about)
    return model, about


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            found = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "no model"
            raise FitError(f"{path}: expected a model file, found a folder, which holds {found}")
        if not path.is_file():
            raise FitError(f"{path}: expected a model file, found none")
        with path.open("rb") as file:
            # A large file of another kind is not read to its end.
            head = file.read(9)
            return head + file.read() if head[8:] == b"{" else head
    except (OSError, ValueError) as error:
        raise FitError(
            f"{path}: expected a model file, found one that can't be read: {without_number(error)}"
        ) from error


def _head_bytes(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")


def _digest_place(content: bytes) -> tuple[int, int]:
    match = _DIGEST.search(content, 8, min(len(content), 8 + _head_bytes(content)))
    return match.span(1) if match else (-1, -1)


def _check_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    if arrays.keys() != _TYPES.keys() or arrays["coef"].ndim != 2:
        raise FitError(f"{path}: expected the tensors {', '.join(_TYPES)}, found {', '.join(sorted(arrays)) or 'none'}")
    for name, kind in _TYPES.items():
        array = arrays[name]
        expected = arrays["coef"].shape if name == "coef" else arrays["coef"].shape[:1]
        if array.shape != expected or array.dtype != kind or not np.isfinite(array).all():
            found = f"{array.dtype} {array.shape}"
            raise FitError(f"{path}: {name}: expected finite {np.dtype(kind)} of shape {expected}, found {found}")


def _check_classes(where: str, model: LinearModel, about: Any) -> None:
    classes = about.get("classes") if isinstance(about, Mapping) else None
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    if not named or len(classes) != len(model.coef):  # type: ignore[arg-type]
        raise FitError(f"{where}: expected the names of {len(model.coef)} classes, found {classes!r:.100}")
