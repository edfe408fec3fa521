"""First weights: drawn as published, or taken from another net."""

import math
from dataclasses import replace

import pytest
import torch

from box_runs import classifier
from train_runs import CLASSES, small_recipe, stripes
from vggfeat.errors import ConfigError
from vggfeat.nets.vgg import VGG
from vggfeat.training.objective import draw_weights, first_weights
from vggfeat.training.recipe import Recipe, recipe_for

START = {"classes": 4, "bias": 0.5, "source": "old"}
"""Weights that training starts from, for the classes of the stripes; every bias shows where it came from."""


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
    old = classifier("A", **START)
    model, notes = first_weights(recipe_for(net, (256, 256), old), CLASSES, old)
    fresh, _ = first_weights(Recipe(net=net, width=1 / 64), CLASSES, None)
    copied = {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"}
    for name, tensor in model.layers.state_dict().items():
        source = old.model if name.split(".")[0] in copied else fresh
        assert torch.equal(tensor, source.layers.state_dict()[name]), name
    assert notes == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_from_the_same_net_come_all_layers():
    old = classifier("A", **START)
    model, _ = first_weights(recipe_for("A", (384, 384), old), CLASSES, old)
    assert all(torch.equal(t, old.model.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(("count", "names"), [(7, ()), (4, ("ant", "bee", "cat", "elk"))])
def test_other_classes_get_a_last_layer_of_zeros(count, names):
    old = replace(classifier("A", **START | {"classes": count}), classes=names)
    model, notes = first_weights(recipe_for("A", (256, 256), old), CLASSES, old)
    assert model.num_classes == 4
    for kind in ("weight", "bias"):
        assert (model.get_parameter(f"layers.fc8.{kind}") == 0).all()
    assert torch.equal(model.get_parameter("layers.fc7.weight"), old.model.get_parameter("layers.fc7.weight"))
    assert (model.get_parameter("layers.fc7.bias") == 0.5).all()
    assert notes == ["fc8 starts at zero, because old was trained for other classes"]


def test_weights_for_divided_pixels_are_adapted():
    old = classifier("A", **START, std=(58.0, 57.0, 56.0))
    model, _ = first_weights(recipe_for("A", (256, 256), old), CLASSES, old)
    images = stripes(2, 0)[0]
    divided = images / torch.tensor(old.std)[:, None, None]
    torch.testing.assert_close(model.eval()(images)["fc8"], old.model(divided)["fc8"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "old", "message"),
    [
        (Recipe(net="D", width=1 / 64, start="A"), None, "starts from weights of net A, found none"),
        (Recipe(net="D", width=1 / 64, start="A"), "D", "starts from weights of net A, found net D"),
        (Recipe(net="A", width=1 / 64), "A", "starts from none, found net A"),
        (Recipe(net="A", width=1 / 32, start="same net"), "A", "width: expected 0.03125, as in the recipe"),
    ],
)
def test_other_weights_than_the_recipes_are_refused(recipe, old, message):
    with pytest.raises(ConfigError, match=message):
        first_weights(recipe, CLASSES, classifier(old, **START) if old else None)
