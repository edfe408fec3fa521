"""How fast training is, and what holds it up: decoding, the step, or both together.

A multiply-add is one multiplication and one addition.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import nn

from vggfeat.benchmarks.measure import Column, Report, Say, images_on_disk, in_turns, machine, rate
from vggfeat.benchmarks.roofline import layer_costs, matrix_rate
from vggfeat.datasets import ilsvrc
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.nets.vgg import NETS, VGG, WINDOW
from vggfeat.runtime.devices import checked_device
from vggfeat.runtime.distributed import World
from vggfeat.samples import DataSet, LabelledImages
from vggfeat.training.crops import EpochOrder, draw
from vggfeat.training.data import BatchStream, training_batches
from vggfeat.training.learner import Learner
from vggfeat.training.objective import Classification
from vggfeat.training.recipe import Recipe, TrainingSettings

CLASSES = 8
"""Of images that are made."""
MEAN = (120.0, 115.0, 105.0)
"""Subtracted from every pixel; its value has no influence on speed."""
RATE = 0.0
"""The learning rate: with it the weights stay finite, whatever was drawn."""
WARM_UP = 3
"""Batches that are not counted."""
MATRIX = "matrix product"
PLAIN = "plain loop's step"
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

    `images`: gone through again and again. `seconds`: least time of each of the measurements, after its warm-up. Rows
    of the report: files to pixels; files to batches of crops on the device; updates of the weights by a batch that lies
    in its memory, by vggfeat and by a plain loop; and loading with vggfeat's updates, with the share of time that was
    spent waiting for images. `held_up_by` is the slower one. Raises ConfigError if the device is not there;
    TrainingError if memory is too small, or too many images can't be read.
    """
    world = World(device=checked_device(run.device))
    objective = Classification(recipe, images.classes)
    model, _ = objective.first_weights()
    learner = Learner(model, objective, run, world, None, lambda sentence: None)
    with Decoder(run.workers, DecodeSettings()) as decoder:
        stages = Stages(images, recipe, learner, decoder, seconds)
        subjects = {
            "decoding alone": lambda: stages.decoding(WARM_UP * max(1, run.workers)),
            "loading alone": stages.loading,
            "step alone": stages.step,
            PLAIN: stages.plain_step,
            "both": stages.both,
            MATRIX: lambda: matrix_rate(world.device, learner.precision, seconds / 4),
        }
        rates = {name: found[0] for name, found in in_turns(subjects, 1, say).items()}
    matrix, multiply_adds = rates.pop(MATRIX), training_multiply_adds(model, recipe.crop)
    held_up_by = "loading" if rates["loading alone"] < rates["step alone"] else "step"
    more = {
        "step alone": {"share": rates["step alone"] * multiply_adds / matrix},
        "both": {"waiting": min(1.0, rates["both"] * stages.waited)},
    }
    return Report(
        name="train",
        settings={
            "net": recipe.net, "width": recipe.width, "scale": list(recipe.scale), "batch": recipe.batch,
            "micro_batch": learner.micro_batch, "precision": learner.precision, "compiled": run.compile,
            "workers": run.workers, "images": len(images),
        },
        machine=machine(world.device),
        columns=COLUMNS,
        rows=[{"name": name, "rate": found, **more.get(name, {})} for name, found in rates.items()],
        figures={"held_up_by": held_up_by, "image_multiply_adds": multiply_adds, "matrix_multiply_adds": matrix},
        notes=[
            f"{MATRIX}: {matrix / 1e9:.4g} G multiply-adds/s; an image in training takes {multiply_adds / 1e9:.3g} G",
            "decoding: files to pixels; loading: files to batches on the device; step: on a batch in memory",
            f"{PLAIN}: the same net and SGD as PyTorch's tutorials write them, channels last, in the same precision",
            f"held up by: {held_up_by}",
        ],
    )  # fmt: skip


