"""How fast extraction is, stage by stage and from JPEG files to HDF5, next to what a user would write.

Where they are installed, onnxruntime and OpenVINO run the net as well, on the batches that ours gets, each at its
best on a CPU: both read the file that `vggfeat weights export` writes, and run the net whole, images and mirrors in
one pass.
N = images of a batch, C = channels, H, W = image sides in pixels, h, w = sides of a dense map.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggfeat.benchmarks.measure import LONGEST, Column, Report, Say, images_on_disk, in_turns, machine, rate
from vggfeat.benchmarks.roofline import matrix_rate
from vggfeat.benchmarks.stages import (
    NETWORK,
    PLAIN,
    STAGES,
    TOGETHER,
    TUNED,
    WAYS,
    PlainExtractor,
    Stages,
    Subject,
    Subjects,
    enough_memory,
    least_cosine,
    plain_precision,
)
from vggfeat.errors import ConfigError
from vggfeat.extract import RunSettings
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.runner import BatchRunner
from vggfeat.forward.shards import images_ahead, shards_ahead
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.runtime.devices import library_version
from vggfeat.samples import DataSet
from vggfeat.weights import Backbone
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


CPU_IMAGES = 24
MATRIX = "matrix product, "
COLUMNS = {
    "name": Column(""),
    "rate": Column("images/s"),
    "share": Column("of the matrix rate", ".0%"),
    "ratio": Column("ratio to plain", ".2f"),
    "ratio_tuned": Column("to tuned", ".2f"),
    "least_cosine": Column("least cosine", ".8f"),
    "held_up_by": Column("held up by"),
}
NOTES = (
    "decoding: files to pixels; resizing: pixels to images of all scales on the device; writing: features to the file",
    "least cosine: to the features of fp32, size; held up by: the stage that is the slowest alone",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and how long."""

    images: int = CPU_IMAGES
    """JPEG files. The runs from files to file go through them shard by shard, a shard being no larger than this."""
    longest: int = LONGEST
    """Pixels of their longest side."""
    repeat: int = 1
    """How many times writing, and the run from files to file, go through them."""
    seed: int = 0
    """Seed of the images."""
    rounds: int = 3
    """Times that everything is measured, in turns."""
    seconds: float = 2.0
    """Least time of each measurement: it goes through the images as often as that takes."""
    plain: bool = True
    """Measure the plain and the tuned loop, and other libraries, as well."""

    def shards(self, run: RunSettings) -> RunSettings:
        """Return how the runs from files to file are cut up: every shard has the same images, in the same batches.

        Raises ConfigError if the images do not fill shards.
        """
        rows = run.rows()
        if self.repeat > 1 and self.images > rows and self.images % rows:
            raise ConfigError(
                f"images: expected at most {rows}, or a multiple of it, because they are repeated in shards of "
                f"{rows}; found {self.images}"
            )
        return replace(run, shard_rows=min(rows, self.images))


def default_images(device: str) -> int:
    """Return how many images are enough: a shard on a GPU, whose batches are large; few on the CPU."""
    return CPU_IMAGES if device.startswith("cpu") else RunSettings(device=device).rows()


