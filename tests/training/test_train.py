"""Training: the recipe against the paper, a step against slow arithmetic, whole runs against their claims."""

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import train_runs
from train_runs import CLASSES, StripeFeed, figures, run_small, small_recipe, stripes
from vggfeat.errors import ConfigError, StoreError, TrainingError, out_of_memory
from vggfeat.nets.vgg import VGG
from vggfeat.runtime.distributed import World
from vggfeat.runtime.durable import Files
from vggfeat.samples import ClassificationSet, LabelledImages
from vggfeat.training.checkpoints import Checkpoints, read_checkpoint
from vggfeat.training.learner import Learner, dropout_masks
from vggfeat.training.objective import Classification, draw_weights, first_weights
from vggfeat.training.recipe import Recipe, TrainingSettings, recipe_for
from vggfeat.training.run_folder import read_log
from vggfeat.training.train import train
from vggfeat.weights import Backbone, load_backbone, random_backbone

ALONE = World()


def learner_of(recipe: Recipe, **run) -> Learner:
    objective = Classification(recipe, CLASSES)
    return Learner(objective.first_weights()[0], objective, TrainingSettings(**run), ALONE, None, print)


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}


def starting_weights(net: str, num_classes: int = 4, **other) -> Backbone:
    model = VGG(net, num_classes, width=1 / 64)
    draw_weights(model, Recipe(), torch.Generator().manual_seed(5))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(0.5)
    return Backbone(model=model.eval().requires_grad_(False), source="old", sha256="0" * 64, **other)


# The recipe


def test_the_recipe_is_the_papers():
    recipe = Recipe()
    paper = {"batch": 256, "momentum": 0.9, "weight_decay": 5e-4, "dropout": 0.5, "learning_rate": 1e-2}
    paper |= {"drop_factor": 10, "drops": 3, "max_steps": 370_000, "crop": 224, "scale": (256, 256)}
    assert {name: getattr(recipe, name) for name in paper} == paper
    assert recipe.normal_std**2 == pytest.approx(1e-2)


@pytest.mark.parametrize(("scale", "middle"), [((256, 256), 256), ((384, 384), 384), ((256, 512), 384)])
def test_validation_is_at_s_or_the_middle_of_its_range(scale, middle):
    assert Recipe(scale=scale).validation_scale == middle


def test_the_learning_rate_is_lower_from_the_same_net_but_not_from_a():
    net_a, net_d = starting_weights("A"), starting_weights("D")
    assert recipe_for("D").learning_rate == 1e-2
    from_a = recipe_for("D", (256, 256), net_a)
    assert (from_a.start, from_a.learning_rate, from_a.width) == ("A", 1e-2, 1 / 64)
    larger = recipe_for("D", (384, 384), net_d)
    assert (larger.start, larger.learning_rate) == ("same net", 1e-3)
    assert recipe_for("D", (256, 512), net_d, learning_rate=5e-4).learning_rate == 5e-4
    with pytest.raises(ConfigError, match="old: expected weights of net E or A to start from, found net D"):
        recipe_for("E", (256, 256), net_d)
    with pytest.raises(ConfigError, match="expected weights of net A-LRN to start from, found net A"):
        recipe_for("A-LRN", (256, 256), net_a)


@pytest.mark.parametrize(
    "wrong",
    [
        {"net": "F"}, {"scale": (200, 256)}, {"scale": (512, 256)}, {"batch": 0}, {"momentum": 1.0}, {"drop_factor": 0},
        {"learning_rate": math.nan}, {"learning_rate": -1}, {"weight_decay": math.inf}, {"validate_every": 0},
        {"initialisation": "zeros"}, {"start": "B"}, {"start": "A", "net": "A"}, {"mirror": 1.5}, {"seed": -1},
    ],
)  # fmt: skip
def test_values_that_can_not_be_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_every_setting_is_explained():
    # Docstrings of fields are in the source only.
    source = Path(train_runs.loop.__file__).with_name("recipe.py").read_text()
    for setting in (*fields(Recipe), *fields(TrainingSettings)):
        after = source.split(f"    {setting.name}: ", 1)[1].split("\n", 1)[1]
        assert after.startswith('    """'), setting.name


# First weights


