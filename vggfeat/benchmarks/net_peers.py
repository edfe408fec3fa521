"""The net in other libraries, on the batches that ours gets: onnxruntime and OpenVINO, each at its best on a CPU.

N = images of a batch, C = channels, H, W = image sides in pixels, h, w = sides of a dense map.
Both read the file that `vggfeat weights export` writes, and run the net whole, images and mirrors in one pass.
"""

from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vggfeat.benchmarks.measure import Say
from vggfeat.benchmarks.stages import Stages, Subject, Subjects, least_cosine
from vggfeat.runtime.devices import library_version
from vggfeat.weights.export import export_onnx

Maps = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Turns RGB images (N, 3, H, W), 0 to 255, into a map (N, C, h, w)."""
HINTS = {"fp32": "f32", "bf16": "bf16"}
"""Precision -> what OpenVINO calls it."""


def peer_subjects(stages: Stages, precisions: Collection[str], say: Say) -> Subjects:
    """Run the net of every library that is installed once, and return them; none where the net is not on the CPU."""
    one, found = stages.reference, Subjects()
    if one.device.type != "cpu" or not find_spec("onnx"):
        return found
    path = Path(stages.files.root) / "net.onnx"
    export_onnx(one.backbone, path, layer=one.settings.layer)  # type: ignore[attr-defined]
    batches = stages.net_batches(one)
    places = np.array([place for batch in batches for place in batch.places])  # (images x scales, 2)
    expected = stages.expected[places[:, 0], places[:, 1]]
    mean, std = one.mean[:, None, None], one.std[:, None, None]
    images = [(batch.images * std + mean).numpy() for batch in batches]
    for (library, precision), maps in installed_nets(path, precisions).items():
        say(f"once before it counts: {library}, {precision}")
        least = least_cosine(np.concatenate(features(maps, images)), expected)
        facts = {"precision": precision, "least_cosine": least, "version": library_version(library)}
        found[f"network by {library}, {precision}"] = Subject(_act(maps, images, len(stages.images)), facts)
    return found


def features(maps: Maps, batches: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Average the maps of batches (N, 3, H, W) and of their mirrors over space and mirror, to (N, C) each."""
    found = []
    for images in batches:
        means = maps(np.concatenate([images, images[..., ::-1]])).mean((2, 3))
        found.append((means[: len(images)] + means[len(images) :]) / 2)
    return found


def installed_nets(path: Path, precisions: Collection[str]) -> dict[tuple[str, str], Maps]:
    """Read an ONNX file by the libraries that are installed, in these precisions; by library and precision."""
    found: dict[tuple[str, str], Maps] = {}
    if find_spec("onnxruntime") and "fp32" in precisions:
        found["onnxruntime", "fp32"] = onnxruntime_net(path)
    if find_spec("openvino"):
        chosen = [precision for precision in HINTS if precision in precisions]
        found |= {("openvino", precision): openvino_net(path, HINTS[precision]) for precision in chosen}
    return found


def onnxruntime_net(path: Path) -> Maps:
    """Load a net, in float32, with every optimisation of the graph and as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def openvino_net(path: Path, precision: str) -> Maps:
    """Load a net in f32 or bf16, with all threads that PyTorch has for one pass at a time."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda images: compiled(images)[0]


def _act(maps: Maps, batches: Sequence[NDArray[np.float32]], images: int) -> Callable[[], int]:
    def act() -> int:
        features(maps, batches)
        return images

    return act
