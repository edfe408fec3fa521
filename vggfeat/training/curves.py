"""The curves of a run as an image: loss, errors, learning rate."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

_BLUE, _GREY, _ORANGE = "#3b6ea8", "#9aa5b1", "#d9772b"


def draw_curves(lines: Sequence[dict[str, Any]], title: str, errors: Mapping[str, str]) -> bytes:
    """Draw a log; equal logs give equal bytes.

    Parameters
    ----------
    lines : sequence of dict
        Of `vggfeat.training.log.read_log`.
    title : str
        One line above all.
    errors : mapping of str to str
        Names of up to two errors in the log, and what they are called; the first is in training lines as well.

    Returns
    -------
    bytes
        A PNG file of 1320 by 540 pixels.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    train = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    own = {"font.size": 9, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.style.context(["default", own]):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        figure.suptitle(title)
        left, right = figure.subplots(1, 2)
        _curve(left, train, "loss", "loss of the training batches", _BLUE)
        left.set(ylabel="loss", ylim=(0, None))
        rates = left.twinx()
        _curve(rates, train, "lr", "learning rate", _GREY, drawstyle="steps-pre")
        rates.set(yscale="log", ylabel="learning rate")
        first = next(iter(errors))
        _curve(right, train, first, f"{errors[first]}, training batches", _GREY)
        for key, color in zip(errors, (_BLUE, _ORANGE), strict=False):
            _curve(right, validation, key, f"{errors[key]}, validation", color, marker=".")
        right.set(ylim=(0, 100), ylabel="error, %")
        for axes in (left, right):
            axes.set(xlabel="step", xlim=(0, None))
        left.legend(handles=[*left.get_lines(), *rates.get_lines()], **_ABOVE)
        right.legend(**_ABOVE)
        drawn = io.BytesIO()
        # No version of the drawing library in the file.
        figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    return drawn.getvalue()


_ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 3, "frameon": False}


def _curve(axes: Any, lines: Sequence[dict[str, Any]], key: str, label: str, color: str, **style: Any) -> None:
    factor = 100 if key.endswith("error") else 1
    steps = [line["step"] for line in lines]
    axes.plot(steps, [factor * line[key] for line in lines], label=label, color=color, linewidth=1.3, **style)
