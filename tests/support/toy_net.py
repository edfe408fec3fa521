"""A small residual net of another family, in one class, and the importer of its state dicts, in one function."""

import torch
from torch import nn
from torch.nn import functional as F

from vggfeat.nets.backbone import MapInfo, Net
from vggfeat.nets.transforms import clear, margin
from vggfeat.nets.vgg import FixedBatchNorm
from vggfeat.weights.importing import ParsedNet


class ToyResNet(Net):
    config, width, pool = "toy", 1.0, "floor"
    first, scores, min_side = "stem", "logits", 2

    def __init__(self, config="toy", num_classes=3, *, width=1.0, pool="floor"):
        super().__init__()
        self.num_classes = num_classes
        layers = {"stem": nn.Conv2d(3, 8, 3, padding=1), "norm": FixedBatchNorm(8)}
        layers |= {name: nn.Conv2d(8, 8, 3, padding=1) for name in ("a", "b")}
        self.layers = nn.ModuleDict(layers | {"logits": nn.Conv2d(8, num_classes, 1)})
        self.maps = {
            "pooled": MapInfo(channels=8, stride=2, reach=1),
            "residual": MapInfo(channels=8, stride=2, reach=5),
            "logits": MapInfo(channels=num_classes, stride=2, reach=5),
        }

    def forward(self, images, maps, masks=None, sides=None):
        pooled = F.max_pool2d(F.relu(self.layers["norm"](self.layers["stem"](images))), 2)
        beyond = margin(pooled, None if sides is None else sides // 2)
        inner = clear(F.relu(self.layers["a"](clear(pooled, beyond))), beyond)
        residual = pooled + self.layers["b"](inner)
        found = {"pooled": pooled, "residual": residual, "logits": self.layers["logits"](residual)}
        return {name: found[name] for name in maps}

    def map_side(self, name, side):
        return side // 2


def parse_toy(path, shapes, read):
    with torch.device("meta"):
        net = ToyResNet()
    if shapes.keys() != net.layers.state_dict().keys():
        return None
    return ParsedNet(
        model=net, format="toy", shapes=shapes, read=read, channel_order="BGR", mean=(1.0, 2.0, 3.0),
        mean_from="its paper",
    )  # fmt: skip
