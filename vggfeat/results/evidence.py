"""Where a score comes from, as JSON, as text, and as an image."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggfeat.explain import Evidence
from vggfeat.results.text import align

FORMAT, VERSION = "vggfeat-evidence", 1
FOR, AGAINST = (230, 85, 0), (0, 92, 230)
"""Colours, told apart by people who do not see all colours."""
STRONGEST = 0.75
"""Share of the colour where the evidence is strongest."""


def evidence_json(evidence: Evidence, image: str, model: str) -> dict[str, Any]:
    """Return the score and its parts, ready for JSON; `image` and `model` are what was given."""
    return {
        "format": FORMAT,
        "version": VERSION,
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


def overlay(evidence: Evidence) -> bytes:
    """Return the image as a PNG: grey, orange where it speaks for the class, blue where against it."""
    heat = evidence.heat
    strength = np.abs(heat) / max(float(np.abs(heat).max()), np.finfo(float).tiny) * STRONGEST  # (H, W)
    colour = np.where((heat > 0)[..., None], np.array(FOR), np.array(AGAINST))
    grey = _grey(evidence.image)[..., None]
    mixed = grey * (1 - strength[..., None]) + colour * strength[..., None]
    file = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return image @ np.array([0.299, 0.587, 0.114])
