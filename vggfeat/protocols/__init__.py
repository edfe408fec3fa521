"""How C is chosen, what is trained on and what is tested on, data set by data set."""

from vggfeat.protocols.apply import Predictions, apply_model
from vggfeat.protocols.results import Result
from vggfeat.protocols.rules import ProtocolSettings, run_protocol

__all__ = [
    "Predictions",
    "ProtocolSettings",
    "Result",
    "apply_model",
    "run_protocol",
]
