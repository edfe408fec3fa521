"""The stages of extraction one by one and all together, each as something that can be timed.

N = images of a batch, S = scales, C = channels, H, W = image sides in pixels. Rates are images per second.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.benchmarks.ceilings import wait_for
from vggfeat.benchmarks.jpegs import listed
from vggfeat.benchmarks.plain import BF16_WAYS, PlainExtractor, Way, in_torchvision, plain_precision, read_features
from vggfeat.benchmarks.roofline import layer_costs
from vggfeat.errors import ConfigError, ImageError, out_of_memory
from vggfeat.extract import Job, RunSettings, run_job, to_block
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.precision import cosines
from vggfeat.forward.runner import BatchRunner, Row
from vggfeat.forward.transfer import upload
from vggfeat.images.decode import DecodedImage, DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.images.requests import row_requests
from vggfeat.nets.transforms import normalise, rescale, rescaled_size
from vggfeat.samples import DataSet
from vggfeat.store.layout import Shape
from vggfeat.store.reader import FeatureFile
from vggfeat.store.writer import FeatureWriter
from vggfeat.weights import Backbone

CPU_IMAGES = 24
STAGES = DECODING, RESIZING, WRITING = "decoding", "resizing", "writing"
"""What all forms share. Files to pixels by the workers; pixels to rescaled images of all scales, uploading included;
features in memory to shards, and these to the feature file, read back."""
MATRIX, NETWORK, TOGETHER = "matrix product, ", ": network", ": files to file"
Report = Callable[[str], None]
"""Called with the name of what is about to be measured."""
Timed = dict[str, Callable[[], float]]
"""What measures a rate, by name."""


class Form(NamedTuple):
    """One way to run the net, by settings of extraction; all give the same features, up to rounding."""

    precision: str
    batching: str

    def __str__(self) -> str:
        return ", ".join(self)


REFERENCE = Form("fp32", "size")
"""The features of all forms are compared with those of this one, not compiled."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is measured, and how long."""

    scales: tuple[int, ...]
    """Q, smallest image sides in pixels."""
    forms: tuple[Form, ...]
    layer: str = "fc7"
    images: int = CPU_IMAGES
    """JPEG files. The runs from files to file go through them shard by shard, a shard being no larger than this."""
    repeat: int = 1
    """How many times writing, and the run from files to file, go through them."""
    seed: int = 0
    """Of the images."""
    device: str = "cpu"
    workers: int = 2
    """Processes that decode."""
    batch_pixels: int = 1 << 20
    """Pixels in one pass."""
    compiled: bool = False
    """Compile the net of every form; the reference is not."""
    rounds: int = 3
    """Times that everything is measured, in turn."""
    seconds: float = 2.0
    """Least time of each measurement: it goes through the images as often as that takes."""
    plain: bool = True
    """Measure the plain baseline as well: in PyTorch's defaults and, if a form is in bf16, in that."""

    @property
    def run(self) -> RunSettings:
        """How the runs from files to file are cut up: every shard has the same images, in the same batches."""
        rows = RunSettings(device=self.device).rows()
        return RunSettings(device=self.device, workers=self.workers, shard_rows=min(rows, self.images))

    def __post_init__(self) -> None:
        rows = self.run.rows()
        if self.repeat > 1 and self.images % rows:
            raise ConfigError(
                f"images: expected at most {rows}, or a multiple of it, because they are repeated in shards of "
                f"{rows}; found {self.images}"
            )

    def describe(self) -> dict[str, Any]:
        """Return all of it that the figures do not contain, and the versions that matter, ready for JSON."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("forms", "device", "plain")}
        names = ("vggfeat", "torch", "torchvision", "pillow", "numpy", "h5py")
        return kept | {"shard_rows": self.run.rows(), "versions": {name: version(name) for name in names}}

    def precisions(self, device: torch.device) -> list[str]:
        """Return those of the forms and of the baselines, each once."""
        forms = [form.precision for form in self.forms]
        return list(dict.fromkeys([*forms, plain_precision(device)] if self.plain else forms))

    def runner(self, backbone: Backbone, form: Form, compiled: bool) -> BatchRunner:
        """Return the net in a form."""
        options: dict[str, Any] = form._asdict()
        kept = ExtractionSettings(
            scales=self.scales, layer=self.layer, batch_pixels=self.batch_pixels, compiled=compiled, **options
        )
        return feature_runner(backbone, kept, self.device)


class NetBatch(NamedTuple):
    """Images that go through the net together, as it takes them: on its device, rescaled and normalised."""

    images: Tensor
    """(N, 3, H, W), float32."""
    sides: Tensor | None
    """(N, 2), height and width of each where they differ, else None."""


class Stages:
    """Images and a net, in memory; every method does one stage for all images."""

    def __init__(
        self, backbone: Backbone, reference: BatchRunner, files: DataSet, decoder: Decoder, settings: BenchSettings
    ) -> None:
        self.backbone, self.reference, self.files = backbone, reference, files
        self.decoder, self.settings = decoder, settings
        self.often = listed(Path(files.root), files.paths, settings.repeat)
        self.images = self.decode()
        self.batches: dict[str, list[NetBatch]] = {}
        """By batching."""
        self.expected = self.features(reference)  # (N, S, C)
        self.rows = [
            Row(found[:, None], "", image.size, image.sha256)
            for found, image in zip(self.expected, self.images, strict=True)
        ]

    def timed(self) -> Timed:
        """Return what measures the rate of each stage that all forms share."""
        return {
            DECODING: self.rate(self.files, self.decode),
            RESIZING: self.rate(self.files, self.resize),
            WRITING: self.rate(self.often, partial(self.write, self.often)),
        }

    def add_form(self, form: Form, runner: BatchRunner, timed: Timed, report: Report) -> dict[str, Any]:
        """Run a form once, add what measures it, and return what is known of it."""
        report(f"once before it counts: {form}")
        found = self.expected if runner is self.reference else self.features(runner)
        if form.batching not in self.batches:
            self.batches[form.batching] = self.net_batches(runner)
        network = partial(run_network, runner, self.batches[form.batching])
        network()
        timed[f"{form}{NETWORK}"] = self.rate(self.files, network)
        timed[f"{form}{TOGETHER}"] = self.rate(self.often, partial(self.run, runner, self.often))
        return {**form._asdict(), "least_cosine": least_cosine(found, self.expected)}

    def add_plain(self, baseline: tuple[str, PlainExtractor], timed: Timed, report: Report) -> dict[str, Any]:
        """Do the same with a baseline, given its precision."""
        precision, extractor = baseline
        report(f"once before it counts: {plain_name(precision)}")
        paths = [self.files.place(row).file for row in range(len(self.files))]

        def run() -> NDArray[np.float32]:
            with self.out() as out:
                extractor.write(paths, out)
                return read_features(out)

        found = run()
        timed[f"{plain_name(precision)}{TOGETHER}"] = self.rate(self.files, run)
        theirs = in_torchvision(self.backbone.model)
        return {
            "precision": precision,
            "way": extractor.way,
            "module": "torchvision's net" if theirs else "torch.nn, as torchvision has no such net",
            "least_cosine": least_cosine(found, self.expected),
        }

    def baselines(self, report: Report) -> dict[str, PlainExtractor]:
        """Return the baselines by their precision; of the two ways to bf16 the faster one."""
        one, settings = self.reference, self.settings
        if not settings.plain:
            return {}

        def made(way: Way) -> PlainExtractor:
            return PlainExtractor(self.backbone, one.sides, settings.layer, one.device, way)

        def rate(extractor: PlainExtractor) -> float:
            first = partial(extractor.features, self.files.place(0).file)
            first()
            return self.rate([0], first)()

        found = {plain_precision(one.device): made("float32")}
        if any(form.precision == "bf16" for form in settings.forms):
            report(f"{plain_name('bf16')}: {' or '.join(BF16_WAYS)}")
            found["bf16"] = max(map(made, BF16_WAYS), key=rate)
        return found

    def rate(self, images: Sized, act: Callable[[], object]) -> Callable[[], float]:
        """Return what measures how many images a second go through an act, repeated for the least time."""

        def measured() -> float:
            times, device = 0, self.reference.device
            wait_for(device)
            start = time.perf_counter()
            while not times or time.perf_counter() - start < self.settings.seconds:
                act()
                wait_for(device)
                times += 1
            return len(images) * times / (time.perf_counter() - start)

        return measured

    def decode(self) -> list[DecodedImage]:
        """Turn the files into pixels."""
        images = []
        for image in self.decoder.stream(row_requests(self.files, range(len(self.files)), ("image",))):
            if isinstance(image, ImageError):
                raise image
            images.append(image)
        return images

    def resize(self) -> None:
        """Upload every image, rescale it to all sizes and normalise it."""
        one = self.reference
        with torch.inference_mode():
            for image in self.images:
                uploaded = upload(image.regions[0], one.device)  # (3, H, W)
                for side in one.sides:
                    size = rescaled_size(uploaded.shape[1], uploaded.shape[2], side)
                    normalise(rescale(uploaded, size, one.settings.interpolation), one.mean, one.std)

    def net_batches(self, runner: BatchRunner) -> list[NetBatch]:
        """Return the batches that a form makes of the images, shard by shard.

        Raises
        ------
        ConfigError
            If they do not fit into memory together.
        """
        found, step = [], self.settings.run.rows()
        with fitting(runner), torch.inference_mode():
            for start in range(0, len(self.images), step):
                pixels = [one.regions[0] for one in self.images[start : start + step]]
                for tasks in runner.task_batches([[one.shape[:2]] for one in pixels]):
                    chosen = [(upload(pixels[task.image], runner.device), task.size) for task in tasks]
                    found.append(NetBatch(*runner.prepare(chosen)))
        return found

    def write(self, files: DataSet) -> None:
        """Commit the features of files in shards, and join these to a file that is read back."""
        one = self.reference
        shape = Shape(scales=one.settings.scales, regions=one.regions, channels=one.head.channels)
        about, shard_rows = {"benchmark": "writing"}, self.settings.run.rows()
        with self.out() as out, FeatureWriter.open(out, files, about, shape, shard_rows=shard_rows) as writer:
            for shard in writer.pending:
                rows = [self.rows[row % len(self.rows)] for row in writer.rows(shard)]
                writer.append(shard, to_block(rows, shape, row_requests(files, writer.rows(shard), one.regions)))
            writer.finish({})

    def run(self, runner: BatchRunner, files: DataSet) -> None:
        """Go from files to a feature file, as `vggfeat extract` does once the net is there.

        What that does after the last image of a run in bf16, fp16 or tf32 is left out: it computes four images
        again in float32, which is nothing next to a real data set and much next to a few files.

        Raises
        ------
        ConfigError
            If an image fails, or a batch does not fit into memory.
        """
        with self.out() as out:
            self._extract(runner, files, out)

    def features(self, runner: BatchRunner) -> NDArray[np.float32]:
        """Do what `run` does, once with every file, and return the features, (N, S, C)."""
        with self.out() as out:
            self._extract(runner, self.files, out)
            with FeatureFile(out) as file:
                return file.read()[:, :, 0]

    def _extract(self, runner: BatchRunner, files: DataSet, out: Path) -> None:
        job = Job(dataset=files, images=files, runner=runner, check_precision=False)
        summary = run_job(job, out, run=self.settings.run, decode=DecodeSettings())
        # Halves are other batches than those of the net alone.
        if runner.halvings:
            raise unfit(runner, f"{runner.halvings} that had to be halved")
        for _, reason in summary.failures[:1]:
            raise ConfigError(f"{runner.settings.precision}: expected features of every image: {reason}")

    def multiply_adds(self) -> float:
        """Return those of an image and its mirror at all scales, the mean over the images."""
        total = 0
        for image in self.images:
            for side in self.reference.sides:
                layers = layer_costs(self.backbone.model, *rescaled_size(*image.size, side), self.settings.layer)
                total += 2 * sum(layer.multiply_adds for layer in layers)
        return total / len(self.images)

    @contextmanager
    def out(self) -> Iterator[Path]:
        """Lend the name of a new file, which is removed in the end."""
        folder = Path(tempfile.mkdtemp(dir=self.files.root))
        try:
            yield folder / "features.h5"
        finally:
            shutil.rmtree(folder)


@contextmanager
def fitting(runner: BatchRunner) -> Iterator[None]:
    """Turn what a library says when memory runs out into a ConfigError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise unfit(runner, str(error).partition(". ")[0] or "no memory left") from None


def unfit(runner: BatchRunner, found: str) -> ConfigError:
    """Return the error for batches that do not fit into memory."""
    kept = runner.settings
    return ConfigError(
        f"{kept.precision}, {runner.batching}: expected batches that fit into the memory of {runner.device}, found "
        f"{found}; give a --batch-pixels below {kept.batch_pixels}, or fewer --images"
    )


def run_network(runner: BatchRunner, batches: Sequence[NetBatch]) -> None:
    """Run the net alone: mirrors, precision, the layers, the means over space and mirror.

    Raises
    ------
    ConfigError
        If a batch does not fit into memory.
    """
    pixels = runner.settings.batch_pixels
    with fitting(runner), runner.computing():
        for images, sides in batches:
            runner.head.values(runner.model, images, pixels, sides)


def least_cosine(features: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the least cosine between features (N, S, C) over images and scales."""
    return float(cosines(features, expected).min())


def plain_name(precision: str) -> str:
    """Return what tables and progress call a baseline."""
    return f"plain baseline, {precision}"
