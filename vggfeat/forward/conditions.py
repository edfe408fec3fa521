"""What decides the values of a run besides net and settings: image files, decoding, machine and libraries."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.image_bytes import read_bytes
from vggfeat.runtime.devices import library_version
from vggfeat.samples import Place
from vggfeat.store.identity import IMAGE_SIZES


def describe_conditions(device: torch.device, decode: DecodeSettings, places: Iterable[Place]) -> dict[str, Any]:
    """Return what else decides the values of a run than net and settings: files, decoding, machine and libraries."""
    free = ("timeout", "memory", "largest_side")
    return {
        "decode": {name: value for name, value in asdict(decode).items() if name not in free},
        "machine": _machine(device),
        IMAGE_SIZES: _hash_sizes(places),
        "versions": {name: library_version(name) for name in ("vggfeat", "torch", "pillow", "numpy")},
    }


def _machine(device: torch.device) -> dict[str, Any]:
    # Sums are split by threads and instruction sets, so that both change the last bits.
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"device": "cpu", "name": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def hash_image(place: Place, max_bytes: int) -> bytes:
    """Return the SHA-256 of an image's bytes; nothing if they can't be read."""
    try:
        return hashlib.sha256(read_bytes(place.file, max_bytes, place.span)).digest()
    except ImageError:
        return b""


def _hash_sizes(places: Iterable[Place]) -> str:
    digest = hashlib.sha256()
    for file, span in places:
        try:
            size = span[1] if span else os.stat(file).st_size
        except (OSError, ValueError):
            size = -1
        digest.update(f"{size}\n".encode())
    return digest.hexdigest()
