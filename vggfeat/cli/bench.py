"""`vggfeat bench`: measurements of speed, each next to what it has to be compared with."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from vggfeat.cli.commands import COUNT, INTEGERS, SCALE, SIDES, WORDS, command, flag, json_option, option
from vggfeat.cli.options import WorkerOptions
from vggfeat.cli.output import claim_folder, say, show
from vggfeat.errors import ConfigError
from vggfeat.runtime.devices import (
    PRECISIONS,
    LearningPrecision,
    Precision,
    default_batch_pixels,
    default_device,
    ready_device,
)
from vggfeat.weights import random_backbone

if TYPE_CHECKING:
    from vggfeat.benchmarks.measure import Report
    from vggfeat.forward.features import ExtractionSettings

SIZES = ["tiny", "voc", "caltech101", "caltech256", "caltech256-part", "stored"]
THREADS = click.IntRange(1, 1024)
SECONDS = click.FloatRange(0.01)
EVERY_ROUND = json_option("Print as JSON, every round included.")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What all benchmarks take."""

    as_json: bool = flag("--json", help="Print as JSON, every round included.")


@dataclass(frozen=True, kw_only=True)
class NetOptions(BenchOptions):
    """The net, and where it runs."""

    net: str = option(type=["A", "A-LRN", "B", "C", "D", "E"], default="D")
    width: float = option(type=click.FloatRange(0, min_open=True), default=1.0,
        help="Factor on the channels of the net.")  # fmt: skip
    device: str | None = option(help="cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]")
    seconds: float = option(type=SECONDS, default=2.0, help="Shortest time of each measurement, in seconds.")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(NetOptions):
    """Which features are computed, and in what passes."""

    scales: tuple[int, ...] = option(type=INTEGERS, default="256,384,512,640,768",
        help="Q, smallest image sides in pixels.")  # fmt: skip
    layer: str = option(type=["pool5", "fc6", "fc7", "fc8"], default="fc7")
    batch_pixels: int | None = option(type=COUNT, help="Pixels in one pass. [2^20 on the CPU, 2^22 to 2^24 on a GPU]")
    threads: int | None = option(type=THREADS, help="Cores of the CPU for the net. [all]")

    def settings(self, device: str, **more: Any) -> "ExtractionSettings":
        """Return what decides the features."""
        from vggfeat.forward.features import ExtractionSettings

        batch_pixels = self.batch_pixels or default_batch_pixels(device)
        return ExtractionSettings(scales=self.scales, layer=self.layer, batch_pixels=batch_pixels, **more)


@dataclass(frozen=True, kw_only=True)
class TrainingBenchOptions(NetOptions, WorkerOptions):
    """What `bench train` measures, and how long."""

    seconds: float = option(type=SECONDS, default=10.0, help="Shortest time of each measurement, in seconds.")
    root: Path | None = option(metavar="ROOT",
        help="Folder of training images, as for `vggfeat train`. [made-up images with the sides "
        "of VOC-2007's]")  # fmt: skip
    scale: tuple[int, int] = option(
        type=SCALE, default="256", help="S, the smallest image side in training, in pixels."
    )
    batch: int = option(type=COUNT, default=256, help="Images in one training step.")
    precision: LearningPrecision | None = option(
        type=get_args(LearningPrecision),
        help="Precision of the convolutions and matrix products. [bf16 on a GPU, else fp32]",
    )
    compiled: bool = flag("--compile", help="Compile the net.")
    micro_batch: int | None = option(type=COUNT, help="Images in one pass through the net. [as many as fit]")
    images: int = option(type=click.IntRange(16), default=512, help="Number of images to make.")


@click.group()
def bench() -> None:
    """Measure speed, next to other programs or what the machine can do."""