class Stages:
    """Loading, the step, and both together: each method returns its images per second."""

    def __init__(
        self, images: LabelledImages, recipe: Recipe, learner: Learner, decoder: Decoder, seconds: float
    ) -> None:
        self.images, self.recipe, self.learner, self.decoder = images, recipe, learner, decoder
        self.world = learner.world
        self.timed = partial(rate, device=self.world.device, seconds=seconds)
        self.waited = 0.0
        """Seconds that `both` has waited for images, for each of them."""

    def decoding(self, warm_up: int) -> float:
        """Turn files into pixels."""
        decoded = self.decoder.stream(self._requests())

        def decode() -> int:
            next(decoded)
            return 1

        return self.timed(decode, warm_up=warm_up)

    def loading(self) -> float:
        """Turn files into batches of crops on the device."""
        with self._batches() as batches:
            return self.timed(lambda: len(next(batches).targets), warm_up=WARM_UP)

    def step(self) -> float:
        """Update the weights by a batch that lies in the device's memory."""
        numbers, (images, targets) = count(), self._batch()

        def update() -> int:
            self.learner.step(next(numbers), images, targets, RATE)
            return len(targets)

        return self.timed(update, warm_up=WARM_UP)

    def plain_step(self) -> float:
        """Update the weights of a `plain_net` by a batch that lies in the device's memory."""
        recipe, device, (images, targets) = self.recipe, self.world.device, self._batch()
        net = plain_net(self.learner.model, recipe.dropout).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.SGD(
            net.parameters(), lr=RATE, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

        def update() -> int:
            optimiser.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=self.learner.precision == "bf16"):
                loss = nn.functional.cross_entropy(net(images), targets)
            loss.backward()
            optimiser.step()
            return len(targets)

        return self.timed(update, warm_up=WARM_UP)

    def both(self) -> float:
        """Update the weights by batches from files."""
        waits: list[float] = []

        def update() -> int:
            batch = next(batches)
            self.learner.step(batch.step, batch.images, batch.targets, RATE)
            waits.append(batch.waited / len(batch.targets))
            return len(batch.targets)

        with self._batches() as batches:
            found = self.timed(update, warm_up=WARM_UP)
        self.waited = mean(waits[WARM_UP:])
        return found

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        recipe, device = self.recipe, self.world.device
        images = torch.randn(recipe.batch, 3, recipe.crop, recipe.crop, device=device) * 50
        targets = torch.arange(recipe.batch, device=device) % self.learner.model.num_classes
        return images.contiguous(memory_format=torch.channels_last), targets

    def _batches(self) -> BatchStream:
        colours = torch.eye(3).numpy()
        return training_batches(
            self.images, self.recipe, mean=MEAN, colours=colours, decoder=self.decoder, world=self.world
        )

    def _requests(self) -> Iterator[Request]:
        recipe, number = self.recipe, len(self.images)
        order = EpochOrder(number, recipe.seed)
        for start in count(0, number):
            epochs, rows = order.take(start, start + number)
            for row, scale in zip(rows.tolist(), draw(recipe, epochs, rows).scale.tolist(), strict=True):
                file, span = self.images.place(row)
                yield Request(file, (None,), span, scale if recipe.reduced else None)


@contextmanager
def training_images(root: Path | None, count: int, say: Say) -> Iterator[LabelledImages]:
    """Lend the training images below a folder, or so many that are made."""
    if root is not None:
        yield ilsvrc.read(root).train
        return
    say(f"making {count} images")
    with images_on_disk(count, seed=0) as files:
        yield labelled(files)


def labelled(files: DataSet) -> LabelledImages:
    """Return images as training takes them, each with a class that says nothing about it."""
    return LabelledImages(
        root=Path(files.root),
        paths=files.paths,
        targets=np.arange(len(files)) % CLASSES,
        classes=tuple(f"class {k}" for k in range(CLASSES)),
    )


def plain_net(model: VGG, dropout: float) -> nn.Sequential:
    """Return a net of the same layers, with new weights, as PyTorch's tutorials and torchvision write one.

    It takes crops (N, 3, 224, 224), and gives scores (N, classes).
    """
    layers: list[nn.Module] = []
    channels = 3
    for number, kernels in enumerate(NETS[model.config].blocks, start=1):
        for index, kernel in enumerate(kernels, start=1):
            wide = model.maps[f"relu{number}_{index}"].channels
            layers += [nn.Conv2d(channels, wide, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
            channels = wide
            if number == index == 1 and NETS[model.config].lrn:
                layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=model.pool == "ceil"))
    layers.append(nn.Flatten())
    channels *= WINDOW**2
    for name in ("fc6", "fc7"):
        wide = model.maps[name].channels
        layers += [nn.Linear(channels, wide), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        channels = wide
    return nn.Sequential(*layers, nn.Linear(channels, model.num_classes))


def training_multiply_adds(model: VGG, side: int) -> int:
    """Return the multiply-adds of one image in training.

    Forward once, backward once for the weights and once for the inputs, which the first layer does not need.
    """
    layers = layer_costs(model, side, side)
    return 3 * sum(layer.multiply_adds for layer in layers) - layers[0].multiply_adds
