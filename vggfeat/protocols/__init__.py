"""How C is chosen, what is trained on and what is tested on, data set by data set.

The names below are loaded when they are first used: who trains does not load what applies a model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_MODULES = {
    "apply": ("PredictionSettings", "Predictions", "apply_model", "open_model"),
    "results": ("Result",),
    "rules": ("run_protocol",),
    "settings": ("ProtocolSettings",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"vggfeat.protocols.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
