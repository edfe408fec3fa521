"""The curves of a run: every figure can be read, however short the run was."""

import warnings

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from vggfeat.training.run_folder import draw_curves


def line(step, lr=0.01, **more):
    return {"kind": "train", "step": step, "loss": 2.5, "lr": lr, "top1_error": 0.8, **more}


@pytest.fixture
def drawn(monkeypatch):
    """Draw a log; return the figure."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **b: (save(figure, *a, **b), figures.append(figure)))

    def draw(lines, title="title"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_curves(lines, title, {"top1_error": "top-1 error"})
        return figures[-1]

    return draw


@pytest.mark.parametrize(
    ("rates", "marks"),
    [
        ([0.01], ["0.01"]),
        ([0.01, 0.001, 0.0001], ["0.0001", "0.001", "0.01"]),
        ([0.01, 0.007], ["0.007", "0.01"]),
        ([0.0], ["0"]),
        ([0.1 / 2**n for n in range(30)], ["1e-10", "1e-08", "1e-06", "0.0001", "0.01"]),
    ],
    ids=["one", "three", "within a decade", "none", "many"],
)
def test_learning_rates_are_marked_with_plain_numbers(drawn, rates, marks):
    figure = drawn([line(step, rate) for step, rate in enumerate(rates, start=1)])
    assert not [text.get_text() for text in figure.findobj(Text) if "$" in text.get_text()]
    (axes,) = (axes for axes in figure.axes if axes.get_ylabel() == "learning rate")
    low, high = axes.get_ylim()
    places = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    assert [text.get_text() for place, text in places if low <= place <= high] == marks


def test_a_run_shorter_than_the_steps_between_lines_shows_its_one_point(drawn):
    figure = drawn([line(7)])
    (curve,) = (curve for axes in figure.axes for curve in axes.lines if "loss" in curve.get_label())
    assert (curve.get_xdata().tolist(), curve.get_marker()) == ([7], ".")
    long = drawn([line(step) for step in range(1, 99)])
    assert {curve.get_marker() for curve in long.axes[0].lines} == {""}


def test_a_title_in_letters_that_no_font_has_can_be_read(drawn):
    assert "\\U0001f400" in drawn([line(7)], "\U0001f400").get_suptitle()
