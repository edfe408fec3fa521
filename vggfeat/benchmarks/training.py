"""How fast training is, and what holds it up: decoding, the step, or both together.

A multiply-add is one multiplication and one addition.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from vggfeat import synthetic
from vggfeat.benchmarks.ceilings import matrix_rate
from vggfeat.benchmarks.measure import Column, Report, Say, machine, rate
from vggfeat.benchmarks.roofline import layer_costs
from vggfeat.datasets import ilsvrc
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.nets.vgg import VGG
from vggfeat.runtime.devices import checked_device, default_workers
from vggfeat.runtime.distributed import World
from vggfeat.samples import LabelledImages
from vggfeat.training.crops import EpochOrder, draw
from vggfeat.training.data import BatchStream, training_batches
from vggfeat.training.learner import Learner
from vggfeat.training.objective import Classification
from vggfeat.training.recipe import Recipe, TrainingSettings

CLASSES = 8
"""Of rendered images."""
MEAN = (120.0, 115.0, 105.0)
"""Subtracted from every pixel; its value has no influence on speed."""
RATE = 0.0
"""The learning rate: with it the weights stay finite, whatever was drawn."""
WARM_UP = 3
"""Batches that are not counted."""
COLUMNS = {
    "name": Column(""),
    "rate": Column("images/s"),
    "share": Column("of the matrix rate", ".0%"),
    "waiting": Column("waiting for images", ".0%"),
}


def measure(
    images: LabelledImages,
    recipe: Recipe,
    run: TrainingSettings,
    *,
    seconds: float = 10.0,
    say: Say = lambda name: None,
) -> Report:
    """Measure training on one device.

    Parameters
    ----------
    images : LabelledImages
        Gone through again and again.
    recipe : Recipe
    run : TrainingSettings
    seconds : float
        Least time of each of the measurements, after its warm-up.
    say : callable

    Returns
    -------
    Report
        Rows: files to pixels; files to batches of crops on the device; updates of the weights by a batch that lies in
        its memory; and both, with the share of time that was spent waiting for images. `held_up_by` is the slower one.

    Raises
    ------
    ConfigError
        If the device is not there.
    TrainingError
        If memory is too small, or too many images can't be read.
    """
    world = World(device=checked_device(run.device))
    objective = Classification(recipe, images.classes)
    model, _ = objective.first_weights()
    learner = Learner(model, objective, run, world, None, lambda sentence: None)
    timed = partial(rate, device=world.device, seconds=seconds, warm_up=WARM_UP)
    waits: list[float] = []
    with Decoder(run.workers, DecodeSettings()) as decoder:
        opened = partial(
            training_batches, images, recipe, mean=MEAN, colours=torch.eye(3).numpy(), decoder=decoder, world=world
        )
        say("decoding")
        decoding = timed(_decoding(images, recipe, decoder), warm_up=WARM_UP * max(1, run.workers))
        say("loading")
        with opened() as batches:
            loading = timed(lambda: len(next(batches).targets))
        say("both")
        with opened() as batches:
            both = timed(partial(_train, learner, batches, waits))
    say("step")
    step = timed(_stepping(learner, recipe))
    say("matrix product")
    matrix = matrix_rate(world.device, learner.precision, seconds / 4)
    multiply_adds = training_multiply_adds(model, recipe.crop)
    waits = waits[WARM_UP:]
    held_up_by = "loading" if loading < step else "step"
    return Report(
        name="train",
        settings={
            "net": recipe.net, "width": recipe.width, "scale": list(recipe.scale), "batch": recipe.batch,
            "micro_batch": learner.micro_batch, "precision": learner.precision, "compiled": run.compile,
            "workers": run.workers, "images": len(images),
        },
        machine=machine(world.device),
        columns=COLUMNS,
        rows=[
            {"name": "decoding alone", "rate": decoding},
            {"name": "loading alone", "rate": loading},
            {"name": "step alone", "rate": step, "share": step * multiply_adds / matrix},
            {"name": "both", "rate": both, "waiting": min(1.0, sum(waits) * both / (len(waits) * recipe.batch))},
        ],
        figures={
            "held_up_by": held_up_by, "image_multiply_adds": multiply_adds, "matrix_multiply_adds": matrix,
        },
        notes=[
            f"matrix product: {matrix / 1e9:.4g} G multiply-adds/s; an image in training takes "
            f"{multiply_adds / 1e9:.3g} G",
            "decoding: files to pixels; loading: files to batches on the device; step: on a batch in memory",
            f"held up by: {held_up_by}",
        ],
    )  # fmt: skip


def rendered(folder: Path, count: int) -> LabelledImages:
    """Render images of the sizes that ILSVRC-2012 has on average."""
    size = synthetic.Settings(image_side=500, classes=CLASSES, train=-(-count // CLASSES), val=CLASSES)
    synthetic.write("ilsvrc", folder, size=size, workers=default_workers())
    return ilsvrc.read(folder).train


def training_multiply_adds(model: VGG, side: int) -> int:
    """Return the multiply-adds of one image in training.

    Forward once, backward once for the weights and once for the inputs, which the first layer does not need.
    """
    layers = layer_costs(model, side, side)
    return 3 * sum(layer.multiply_adds for layer in layers) - layers[0].multiply_adds


def _train(learner: Learner, batches: BatchStream, waits: list[float]) -> int:
    """Take a step by a batch from files, and append the seconds that were waited for it."""
    batch = next(batches)
    learner.step(batch.step, batch.images, batch.targets, RATE)
    waits.append(batch.waited)
    return len(batch.targets)


def _decoding(images: LabelledImages, recipe: Recipe, decoder: Decoder) -> Callable[[], int]:
    def requests() -> Iterator[Request]:
        order = EpochOrder(len(images), recipe.seed)
        for start in count(0, len(images)):
            epochs, rows = order.take(start, start + len(images))
            for row, scale in zip(rows.tolist(), draw(recipe, epochs, rows).scale.tolist(), strict=True):
                file, span = images.place(row)
                yield Request(file, (None,), span, scale if recipe.reduced else None)

    decoded: Iterator[Any] = decoder.stream(requests())

    def decode_one() -> int:
        next(decoded)
        return 1

    return decode_one


def _stepping(learner: Learner, recipe: Recipe) -> Callable[[], int]:
    device, numbers = learner.world.device, count()
    images = torch.randn(recipe.batch, 3, recipe.crop, recipe.crop, device=device) * 50
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.arange(recipe.batch, device=device) % learner.model.num_classes

    def step() -> int:
        learner.step(next(numbers), images, targets, RATE)
        return recipe.batch

    return step
