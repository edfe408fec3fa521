"""How fast training is, and what holds it up: decoding, the step, or both together.

N = pictures of a batch. A multiply-add is one multiplication and one addition.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import torch

from vggfeat.images.decoding import DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.models import NETS, VGG
from vggfeat.samples import LabelledPictures
from vggfeat.training.distributed import World, open_world
from vggfeat.training.draws import CropSettings, Order, draw
from vggfeat.training.learner import Learner
from vggfeat.training.pictures import TrainingBatches
from vggfeat.training.settings import Recipe, RunSettings
from vggfeat.training.task import Classification

MEAN = (120.0, 115.0, 105.0)
"""Subtracted from every pixel; its value has no influence on speed."""
RATE = 0.0
"""The learning rate: with it the weights stay finite, whatever was drawn."""
WARM_UP = 3
"""Batches that are not counted: buffers fill, kernels are chosen and compiled."""
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What was measured, in pictures per second unless a field says otherwise."""

    device: str
    precision: str
    micro_batch: int
    """Pictures in one pass through the net, after any halving for want of memory."""
    decoding: float
    """Files to pixels by the workers, nothing else running."""
    loading: float
    """Files to batches of crops on the device: decoding, and resampling where it is done in training."""
    step: float
    """Updates of the weights by a batch that lies in the device's memory."""
    both: float
    """Training: batches from files, and an update by each."""
    waiting: float
    """Share of the time of `both` spent waiting for pictures, 0 to 1."""
    picture_multiply_adds: int
    """Of one training picture, forward and backward, by the table of layers."""
    matrix_multiply_adds: float
    """Per second, of a product of two large square matrices in the same precision: what the device can do."""

    @property
    def share(self) -> float:
        """Return which share of the matrix rate the step reaches, 0 to 1."""
        return self.step * self.picture_multiply_adds / self.matrix_multiply_adds

    @property
    def bottleneck(self) -> str:
        """Say which of the two is slower alone."""
        return "loading" if self.loading < self.step else "step"

    def describe(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {**asdict(self), "share": self.share, "bottleneck": self.bottleneck}


def measure(
    pictures: LabelledPictures,
    recipe: Recipe,
    run: RunSettings,
    *,
    seconds: float = 10.0,
    progress: Callable[[str], None] | None = None,
) -> Speeds:
    """Measure training on one device.

    Parameters
    ----------
    pictures : LabelledPictures
        Gone through again and again.
    recipe : Recipe
    run : RunSettings
    seconds : float
        Least time of each of the measurements, after its warm-up.
    progress : callable, optional
        Told the name of each measurement as it begins.

    Raises
    ------
    ConfigError
        If the device is not there.
    TrainingError
        If memory is too small, or too many pictures can't be read.
    """
    with open_world(run.device, {}) as world:
        return _measure(pictures, recipe, run, world, seconds, progress or (lambda name: None))


def _measure(
    pictures: LabelledPictures, recipe: Recipe, run: RunSettings, world: World, seconds: float,
    tell: Callable[[str], None],
) -> Speeds:  # fmt: skip
    device = world.device
    crops = CropSettings(
        scale=recipe.scale, side=recipe.crop, mirror=recipe.mirror, colour=recipe.colour_shift, reduced=recipe.reduced
    )
    task = Classification(recipe, pictures.classes)
    model, _ = task.first_weights()
    learner = Learner(model, task, run, world, None, lambda sentence: None)
    with Decoder(run.workers, DecodeSettings()) as decoder:
        tell("decoding")
        decoding = _rate(_decoded(pictures, crops, decoder), seconds, device, warm_up=WARM_UP * max(1, run.workers))
        tell("loading")
        with _batches(pictures, crops, recipe, device, decoder) as batches:
            loading = _rate((len(batch.targets) for batch in batches), seconds, device)
        tell("both")
        with _batches(pictures, crops, recipe, device, decoder) as batches:
            taken = _Taken(learner, batches)
            both = _rate(taken, seconds, device)
    tell("step")
    step = _rate(_in_memory(learner, recipe, device), seconds, device)
    tell("matrix product")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return Speeds(
        device=name,
        precision=learner.precision,
        micro_batch=learner.micro_batch,
        decoding=decoding,
        loading=loading,
        step=step,
        both=both,
        waiting=taken.waiting(both),
        picture_multiply_adds=training_multiply_adds(model, recipe.crop),
        matrix_multiply_adds=matrix_rate(device, learner.precision, seconds),
    )


def layer_multiply_adds(model: VGG, side: int) -> dict[str, int]:
    """Return the multiply-adds of every layer for one picture of side x side pixels, forward."""
    found = {}
    for number, kernels in enumerate(NETS[model.config].blocks, start=1):
        for index in range(1, len(kernels) + 1):
            name = f"conv{number}_{index}"
            found[name] = model.get_parameter(f"layers.{name}.weight").numel() * side**2
        side = -(-side // 2) if model.pool == "ceil" else side // 2
    places = (side - 6) ** 2
    return found | {
        name: model.get_parameter(f"layers.{name}.weight").numel() * places for name in ("fc6", "fc7", "fc8")
    }


def training_multiply_adds(model: VGG, side: int) -> int:
    """Return the multiply-adds of one picture in training.

    Forward once, backward once for the weights and once for the inputs, which the first layer does not need.
    """
    layers = layer_multiply_adds(model, side)
    return 3 * sum(layers.values()) - layers["conv1_1"]


def matrix_rate(device: torch.device, precision: str, seconds: float) -> float:
    """Return the multiply-adds per second of the product of two large square matrices: the best of several."""
    side = MATRIX_SIDE[device.type]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    best, end = 0.0, None
    while end is None or time.perf_counter() < end:
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait_for(device)
        took = time.perf_counter() - start
        if end is None:  # The first one sets up the library.
            end = time.perf_counter() + seconds / 4 + took
        else:
            best = max(best, side**3 / took)
    return best


class _Taken:
    """Training steps by batches from files; counts pictures and the time spent waiting for them."""

    def __init__(self, learner: Learner, batches: TrainingBatches) -> None:
        self._learner, self._batches = learner, batches
        self._waits: list[float] = []
        self._size = 0

    def __iter__(self) -> Iterator[int]:
        for batch in self._batches:
            self._learner.step(batch.step, batch.images, batch.targets, RATE)
            self._waits.append(batch.waited)
            self._size = len(batch.targets)
            yield self._size

    def waiting(self, rate: float) -> float:
        """Return which share of the time was spent waiting, at so many pictures a second."""
        counted = self._waits[WARM_UP:]
        return min(1.0, sum(counted) * rate / (len(counted) * self._size))


def _batches(
    pictures: LabelledPictures, crops: CropSettings, recipe: Recipe, device: torch.device, decoder: Decoder
) -> TrainingBatches:
    return TrainingBatches(
        pictures, crops, mean=MEAN, colours=torch.eye(3).numpy(), seed=recipe.seed, batch=recipe.batch, device=device,
        decoder=decoder,
    )  # fmt: skip


def _decoded(pictures: LabelledPictures, crops: CropSettings, decoder: Decoder) -> Iterator[int]:
    def requests() -> Iterator[Request]:
        order = Order(len(pictures), 0)
        for start in count(0, len(pictures)):
            epochs, rows = order.take(start, start + len(pictures))
            for row, scale in zip(rows.tolist(), draw(crops, 0, epochs, rows).scale.tolist(), strict=True):
                file, span = pictures.place(row)
                yield Request(file, (None,), span, scale if crops.reduced else None)

    return (1 for _ in decoder.stream(requests()))


def _in_memory(learner: Learner, recipe: Recipe, device: torch.device) -> Iterator[int]:
    images = torch.randn(recipe.batch, 3, recipe.crop, recipe.crop, device=device) * 50
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.arange(recipe.batch, device=device) % learner.model.num_classes
    for step in count():
        learner.step(step, images, targets, RATE)
        yield recipe.batch


def _rate(counts: Any, seconds: float, device: torch.device, warm_up: int = WARM_UP) -> float:
    """Return how many a second an endless iterable counts, after its first few."""
    numbers = iter(counts)
    for _ in range(warm_up):
        next(numbers)
    _wait_for(device)
    start = time.perf_counter()
    total = 0
    for number in numbers:
        total += number
        if time.perf_counter() - start >= seconds:
            break
    _wait_for(device)
    return total / (time.perf_counter() - start)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
