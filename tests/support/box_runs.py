"""A classifying net that training starts from, and boxes written by hand."""

from pathlib import Path

import numpy as np
import torch

from vggfeat.datasets.ilsvrc_boxes import Boxes
from vggfeat.nets.vgg import VGG
from vggfeat.samples import LabelledImages
from vggfeat.training.objective import draw_weights
from vggfeat.training.recipe import Recipe
from vggfeat.weights import Backbone

NAMES = ("ant", "bee")


def classifier(net="A", *, width=1 / 64, classes=7, bias=0.0, **other) -> Backbone:
    model = VGG(net, classes, width=width)
    draw_weights(model, Recipe(), torch.Generator().manual_seed(5))
    for layer in model.layers.values():
        torch.nn.init.constant_(layer.bias, bias)
    given = {"source": "classes", "sha256": "0" * 64, "mean": (100.0, 110.0, 120.0), **other}
    return Backbone(model=model.eval().requires_grad_(False), **given)


def boxes_of(*rows, sizes=None) -> Boxes:
    """Boxes from a list of boxes for each row."""
    return Boxes(
        edges=np.array([box for row in rows for box in row], float).reshape(-1, 4),
        first=np.cumsum([0, *map(len, rows)]),
        sizes=np.array(sizes or [(100, 100)] * len(rows)),
        excluded=np.zeros(len(rows), bool),
        notes=(),
    )


def listed(root: Path, paths: list[str], targets=None) -> LabelledImages:
    targets = np.arange(len(paths)) % 2 if targets is None else np.array(targets)
    return LabelledImages(root=root, paths=tuple(paths), targets=targets, classes=NAMES)
