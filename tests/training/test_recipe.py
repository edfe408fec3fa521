"""The recipe against the paper, and when the learning rate drops, by accuracies that can be followed by hand."""

import inspect
import math
from dataclasses import fields

import pytest

from box_runs import classifier
from vggfeat.errors import ConfigError
from vggfeat.training import recipe as module
from vggfeat.training.recipe import Plateau, Recipe, TrainingSettings, recipe_for

RECIPE = Recipe(patience=2, least_gain=0.01)


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
    net_a, net_d = classifier("A", source="old"), classifier("D", source="old")
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
    source = inspect.getsource(module)
    for setting in (*fields(Recipe), *fields(TrainingSettings)):
        after = source.split(f"    {setting.name}: ", 1)[1].split("\n", 1)[1]
        assert after.startswith('    """'), setting.name


# The learning rate


def follow(accuracies, recipe=RECIPE):
    plateau, rates = Plateau(), []
    for accuracy in accuracies:
        plateau = plateau.after(accuracy, recipe)
        rates.append(plateau.learning_rate(recipe))
    return plateau, rates


def test_begins_with_the_papers_learning_rate():
    assert Plateau().learning_rate(Recipe()) == 1e-2
    assert not Plateau().ended(Recipe())


def test_drops_by_ten_when_two_validations_bring_nothing():
    _, rates = follow([0.1, 0.3, 0.3, 0.3, 0.4, 0.2, 0.4])
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 1e-3, 1e-3, 1e-3, 1e-4])


def test_an_improvement_starts_the_count_again():
    _, rates = follow([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert rates == [1e-2] * 6


@pytest.mark.parametrize(("gain", "drops"), [(0.0078125, 1), (0.015625, 0)])  # exact in binary, about 0.01
def test_a_gain_must_exceed_the_least(gain, drops):
    assert follow([0.5, 0.5 + gain, 0.5 + gain])[0].drops == drops


def test_a_gain_equal_to_the_least_is_none():
    recipe = Recipe(patience=1, least_gain=0.25)
    assert follow([0.5, 0.75], recipe)[0].drops == 1
    assert follow([0.5, 0.75 + 2**-20], recipe)[0].drops == 0


@pytest.mark.parametrize(("images", "stale"), [(1000, 1), (999, 0)])
def test_a_gain_of_one_image_counts_the_same_from_any_accuracy(images, stale):
    def after(hits):
        error = 1 - hits / images  # as a validation tells it
        return 1 - error

    pairs = [(after(hits), after(hits + 1)) for hits in range(images)]
    assert {Plateau(best=best).after(accuracy, Recipe()).stale for best, accuracy in pairs} == {stale}


def test_the_best_outlives_a_drop():
    plateau, _ = follow([0.5, 0.1, 0.1, 0.4, 0.4])
    assert plateau == Plateau(best=0.5, stale=0, drops=2)


def test_the_first_accuracy_counts_even_if_it_is_zero():
    assert follow([0.0])[0] == Plateau(best=0.0)


def test_three_drops_then_the_end():
    plateau, rates = follow([0.5] * 7)
    assert (plateau.drops, plateau.ended(RECIPE)) == (3, False)
    assert rates[-1] == pytest.approx(1e-5)
    plateau, rates = follow([0.5] * 9)
    assert plateau.ended(RECIPE)
    assert rates[-1] == pytest.approx(1e-5)


def test_validations_come_once_an_epoch():
    assert Recipe().steps_between_validations(1_281_167) == 5005
    assert Recipe(batch=256).steps_between_validations(10) == 1
    assert Recipe(validate_every=7).steps_between_validations(10**6) == 7
