"""The recipe and the net of box regression: what they start from, keep in their file and refuse."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from box_runs import NAMES, classifier
from vggfeat.cli.train import localise_train
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.localisation import nets
from vggfeat.localisation.nets import BOX_FACTS, BoxRecipe, box_recipe_for, init_box_net, is_box_net, load_box_net
from vggfeat.training.recipe import Recipe
from vggfeat.weights import save_weights

NAN = math.nan


def test_the_recipe_is_the_papers():
    recipe = box_recipe_for(classifier("D"), 384)
    assert (recipe.training.learning_rate, recipe.training.batch, recipe.scale) == (1e-3, 256, 384)
    assert (recipe.training.net, recipe.training.width, recipe.training.scale) == ("D", 1 / 64, (384, 384))
    assert BoxRecipe().training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kind": "both"}, "kind"), ({"layers": "conv"}, "layers"), ({"frame": "pixels"}, "frame"),
        ({"cut": "none"}, "cut"), ({"several": "all"}, "several"), ({"least_inside": 0}, "least_inside"),
        ({"least_inside": 1.1}, "least_inside"), ({"unit": NAN}, "unit"),
        ({"unit": math.inf}, "unit"), ({"head_std": -1}, "head_std"),
        ({"training": Recipe(scale=(256, 512))}, "scale"),
    ],
)  # fmt: skip
def test_values_that_can_not_be_are_refused_by_name(wrong, named):
    with pytest.raises(ConfigError, match=f"^{named}: expected "):
        BoxRecipe(**wrong)


def test_every_setting_is_explained_and_can_be_given():
    source = Path(nets.__file__).read_text()
    for setting in fields(BoxRecipe):
        after = source.split(f"    {setting.name}: ", 1)[1].split("\n", 1)[1]
        assert after.startswith('    """'), setting.name
    own = {setting.name for setting in fields(BoxRecipe)} - {"training"}
    assert own <= {param.name for param in localise_train.params}


@pytest.mark.parametrize(("kind", "channels"), [("scr", 4), ("pcr", 12)])
def test_the_last_layer_is_new_and_all_others_are_the_old_ones(kind, channels):
    old = classifier(std=(50.0, 60.0, 70.0))
    recipe = box_recipe_for(old, kind=kind, head_std=0.5, seed=3)
    torch.manual_seed(1)
    model, notes = init_box_net(recipe, 3, old)
    torch.manual_seed(2)
    again, _ = init_box_net(recipe, 3, old)
    assert notes == []
    fc8 = model.get_parameter("layers.fc8.weight")
    assert fc8.shape == (channels, 64, 1, 1)
    assert torch.equal(fc8, again.get_parameter("layers.fc8.weight"))
    assert fc8.std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * fc8.numel()))
    assert (model.get_parameter("layers.fc8.bias") == 0).all()
    images = 60 * torch.randn((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    divided = images / torch.tensor(old.std)[:, None, None]
    found, expected = model.eval()(images, ("fc7",))["fc7"], old.model(divided, ("fc7",))["fc7"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layers", "learn"), [("all", "conv1_1 fc6 fc7 fc8"), ("fc", "fc6 fc7 fc8")])
def test_which_layers_learn(layers, learn):
    model, _ = init_box_net(box_recipe_for(classifier(), layers=layers), 3, classifier())
    found = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in found if name.startswith("fc") or name == "conv1_1"} == set(learn.split())
    assert model.training


def test_another_s_than_the_classifiers_is_said():
    old = classifier(facts={"training": {"recipe": {"scale": [256, 512]}}})
    assert init_box_net(box_recipe_for(old), 3, old)[1] == [
        "classes was trained at S = 256 to 512, the boxes are at 256: the paper has the same S for both"
    ]
    for facts in ({"training": {"recipe": {"scale": [256, 256]}}}, {"training": 3}, {"training": {"recipe": None}}):
        assert init_box_net(box_recipe_for(old), 3, replace(old, facts=facts))[1] == []


def test_nets_that_can_not_be_started_from_are_refused():
    old = classifier()
    with pytest.raises(ConfigError, match=r"expected a classification net to start from.*found a box net"):
        init_box_net(box_recipe_for(old), 3, replace(old, facts={BOX_FACTS: {}}))
    with pytest.raises(ConfigError, match=r"classes: width: expected 0\.015625, as in the recipe, found 0\.03125"):
        init_box_net(box_recipe_for(old), 3, classifier(width=1 / 32))


def test_a_box_net_says_what_it_is_and_others_are_refused(tmp_path):
    recipe, path = box_recipe_for(classifier(), 384, kind="scr", frame="image"), tmp_path / "box.safetensors"
    model, _ = init_box_net(recipe, 2, classifier())
    about = {"mean": (1, 2, 3), **recipe.metadata(NAMES)}
    save_weights(path, model, **about)
    net = load_box_net(path)
    assert (net.kind, net.frame, net.window, net.scale, net.classes) == ("scr", "image", 224, 384, NAMES)
    assert is_box_net(net.backbone)
    assert net.describe()["num_classes"] == 4
    torch.testing.assert_close(net.backbone.model.layers["fc8"].weight, 0.2 * model.layers["fc8"].weight)
    json.dumps(net.describe())
    told = about[BOX_FACTS]
    for wrong, said in (
        ({**told, "kind": "pcr"}, "expected 8 channels of fc8 for pcr and 2 classes, found 4"),
        ({**told, "frame": "pixels"}, "relative to pixels"),
        ({**told, "kind": ["scr"]}, "channels"),
        ({"kind": "scr", "classes": []}, "expected metadata of a box net"),
        ({**told, "unit": "inch"}, "expected metadata of a box net"),
        ({**told, "unit": 0}, "expected a unit of its boxes above 0, found 0"),
        ({**told, "classes": 3}, "expected metadata of a box net"),
        (7, "expected metadata of a box net"),
    ):
        save_weights(path, model, **{**about, BOX_FACTS: wrong})
        with pytest.raises(WeightsError, match=rf"^{path}: .*{said}"):
            load_box_net(path)
    with pytest.raises(WeightsError, match="expected a net that answers with boxes, found none"):
        load_box_net("small")
