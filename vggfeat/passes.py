"""A net on a device, and pictures brought to it in batches of equal size: what features and class posteriors share.

N = pictures of a batch, S = scales, R = regions, C = values per scale and region, H, W = picture sides in pixels.
"""

import copy
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.devices import checked_device
from vggfeat.errors import ConfigError, PictureError, check_choice, out_of_memory
from vggfeat.images.decoding import Picture
from vggfeat.models import VGG
from vggfeat.transforms import Interpolation, mirror, normalise, rescale, rescaled_size
from vggfeat.weights import Backbone

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Size = tuple[int, int]
"""Height and width in pixels."""
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_RESCALED_PIXELS = 1 << 25
"""A picture so elongated that it would be larger than this after rescaling fails by name."""


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """What decides how pictures come to the net, apart from the weights."""

    scales: tuple[int, ...] = (256, 384, 512)
    """Q, the smallest picture side in pixels."""
    precision: Precision = "fp32"
    """Of the convolutions; averages are always taken in float32."""
    interpolation: Interpolation = "bilinear"
    """How pictures are rescaled, always with anti-aliasing."""
    batch_pixels: int = 1 << 22
    """Pixels in one pass, mirrors included: bounds the memory. A larger picture is run in exact overlapping strips."""
    window_bytes: int = 1 << 28
    """Decoded pictures held at a time, from which batches of equal size are made."""

    def __post_init__(self) -> None:
        for name, allowed in (("precision", Precision), ("interpolation", Interpolation)):
            check_choice(name, getattr(self, name), get_args(allowed))
        if not self.scales or not all(type(q) is int and 1 <= q <= 4096 for q in self.scales):
            raise ConfigError(f"scales: expected whole numbers of pixels from 1 to 4096, found {self.scales}")
        if len(set(self.scales)) != len(self.scales):
            raise ConfigError(f"scales: expected each once, found {self.scales}")
        for name in ("batch_pixels", "window_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")

    def least_side(self, model: VGG) -> int:
        """Return the shortest picture side that gives a value."""
        return model.min_side

    def sides(self, model: VGG) -> tuple[int, ...]:
        """Return the smallest sides that are really used: a Q too short for one 7x7 window is raised to it.

        Raises
        ------
        ConfigError
            If two scales become one.
        """
        least = self.least_side(model)
        sides = tuple(max(scale, least) for scale in self.scales)
        if len(set(sides)) != len(sides):
            raise ConfigError(
                f"scales: {self.scales} become {sides}, because a picture below {least} pixels gives no "
                f"7x7 window; expected at most one scale below {least}"
            )
        return sides

    def describe(self) -> dict[str, Any]:
        """Return all settings, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class Row(NamedTuple):
    """What became of one sample."""

    features: NDArray[np.float32] | None
    """(S, R, C), all finite; None if the sample failed."""
    reason: str
    """Empty, or "reason: message" of the failure."""
    size: tuple[int, int]
    """Height and width of the whole picture in pixels; (0, 0) if it could not be read."""
    sha256: bytes
    """32 bytes, of the picture file; zeros if it could not be read."""


class Passes(ABC):
    """A net on a device, ready to turn pictures into a row of values for every scale and region.

    Parameters
    ----------
    backbone : Backbone
    settings : PassSettings
    device : str
        cpu, cuda, cuda:1, ...
    regions : sequence of str
        R names of what is looked at in each picture.

    Raises
    ------
    ConfigError
        If the device is not there or can't compute in that precision.
    """

    settings: PassSettings
    what: str
    """What `read` returns, for messages."""

    def __init__(
        self, backbone: Backbone, settings: PassSettings, device: str, regions: Sequence[str] = ("image",)
    ) -> None:
        self.settings = settings
        self.device = _checked_device(device, settings.precision)
        self.dtype = DTYPES[settings.precision]
        # A copy, because the caller's net must keep its precision and its mode.
        model = copy.deepcopy(backbone.model).eval().requires_grad_(False)
        self.model: VGG = model.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = torch.tensor(backbone.mean, device=self.device)
        self.std = torch.tensor(backbone.std, device=self.device)
        self.sides = settings.sides(self.model)
        self.regions = tuple(regions)
        self._units = 0
        self._progress: Callable[[float], None] | None = None
        self.halvings = 0
        """Batches that did not fit into memory and were halved so far."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """C."""

    @abstractmethod
    def read(self, images: Tensor, pixels: int) -> Tensor:
        """Run the net over pictures of one size.

        Parameters
        ----------
        images : Tensor (N, 3, H, W), float32, on the device
            Rescaled and normalised.
        pixels : int
            Pixels in one pass of the net.

        Returns
        -------
        Tensor (N, C), float32
        """

    @abstractmethod
    def least_pixels(self, size: Size) -> int:
        """Return the pixels of the smallest pass that `read` can make do with for one picture."""

    def rows(
        self, pictures: Iterable[Picture | PictureError], progress: Callable[[float], None] | None = None
    ) -> list[Row]:
        """Compute the rows of some pictures.

        The grouping into batches depends on these pictures and the settings alone, unless memory runs out: the same
        call gives the same bits on the same device, versions and number of threads.

        Parameters
        ----------
        pictures : iterable of Picture or PictureError
            In row order; a failure keeps its place.
        progress : callable, optional
            Called after every batch with the number of pictures done.

        Returns
        -------
        list of Row
            In the order of the pictures.
        """
        self._units, self._progress = 0, progress
        found: list[Row] = []
        window: list[tuple[int, Picture]] = []
        held = 0
        for index, picture in enumerate(pictures):
            found.append(self._started_row(picture))
            if found[-1].reason or isinstance(picture, PictureError):
                self._count(len(self.sides) * len(self.regions))
                continue
            window.append((index, picture))
            held += sum(region.nbytes for region in picture.regions)
            if held >= self.settings.window_bytes:
                self._finish(window, found)
                window, held = [], 0
        self._finish(window, found)
        return found

    def _started_row(self, picture: Picture | PictureError) -> Row:
        if isinstance(picture, PictureError):
            return Row(None, f"{picture.reason}: {picture}", (0, 0), bytes(32))
        reason = ""
        for region in picture.regions:
            height, width = rescaled_size(region.shape[0], region.shape[1], max(self.sides))
            if height * width > MAX_RESCALED_PIXELS:
                reason = (
                    f"elongated: {region.shape[1]}x{region.shape[0]} pixels would become {width}x{height} "
                    f"at Q = {max(self.sides)}, more than {MAX_RESCALED_PIXELS} pixels"
                )
        return Row(None, reason, picture.size, picture.sha256)

    def _finish(self, window: list[tuple[int, Picture]], found: list[Row]) -> None:
        features, unfit = self._features([picture.regions for _, picture in window])
        for n, (index, _) in enumerate(window):
            reason = ""
            if n in unfit:
                reason = f"out-of-memory: it does not fit into the memory of {self.device}, even in strips"
            elif not np.isfinite(features[n]).all():
                reason = f"non-finite: the {self.what} has NaN or infinity"
            found[index] = found[index]._replace(features=None if reason else features[n], reason=reason)

    def _features(self, pictures: Sequence[Sequence[NDArray[np.uint8]]]) -> tuple[NDArray[np.float32], set[int]]:
        """Compute N pictures of R regions each, by batches of equal rescaled size.

        Returns
        -------
        features : (N, S, R, C)
        unfit : set of int
            Numbers of pictures that did not fit into memory.
        """
        shape = (len(pictures), len(self.sides), len(self.regions), self.channels)
        features = np.full(shape, np.nan, dtype=np.float32)
        unfit: set[int] = set()
        for size, places in sorted(self._by_size(pictures).items()):
            step = max(1, self.settings.batch_pixels // (2 * size[0] * size[1]))
            for start in range(0, len(places), step):
                batch = places[start : start + step]
                means = self._batch([pictures[n][r] for n, _, r in batch], size, self.settings.batch_pixels)
                for place, mean in zip(batch, means, strict=True):
                    if mean is None:
                        unfit.add(place[0])
                    else:
                        features[place] = mean
                self._count(len(batch))
        return features, unfit

    def _by_size(self, pictures: Sequence[Sequence[NDArray[np.uint8]]]) -> dict[Size, list[tuple[int, int, int]]]:
        """Group (picture, scale, region) by the size after rescaling."""
        groups: dict[Size, list[tuple[int, int, int]]] = defaultdict(list)
        for n, regions in enumerate(pictures):
            for r, region in enumerate(regions):
                for s, side in enumerate(self.sides):
                    groups[rescaled_size(region.shape[0], region.shape[1], side)].append((n, s, r))
        return groups

    def _count(self, units: int) -> None:
        self._units += units
        if self._progress is not None:
            self._progress(self._units / (len(self.sides) * len(self.regions)))

    def _batch(
        self, pictures: Sequence[NDArray[np.uint8]], size: Size, pixels: int
    ) -> list[NDArray[np.float32] | None]:
        """Return the features, (C,) each, of pictures rescaled to one size; what does not fit is halved.

        None stands for a picture that does not fit even alone and in the narrowest strips.
        """
        try:
            return list(self._pass(pictures, size, pixels))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Out here the failed pass has let go of its tensors, which the halves need.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.halvings += 1
        if len(pictures) > 1:
            middle = len(pictures) // 2
            return [mean for half in (pictures[:middle], pictures[middle:]) for mean in self._batch(half, size, pixels)]
        pixels = min(pixels, size[0] * size[1])
        return [None] if pixels <= self.least_pixels(size) else self._batch(pictures, size, pixels // 2)

    def _pass(self, pictures: Sequence[NDArray[np.uint8]], size: Size, pixels: int) -> NDArray[np.float32]:
        """Return the features, (N, C), of N pictures."""
        plain = torch.autocast(self.device.type, enabled=False)  # A caller's autocast would change the precision.
        with torch.inference_mode(), plain, _exact_float32(self.settings.precision):
            images = normalise(torch.stack([self._rescaled(p, size) for p in pictures]), self.mean, self.std)
            return self.read(images, pixels).cpu().numpy()

    def over_mirror(self, images: Tensor, pixels: int, read: Callable[[Tensor], Tensor]) -> Tensor:
        """Average what `read` makes of pictures, (N, C), and of their mirrors; all in one pass where they fit."""
        halves: tuple[Tensor, ...] = (images, mirror(images))
        if 2 * images[:, 0].numel() <= pixels:
            halves = (torch.cat(halves),)
        rows = torch.cat([read(self.ready(half)) for half in halves])
        return (rows[: len(images)] + rows[len(images) :]) / 2

    def ready(self, images: Tensor) -> Tensor:
        """Bring images into the precision and the order in memory that the net runs best with."""
        return images.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _rescaled(self, picture: NDArray[np.uint8], size: Size) -> Tensor:
        uploaded = torch.from_numpy(picture).to(self.device).permute(2, 0, 1)
        return rescale(uploaded, size, self.settings.interpolation)


def _checked_device(name: str, precision: Precision) -> torch.device:
    device = checked_device(name)
    if precision == "tf32" and device.type == "cpu":
        raise ConfigError("precision: tf32 exists on CUDA devices only; on the cpu expected fp32, bf16 or fp16")
    return device


def _exact_float32(precision: Precision) -> AbstractContextManager[None]:
    # cuDNN takes TF32 for float32 convolutions unless told otherwise, and picks algorithms by timing if it may.
    if not torch.cuda.is_available():
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=precision == "tf32")