def measure(
    backbone: Backbone,
    forms: Sequence[ExtractionSettings],
    plan: Plan,
    run: RunSettings,
    *,
    say: Say = lambda name: None,
) -> Report:
    """Measure extraction on one device, with everything run once before it counts.

    `forms`: ways to compute the same features: they differ in precision and batching alone. Rows of the report: every
    stage alone; of every form the net alone, and files to file; the net alone by onnxruntime and OpenVINO, where they
    are installed and the device is the CPU; the plain and the tuned loop from files to file in PyTorch's float32 and,
    if a form is in bf16, in that. `share`: of the matrix rate of the precision, as if every multiplication of a
    convolution were made; `ratio` and `ratio_tuned`: to the plain and the tuned loop in the same precision, of winograd
    in float32. Raises ConfigError if a form can't be run on the device, a batch does not fit into its memory, or an
    image fails.
    """
    exact = replace(forms[0], precision="fp32", batching="size", compiled=False)
    runners = {form: feature_runner(backbone, form, run.device) for form in dict.fromkeys((exact, *forms))}
    reference, run = runners[exact], plan.shards(run)
    device = reference.device
    precisions = [form.precision for form in forms] + [plain_precision(device)] * plan.plain
    products = {f"{MATRIX}{one}": partial(matrix_rate, device, one) for one in precisions}
    # Before the nets, because what these products set in PyTorch would have compiled nets compiled again.
    for product in products.values():
        product(0)
    say(f"{plan.images} images, and features to compare")
    with (
        enough_memory(run.device, exact.batch_pixels),
        images_on_disk(plan.images, plan.seed, plan.longest) as files,
        open_stages(reference, files, plan.repeat, run) as stages,
    ):
        subjects = stages.shared()
        for form in forms:
            say(f"once before it counts: {form.precision}, {form.batching}")
            subjects |= stages.of_form(runners[form])
        if plan.plain:
            subjects |= peer_subjects(stages, {_exact(form.precision) for form in forms}, say)
            for precision, loop in plain_loops(backbone, stages, forms, plan.seconds, say):
                say(f"once before it counts: {TUNED if loop.tuned else PLAIN}{precision}")
                subjects |= stages.of_plain(precision, loop)
        timed = {name: partial(rate, subject.act, device, plan.seconds) for name, subject in subjects.items()}
        matrix = {name: partial(product, plan.seconds) for name, product in products.items()}
        rates, multiply_adds = in_turns(timed | matrix, plan.rounds, say), stages.multiply_adds(exact.layer)
    best = {name.removeprefix(MATRIX): max(rates[name]) for name in products}
    facts = {name: subject.facts for name, subject in subjects.items()}
    settings = {"weights": backbone.source, **exact.describe(), **asdict(plan), "workers": run.workers}
    given = ", ".join(f"{name} {value / 1e9:.4g} G" for name, value in best.items())
    return Report(
        name="extract",
        settings={name: value for name, value in settings.items() if name not in ("precision", "batching", "plain")},
        machine=machine(device),
        columns=COLUMNS,
        rows=summarise(rates, facts, multiply_adds),
        figures={"image_multiply_adds": multiply_adds, "matrix_multiply_adds": best},
        notes=[
            f"matrix product: {given} multiply-adds/s; an image takes {multiply_adds / 1e9:.4g} G",
            *NOTES,
            *(f"{name}: by {WAYS[about['way']]}" for name, about in facts.items() if "way" in about),
        ],
    )


@contextmanager
def open_stages(reference: BatchRunner, files: DataSet, repeat: int, run: RunSettings) -> Iterator[Stages]:
    """Start the decoding processes that a run has, and lend the stages."""
    ahead = images_ahead(shards_ahead(reference.device), run.rows())
    with Decoder(run.workers, DecodeSettings(largest_side=max(reference.sides)), ahead=ahead) as decoder:
        yield Stages(reference, files, repeat, decoder, run)


def plain_loops(
    backbone: Backbone, stages: Stages, forms: Sequence[ExtractionSettings], seconds: float, say: Say
) -> Iterator[tuple[str, PlainExtractor]]:
    """Yield plain and tuned loops and their precision; of the two ways to bf16 the faster one, by one image."""
    one, first = stages.reference, stages.files.place(0).file
    made = partial(PlainExtractor, backbone, one.sides, forms[0].layer, one.device)

    def speed(loop: PlainExtractor) -> float:
        return rate(lambda: len(loop.features(first)), one.device, seconds, warm_up=1)

    for tuned in (False, True):
        yield plain_precision(one.device), made("float32", tuned=tuned)
        if any(form.precision == "bf16" for form in forms):
            say(f"{TUNED if tuned else PLAIN}bf16: autocast or bfloat16")
            yield "bf16", max(made("autocast", tuned=tuned), made("bfloat16", tuned=tuned), key=speed)


def summarise(
    rates: Mapping[str, Sequence[float]], facts: Mapping[str, Mapping[str, Any]], multiply_adds: float
) -> list[dict[str, Any]]:
    """Return a row for each subject.

    `rates`: images per second of everything that was measured, round by round; of matrix products multiply-adds per
    second. `facts`: what is known of each subject; `precision` where its share is of the matrix rate. `multiply_adds`:
    of an image and its mirror at all scales.
    """
    medians = {name: median(values) for name, values in rates.items()}
    rows = []
    for name, about in facts.items():
        row: dict[str, Any] = {"name": name, "rate": medians[name], "rounds": rates[name], **about}
        if "precision" in about:
            row["share"] = medians[name] * multiply_adds / max(rates[MATRIX + about["precision"]])
        for key, loop in (("ratio", PLAIN), ("ratio_tuned", TUNED)):
            baseline = medians.get(f"{loop}{_exact(about.get('precision', ''))}")
            if name.startswith((TOGETHER, PLAIN, TUNED)) and baseline:
                row[key] = medians[name] / baseline
        if name.startswith(TOGETHER):
            network = NETWORK + name.removeprefix(TOGETHER)
            row["held_up_by"] = min((*STAGES, network), key=medians.__getitem__).partition(",")[0]
        rows.append(row)
    return rows


def _exact(precision: str) -> str:
    """Return what others, who convolve in one way only, are measured in next to a form."""
    return "fp32" if precision == "winograd" else precision
