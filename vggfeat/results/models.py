"""The SVMs of a result as files: the fits whose scores are reported, and none that the protocol doesn't make.

One run (VOC, own splits): `model.safetensors`, its last fit. With a test for the server: the fit on train + val that
the archive's scores come from. Several runs: `model-split-1.safetensors` or `model-fold-1.safetensors` and so on, each
trained on what its run trained on; nothing is fitted again on all samples.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from vggfeat.protocols.results import Result
from vggfeat.svm import LinearModel
from vggfeat.svm.model import model_bytes


def model_files(result: Result) -> dict[str, bytes]:
    """Return file name -> content, as `vggfeat.svm.load_model` reads it."""
    if result.submission is not None:
        last = result.submission
        return {"model.safetensors": _file(result, last.model, last.plan)}
    if len(result.runs) == 1:
        run = result.runs[0]
        return {"model.safetensors": _file(result, run.model, run.plan)}
    return {
        f"model-{run.name.replace(' ', '-')}.safetensors": _file(result, run.model, run.plan) for run in result.runs
    }


def _file(result: Result, model: LinearModel, plan: Mapping[str, str]) -> bytes:
    about: dict[str, Any] = {
        "classes": list(result.classes),
        "task": result.dataset["task"],
        "dataset": {name: result.dataset[name] for name in ("name", "fingerprint")},
        "protocol": result.protocol,
        "metric": result.metric,
        "plan": dict(plan),
        "svm": result.settings["protocol"]["svm"],
        "features": result.settings["features"],
        "vggfeat": version("vggfeat"),
    }
    return model_bytes(model, about)