@command("extract", group=bench)
def bench_extraction(
    *,
    workers: WorkerOptions,
    options: FeatureOptions,
    precision: tuple[str, ...] = option(type=WORDS, default="fp32,bf16",
        help=f"Precisions to measure: any of {', '.join(get_args(Precision))}."),
    batching: tuple[str, ...] = option(type=WORDS, default="size", help="Ways of batching to measure: size, padded, or "
        "both."),
    compiled: bool = flag("--compile", help="Compile the nets, which takes minutes at first."),
    images: int | None = option(type=COUNT, help="JPEG files to make. [24 on the CPU, 256 on a GPU]"),
    longest: int = option("--longest-side", type=click.IntRange(8), default=500, help="Size of these images, in "
        "pixels."),
    repeat: int = option(type=COUNT, default=1,
        help="How often the run from image files to feature file goes through the images; take 10 or more for a GPU."),
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of the made-up images and weights."),
    rounds: int = option(type=COUNT, default=3, help="How often everything is measured."),
    no_plain: bool = flag(help="Leave out the plain loops and the other libraries."),
) -> None:  # fmt: skip
    """Measure images per second of every stage of extraction alone, and from JPEG files to the feature file.

    The images are made on the fly, with the sides of VOC-2007's, which --longest-side changes by one factor; the
    weights are random. All combinations of --precision and --batching are measured, each as `vggfeat extract` runs it,
    but for the four images that this computes again in float32 after a run in another precision. The stage that is the
    slowest alone is what holds a form up. Figures are medians of the rounds, after a run that does not count.

    Next to them is a plain loop as one would write it with torchvision: one image and scale at a time, decoded by the
    same process, the mirror as a second pass. It is in PyTorch's float32, whose convolutions are TF32 on a GPU, and in
    bf16 if that is among the precisions, by torch.autocast or with the net in bfloat16, whichever is faster. The tuned
    loop is the same with channels last. The ratios of a form are to the loops in its own precision.

    On a CPU, onnxruntime (float32) and OpenVINO run the net as well, on the same batches, where they are installed
    together with onnx (the extra bench).

    \b
    Examples:
      vggfeat bench extract --net D --images 6
      vggfeat bench extract --net A --width 0.125 --scales 256 --longest-side 250 --images 512 --threads 1
      vggfeat bench extract --device cuda --precision bf16 --batching size,padded --repeat 20
    """
    from vggfeat.benchmarks.extraction import Plan, default_images, measure
    from vggfeat.benchmarks.measure import with_threads
    from vggfeat.extract import RunSettings

    device = ready_device(options.device)
    forms = [
        options.settings(device, precision=one, batching=other, compiled=compiled)
        for one, other in dict.fromkeys(product(precision, batching))
    ]
    images = images or default_images(device)
    plan = Plan(
        images=images, longest=longest, repeat=repeat, seed=seed, rounds=rounds, seconds=options.seconds,
        plain=not no_plain,
    )  # fmt: skip
    run = RunSettings(device=device, workers=workers.processes())
    with with_threads(options.threads):
        backbone = random_backbone(f"random:{options.net}:{seed}:{options.width!r}")
        _show(measure(backbone, forms, plan, run, say=_say), options.as_json)


@command("roofline", group=bench)
def bench_roofline(
    *,
    options: FeatureOptions,
    shape: tuple[int, int] = option(type=SIDES, default="375x500", help="Size of the image, in pixels."),
    pool: str = option(type=["floor", "ceil"], default="floor",
        help="How the size of a pooling's output is rounded: floor in torchvision's nets, ceil in the authors'."),
    precision: Precision = option(type=PRECISIONS["cuda"], default="fp32"),
    counted: bool = flag("--no-measure", help="Count operations and bytes only, and measure nothing."),
) -> None:  # fmt: skip
    """Count multiply-adds and bytes of the dense features of one image and its mirror, and the least time for them.

    The least time of a layer is that of its multiply-adds at the rate of a large matrix product, or of its bytes at the
    rate of a memory copy, whichever is longer; both rates are measured first. Bytes: maps are read and written in the
    precision of the net, weights once a pass.

    \b
    Examples:
      vggfeat bench roofline --net D
      vggfeat bench roofline --net D --precision bf16 --device cuda --json
    """
    from vggfeat.benchmarks.measure import with_threads
    from vggfeat.benchmarks.roofline import empty_net, measure

    device = ready_device(options.device)
    settings = options.settings(device, precision=precision)
    model = empty_net(options.net, options.width, pool)  # type: ignore[arg-type]
    seconds = None if counted else options.seconds
    with with_threads(options.threads):
        _show(measure(model, settings, shape, device=device, seconds=seconds, say=_say), options.as_json)


@command("svm", group=bench)
def bench_svm(
    *,
    as_json: bool = EVERY_ROUND,
    size: str = option(type=SIZES, default="voc",
        help="Size of the made-up descriptors. caltech256-part: a quarter of the classes of Caltech-256, one split. "
        "stored: --shape descriptors in a file for the solver stream, and in memory for newton."),
    shape: tuple[int, int] | None = option(type=SIDES, metavar="NxD", help="Rows and length of the descriptors of "
        "--size stored. [20000x1024]"),
    threads: int | None = option(type=THREADS, help="CPU cores for each solver. [all]"),
    device: str | None = option(help="Device of vggfeat's solver: cpu, cuda, cuda:1, ... [the CPU, by NumPy]"),
    sample: int | None = option(type=COUNT,
        help="SVMs in each stage that the other solvers are timed on; their times for all SVMs are extrapolated. "
        "[tiny, voc: all; else 24]"),
    alone: bool = flag("--no-peer", help="Time vggfeat's solver only."),
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of the made-up descriptors."),
) -> None:  # fmt: skip
    """Time the SVM stage of a protocol by vggfeat's solver and by others, on the same arrays.

    C is chosen among 12 values on held-out rows, then all classes are fitted again. LinearSVC is taken in its fastest
    form (float32 or float64, dual or primal, with and without reducing the rows by QR first), its problems in parallel
    over the cores. SVC on inner products solves another problem; snapml, where it is installed (the extra bench), the
    same. Objectives and duality gaps are computed from the weights.

    \b
    Examples:
      vggfeat bench svm
      vggfeat bench svm --size caltech101 --device cuda --json
      vggfeat bench svm --size stored --shape 40000x4096
    """
    if alone and sample:
        raise ConfigError("--sample: expected without --no-peer, found both; leave one out")
    from vggfeat.runtime.system import cores

    threads = threads or cores()
    if size == "stored":
        from vggfeat.benchmarks.svm import measure_stream

        for name, value in (("device", device), ("sample", sample)):
            if value is not None:
                raise ConfigError(f"--{name}: not together with --size stored; leave it out")
        rows, length = shape or (20_000, 1024)
        _show(measure_stream(rows, length, threads=threads, seed=seed, peer=not alone, say=_say), as_json)
        return
    if shape is not None:
        raise ConfigError("--shape: expected together with --size stored, found another size; leave it out")
    from vggfeat.benchmarks.peer import make_problem
    from vggfeat.benchmarks.svm import measure

    problem = make_problem(size, seed)
    report = measure(problem, threads=threads, device=device, sample=sample, peer=not alone, say=_say)
    _show(report, as_json)


