"""A net on a device, and images brought to it in batches: what features and class posteriors share.

N = images of a batch, S = scales, R = regions, C = values per scale and region, H, W = image sides in pixels.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.errors import ImageError, out_of_memory
from vggfeat.forward.batching import Size, by_size
from vggfeat.forward.device_cache import DeviceCache
from vggfeat.forward.settings import ForwardSettings
from vggfeat.images.decode import DecodedImage
from vggfeat.nets.backbone import Net
from vggfeat.nets.transforms import mirror, normalise, pad, rescale, rescaled_size
from vggfeat.runtime.devices import checked_device, convolutions
from vggfeat.weights import Backbone

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_RESCALED_PIXELS = 1 << 25
"""An image so elongated that it would be larger than this after rescaling fails by name."""


_Place = tuple[int, int, int]
"""Number of an image, of a scale and of a region."""
_Values = list[tuple[_Place, Tensor | None]]
"""(C,) each, on their way to the CPU; None where the image did not fit into memory."""


class Row(NamedTuple):
    """What became of one sample."""

    features: NDArray[np.float32] | None
    """(S, R, C), all finite; None if the sample failed."""
    reason: str
    """Empty, or "reason: message" of the failure."""
    size: tuple[int, int]
    """Height and width of the whole image in pixels; (0, 0) if it could not be read."""
    sha256: bytes
    """32 bytes, of the image file; zeros if it could not be read."""


class BatchRunner(ABC):
    """A net on a device, ready to turn images into a row of values for every scale and region.

    Parameters
    ----------
    backbone : Backbone
    settings : ForwardSettings
    device : str
        cpu, cuda, cuda:1, ...
    regions : sequence of str
        R names of what is looked at in each image.

    Raises
    ------
    ConfigError
        If the device is not there or can't compute in that precision.
    """

    settings: ForwardSettings
    what: str
    """What `read` returns, for messages."""

    def __init__(
        self, backbone: Backbone, settings: ForwardSettings, device: str, regions: Sequence[str] = ("image",)
    ) -> None:
        self.settings = settings
        self.device = checked_device(device, settings.precision)
        self.dtype = DTYPES[settings.precision]
        # A copy, because the caller's net must keep its precision and its mode.
        model = copy.deepcopy(backbone.model).eval().requires_grad_(False)
        self.model: Net = model.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compiled:
            self.model.compile(dynamic=True)
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
        """Run the net over images of one size.

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
    def pass_range(self, size: Size) -> tuple[int, int]:
        """Return the pixels of the smallest and of the largest pass that `read` makes for one image of that size."""

    def rows(
        self, images: Iterable[DecodedImage | ImageError], progress: Callable[[float], None] | None = None
    ) -> list[Row]:
        """Compute the rows of some images.

        The grouping into batches depends on these images and the settings alone, unless memory runs out: the same
        call gives the same bits on the same device, versions and number of threads.

        Parameters
        ----------
        images : iterable of DecodedImage or ImageError
            In row order; a failure keeps its place.
        progress : callable, optional
            Called after every batch with the number of images that have been through it, on a GPU: are queued for it.

        Returns
        -------
        list of Row
            In the order of the images.
        """
        return self.launch(images, progress)()

    def launch(
        self, images: Iterable[DecodedImage | ImageError], progress: Callable[[float], None] | None = None
    ) -> Callable[[], list[Row]]:
        """Queue what `rows` does, and return the function that waits for the rows.

        On a GPU more images can be launched before, so that it has work while rows are fetched and written.
        """
        self._units, self._progress = 0, progress
        found: list[Row] = []
        launched: list[tuple[list[int], _Values]] = []
        window: dict[int, DecodedImage] = {}
        held = 0
        for index, image in enumerate(images):
            found.append(self._started_row(image))
            if found[-1].reason or isinstance(image, ImageError):
                self._count(len(self.sides) * len(self.regions))
                continue
            window[index] = image
            held += sum(region.nbytes for region in image.regions)
            if held >= self.settings.window_bytes:
                launched.append(([*window], self._values([one.regions for one in window.values()])))
                window, held = {}, 0
        launched.append(([*window], self._values([one.regions for one in window.values()])))
        wait = self.mark()
        return lambda: self._finished(found, launched, wait)

    def mark(self) -> Callable[[], None]:
        """Return what waits until all that is queued by now has come to pass; later work is not waited for."""
        if self.device.type != "cuda":
            return lambda: None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event.synchronize

    def _started_row(self, image: DecodedImage | ImageError) -> Row:
        if isinstance(image, ImageError):
            return Row(None, f"{image.reason}: {image}", (0, 0), bytes(32))
        reason = ""
        for region in image.regions:
            height, width = rescaled_size(region.shape[0], region.shape[1], max(self.sides))
            if height * width > MAX_RESCALED_PIXELS:
                reason = (
                    f"elongated: {region.shape[1]}x{region.shape[0]} pixels would become {width}x{height} "
                    f"at Q = {max(self.sides)}, more than {MAX_RESCALED_PIXELS} pixels"
                )
        return Row(None, reason, image.size, image.sha256)

    def _finished(
        self, found: list[Row], launched: list[tuple[list[int], _Values]], wait: Callable[[], None]
    ) -> list[Row]:
        wait()
        for indices, values in launched:
            features, unfit = self._fetched(len(indices), values)
            for n, index in enumerate(indices):
                reason = ""
                if n in unfit:
                    reason = f"out-of-memory: it does not fit into the memory of {self.device}, even in strips"
                elif not np.isfinite(features[n]).all():
                    reason = f"non-finite: the {self.what} has NaN or infinity"
                found[index] = found[index]._replace(features=None if reason else features[n], reason=reason)
        return found

    def _fetched(self, count: int, values: _Values) -> tuple[NDArray[np.float32], set[int]]:
        """Put the values of N images together.

        Returns
        -------
        features : (N, S, R, C)
        unfit : set of int
            Numbers of images that did not fit into memory.
        """
        features = np.full((count, len(self.sides), len(self.regions), self.channels), np.nan, dtype=np.float32)
        fitting = [(place, value) for place, value in values if value is not None]
        if fitting:
            places, rows = zip(*fitting, strict=True)
            features[tuple(np.array(places).T)] = torch.stack(rows).numpy()
        return features, {place[0] for place, value in values if value is None}

    def _values(self, images: Sequence[Sequence[NDArray[np.uint8]]]) -> _Values:
        """Queue N images of R regions each, batch by batch."""
        uploads = DeviceCache(self.uploaded, [region for regions in images for region in regions])
        places, sizes = self.places([[region.shape[:2] for region in regions] for regions in images])
        values: _Values = []
        for batch in self.batches(sizes):
            chosen = [(n * len(self.regions) + r, sizes[i]) for i in batch for n, _, r in places[i : i + 1]]
            rows = self._batch(chosen, uploads, self.settings.batch_pixels)
            values += zip([places[i] for i in batch], rows, strict=True)
            self._count(len(batch))
        return values

    def places(self, regions: Sequence[Sequence[tuple[int, ...]]]) -> tuple[list[_Place], list[Size]]:
        """Return (image, scale, region) and the size after rescaling, of everything that goes through the net."""
        places, sizes = [], []
        for n, found in enumerate(regions):
            for r, (height, width) in enumerate(found):
                for s, side in enumerate(self.sides):
                    places.append((n, s, r))
                    sizes.append(rescaled_size(height, width, side))
        return places, sizes

    def batches(self, sizes: Sequence[Size]) -> list[list[int]]:
        """Say which of the rescaled images go through the net together, each with its mirror."""
        return by_size(sizes, self.settings.batch_pixels // 2)

    def uploaded(self, image: NDArray[np.uint8]) -> Tensor:
        """Return an image (H, W, 3) on the device, channels first."""
        return self.on_device(torch.from_numpy(image)).permute(2, 0, 1)

    def on_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device; of a GPU nothing waits for the copy."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def _count(self, units: int) -> None:
        self._units += units
        if self._progress is not None:
            self._progress(self._units / (len(self.sides) * len(self.regions)))

    def _batch(self, images: Sequence[tuple[int, Size]], uploads: DeviceCache, pixels: int) -> list[Tensor | None]:
        """Return the values, (C,) each, of images and the sizes that they get; what does not fit is halved.

        None stands for an image that does not fit even alone and in the narrowest strips.
        """
        try:
            return list(self._pass(images, uploads, pixels))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Out here the failed pass has let go of its tensors, which the halves need.
        uploads.drop()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.halvings += 1
        if len(images) > 1:
            middle = len(images) // 2
            halves = (images[:middle], images[middle:])
            return [values for half in halves for values in self._batch(half, uploads, pixels)]
        least, most = self.pass_range(images[0][1])
        failed = min(pixels, most)
        return [None] if failed <= least else self._batch(images, uploads, failed // 2)

    def _pass(self, images: Sequence[tuple[int, Size]], uploads: DeviceCache, pixels: int) -> Tensor:
        """Return the values, (N, C), of N images, on their way to the CPU."""
        with self.computing():
            batch, sides = self.prepared([(uploads[number], size) for number, size in images])
            rows = self.read(batch, pixels) if sides is None else self.read_padded(batch, sides)
            return rows.to("cpu", non_blocking=True)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Set PyTorch to what every pass runs within: no gradients, this precision whatever the caller's, all forms."""
        plain = torch.autocast(self.device.type, enabled=False)
        exact = convolutions(tf32=self.settings.precision == "tf32", fastest=False)
        with torch.inference_mode(), plain, exact, self._all_forms():
            yield

    def _all_forms(self) -> AbstractContextManager[None]:
        # Past the usual limit, of 8 forms of a function, others would run as they are without a word.
        if not self.settings.compiled:
            return nullcontext()
        return torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=1024)

    def prepared(self, images: Sequence[tuple[Tensor, Size]]) -> tuple[Tensor, Tensor | None]:
        """Make a batch of images on the device and the sizes that they get.

        Parameters
        ----------
        images : sequence of (Tensor (3, H, W), Size)
            As `uploaded` returns them.

        Returns
        -------
        images : Tensor (N, 3, H, W), float32
            Rescaled and normalised; those of other sizes than the largest are padded to the right and below.
        sides : Tensor (N, 2) or None
            Height and width of each, or None if they are all the same.
        """
        rescaled = [rescale(one, size, self.settings.interpolation) for one, size in images]
        if len({size for _, size in images}) == 1:
            return normalise(torch.stack(rescaled), self.mean, self.std), None
        sides = self.on_device(torch.tensor([size for _, size in images]))
        return pad([normalise(one, self.mean, self.std) for one in rescaled]), sides

    def read_padded(self, images: Tensor, sides: Tensor) -> Tensor:
        """Run the net over images of several sizes; only for those whose `batches` make such batches.

        Parameters
        ----------
        images : Tensor (N, 3, H, W), float32, on the device
            Rescaled, normalised, and padded with zeros to the right and below.
        sides : Tensor (N, 2), int
            Height and width of each.

        Returns
        -------
        Tensor (N, C), float32
        """
        raise NotImplementedError

    def over_mirror(self, images: Tensor, pixels: int, read: Callable[[Tensor], Tensor]) -> Tensor:
        """Average what `read` makes of images, (N, C), and of their mirrors; all in one pass where they fit."""
        halves: tuple[Tensor, ...] = (images, mirror(images))
        if 2 * images[:, 0].numel() <= pixels:
            halves = (torch.cat(halves),)
        rows = torch.cat([read(self.ready(half)) for half in halves])
        return (rows[: len(images)] + rows[len(images) :]) / 2

    def ready(self, images: Tensor) -> Tensor:
        """Bring images into the precision and the order in memory that the net runs best with."""
        return images.to(self.dtype).contiguous(memory_format=torch.channels_last)
