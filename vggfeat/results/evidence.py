"""Where in an image a score comes from: as JSON, as text, as a drawing; and so for the worst mistakes of a run.

H, W = sides of an image.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggfeat.errors import ImageError
from vggfeat.results.text import align
from vggfeat.results.thumbnails import OUTSIDE, Example, address_of, image_below

if TYPE_CHECKING:
    from vggfeat.explain import Evidence, Explainer
    from vggfeat.results.svm_page import ClassPart

FOR, AGAINST = (230, 85, 0), (0, 92, 230)
"""Colours, told apart by people who do not see all colours."""
STRONGEST = 0.75
"""Share of the colour where the evidence is strongest."""
LEAST_SIDE = 256
"""Pixels of the longer side of a drawing: of smaller images each pixel is drawn as a square of some."""
MOST_MISTAKES = 8
"""Of a run."""
SIDES = (256, 192)
"""Pixels that a drawing may have across and down."""


def evidence_json(evidence: "Evidence", image: str, model: str) -> dict[str, Any]:
    """Return the score and its parts, ready for JSON; `image` and `model` are what was given."""
    return {
        "format": "vggfeat-evidence",
        "version": 1,
        "image": image,
        "model": model,
        "class": evidence.classes[evidence.number],
        "score": float(evidence.scores[evidence.number]),
        "intercept": evidence.bias,
        "sum": evidence.total,
        "scales": [
            {
                "net": scale.net,
                "scale": scale.scale,
                "sum": float(sum(part.sum() for part in scale.maps)),
                "classes": dict(zip(evidence.classes, scale.sums.tolist(), strict=True)),
            }
            for scale in evidence.scales
        ],
        "scores": dict(zip(evidence.classes, evidence.scores.tolist(), strict=True)),
    }


def evidence_text(content: dict[str, Any], top: int = 5) -> str:
    """Return the class, the parts of its score, and the highest other scores as a text."""
    others = sorted(content["scores"].items(), key=lambda one: -one[1])
    rows = [[f"sum at Q = {one['scale']}", one["net"], f"{one['sum']:+.4f}"] for one in content["scales"]]
    rows += [["intercept", "", f"{content['intercept']:+.4f}"], ["score", "", f"{content['sum']:+.4f}"]]
    ranked = [[name, f"{score:+.4f}"] for name, score in others[:top]]
    return "\n".join([*align([["class", content["class"]]], left=2), *align(rows, left=2), "", "highest scores:",
                      *align(ranked, left=1)])  # fmt: skip


def overlay(evidence: "Evidence") -> bytes:
    """Return `overlay_pixels` as a PNG, small ones enlarged."""
    pixels, file = overlay_pixels(evidence), io.BytesIO()
    times = -(-LEAST_SIDE // max(pixels.shape))
    Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)).save(file, "PNG")
    return file.getvalue()


def overlay_pixels(evidence: "Evidence") -> NDArray[np.uint8]:
    """Return the image (H, W, 3): grey, orange where it speaks for the class, blue where against it."""
    heat = evidence.heat
    strength = np.abs(heat) / max(float(np.abs(heat).max()), np.finfo(float).tiny) * STRONGEST  # (H, W)
    colour = np.where((heat > 0)[..., None], np.array(FOR), np.array(AGAINST))
    grey = _grey(evidence.image)[..., None]
    return np.rint(grey * (1 - strength[..., None]) + colour * strength[..., None]).astype(np.uint8)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return image @ np.array([0.299, 0.587, 0.114])


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


def worst_mistakes(classes: "Sequence[ClassPart]", number: int) -> list[tuple[str, Example]]:
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
    return chosen[:MOST_MISTAKES]


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
