"""Untrained nets, for trials and as what a trained net has to beat."""

import torch

from vggfeat.errors import ConfigError
from vggfeat.nets.backbone import Backbone
from vggfeat.nets.families import allocated, build, hash_tensors, initialise


def random_backbone(spec: str) -> Backbone:
    """Build an untrained net from random:NET[:SEED[:WIDTH]], for instance random:A:0:0.25.

    The same spec gives the same weights on every machine with the same PyTorch.

    Raises
    ------
    ConfigError
        If the spec is not understood.
    """
    fields = spec.split(":")
    try:
        net, seed = fields[1], int(fields[2]) if len(fields) > 2 else 0
        width = float(fields[3]) if len(fields) > 3 else 1.0
        if len(fields) > 4 or not 0 <= seed < 2**63:
            raise ValueError
        with torch.device("meta"):  # PyTorch's own first weights would cost time and move its random state.
            model = build(net, width=width)
    except (ValueError, IndexError):
        raise ConfigError(
            f"weights: expected random:NET[:SEED[:WIDTH]], for instance random:A:0:0.25, found {spec!r}"
        ) from None
    initialise(allocated(model), torch.Generator().manual_seed(seed))
    canonical = f"random:{net}:{seed}:{repr(width).removesuffix('.0')}"
    return Backbone(model=model.eval(), source=canonical, sha256=hash_tensors(model.state_dict()), trained=False)
