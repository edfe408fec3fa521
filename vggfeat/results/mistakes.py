"""Where the scores of the worst mistakes of a run come from: a drawing of the evidence a class, worst classes first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vggfeat.errors import ImageError
from vggfeat.results.predictions import overlay_pixels
from vggfeat.results.svm_page import ClassPart
from vggfeat.results.thumbnails import OUTSIDE, Example, address_of, image_below

if TYPE_CHECKING:
    from vggfeat.explain import Explainer

MOST = 8
"""Mistakes of a run."""
SIDES = (256, 192)
"""Pixels that a drawing may have across and down."""


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """How the worst mistakes are explained."""

    weights: tuple[str, ...] = ()
    """As for `vggfeat.predict.nets_of`."""
    device: str = "cpu"


class ExplainedMistake(NamedTuple):
    """A mistake, and what speaks for and against the class."""

    name: str
    """Of the class whose score is drawn."""
    example: Example
    drawing: str
    """Its address ("data:image/jpeg;base64,..."), or the reason why there is none."""
    score: float | None
    """By the model that explains it; in a cross-validation another than the one that was tested on the image."""


def worst_mistakes(classes: Sequence[ClassPart], number: int) -> list[tuple[str, Example]]:
    """Choose the worst mistake of each class, worst classes first, of the run of that number.

    It is what was taken for the class most surely, else the positive that was missed most clearly. Only whole images:
    those of boxes have no evidence of their own.
    """
    chosen = []
    for part in classes:
        found = part.examples[number]
        ranked = () if found is None else (*found.highest, *found.alarms, *found.missed)
        wrong = [one for one in ranked if one.verdict in ("wrong", "missed") and one.key.box is None]
        chosen += [(part.name, one) for one in wrong[:1]]
    return chosen[:MOST]


def explain_mistakes(
    mistakes: Sequence[tuple[str, Example]], explainer: "Explainer", root: Path, progress: Callable[[int, int], None]
) -> tuple[ExplainedMistake, ...]:
    """Draw mistakes, whose paths are relative to `root`; `progress` is called with those done and all."""
    found = []
    for done, (name, example) in enumerate(mistakes, start=1):
        found.append(_explain(name, example, explainer, root))
        progress(done, len(mistakes))
    return tuple(found)


def _explain(name: str, example: Example, explainer: "Explainer", root: Path) -> ExplainedMistake:
    image = image_below(root, example.key.path)
    if image is None:
        return ExplainedMistake(name, example, OUTSIDE, None)
    try:
        evidence = explainer.explain(image, name)
    except ImageError as error:
        return ExplainedMistake(name, example, error.reason, None)
    pixels = overlay_pixels(evidence)
    drawing = address_of(pixels, pixels.shape[:2], sides=SIDES)
    return ExplainedMistake(name, example, drawing, float(evidence.scores[evidence.number]))
