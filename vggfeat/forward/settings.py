"""What decides the values of a run: the net, its settings, the image files, and the machine."""

import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch

from vggfeat.checks import check_choice, convert_fields
from vggfeat.errors import ConfigError, ImageError
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.image_bytes import read_bytes
from vggfeat.nets.backbone import Net
from vggfeat.nets.transforms import Interpolation
from vggfeat.runtime.devices import Precision, library_version
from vggfeat.samples import Place
from vggfeat.store.identity import IMAGE_SIZES
from vggfeat.weights import Backbone


@dataclass(frozen=True, kw_only=True)
class ForwardSettings:
    """What decides how images come to the net, apart from the weights."""

    scales: tuple[int, ...] = (256, 384, 512)
    """Q, the smallest image side in pixels."""
    precision: Precision = "fp32"
    """Precision of the convolutions; averages are always taken in float32."""
    interpolation: Interpolation = "bilinear"
    """How images are rescaled, always with anti-aliasing."""
    batch_pixels: int = 1 << 20
    """Pixels in one pass, mirrors included: bounds the memory. A larger image is run in exact overlapping strips."""
    compiled: bool = False
    """Compile the net with torch.compile, for long runs: a minute or two first, then fewer passes over memory."""
    window_bytes: int = 1 << 28
    """Decoded images held at a time, from which batches are made."""

    def __post_init__(self) -> None:
        convert_fields(self)
        for name, allowed in (("precision", Precision), ("interpolation", Interpolation)):
            check_choice(name, getattr(self, name), get_args(allowed))
        if not self.scales or not all(1 <= q <= 4096 for q in self.scales):
            raise ConfigError(f"scales: expected whole numbers of pixels from 1 to 4096, found {self.scales}")
        if len(set(self.scales)) != len(self.scales):
            raise ConfigError(f"scales: expected each once, found {self.scales}")
        if self.compiled and self.precision == "winograd":
            raise ConfigError(
                "precision: expected another than winograd for a compiled net, found both; leave one of the two out"
            )
        for name in ("batch_pixels", "window_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")

    def least_side(self, model: Net) -> int:
        """Return the shortest image side that gives a value."""
        return model.min_side

    def sides(self, model: Net) -> tuple[int, ...]:
        """Return the smallest sides that are really used: a Q too short for one position is raised to it.

        ConfigError if two scales become one.
        """
        least = self.least_side(model)
        sides = tuple(max(scale, least) for scale in self.scales)
        if len(set(sides)) != len(sides):
            raise ConfigError(
                f"scales: {self.scales} become {sides}, because an image below {least} pixels is too small for the "
                f"net; expected at most one scale below {least}"
            )
        return sides

    def describe(self) -> dict[str, Any]:
        """Return all settings, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def describe_net(backbone: Backbone, settings: ForwardSettings) -> dict[str, Any]:
    """Return what of the net, and of how it runs, decides the values of the rows."""
    described = settings.describe()
    return {
        **{name: value for name, value in backbone.describe().items() if name != "weights"},
        **{name: value for name, value in described.items() if name not in ("scales", "regions")},
    }


def describe_made(backbone: Backbone, settings: ForwardSettings, sides: Sequence[int]) -> dict[str, Any]:
    """Return what else a reader may want to know of how rows are made."""
    return {**settings.describe(), "weights": backbone.source, "sides": list(sides)}


def describe_conditions(device: torch.device, decode: DecodeSettings, places: Iterable[Place]) -> dict[str, Any]:
    """Return what else decides the values of a run than net and settings: files, decoding, machine and libraries."""
    return {**describe_decoding(decode), "machine": describe_machine(device), IMAGE_SIZES: hash_sizes(places)}


def describe_decoding(decode: DecodeSettings) -> dict[str, Any]:
    """Return how images are decoded, and by which versions they are and the net runs."""
    free = ("timeout", "memory", "largest_side")
    return {
        "decode": {name: value for name, value in asdict(decode).items() if name not in free},
        "versions": {name: library_version(name) for name in ("vggfeat", "torch", "pillow", "numpy")},
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what of a device decides the last bits: sums are split by threads and instruction sets."""
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device)}
    if device.type == "mps":
        return {"device": "mps", "name": f"{platform.machine()}, macOS {platform.mac_ver()[0]}"}
    return {"device": "cpu", "name": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def hash_image(place: Place, max_bytes: int) -> bytes:
    """Return the SHA-256 of an image's bytes; nothing if they can't be read."""
    try:
        return hashlib.sha256(read_bytes(place.file, max_bytes, place.span)).digest()
    except ImageError:
        return b""


def hash_sizes(places: Iterable[Place]) -> str:
    """Return the SHA-256 of the sizes in bytes of images, in this order; that of a missing one is -1."""
    digest = hashlib.sha256()
    for file, span in places:
        try:
            size = span[1] if span else os.stat(file).st_size
        except (OSError, ValueError):
            size = -1
        digest.update(f"{size}\n".encode())
    return digest.hexdigest()
