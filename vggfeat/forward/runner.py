"""A net on a device, and images brought to it in batches: what features, class posteriors and dense maps share.

N = images of a batch, S = scales, R = regions, C = values per scale and region, H, W = image sides in pixels.
An image and a size that it is rescaled to are one task: an image has S x R of them. Tasks of one size form a batch. On
a GPU nothing waits: images are copied from pinned memory, values come back in the same way, and an event recorded
after the last of them says when they are there.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.errors import Failure, ImageError, out_of_memory
from vggfeat.forward.batching import Batching, Size, by_size, padded, tensor_size
from vggfeat.forward.settings import ForwardSettings
from vggfeat.images.decode import DecodedImage
from vggfeat.nets.backbone import Net
from vggfeat.nets.inference import with_winograd
from vggfeat.nets.transforms import normalised_batch, rescale, rescaled_size
from vggfeat.runtime.devices import checked_device, convolutions, layout
from vggfeat.weights import Backbone

DTYPES = {
    "fp32": torch.float32,
    "winograd": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MAX_RESCALED_PIXELS = 1 << 25
"""An image so elongated that it would be larger than this after rescaling fails by name."""


class Row(NamedTuple):
    """What became of one image."""

    features: NDArray[np.float32] | None
    """(S, R, C), all finite; None if the image failed."""
    failure: Failure | None
    size: tuple[int, int]
    """Height and width of the whole image in pixels; (0, 0) if it could not be read."""
    sha256: bytes
    """32 bytes, of the image file; zeros if it could not be read."""


class Task(NamedTuple):
    """One region of one image, at one scale."""

    image: int
    scale: int
    region: int
    size: Size
    """Sides after rescaling."""


class Head(Protocol):
    """What is computed of a batch of images by means of a net."""

    @property
    def name(self) -> str:
        """What the values are, for messages."""

    @property
    def channels(self) -> int:
        """C."""

    @property
    def copies(self) -> int:
        """Images that a pass leaves room for, for each image of a batch: 2 if its mirror goes with it."""

    def values(self, model: Net, images: Tensor, pixels: int, sides: Tensor | None) -> Tensor:
        """Run the net over a batch.

        Parameters
        ----------
        model : Net
            On the device, in the precision of the run; it takes images in `to_compute_layout`.
        images : Tensor (N, 3, H, W), float32, on the device
            Rescaled and normalised.
        pixels : int
            Pixels in one pass of the net, at most.
        sides : Tensor (N, 2), int, or None
            In padded batches height and width of each image, which has zeros to the right and below.

        Returns
        -------
        Tensor (N, C), or maps (N, C, h, w); float32
        """

    def pass_range(self, model: Net, size: Size) -> tuple[int, int]:
        """Return the pixels of the smallest and of the largest pass that `values` makes for one image of that size."""


@dataclass(eq=False)
class Launched:
    """Images that are queued for the device."""

    rows: list[Row] = field(default_factory=list)
    """One an image, still without features."""
    values: list[tuple[Task, Tensor | None]] = field(default_factory=list)
    """(C,) each, on their way to the CPU; None where the image did not fit into memory."""
    event: torch.cuda.Event | None = None
    """Comes to pass when all values are on the CPU; None if they are."""


class BatchRunner:
    """A net on a device, ready to turn images into a row of values for every scale and region.

    The device is cpu, cuda, cuda:1, ..., or mps; `regions` are R names of what is computed of each image. `batching`
    says which images run together; padded only with a head that takes sides. ConfigError if the device is not there or
    can't compute in that precision.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: ForwardSettings,
        head: Head,
        device: str | None = None,
        *,
        regions: Sequence[str] = ("image",),
        batching: Batching = "size",
    ) -> None:
        self.backbone, self.settings, self.head = backbone, settings, head
        self.regions, self.batching = tuple(regions), batching
        self.device = checked_device(device, settings.precision)
        # A copy, because the caller's net must keep its precision and its mode.
        model = copy.deepcopy(backbone.model).eval().requires_grad_(False)
        dtype = DTYPES[settings.precision]
        self.model: Net = model.to(self.device, dtype, memory_format=layout(self.device))  # type: ignore[call-overload]
        if settings.precision == "winograd":
            self.model = with_winograd(self.model)
        if settings.compiled:
            self.model.compile(dynamic=True)
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32, device=self.device) for values in (backbone.mean, backbone.std)
        )
        self.sides = settings.sides(self.model)
        self.halvings = 0
        """Batches that did not fit into memory and were halved so far."""

    def in_float32(self) -> "BatchRunner":
        """Return the same in float32 and not compiled, to compare with: a second net on the device."""
        settings = replace(self.settings, precision="fp32", compiled=False)
        return BatchRunner(
            self.backbone, settings, self.head, str(self.device), regions=self.regions, batching=self.batching
        )

    def rows(
        self, images: Iterable[DecodedImage | ImageError], progress: Callable[[float], None] | None = None
    ) -> list[Row]:
        """Compute the rows of some images, in their order; a failure keeps its place.

        The grouping into batches depends on these images and the settings alone, unless memory runs out: the same call
        gives the same bits on the same device, versions and number of threads. `progress` is called after every batch
        with the number of images that have been through it, on a GPU: are queued for it.
        """
        return self.finish(self.launch(images, progress))

    def launch(
        self, images: Iterable[DecodedImage | ImageError], progress: Callable[[float], None] | None = None
    ) -> Launched:
        """Queue the images for the device, for `finish` to wait for; parameters as for `rows`."""
        launched = Launched()
        window: dict[int, DecodedImage] = {}
        held = 0
        for number, image in enumerate(images):
            launched.rows.append(self._row_to_fill(image))
            if isinstance(image, ImageError) or launched.rows[-1].failure:
                continue
            window[number] = image
            held += sum(region.nbytes for region in image.regions)
            if held >= self.settings.window_bytes:
                self._launch_window(window, launched, progress)
                window, held = {}, 0
        self._launch_window(window, launched, progress)
        launched.event = self.record_event()
        return launched

    def _launch_window(
        self, window: dict[int, DecodedImage], launched: Launched, progress: Callable[[float], None] | None
    ) -> None:
        numbers, failed = list(window), sum(row.failure is not None for row in launched.rows)
        for batch in self.batches([image.regions for image in window.values()]):
            launched.values += [(task._replace(image=numbers[task.image]), value) for task, value in batch]
            if progress is not None:
                progress(failed + len(launched.values) / (len(self.sides) * len(self.regions)))
        if progress is not None and not window:
            progress(len(launched.rows))

    def _row_to_fill(self, image: DecodedImage | ImageError) -> Row:
        if isinstance(image, ImageError):
            return Row(None, Failure(image.reason, str(image)), (0, 0), bytes(32))
        failure = None
        for region in image.regions:
            height, width = rescaled_size(region.shape[0], region.shape[1], max(self.sides))
            if height * width > MAX_RESCALED_PIXELS:
                found = f"{region.shape[1]}x{region.shape[0]} pixels would become {width}x{height}"
                most = f"more than {MAX_RESCALED_PIXELS} pixels"
                failure = Failure("elongated", f"{found} at Q = {max(self.sides)}, {most}")
        return Row(None, failure, image.size, image.sha256)

    def finish(self, launched: Launched) -> list[Row]:
        """Wait for the values of launched images, and return their rows; later launches are not waited for."""
        wait_for(launched.event)
        rows = launched.rows
        shape = (len(rows), len(self.sides), len(self.regions), self.head.channels)
        features = np.full(shape, np.nan, dtype=np.float32)
        for task, value in launched.values:
            if value is not None:
                features[task.image, task.scale, task.region] = value.numpy()
        unfit = {task.image for task, value in launched.values if value is None}
        for number, row in enumerate(rows):
            failure = row.failure
            if number in unfit:
                failure = Failure("out-of-memory", f"it does not fit into the memory of {self.device}, even in strips")
            elif not (failure or np.isfinite(features[number]).all()):
                failure = Failure("non-finite", f"the {self.head.name} has NaN or infinity")
            rows[number] = row._replace(features=None if failure else features[number], failure=failure)
        return rows

    def batches(self, images: Sequence[Sequence[NDArray[np.uint8]]]) -> Iterator[list[tuple[Task, Tensor | None]]]:
        """Queue N images of R regions (H, W, 3) each, and yield values batch by batch, on their way to the CPU.

        Of a task that does not fit into memory, even alone and in the narrowest strips, the values are None.
        """
        regions = [region for regions in images for region in regions]
        uploads = cache(lambda number: upload(regions[number], self.device))
        for tasks in self.task_batches([[region.shape[:2] for region in regions] for regions in images]):
            chosen = [(task.image * len(self.regions) + task.region, task.size) for task in tasks]
            yield list(zip(tasks, self._fitting(chosen, uploads, self.settings.batch_pixels), strict=True))

    def task_batches(self, sizes: Sequence[Sequence[tuple[int, ...]]]) -> list[list[Task]]:
        """Say what goes through the net together, of N images whose R regions have these sizes."""
        tasks = [
            Task(image, scale, region, rescaled_size(height, width, side))
            for image, regions in enumerate(sizes)
            for region, (height, width) in enumerate(regions)
            for scale, side in enumerate(self.sides)
        ]
        group = padded if self.batching == "padded" else by_size
        numbers = group([task.size for task in tasks], self.settings.batch_pixels // self.head.copies)
        return [[tasks[number] for number in batch] for batch in numbers]

    def _fitting(self, images: Sequence[tuple[int, Size]], uploads: Any, pixels: int) -> list[Tensor | None]:
        """Return the values of images, by their number and the size that they get; what does not fit is halved."""
        try:
            return list(self._forward_batch([(uploads(number), size) for number, size in images], pixels))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Out here the failed pass has let go of its tensors, which the halves need.
        uploads.cache_clear()
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()
        self.halvings += 1
        if len(images) > 1:
            middle = len(images) // 2
            halves = (images[:middle], images[middle:])
            return [values for half in halves for values in self._fitting(half, uploads, pixels)]
        least, most = self.head.pass_range(self.model, images[0][1])
        failed = min(pixels, most)
        return [None] if failed <= least else self._fitting(images, uploads, failed // 2)

    def _forward_batch(self, images: Sequence[tuple[Tensor, Size]], pixels: int) -> Tensor:
        """Return the values of a batch, (N, C) or (N, C, h, w), on their way to the CPU."""
        with self.computing():
            batch, sides = self.prepare(images, pixels)
            values = self.head.values(self.model, batch, pixels, sides)
            return values.to("cpu", non_blocking=self.device.type == "cuda")  # Only CUDA has the event to wait for.

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

    def prepare(self, images: Sequence[tuple[Tensor, Size]], pixels: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Make a batch (N, 3, H, W) float32 of images (3, H, W) on the device, and the sizes that they get.

        It is rescaled and normalised; images of other sizes than the tensor's are padded to the right and below. Also
        returned are height and width of each (N, 2), or None if each fills the tensor. `pixels` is as for
        `Head.values`, by default that of the settings.
        """
        rescaled = [rescale(one, size, self.settings.interpolation) for one, size in images]
        most = (pixels or self.settings.batch_pixels) // self.head.copies
        sizes = [size for _, size in images]
        whole = tensor_size(sizes, self.batching, most)
        batch = normalised_batch(rescaled, self.mean, self.std, whole)
        return batch, None if set(sizes) == {whole} else to_device(torch.tensor(sizes, device="cpu"), self.device)

    def record_event(self) -> torch.cuda.Event | None:
        """Return an event that comes to pass when all that is queued by now has been done; None on the CPU."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event


def wait_for(event: torch.cuda.Event | None) -> None:
    """Wait until an event of `BatchRunner.record_event` has come to pass."""
    if event is not None:
        event.synchronize()


def upload(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return an image (H, W, 3) on the device, channels first: (3, H, W)."""
    return to_device(torch.from_numpy(image), device).permute(2, 0, 1)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; of a GPU nothing waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_compute_layout(images: Tensor, model: Net) -> Tensor:
    """Bring images into the precision and the order in memory that the net runs best with."""
    return images.to(next(model.parameters()).dtype).contiguous(memory_format=layout(images.device))
