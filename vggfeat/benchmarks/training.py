"""How fast training is, and what holds it up: decoding, the step, or both together.

N = images of a batch. A multiply-add is one multiplication and one addition.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import torch

from vggfeat.benchmarks.ceilings import device_name, matrix_rate, wait_for
from vggfeat.benchmarks.roofline import layer_multiply_adds
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.nets.vgg import VGG
from vggfeat.runtime.devices import checked_device
from vggfeat.runtime.distributed import World
from vggfeat.samples import LabelledImages
from vggfeat.training.crops import EpochOrder, draw
from vggfeat.training.data import BatchStream, training_batches
from vggfeat.training.learner import Learner
from vggfeat.training.objective import Classification
from vggfeat.training.recipe import Recipe, TrainingSettings

MEAN = (120.0, 115.0, 105.0)
"""Subtracted from every pixel; its value has no influence on speed."""
RATE = 0.0
"""The learning rate: with it the weights stay finite, whatever was drawn."""
WARM_UP = 3
"""Batches that are not counted: buffers fill, kernels are chosen and compiled."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpeeds:
    """What was measured, in images per second unless a field says otherwise."""

    device: str
    precision: str
    micro_batch: int
    """Images in one pass through the net, after any halving for want of memory."""
    decoding: float
    """Files to pixels by the workers, nothing else running."""
    loading: float
    """Files to batches of crops on the device: decoding, and resampling where it is done in training."""
    step: float
    """Updates of the weights by a batch that lies in the device's memory."""
    both: float
    """Training: batches from files, and an update by each."""
    waiting: float
    """Share of the time of `both` spent waiting for images, 0 to 1."""
    image_multiply_adds: int
    """Of one training image, forward and backward, by the table of layers."""
    matrix_multiply_adds: float
    """Per second, of a product of two large square matrices in the same precision: what the device can do."""

    @property
    def share(self) -> float:
        """Return which share of the matrix rate the step reaches, 0 to 1."""
        return self.step * self.image_multiply_adds / self.matrix_multiply_adds

    @property
    def bottleneck(self) -> str:
        """Say which of the two is slower alone."""
        return "loading" if self.loading < self.step else "step"

    def describe(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {**asdict(self), "share": self.share, "bottleneck": self.bottleneck}


def measure(
    images: LabelledImages,
    recipe: Recipe,
    run: TrainingSettings,
    *,
    seconds: float = 10.0,
    report: Callable[[str], None] = lambda name: None,
) -> TrainingSpeeds:
    """Measure training on one device.

    Parameters
    ----------
    images : LabelledImages
        Gone through again and again.
    recipe : Recipe
    run : TrainingSettings
    seconds : float
        Least time of each of the measurements, after its warm-up.
    report : callable
        Called with the name of each measurement as it begins.

    Raises
    ------
    ConfigError
        If the device is not there.
    TrainingError
        If memory is too small, or too many images can't be read.
    """
    world = World(device=checked_device(run.device))
    device = world.device
    objective = Classification(recipe, images.classes)
    model, _ = objective.first_weights()
    learner = Learner(model, objective, run, world, None, lambda sentence: None)
    with Decoder(run.workers, DecodeSettings()) as decoder:
        report("decoding")
        decoding = _rate(_decoded(images, recipe, decoder), seconds, device, warm_up=WARM_UP * max(1, run.workers))
        report("loading")
        with _batches(images, recipe, world, decoder) as batches:
            loading = _rate((len(batch.targets) for batch in batches), seconds, device)
        report("both")
        waits: list[float] = []
        with _batches(images, recipe, world, decoder) as batches:
            both = _rate(_trained(learner, batches, waits), seconds, device)
    report("step")
    step = _rate(_in_memory(learner, recipe, device), seconds, device)
    report("matrix product")
    return TrainingSpeeds(
        device=device_name(device),
        precision=learner.precision,
        micro_batch=learner.micro_batch,
        decoding=decoding,
        loading=loading,
        step=step,
        both=both,
        waiting=min(1.0, sum(waits[WARM_UP:]) * both / (len(waits[WARM_UP:]) * recipe.batch)),
        image_multiply_adds=training_multiply_adds(model, recipe.crop),
        matrix_multiply_adds=matrix_rate(device, learner.precision, seconds / 4),
    )


def training_multiply_adds(model: VGG, side: int) -> int:
    """Return the multiply-adds of one image in training.

    Forward once, backward once for the weights and once for the inputs, which the first layer does not need.
    """
    layers = layer_multiply_adds(model, side, side)
    return 3 * sum(layers.values()) - layers["conv1_1"]


def _trained(learner: Learner, batches: BatchStream, waits: list[float]) -> Iterator[int]:
    """Take steps by batches from files, count their images, and append the seconds that each was waited for."""
    for batch in batches:
        learner.step(batch.step, batch.images, batch.targets, RATE)
        waits.append(batch.waited)
        yield len(batch.targets)


def _batches(images: LabelledImages, recipe: Recipe, world: World, decoder: Decoder) -> BatchStream:
    return training_batches(images, recipe, mean=MEAN, colours=torch.eye(3).numpy(), decoder=decoder, world=world)


def _decoded(images: LabelledImages, recipe: Recipe, decoder: Decoder) -> Iterator[int]:
    def requests() -> Iterator[Request]:
        order = EpochOrder(len(images), recipe.seed)
        for start in count(0, len(images)):
            epochs, rows = order.take(start, start + len(images))
            for row, scale in zip(rows.tolist(), draw(recipe, epochs, rows).scale.tolist(), strict=True):
                file, span = images.place(row)
                yield Request(file, (None,), span, scale if recipe.reduced else None)

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
    wait_for(device)
    start = time.perf_counter()
    total = 0
    for number in numbers:
        total += number
        if time.perf_counter() - start >= seconds:
            break
    wait_for(device)
    return total / (time.perf_counter() - start)