def test_glorot_has_the_variance_of_its_paper():
    model = VGG("A", 10, width=1 / 4)
    draw_weights(model, Recipe(), torch.Generator().manual_seed(0))
    # (fan-in, fan-out): a convolution feeds each input to 9 positions of every channel; fc6 has a single position.
    for name, fans in {"conv3_2": (64 * 9, 64 * 9), "fc6": (128 * 49, 1024), "fc7": (1024, 1024)}.items():
        weight = model.get_parameter(f"layers.{name}.weight")
        assert weight.var().item() == pytest.approx(2 / sum(fans), rel=0.02), name
        assert weight.abs().max().item() <= math.sqrt(6 / sum(fans))
        assert (model.get_parameter(f"layers.{name}.bias") == 0).all()


@pytest.mark.parametrize(("kind", "deviation"), [("normal", 0.1), ("he", math.sqrt(2 / (64 * 9)))])
def test_normal_weights_have_the_deviation_asked_for(kind, deviation):
    model = VGG("A", 10, width=1 / 4)
    draw_weights(model, Recipe(initialisation=kind), torch.Generator().manual_seed(0))
    assert model.get_parameter("layers.conv3_2.weight").std().item() == pytest.approx(deviation, rel=0.02)


def test_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = first_weights(small_recipe(), CLASSES, None)[0].state_dict()
    torch.manual_seed(2)
    two = first_weights(small_recipe(), CLASSES, None)[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    three = first_weights(small_recipe(seed=1), CLASSES, None)[0].state_dict()
    assert not torch.equal(one["layers.fc7.weight"], three["layers.fc7.weight"])


@pytest.mark.parametrize("net", ["B", "C", "D", "E"])
def test_from_a_come_four_convolutions_and_the_fully_connected_layers(net):
    old = starting_weights("A")
    model, notes = first_weights(recipe_for(net, (256, 256), old), CLASSES, old)
    fresh, _ = first_weights(Recipe(net=net, width=1 / 64), CLASSES, None)
    copied = {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"}
    for name, tensor in model.layers.state_dict().items():
        source = old.model if name.split(".")[0] in copied else fresh
        assert torch.equal(tensor, source.layers.state_dict()[name]), name
    assert notes == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_from_the_same_net_come_all_layers():
    old = starting_weights("A")
    model, _ = first_weights(recipe_for("A", (384, 384), old), CLASSES, old)
    assert all(torch.equal(t, old.model.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(("count", "names"), [(7, ()), (4, ("ant", "bee", "cat", "elk"))])
def test_other_classes_get_a_last_layer_of_zeros(count, names):
    old = replace(starting_weights("A", count), classes=names)
    model, notes = first_weights(recipe_for("A", (256, 256), old), CLASSES, old)
    assert model.num_classes == 4
    for kind in ("weight", "bias"):
        assert (model.get_parameter(f"layers.fc8.{kind}") == 0).all()
    assert torch.equal(model.get_parameter("layers.fc7.weight"), old.model.get_parameter("layers.fc7.weight"))
    assert (model.get_parameter("layers.fc7.bias") == 0.5).all()
    assert notes == ["fc8 starts at zero, because old was trained for other classes"]


def test_weights_for_divided_pixels_are_adapted():
    old = starting_weights("A", std=(58.0, 57.0, 56.0))
    model, _ = first_weights(recipe_for("A", (256, 256), old), CLASSES, old)
    images = stripes(2, 0)[0]
    divided = images / torch.tensor(old.std)[:, None, None]
    torch.testing.assert_close(model.eval()(images)["fc8"], old.model(divided)["fc8"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "old", "told"),
    [
        (Recipe(net="D", width=1 / 64, start="A"), None, "starts from weights of net A, found none"),
        (Recipe(net="D", width=1 / 64, start="A"), "D", "starts from weights of net A, found net D"),
        (Recipe(net="A", width=1 / 64), "A", "starts from none, found net A"),
        (Recipe(net="A", width=1 / 32, start="same net"), "A", "width: expected 0.03125, as in the recipe"),
    ],
)
def test_other_weights_than_the_recipes_are_refused(recipe, old, told):
    with pytest.raises(ConfigError, match=told):
        first_weights(recipe, CLASSES, starting_weights(old) if old else None)


# A step


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
    recipe, told = small_recipe(), []
    expected, small = learner_of(recipe, micro_batch=1), learner_of(recipe)
    small.say = told.append
    whole = Learner._part

    def full(self, images, targets, masks):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(self, images, targets, masks)

    monkeypatch.setattr(Learner, "_part", full)
    for learner in (expected, small):
        learner.step(0, *stripes(recipe.batch, 0), 1e-3)
    assert told == [f"memory is too small for the batch at once: {n} images at a time from here on" for n in (2, 1)]
    assert all(torch.equal(weight, weights_of(expected)[name]) for name, weight in weights_of(small).items())
    monkeypatch.setattr(Learner, "_part", lambda *_: (_ for _ in ()).throw(MemoryError("std::bad_alloc")))
    with pytest.raises(TrainingError, match=r"cpu: expected memory for 1 images.*bad_alloc.*narrower"):
        small.step(1, *stripes(recipe.batch, 1), 1e-3)


def test_out_of_memory_is_told_from_other_errors():
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


@pytest.mark.parametrize(("initialisation", "std"), [("normal", 0.1), ("he", 0.1)])
def test_the_other_initialisations_end_in_nan_as_their_notes_say(tmp_path, initialisation, std):
    recipe = small_recipe(width=1 / 16, batch=8, initialisation=initialisation, normal_std=std)
    with pytest.raises(TrainingError, match=r"step \d: loss is NaN or infinite at a learning rate of 0.01"):
        run_small(tmp_path / "run", recipe)


def test_the_default_initialisation_learns(tmp_path):
    recipe = small_recipe(width=1 / 16, batch=8, learning_rate=1e-3, max_steps=30, validate_every=30)
    outcome = run_small(tmp_path / "run", recipe, TrainingSettings(log_every=5))
    losses = [line["loss"] for line in figures(tmp_path / "run") if line["kind"] == "train"]
    assert losses[-1] < 0.3 < math.log(len(CLASSES))
    assert outcome.validation.top1_error < 0.2


# A run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    seen: list = []
    outcome = run_small(out, small_recipe(), progress=lambda *now: seen.append(now))
    return out, outcome, seen


def test_a_run_leaves_what_it_says(whole):
    out, outcome, seen = whole
    assert {path.name for path in out.iterdir()} == {
        "checkpoints", "curves.png", "log.jsonl", "run.json", "weights.safetensors",
    }  # fmt: skip
    assert (outcome.step, outcome.resumed, outcome.weights, outcome.notes) == (10, 0, out / "weights.safetensors", ())
    assert [line["step"] for line in figures(out) if line["kind"] == "train"] == [2, 4, 6, 8, 10]
    assert [line["step"] for line in figures(out) if line["kind"] == "validation"] == [4, 8, 10]
    assert seen[-1][:2] == (10, 10)
    with Image.open(out / "curves.png") as image:
        assert image.size == (1320, 540)


def test_the_weights_say_how_they_were_made(whole):
    out, outcome, _ = whole
    backbone = load_backbone(out / "weights.safetensors")
    assert (backbone.classes, backbone.mean, backbone.std) == (CLASSES, (120.0, 121.0, 122.0), (1.0, 1.0, 1.0))
    header = (out / "weights.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    told = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["vggfeat"])
    assert told["pool"] == "floor"
    assert told["training"]["recipe"]["batch"] == 4
    assert told["training"]["data"] == {"train": "stripes", "validation": "32", "classes": 4}
    assert (told["training"]["step"], told["training"]["validation_scale"]) == (10, 256)
    assert told["training"]["validation"]["top1_error"] == outcome.validation.top1_error
    trained = read_checkpoint(out / "checkpoints" / "step-00000010.safetensors").tensors
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, trained[f"model.{name}"])


def test_the_last_validation_is_right(whole):
    out, outcome, _ = whole
    images, targets = stripes(12, 10**6)
    scores = load_backbone(out / "weights.safetensors").model(images)["fc8"].flatten(1).numpy()
    assert outcome.validation.top1_error == pytest.approx(np.mean(scores.argmax(1) != targets.numpy()))
    assert (outcome.validation.top5_error, outcome.validation.images) == (0.0, 12)  # of four classes


@pytest.mark.parametrize("stopped_after", [3, 4, 7, 10])
def test_a_stopped_run_goes_on_to_the_same_bits(whole, tmp_path, stopped_after):
    out, recipe, asked = tmp_path / "run", small_recipe(), []

    def progress(*_):
        asked.append(1)
        return len(asked) >= stopped_after + 1  # once before the first step

    first = run_small(out, recipe, progress=progress)
    assert (first.weights, (out / "weights.safetensors").exists()) == (None, False)
    feed = StripeFeed(recipe)
    second = run_small(out, recipe, feed=feed, resume=True)
    assert (second.resumed, second.step) == (first.step, 10)
    assert feed.asked == list(range(first.step, 10))
    assert (out / "weights.safetensors").read_bytes() == (whole[0] / "weights.safetensors").read_bytes()
    assert figures(out) == figures(whole[0])


def test_a_run_killed_between_a_validation_and_its_checkpoint_tells_of_it_once(whole, tmp_path, monkeypatch):
    out, run, save = tmp_path / "run", TrainingSettings(checkpoint_every=1, log_every=2), Checkpoints.save

    def die(self, step, tensors, about):
        if about["state"]["validation"] is not None:
            raise InterruptedError("killed")
        return save(self, step, tensors, about)

    monkeypatch.setattr(Checkpoints, "save", die)
    with pytest.raises(InterruptedError):
        run_small(out, small_recipe(), run)
    monkeypatch.undo()
    assert [line["kind"] for line in figures(out)] == ["train", "train", "validation"]
    run_small(out, small_recipe(), run, resume=True)
    assert figures(out) == figures(whole[0])


def test_a_longer_run_begins_as_a_shorter_one(whole, tmp_path):
    out = tmp_path / "run"
    run_small(out, small_recipe(max_steps=6))
    outcome = run_small(out, small_recipe(max_steps=10), resume=True)
    assert outcome.resumed == 6
    assert outcome.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()
    again = run_small(out, small_recipe(max_steps=10), resume=True)
    assert (again.resumed, again.step, again.validation) == (10, 10, outcome.validation)


def test_resume_with_nothing_there_begins(tmp_path):
    outcome = run_small(tmp_path / "run", small_recipe(max_steps=1), resume=True)
    assert (outcome.resumed, outcome.step) == (0, 1)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(whole, tmp_path):
    out, said = tmp_path / "run", []
    run_small(out, small_recipe(max_steps=9))
    newest = max((out / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    outcome = run_small(out, small_recipe(), resume=True, say=said.append)
    assert newest.name == "step-00000009.safetensors"
    assert outcome.resumed == 8
    assert said == list(outcome.notes)
    assert "found a damaged file" in said[0]
    assert figures(out) == figures(whole[0])
    assert outcome.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("recipe", "images", "field"),
    [
        (small_recipe(batch=8), 32, r"recipe.batch: expected 8, found 4"),
        (small_recipe(seed=3), 32, r"recipe.seed: expected 3, found 0"),
        (small_recipe(), 33, r"data.validation: expected 33, found 32"),
    ],
)
def test_another_run_is_not_gone_on_with(tmp_path, recipe, images, field):
    out = tmp_path / "run"
    run_small(out, small_recipe(max_steps=1))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(TrainingError, match=field):
            run_small(out, recipe, feed=StripeFeed(recipe, images=images), resume=True)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        (out / "run.json").unlink(missing_ok=True)  # The checkpoint says the same.
        before.pop(out / "run.json", None)


def test_a_folder_in_use_is_refused(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("text")
    with pytest.raises(TrainingError, match=r"expected an empty folder, found thesis.tex; --resume"):
        run_small(out, small_recipe())
    with pytest.raises(TrainingError, match="expected a run to go on with, found other files"):
        run_small(out, small_recipe(), resume=True)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_two_processes_can_not_write_to_one_folder(tmp_path):
    refused = []

    def second(*_):
        if not refused:
            with pytest.raises(TrainingError, match=f"found process {os.getpid()}; wait for it"):
                run_small(tmp_path / "run", small_recipe(), resume=True)
            refused.append(1)
        return False

    assert run_small(tmp_path / "run", small_recipe(max_steps=2), progress=second).step == 2
    assert refused


@pytest.mark.parametrize("bad_step", [4, 9])
def test_nan_stops_the_run_and_is_not_saved(tmp_path, bad_step):
    class Broken(StripeFeed):
        def _training(self, step):
            for batch in super()._training(step):
                if batch.step == bad_step:
                    batch.images[1, 0, 100] = math.nan
                yield batch

    out, recipe = tmp_path / "run", small_recipe()
    with pytest.raises(TrainingError, match=f"step {bad_step + 1}: loss is NaN or infinite at a learning rate of 0.01"):
        run_small(out, recipe, feed=Broken(recipe))
    paths = sorted((out / "checkpoints").iterdir())
    assert max(paths).name == f"step-{bad_step // 3 * 3 if bad_step > 4 else 4:08d}.safetensors"
    for path in paths:
        assert all(tensor.isfinite().all() for tensor in read_checkpoint(path).tensors.values())
    assert not (out / "weights.safetensors").exists()


def test_weights_that_are_no_numbers_are_not_saved():
    learner = learner_of(small_recipe())
    learner.model.get_parameter("layers.fc8.bias").data[0] = math.inf
    with pytest.raises(TrainingError, match="step 5: a weight is NaN or infinite"):
        learner.snapshot(5, 1e-2)


def test_the_learning_rate_drops_and_the_run_ends_when_validation_is_stuck(tmp_path):
    # A gain of 2 is out of reach, so every validation after the first brings nothing.
    recipe = small_recipe(validate_every=1, patience=1, drops=2, least_gain=2, max_steps=100)
    outcome = run_small(tmp_path / "run", recipe, TrainingSettings(log_every=1))
    rates = [line["lr"] for line in figures(tmp_path / "run") if line["kind"] == "train"]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])
    assert (outcome.step, outcome.learning_rate) == (4, pytest.approx(1e-4))


def test_what_validations_have_shown_survives_a_stop(tmp_path):
    recipe = small_recipe(validate_every=1, patience=2, drops=1, least_gain=2, max_steps=100)
    run = TrainingSettings(log_every=1)
    run_small(tmp_path / "whole", recipe, run)
    run_small(tmp_path / "run", recipe, run, progress=lambda done, *_: done >= 2)
    outcome = run_small(tmp_path / "run", recipe, run, resume=True)
    assert (outcome.resumed, outcome.step) == (2, 5)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_the_validation_at_the_end_of_a_shorter_run_drops_no_learning_rate(tmp_path):
    recipe = small_recipe(validate_every=2, patience=1, drops=3, least_gain=2, max_steps=6)
    whole = run_small(tmp_path / "whole", recipe)
    run_small(tmp_path / "run", replace(recipe, max_steps=3))
    outcome = run_small(tmp_path / "run", recipe, resume=True)
    assert outcome.learning_rate == pytest.approx(1e-4)
    assert outcome.weights.read_bytes() == whole.weights.read_bytes()


def test_unreadable_images_are_listed(tmp_path):
    recipe, out = small_recipe(max_steps=1), tmp_path / "run"
    run_small(out, recipe, feed=StripeFeed(recipe, unreadable=(("b.jpg", "empty: 0 bytes"),)))
    recipe = replace(recipe, max_steps=2)
    found = (("a.jpg", "damaged: cut"), ("b.jpg", "empty: 0 bytes"))
    outcome = run_small(out, recipe, feed=StripeFeed(recipe, unreadable=found[:1]), resume=True)
    assert outcome.unreadable == found
    lines = [json.loads(line) for line in (out / "unreadable.jsonl").read_text().splitlines()]
    assert lines == [{"path": path, "reason": reason} for path, reason in found]


def test_a_full_disk_is_one_line_and_leaves_a_run_to_go_on_with(whole, tmp_path):
    class Full(Files):
        full = False

        def write(self, fd, data, offset):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(fd, data, offset)

    files, out = Full(), tmp_path / "run"
    with pytest.raises(StoreError, match=r"writing a checkpoint failed: the disk is full.*--resume"):
        run_small(out, small_recipe(), files=files, progress=lambda *_: setattr(files, "full", True))
    files.full = False
    outcome = run_small(out, small_recipe(), files=files, resume=True)
    assert outcome.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()


def test_stop_breaks_a_validation_off_and_it_is_done_again(whole, tmp_path):
    out = tmp_path / "run"
    first = run_small(out, small_recipe(), progress=lambda done, total, note: "validating" in note)
    assert (first.step, first.validation) == (4, None)
    second = run_small(out, small_recipe(), resume=True)
    assert second.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()
    assert figures(out) == figures(whole[0])


def test_stop_before_the_first_step_leaves_a_run_to_begin(tmp_path):
    outcome = run_small(tmp_path / "run", small_recipe(), progress=lambda *_: True)
    assert (outcome.step, outcome.weights) == (0, None)
    assert run_small(tmp_path / "run", small_recipe(max_steps=1), resume=True).step == 1


def test_validation_images_of_which_none_can_be_read_stop_the_run(tmp_path):
    class Broken(StripeFeed):
        @contextmanager
        def validation(self):
            with super().validation() as batches:
                yield (batch._replace(targets=torch.full_like(batch.targets, -100)) for batch in batches)

    recipe = small_recipe()
    with pytest.raises(TrainingError, match="step 4: expected validation images, found none that can be read"):
        run_small(tmp_path / "run", recipe, feed=Broken(recipe))


def test_the_rest_of_a_run_is_logged_once_and_with_its_rate(tmp_path):
    out, recipe, ticks = tmp_path / "run", small_recipe(max_steps=3, validate_every=2), count()
    run, clock = TrainingSettings(log_every=50, checkpoint_every=1), ticks.__next__
    for resume in (False, True, True):
        run_small(out, recipe, run, resume=resume, clock=clock)
    (line,) = (line for line in read_log(out / "log.jsonl") if line["kind"] == "train")
    assert (line["step"], line["images_per_s"] > 0) == (3, True)


def test_validations_and_checkpoints_do_not_slow_the_rate_down(tmp_path):
    # Time passes in validations, in checkpoints and, a second each, in steps.
    now = [0.0]

    class Slow(StripeFeed):
        def _training(self, step):
            for batch in super()._training(step):
                now[0] += 1
                yield batch

        @contextmanager
        def validation(self):
            now[0] += 1000
            with super().validation() as batches:
                yield batches

    class SlowFiles(Files):
        def create(self, path):
            now[0] += 100
            return super().create(path)

    recipe = small_recipe(max_steps=6, validate_every=2)
    run = TrainingSettings(log_every=5, checkpoint_every=1)
    run_small(tmp_path / "run", recipe, run, feed=Slow(recipe), files=SlowFiles(), clock=lambda: now[0])
    rates = [line["images_per_s"] for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "train"]
    assert rates == [recipe.batch, recipe.batch]


def test_figures_go_to_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    scalars: list = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            scalars.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            scalars.append((name, step))

        def close(self):
            scalars.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    out = tmp_path / "run"
    run_small(out, small_recipe(max_steps=2, validate_every=2))
    assert (scalars[0], scalars[-1]) == ((out / "tensorboard", 0), "closed")
    assert {("train/loss", 2), ("train/lr", 2), ("validation/top1_error", 2)} <= set(scalars)


# Processes


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    script = Path(__file__).parents[1] / "support" / "train_runs.py"
    command = [sys.executable, "-W", "error", str(script), "world", str(tmp_path), "2"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert report["codes"] == [0, 0, 0]
    one, two = report["logs"]
    for kind, key in (("train", "loss"), ("validation", "top1_error")):
        curves = [[line[key] for line in log if line["kind"] == kind] for log in (one, two)]
        # Rounding flips a ReLU now and then, after which runs drift apart; at first they are equal.
        assert curves[0] == pytest.approx(curves[1], rel=1e-3)
        assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-5)
    stopped = report["stopped"]
    assert (stopped["codes"], stopped["step"]) == ([0] * 4, 3)
    assert stopped["weights"][0] == stopped["weights"][1]
    assert report["micro_batches"] == [2, 2]
    assert report["lost"]["codes"] == [TrainingError.exit_code, -signal.SIGKILL]
    assert report["lost"]["seconds"] < 20


# From files


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> ClassificationSet:
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(14):
        side = (260, 300) if number % 2 else (280, 256)
        pixels = rng.integers(0, 256, (*side, 3), dtype=np.uint8) // (1 + number % 2)
        Image.fromarray(pixels).save(root / f"{number}.jpg")
    (root / "3.jpg").write_bytes(b"no image")

    def listed(numbers):
        paths, targets = tuple(f"{n}.jpg" for n in numbers), np.array([n % 2 for n in numbers])
        return LabelledImages(root=root, paths=paths, targets=targets, classes=("even", "odd"))

    return ClassificationSet(
        train=listed(range(9)), val=listed(range(9, 14)), classes=("even", "odd"), words={}, layout="a list"
    )


def test_images_become_a_net_and_resumption_changes_no_bit(images, tmp_path):
    recipe = small_recipe(max_steps=4, validate_every=3, scale=(256, 288))
    run = TrainingSettings(workers=0, checkpoint_every=1, log_every=1)
    whole = train(recipe, images, tmp_path / "whole", run=run)
    ((path, reason),) = whole.unreadable
    assert (path, str(images.train.root) in reason) == ("3.jpg", False)
    assert reason.startswith("unrecognised: expected an image of the formats")
    assert whole.validation.images == 5
    asked: list = []

    def progress(*_):
        asked.append(1)
        return len(asked) > 11  # 9 while the mean pixel is measured, one before the first step

    first = train(recipe, images, tmp_path / "run", run=run, progress=progress)
    assert 0 < first.step < 4
    second = train(recipe, images, tmp_path / "run", run=run, resume=True)
    assert second.weights.read_bytes() == whole.weights.read_bytes()
    mean = load_backbone(whole.weights).mean
    assert mean[0] == pytest.approx(mean[1], abs=2)
