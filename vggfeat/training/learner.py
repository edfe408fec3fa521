"""The net as it learns: one step of SGD by a batch, in parts that fit into memory, in one process or several.

N = images of this process's share of a batch, C = channels of fc8.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vggfeat.errors import TrainingError, out_of_memory
from vggfeat.nets.vgg import VGG
from vggfeat.runtime.devices import convolutions
from vggfeat.runtime.distributed import World
from vggfeat.training.objective import Objective
from vggfeat.training.recipe import Recipe, TrainingSettings
from vggfeat.wording import counted

NEVER = 2**62


class Sums(NamedTuple):
    """Figures of training batches, added up."""

    loss: float = 0.0
    hits: float = 0.0
    """Images that the net was right about, dropout included."""
    images: float = 0.0
    """That count."""

    def plus(self, other: "Sums") -> "Sums":
        """Return both together."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


class Learner:
    """A net, its optimiser, and what they need on a device.

    `model`: on the CPU, with the weights to begin with; it is moved to the device. What asks for no gradient does not
    learn.
    `tensors`: of `snapshot`, to resume from; only the first process needs them.
    `say`: called with a sentence if memory is too small for the micro-batch.

    Notes
    -----
    A step is v <- momentum * v + (gradient + weight_decay * w), w <- w - learning_rate * v: PyTorch's SGD. Caffe's
    keeps the learning rate inside v, which differs only in the few steps after a drop of the learning rate.
    """

    def __init__(
        self,
        model: VGG,
        objective: Objective,
        run: TrainingSettings,
        world: World,
        tensors: Mapping[str, Tensor] | None,
        say: Callable[[str], None],
    ) -> None:
        self.objective, self.recipe, self.world, self.say = objective, objective.recipe, world, say
        self.model: VGG = model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = _optimiser(self.model, self.recipe)
        self._restore(tensors)
        if run.compile:
            self.model.compile()
        self.net: nn.Module = _parallel(self.model, world)
        self.precision = run.precision or ("bf16" if world.device.type == "cuda" else "fp32")
        share = len(range(self.recipe.batch)[world.rows(self.recipe.batch)])
        self.micro_batch = min(share, run.micro_batch or share)
        self._sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self._first_bad = torch.full((), NEVER, dtype=torch.int64, device=world.device)
        if world.size > 1:
            self._try_memory()

    def step(self, number: int, images: Tensor, targets: Tensor, learning_rate: float) -> None:
        """Update the weights by one batch.

        Parameters
        ----------
        number : int
            Of the step, from 0.
        images : Tensor (N, 3, H, W), float32
            This process's share of the batch, on the device.
        targets : Tensor (N, ...)
            Of the objective.
        learning_rate : float

        Raises
        ------
        TrainingError
            If not even a single image fits into memory, or if in one of several processes the share does not.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        while isinstance(sums := self._attempt(lambda: self._gradients(number, images, targets)), str):
            if self.world.size > 1:
                # The others are waiting in the exchange of gradients, so this one can't do the step again.
                raise self._too_little(sums)
            self._halve(sums)
        self.optimiser.step()
        self._sums += sums
        found = torch.isfinite(sums[0])
        self._first_bad = torch.where(found, self._first_bad, self._first_bad.clamp(max=number + 1))

    def take_sums(self, learning_rate: float) -> Sums:
        """Return the sums over all processes since the last call.

        It is here that a loss of NaN is found: looking after every step would make the processor wait for the GPU.

        Raises TrainingError if a loss was NaN or infinite; step and learning rate are named.
        """
        first_bad = self.world.all_reduce_min(int(self._first_bad))
        if first_bad != NEVER:
            raise _not_finite("loss", first_bad, learning_rate)
        sums = self.world.sum(self._sums.clone())
        self._sums.zero_()
        return Sums(*sums.tolist())

    def snapshot(self, step: int, learning_rate: float) -> dict[str, Tensor]:
        """Return weights and momenta, on the CPU, contiguous.

        Raises TrainingError if one is NaN or infinite.
        """
        found = {}
        for name, parameter in self.model.named_parameters():
            found[f"model.{name}"] = parameter.detach()
            if parameter.requires_grad:
                found[f"momentum.{name}"] = self.optimiser.state[parameter]["momentum_buffer"]
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in found.values()])
        if not finite.all():
            raise _not_finite("a weight", step, learning_rate)
        # Always a copy: training goes on while the caller looks at it.
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in found.items()}

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Tensor:
        """Return fc8 without dropout, (N, C) float32, of images as in `step`."""
        self.model.eval()
        try:
            with self._autocast(), self._fast_convolutions():
                # Small parts here as well: memory that takes no larger ones in training may take none here.
                return torch.cat([_flat(self.model(_channels_last(p))["fc8"]) for p in images.split(self.micro_batch)])
        finally:
            self.model.train()

    def _gradients(self, number: int, images: Tensor, targets: Tensor) -> Tensor:
        rows = self.world.rows(self.recipe.batch)
        masks = dropout_masks(self.model.maps["fc6"].channels, self.recipe, number, images.device)
        masks = {name: mask[rows] for name, mask in masks.items()}
        sums = torch.zeros_like(self._sums)
        starts = range(0, len(images), self.micro_batch)
        for start in starts:
            part = slice(start, start + self.micro_batch)
            with self._without_exchange() if start != starts[-1] else nullcontext():
                sums += self._part(images[part], targets[part], {name: mask[part] for name, mask in masks.items()})
        return sums

    def _part(self, images: Tensor, targets: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        with self._autocast():
            outputs = _flat(self.net(_channels_last(images), masks=masks)["fc8"])
        loss, hits, counted = self.objective.loss(outputs, targets)
        # The exchange averages over processes; divided by the whole batch, the sum over them is what is wanted.
        (loss * (self.world.size / self.recipe.batch)).backward()
        return torch.stack([loss.detach().double(), hits.double(), counted.double()])

    def _try_memory(self) -> None:
        # One pass without an exchange, after which all processes agree on the smallest part.
        before = self.micro_batch
        side = self.recipe.crop

        def one_pass() -> Tensor:
            images = torch.zeros((self.micro_batch, 3, side, side), device=self.world.device)
            targets = self.objective.no_targets(self.micro_batch).to(self.world.device)
            masks = dropout_masks(self.model.maps["fc6"].channels, self.recipe, 0, self.world.device)
            with self._without_exchange():
                return self._part(images, targets, {name: mask[: self.micro_batch] for name, mask in masks.items()})

        while isinstance(reason := self._attempt(one_pass), str):
            self._halve(reason)
        self.optimiser.zero_grad(set_to_none=True)
        self.micro_batch = self.world.all_reduce_min(self.micro_batch)
        if self.micro_batch < before:
            self._report_micro_batch()

    def _attempt(self, run: Callable[[], Tensor]) -> Tensor | str:
        """Run a pass; return its sums, or in a line why memory did not suffice."""
        try:
            with self._fast_convolutions():
                return run()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            # Whoever is told has none of the tensors of the failed pass, whose memory the parts need.
            return str(error).partition("\n")[0]

    def _halve(self, reason: str) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.micro_batch == 1:
            raise self._too_little(reason)
        self.micro_batch = -(-self.micro_batch // 2)
        if self.world.size == 1:
            self._report_micro_batch()

    def _report_micro_batch(self) -> None:
        self.say(
            f"memory is too small for the batch at once: {counted(self.micro_batch, 'image{s}')} at a time from here on"
        )

    def _too_little(self, reason: str) -> TrainingError:
        advice = "give --micro-batch a smaller number" if self.micro_batch > 1 else "train a narrower net"
        return TrainingError(
            f"{self.world.device}: expected memory for {counted(self.micro_batch, 'image{s}')} at a time, found too "
            f"little ({reason}); {advice}"
        )

    def _without_exchange(self) -> AbstractContextManager[Any]:
        return self.net.no_sync() if self.world.size > 1 else nullcontext()  # type: ignore[operator]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _fast_convolutions(self) -> AbstractContextManager[Any]:
        # Sizes hardly ever change, so it pays to try out which algorithm is fastest.
        return convolutions(tf32=False, fastest=True) if self.world.device.type == "cuda" else nullcontext()

    def _restore(self, tensors: Mapping[str, Tensor] | None) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if tensors is not None:
                    parameter.copy_(tensors[f"model.{name}"])
                self.world.broadcast(parameter)
                if not parameter.requires_grad:
                    continue
                # Zeros do what no momentum does, and memory for them can't run out in the middle of an update.
                momentum = torch.zeros_like(parameter)
                self.optimiser.state[parameter]["momentum_buffer"] = momentum
                if tensors is not None:
                    momentum.copy_(tensors[f"momentum.{name}"])
                self.world.broadcast(momentum)


def dropout_masks(channels: int, recipe: Recipe, number: int, device: torch.device) -> dict[str, Tensor]:
    """Draw what fc6 and fc7 are multiplied by in a step, for the whole batch.

    They depend on seed and step alone, so that the same activations are dropped however the batch is split.

    Returns name -> (batch, channels) float32: 0 with probability `recipe.dropout`, else 1 / (1 - dropout).
    """
    shape = (recipe.batch, channels)
    mixed = hashlib.sha256(f"dropout/{recipe.seed}/{number}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(mixed[:8], "little") >> 1)
    kept = 1 / (1 - recipe.dropout)
    return {
        name: (torch.rand(shape, generator=generator, device=device) >= recipe.dropout) * kept
        for name in ("fc6", "fc7")
    }


def _optimiser(model: VGG, recipe: Recipe) -> torch.optim.SGD:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if name.endswith("weight")], "weight_decay": recipe.weight_decay},
        {"params": [p for name, p in named if name.endswith("bias")], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)


def _parallel(model: VGG, world: World) -> nn.Module:
    if world.size == 1:
        return model
    places = [world.device.index] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=places, gradient_as_bucket_view=True)


def _flat(outputs: Tensor) -> Tensor:
    # (N, C, 1, 1): a crop gives one position.
    return outputs.flatten(1).float()


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _not_finite(what: str, step: int, learning_rate: float) -> TrainingError:
    return TrainingError(
        f"step {step}: {what} is NaN or infinite at a learning rate of {learning_rate:g}; nothing of it was saved; "
        "begin again in another folder, with a lower --learning-rate or another initialisation"
    )
