"""Our own files: safetensors, with everything that the net needs to be known of in their metadata."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vggfeat.errors import WeightsError, check_choice, quoted
from vggfeat.nets.backbone import Backbone, Net
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors
from vggfeat.weights.importing import check_shapes, empty_model, fill, hash_file

METADATA_VERSION = 1
_MOST_HEADER = 8 << 20
_NEEDED = ("format", "config", "width", "pool", "num_classes", "mean", "std", "classes")
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


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
    advice = "mend it, or choose another place"
    with disk_errors(path, "writing the weights", advice), atomic_write(DISK, path) as file:
        file.write(content)


def load_own(path: Path) -> Backbone:
    """Load a file that `save_weights` wrote.

    Raises
    ------
    WeightsError
        If it is damaged, or another program's.
    """
    _check_header(path)
    try:
        with safe_open(path, "pt") as file:
            about = _read_metadata(path, file.metadata() or {})
            model = empty_model(path, about)
            expected = model.layers.state_dict()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            check_shapes(path, expected, shapes)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: expected a safetensors file, found a damaged one: {quoted(str(error))}") from error
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


def _checksum(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over all that is known of a net, and its tensors as they are stored."""
    known = {name: value for name, value in about.items() if name != "checksum"}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_header(path: Path) -> None:
    # safetensors itself takes headers of 100 MB; that of a net has some thousand bytes, and its classes.
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MOST_HEADER:
        raise WeightsError(f"{path}: expected a header of at most {_MOST_HEADER} bytes, found {length}; it is damaged")


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
