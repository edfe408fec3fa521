"""What is trained and how: the recipe of the VGG paper, each value with its source, and when its learning rate drops.

"Sect." is a section of the VGG paper. A *step* is one update of the weights by the whole batch (the paper's
"iteration"); *S* is the smallest side of a rescaled training image, in pixels.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch

from vggfeat.checks import check_choice, convert_fields
from vggfeat.errors import ConfigError
from vggfeat.nets.backbone import Pool
from vggfeat.nets.families import allocated
from vggfeat.nets.vgg import NETS, VGG
from vggfeat.runtime.devices import LearningPrecision
from vggfeat.weights import Backbone

Initialisation = Literal["glorot", "normal", "he"]
Start = Literal["random", "A", "same net"]
FROM_A = ("B", "C", "D", "E")
"""Nets that the paper starts from net A."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the trained weights, apart from the images and the weights that are started from.

    Raises ConfigError if a value is not allowed; the message names it.
    """

    net: str = "A"
    """A, A-LRN, B, C, D or E (Table 1)."""
    width: float = 1.0
    """Factor on the channels of the net, for small nets; 1 in the paper."""
    pool: Pool = "floor"
    """Rounding of the pooling output. A 224 crop gives the same map with both."""
    scale: tuple[int, int] = (256, 256)
    """Smallest and largest S: (256, 256), (384, 384), or (256, 512), drawn again for every image (Sect. 3.1)."""
    crop: int = 224
    """Side of the crop taken at random from the rescaled image (Sect. 3.1)."""
    mirror: float = 0.5
    """Share of crops that are mirrored, at random (Sect. 3.1)."""
    colour_shift: float = 0.1
    """Deviation of the random shift along the principal components of RGB; 0.1 is Krizhevsky's (2012, Sect. 4.1), to
    whom Sect. 3.1 refers. 0 shifts nothing."""
    reduced: bool = True
    """Decode a JPEG that is twice as large as S, or more, at 1/2, 1/4 or 1/8 of its size: not in the paper, but it
    saves most of the time that large images take."""
    start: Start = "random"
    """random; A: the first four convolutions and the fully connected layers come from net A (Sect. 3.1), matched by
    block (conv1_1, conv2_1, conv3_1, conv3_2), because by order their shapes differ; same net: all layers come from
    weights of this net, as S = 384 starts from S = 256. In both, fc8 starts at 0 where the classes are others."""
    initialisation: Initialisation = "glorot"
    """How layers start that are not given weights; biases are 0. glorot: uniform with variance
    2 / (fan-in + fan-out), which the authors found to work for all nets without starting from A (Sect. 3.1, added after
    their submission). normal: as Sect. 3.1 has it, see `normal_std`. he: normal with variance 2 / fan-in; it keeps the
    scale of the pixels up to fc8, which `learning_rate` is too high for. The scores of net D begin at about 0.2 with
    glorot, 100 with he."""
    normal_std: float = 0.1
    """Deviation for normal. Sect. 3.1 has a variance of 0.01, hence 0.1, with which the scores of net A begin at
    about 1e8 and the first steps end in NaN. Most later programs read it as a deviation of 0.01, with which those of
    net A begin at 1e-3 and those of net D at 1e-6: the deeper nets stall, as the paper reports."""
    batch: int = 256
    """Images in a step (Sect. 3.1), over all processes."""
    momentum: float = 0.9
    """Sect. 3.1."""
    weight_decay: float = 5e-4
    """L2 penalty on the weights (Sect. 3.1), not on the biases: so did the nets of the time that came with Caffe, and
    the paper says nothing else."""
    dropout: float = 0.5
    """Probability of dropping an activation of fc6 and of fc7 (Sect. 3.1)."""
    learning_rate: float = 1e-2
    """Initial learning rate (Sect. 3.1); 1e-3 when started from the same net at another S, as S = 384 is (Sect. 3.1).
    The paper does not give that of [256;512] started from S = 384; it is taken to be the same. It is not lowered for
    layers from A. All of this is for a batch of 256: a smaller one wants a lower rate, about in proportion."""
    drop_factor: float = 10.0
    """What the learning rate is divided by when validation accuracy has stopped improving (Sect. 3.1)."""
    drops: int = 3
    """How many times (Sect. 3.1). When it stops improving once more, training ends."""
    max_steps: int = 370_000
    """Training ends here at the latest: the paper's 370K iterations, 74 epochs of ILSVRC-2012."""
    validate_every: int | None = None
    """Steps between two validations; None for an epoch. The paper does not say."""
    patience: int = 5
    """Validations in a row without an improvement that count as "stopped improving". The paper does not say."""
    least_gain: float = 1e-3
    """An improvement is a top-1 accuracy more than this above the best: the last digit of the paper's tables."""
    seed: int = 0
    """Seed of first weights, order of the images, crops, colours and dropout."""

    def __post_init__(self) -> None:
        convert_fields(self)
        check_choice("net", self.net, NETS)
        check_choice("pool", self.pool, get_args(Pool))
        check_choice("start", self.start, get_args(Start))
        check_choice("initialisation", self.initialisation, get_args(Initialisation))
        if self.start == "A" and self.net not in FROM_A:
            raise ConfigError(f"start: expected net {', '.join(FROM_A)} to be started from net A, found {self.net}")
        if len(self.scale) != 2 or not self.crop <= self.scale[0] <= self.scale[1] <= 4096:
            raise ConfigError(f"scale: expected {self.crop} <= lowest <= highest <= 4096 pixels, found {self.scale}")
        for name in ("batch", "max_steps", "patience"):
            _check_range(name, getattr(self, name), 1, math.inf)
        if self.validate_every is not None:
            _check_range("validate_every", self.validate_every, 1, math.inf)
        for name in ("colour_shift", "weight_decay", "learning_rate", "least_gain", "drops", "seed", "normal_std"):
            _check_range(name, getattr(self, name), 0, 2**63 - 1)
        for name in ("momentum", "dropout"):
            _check_range(name, getattr(self, name), 0, 0.999)
        _check_range("mirror", self.mirror, 0, 1)
        _check_range("drop_factor", self.drop_factor, 1, math.inf)

    @property
    def validation_scale(self) -> int:
        """Smallest side of a validation image: S, or the middle of its range (Sect. 4.1)."""
        return round(sum(self.scale) / 2)

    def steps_between_validations(self, images: int) -> int:
        """Return `validate_every`, or the steps of an epoch of so many training images."""
        return self.validate_every or max(1, math.ceil(images / self.batch))

    def build(self, num_classes: int) -> VGG:
        """Build the net on the CPU, with weights that are still to be set."""
        with torch.device("meta"):  # PyTorch's own first weights would cost time and move its random state.
            model = VGG(self.net, num_classes, width=self.width, pool=self.pool, dropout=self.dropout)
        return allocated(model)

    def check_start(self, started_from: Backbone, *names: str) -> None:
        """Check that the net which is started from is of this recipe, by fields of it; ConfigError if it is another."""
        for name in names:
            expected, found = getattr(self, name), getattr(started_from.model, "config" if name == "net" else name)
            if found != expected:
                raise ConfigError(
                    f"{started_from.source}: {name}: expected {expected}, as in the recipe, found {found}"
                )

    def describe(self) -> dict[str, Any]:
        """Return all values, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the work is done; nothing here changes the weights by more than rounding, `precision` apart."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, ...; under torchrun, cuda stands for the GPU of each process."""
    workers: int = 2
    """Processes that decode images, for each training process; 0 decodes in the training process."""
    precision: LearningPrecision | None = None
    """Precision of convolutions and matrix products; weights and sums stay float32. None: bf16 on a GPU, fp32 on
    the CPU."""
    micro_batch: int | None = None
    """Images that go through the net at a time, in each process; gradients are summed over the batch. None: all of
    a process's share, halved as often as memory asks for it."""
    compile: bool = False
    """Compile the net with torch.compile: minutes once, then faster steps on a GPU."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints. There is also one after every validation."""
    log_every: int = 50
    """Steps between two lines of the log. There is also one of the first step, and one of the last."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.precision is not None:
            check_choice("precision", self.precision, get_args(LearningPrecision))
        _check_range("workers", self.workers, 0, 1024)
        for name in ("checkpoint_every", "log_every"):
            _check_range(name, getattr(self, name), 1, math.inf)
        if self.micro_batch is not None:
            _check_range("micro_batch", self.micro_batch, 1, math.inf)


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """What the validations so far have shown: VGG paper, Sect. 3.1, with "stopped improving" defined.

    An accuracy more than `recipe.least_gain` above the best so far is an improvement. After `recipe.patience`
    validations in a row without one the learning rate drops and the count starts again; the best stays. When that
    happens with all `recipe.drops` spent, training ends.
    """

    best: float = -1.0
    """Best top-1 accuracy, from 0 to 1; -1 before the first validation."""
    stale: int = 0
    """Validations in a row without an improvement."""
    drops: int = 0
    """How often the learning rate has dropped; one more than `recipe.drops` when training is to end."""

    def after(self, accuracy: float, recipe: Recipe) -> "Plateau":
        """Return what is known after one more validation, with a top-1 accuracy from 0 to 1."""
        # Far less than an image, and more than rounding: one image of 1000 is just the least gain, wherever it begins.
        if accuracy - self.best > recipe.least_gain + 1e-9 or self.best < 0:
            return replace(self, best=accuracy, stale=0)
        if self.stale + 1 < recipe.patience:
            return replace(self, stale=self.stale + 1)
        return replace(self, stale=0, drops=self.drops + 1)

    def learning_rate(self, recipe: Recipe) -> float:
        """Return the learning rate of the next step."""
        return recipe.learning_rate / recipe.drop_factor ** min(self.drops, recipe.drops)

    def validations_left(self, recipe: Recipe) -> int:
        """Return how many more there will be if none brings an improvement, the first of all apart."""
        if self.ended(recipe):
            return 0
        return (self.best < 0) + recipe.patience - self.stale + (recipe.drops - self.drops) * recipe.patience

    def ended(self, recipe: Recipe) -> bool:
        """Say whether training is to end."""
        return self.drops > recipe.drops


def recipe_for(
    net: str, scale: tuple[int, int] = (256, 256), started_from: Backbone | None = None, **other: Any
) -> Recipe:
    """Return the paper's recipe for a net and an S.

    Parameters
    ----------
    net : A, A-LRN, B, C, D or E
    scale : (lowest, highest) S in pixels
    started_from : Backbone, optional
        Weights of the same net, which lower the learning rate to 1e-3, or of net A for B to E, which don't. Width and
        pool rounding are taken from them.
    other
        Fields of `Recipe` that are to be other than the paper's.

    Raises
    ------
    ConfigError
        If a net can't be started from those weights, or a value is not allowed.
    """
    if started_from is None:
        return Recipe(net=net, scale=scale, **other)
    found = started_from.model
    own = {"width": found.width, "pool": found.pool}
    if found.config == net:
        return Recipe(net=net, scale=scale, **{**own, "start": "same net", "learning_rate": 1e-3, **other})
    if found.config == "A" and net in FROM_A:
        return Recipe(net=net, scale=scale, **{**own, "start": "A", **other})
    raise ConfigError(
        f"{started_from.source}: expected weights of net {net}{' or A' if net in FROM_A else ''} to start from, "
        f"found net {found.config}"
    )


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN as well
        upper = f" and at most {most:g}" if math.isfinite(most) else ""
        raise ConfigError(f"{name}: expected at least {least}{upper}, found {value}")