@command("train", group=bench)
def bench_training(*, options: TrainingBenchOptions) -> None:
    """Measure images per second of decoding, of the step of SGD, and of both together, on one device.

    Whichever of the first two is slower alone is what holds training up. The step is also set against the product of
    two large matrices, which is what the device can do.

    \b
    Example:
      vggfeat bench train --net D --root ILSVRC
    """
    from vggfeat.benchmarks.training import measure, training_images
    from vggfeat.training.recipe import Recipe, TrainingSettings

    recipe = Recipe(net=options.net, width=options.width, scale=options.scale, batch=options.batch)
    run = TrainingSettings(
        device=options.device or default_device(),
        workers=options.processes(),
        precision=options.precision,
        micro_batch=options.micro_batch,
        compile=options.compiled,
    )
    with training_images(options.root, options.images, _say) as images:
        _show(measure(images, recipe, run, seconds=options.seconds, say=_say), options.as_json)


@command("gpu", group=bench)
def bench_gpu(
    *,
    out: Path = option(required=True, metavar="DIR", help="Folder for the figures."),
    tiny: bool = flag(help="Rehearse with a small net on few images; with --device cpu, anywhere."),
    minutes: float = option(type=click.FloatRange(0, min_open=True), default=7.0,
        help="Minutes after which no further part begins."),
    overwrite: bool = flag(help="Replace figures of another machine."),
    workers: WorkerOptions,
    as_json: bool = EVERY_ROUND,
    device: str = option(default="cuda", help="cuda, cuda:1, ...; or cpu, to rehearse."),
) -> None:  # fmt: skip
    """Measure all that is worth knowing of a GPU; laid out to end within nine minutes.

    The device's ceilings, in four precisions; the tests that claim something of a GPU, from a checkout; the choice of C
    and the fit of SVMs; training; and extraction with net D and random weights at five scales, in every precision and
    batching, with the time of every stage. Each is kept in DIR as soon as it is measured. One that fails says why, and
    the others go on. The same command goes on behind what is there, and tries again what has failed.

    DIR receives gpu.json, gpu.txt with its table, and gpu.jsonl, a line for each part.

    \b
    Examples:
      vggfeat bench gpu --out figures
      vggfeat bench gpu --out rehearsal --device cpu --tiny
    """
    from vggfeat.benchmarks.gpu import FILES, FORMAT, TINY, Extent, measure

    claim_folder(out, FILES, FORMAT, overwrite=overwrite)
    device = ready_device(device)
    extent = TINY if tiny else Extent()
    report = measure(out, device, extent, workers=workers.processes(), minutes=minutes, overwrite=overwrite, say=_say)
    _show(report, as_json)
    if not as_json:
        say(f"{out}: {', '.join(FILES[:3])}")


@command("scale", group=bench)
def bench_scale(
    *,
    images: int = option(type=click.IntRange(1, 10**9), default=1_000_000, help="Images in the list."),
    shard_rows: int = option(type=click.IntRange(1, 1 << 20), default=4096, help="Images in a shard."),
    channels: int = option(type=COUNT, default=4096, help="Length of a feature."),
    scratch: Path | None = option(help="Folder for the temporary run, 20 bytes an image. [the system's temporary "
        "folder]"),
    as_json: bool,
) -> None:  # fmt: skip
    """Measure what a run of any size costs outside the net, on a made-up list with empty forward passes.

    Three stages, each in a process of its own: planning; a worker's share besides decoding and the net, of some shards
    whose means are kept in float16; and a restart that finds all shards done. Seconds, and the peak of memory.

    \b
    Example:
      vggfeat bench scale --images 10000000
    """
    from vggfeat.benchmarks.scale import measure_scale

    found = measure_scale(images, shard_rows, channels, scratch)
    about = {
        "plan": "{rows_per_second} images/s, {shards} shards, {bytes_per_row} bytes an image",
        "work": "{seconds_per_million} s a million images",
        "restart": "{pending} shards left",
    }
    cost = "{seconds:.1f} s, {cpu_seconds:.1f} s of CPU, {peak_mib} MiB, "
    show(as_json, found, [f"{stage:8}{(cost + text).format(**found[stage])}" for stage, text in about.items()])


def _say(name: str) -> None:
    say(f"{name} ...", err=True)


def _show(report: "Report", as_json: bool) -> None:
    show(as_json, report.content(), report.text().split("\n"))
