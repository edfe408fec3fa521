"""When the learning rate drops and training ends, by sequences of accuracies that can be followed by hand."""

import pytest

from vggfeat.training.recipe import Plateau, Recipe

RECIPE = Recipe(patience=2, least_gain=0.01)


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


def test_an_improvement_starts_the_count_anew():
    _, rates = follow([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert rates == [1e-2] * 6


@pytest.mark.parametrize(("gain", "drops"), [(0.0078125, 1), (0.015625, 0)])  # exact in binary, about 0.01
def test_a_gain_must_exceed_the_least(gain, drops):
    assert follow([0.5, 0.5 + gain, 0.5 + gain])[0].drops == drops


def test_a_gain_equal_to_the_least_is_none():
    recipe = Recipe(patience=1, least_gain=0.25)
    assert follow([0.5, 0.75], recipe)[0].drops == 1
    assert follow([0.5, 0.75 + 2**-20], recipe)[0].drops == 0


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
