"""How C is chosen, what is trained on and what is tested on, data set by data set.

The names below are loaded when they are first used: who trains does not load what applies a model.
"""

from typing import TYPE_CHECKING

from vggfeat.lazy import lazy_names

if TYPE_CHECKING:
    from vggfeat.protocols.apply import Predictions, PredictionSettings, apply_model, open_model
    from vggfeat.protocols.results import Result
    from vggfeat.protocols.rules import run_protocol
    from vggfeat.protocols.settings import ProtocolSettings

__all__ = [
    "PredictionSettings",
    "Predictions",
    "ProtocolSettings",
    "Result",
    "apply_model",
    "open_model",
    "run_protocol",
]

__getattr__ = lazy_names(
    __name__,
    {
        "vggfeat.protocols.apply": ("PredictionSettings", "Predictions", "apply_model", "open_model"),
        "vggfeat.protocols.results": ("Result",),
        "vggfeat.protocols.rules": ("run_protocol",),
        "vggfeat.protocols.settings": ("ProtocolSettings",),
    },
)
