"""A step against slow arithmetic, in parts, in bf16, and with too little memory."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from train_runs import CLASSES, small_recipe, stripes
from vggfeat.errors import TrainingError, out_of_memory
from vggfeat.runtime.distributed import World
from vggfeat.training.learner import Learner, dropout_masks
from vggfeat.training.objective import Classification
from vggfeat.training.recipe import Recipe, TrainingSettings
from vggfeat.weights import random_backbone


def learner_of(recipe: Recipe, **run) -> Learner:
    objective = Classification(recipe, CLASSES)
    return Learner(objective.first_weights()[0], objective, TrainingSettings(**run), World(), None, print)


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}


def test_dropout_masks_are_a_function_of_seed_and_step():
    recipe, cpu = Recipe(batch=64), torch.device("cpu")
    masks = dropout_masks(1000, recipe, 3, cpu)
    assert set(masks["fc6"].unique().tolist()) == {0.0, 2.0}
    assert (masks["fc6"] == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(masks["fc6"], masks["fc7"])
    torch.manual_seed(1)
    assert torch.equal(masks["fc7"], dropout_masks(1000, recipe, 3, cpu)["fc7"])
    for other in (dropout_masks(1000, recipe, 4, cpu), dropout_masks(1000, replace(recipe, seed=1), 3, cpu)):
        assert not torch.equal(masks["fc6"], other["fc6"])
    quarter = dropout_masks(1000, replace(recipe, dropout=0.25), 3, cpu)["fc6"]
    assert quarter.mean().item() == pytest.approx(1, abs=0.01)


def test_masks_take_the_place_of_dropout():
    model = random_backbone("random:A:0:0.015625").model
    images = stripes(3, 0)[0]
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand((3, 64), generator=generator) for name in ("fc6", "fc7")}
    found = model.train()(images, ("fc6", "fc7", "fc8"), masks)
    layers = model.layers
    seven = F.relu(layers["fc7"](found["fc6"] * masks["fc6"][:, :, None, None]))
    torch.testing.assert_close(found["fc7"], seven)
    torch.testing.assert_close(found["fc8"], layers["fc8"](seven * masks["fc7"][:, :, None, None]))


def test_two_steps_are_those_of_the_formula():
    recipe = small_recipe(weight_decay=0.1, momentum=0.5, dropout=0.0)
    learner = learner_of(recipe)
    for bias in learner.optimiser.param_groups[1]["params"]:
        bias.data.fill_(0.5)
    momenta = {name: torch.zeros_like(weight) for name, weight in weights_of(learner).items()}
    for step, rate in enumerate((1e-3, 1e-4)):
        before = weights_of(learner)
        images, targets = stripes(recipe.batch, step)
        loss = F.cross_entropy(learner.model(images)["fc8"].flatten(1), targets)
        gradients = dict(zip(before, torch.autograd.grad(loss, list(learner.model.parameters())), strict=True))
        learner.step(step, images, targets, rate)
        for name, after in weights_of(learner).items():
            decay = 0.1 * before[name] if name.endswith("weight") else 0.0
            momenta[name] = 0.5 * momenta[name] + gradients[name] + decay
            change = -rate * momenta[name]
            torch.testing.assert_close(
                after - before[name], change, rtol=1e-3, atol=1e-7 + 1e-3 * change.abs().max().item()
            )
        assert learner.take_sums(rate).loss == pytest.approx(recipe.batch * loss.item(), rel=1e-5)


def test_an_image_that_could_not_be_read_counts_nowhere():
    recipe = small_recipe(dropout=0.0)
    with_gap, without = learner_of(recipe), learner_of(recipe, micro_batch=3)
    images, targets = stripes(4, 0)
    targets[3] = -100
    with_gap.step(0, images, targets, 1e-3)
    # A step of the first three, divided by the batch of the recipe, 4, as well.
    without._part(images[:3], targets[:3], {name: torch.ones((3, 64)) for name in ("fc6", "fc7")})
    for group in without.optimiser.param_groups:
        group["lr"] = 1e-3
    without.optimiser.step()
    for name, weight in weights_of(with_gap).items():
        torch.testing.assert_close(weight, weights_of(without)[name], rtol=1e-5, atol=1e-6)
    assert with_gap.take_sums(0).images == 3


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(micro_batch):
    recipe = small_recipe(dropout=0.5, width=1 / 32)
    whole, parts = learner_of(recipe), learner_of(recipe, micro_batch=micro_batch)
    for learner in (whole, parts):
        learner.step(7, *stripes(recipe.batch, 0), 1.0)
    before = weights_of(learner_of(recipe))
    for name, weight in weights_of(whole).items():
        change, other = weight - before[name], weights_of(parts)[name] - before[name]
        torch.testing.assert_close(change, other, rtol=1e-4, atol=1e-4 * change.abs().max().item())


def test_what_does_not_fit_into_memory_is_halved(monkeypatch):
    recipe, said = small_recipe(), []
    expected, small = learner_of(recipe, micro_batch=1), learner_of(recipe)
    small.say = said.append
    whole = Learner._part

    def full(self, images, targets, masks):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(self, images, targets, masks)

    monkeypatch.setattr(Learner, "_part", full)
    for learner in (expected, small):
        learner.step(0, *stripes(recipe.batch, 0), 1e-3)
    told = "memory is too small for the batch at once: {} at a time from here on"
    assert said == [told.format(images) for images in ("2 images", "1 image")]
    assert all(torch.equal(weight, weights_of(expected)[name]) for name, weight in weights_of(small).items())
    monkeypatch.setattr(Learner, "_part", lambda *_: (_ for _ in ()).throw(MemoryError("std::bad_alloc")))
    with pytest.raises(TrainingError, match=r"cpu: expected memory for 1 image at.*bad_alloc.*narrower"):
        small.step(1, *stripes(recipe.batch, 1), 1e-3)


def test_out_of_memory_is_distinguished_from_other_errors():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert not out_of_memory(ValueError("out of memory"))


def test_bf16_trains_close_to_float32():
    recipe = small_recipe(width=1 / 16, dropout=0.0)
    losses = {}
    for precision in ("fp32", "bf16"):
        learner = learner_of(recipe, precision=precision)
        for step in range(3):
            learner.step(step, *stripes(recipe.batch, step), 1e-3)
        losses[precision] = learner.take_sums(0).loss
        assert all(weight.dtype == torch.float32 for weight in weights_of(learner).values())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_weights_that_are_no_numbers_are_not_saved():
    learner = learner_of(small_recipe())
    learner.model.get_parameter("layers.fc8.bias").data[0] = math.inf
    with pytest.raises(TrainingError, match="step 5: a weight is NaN or infinite"):
        learner.snapshot(5, 1e-2)
