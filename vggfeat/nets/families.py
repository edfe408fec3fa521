"""All the nets there are, by name, and how one is built, allocated and given random weights."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from vggfeat.checks import check_choice
from vggfeat.nets.backbone import Net, Pool
from vggfeat.nets.vgg import BATCH_NORM_NETS, NETS, VGG, BatchNormVGG

AnyModule = TypeVar("AnyModule", bound=nn.Module)

FAMILIES: dict[str, Callable[..., Net]] = dict.fromkeys(NETS, VGG) | dict.fromkeys(BATCH_NORM_NETS, BatchNormVGG)
"""The class that builds each net, by the name of the net: one line a family."""


def build(config: str, num_classes: int = 1000, *, width: float = 1.0, pool: Pool = "floor", last: str = "") -> Net:
    """Build a net by its name; with `last`, up to that map alone, where its family allows that.

    ConfigError if there is no such net, or it can't be of that width.
    """
    check_choice("net", config, FAMILIES)
    return FAMILIES[config](config, num_classes, width=width, pool=pool, **({"last": last} if last else {}))


def allocated(model: AnyModule) -> AnyModule:
    """Give a net without memory its tensors on the CPU, in float32, with any values.

    `to_empty` of PyTorch does the same, but imports a library for symbols first, which takes seconds.
    """
    blank = {name: torch.empty(tensor.shape, dtype=torch.float32) for name, tensor in model.state_dict().items()}
    model.load_state_dict(blank, assign=True)
    return model


def initialise(model: Net, generator: torch.Generator) -> None:
    """Draw random weights that keep the scale of activations through any depth; biases are zero.

    Normal with variance 2 / fan-in (He et al. 2015): the choice of `random:` nets. Normalisations change nothing.
    Training recipes bring their own initialisation.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(0.0, math.sqrt(2.0 / tensor[0].numel()), generator=generator)
            else:
                tensor.fill_(1.0 if name.endswith((".weight", ".running_var")) else 0.0)
