"""How fast extraction is, stage by stage and from JPEG files to HDF5, beside what a user would write."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggfeat.benchmarks.ceilings import device_name, matrix_rate, wait_for
from vggfeat.benchmarks.jpegs import listed, make_jpegs
from vggfeat.benchmarks.plain import (
    BF16_WAYS,
    PlainExtractor,
    Way,
    in_torchvision,
    plain_precision,
    read_features,
)
from vggfeat.benchmarks.speeds import (
    DECODING,
    RESIZING,
    WRITING,
    Form,
    FormSpeeds,
    PlainSpeeds,
    Rates,
    Speeds,
    plain_name,
)
from vggfeat.benchmarks.stages import Stages, run_network
from vggfeat.errors import ConfigError
from vggfeat.extract import RunSettings
from vggfeat.forward.features import Extraction, ExtractionSettings
from vggfeat.forward.precision import cosines
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.shard_stream import images_ahead
from vggfeat.weights import Backbone

REFERENCE = Form("fp32", "size")
"""What the features of all forms are compared with."""
CPU_IMAGES = 24
Tell = Callable[[str], None]
Act = Callable[[], float]
"""Measures one thing once, and returns its rate."""


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
    """Compile the net of every form; that which all are compared with is not."""
    rounds: int = 3
    """Times that everything is measured, in turn."""
    seconds: float = 2.0
    """Least time of each measurement: it goes through the images as often as that takes."""
    plain: bool = True
    """Measure the plain baseline as well: in PyTorch's defaults and, if a form is in bf16, in that."""

    @property
    def cache(self) -> RunSettings:
        """How the runs from files to file are cut up: every shard has the same images, in the same batches."""
        rows = RunSettings(device=self.device).rows()
        return RunSettings(device=self.device, workers=self.workers, shard_rows=min(rows, self.images))

    def describe(self) -> dict[str, Any]:
        """Return all of it that the figures do not tell, and the versions that matter, ready for JSON."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("forms", "device", "plain")}
        names = ("vggfeat", "torch", "torchvision", "pillow", "numpy", "h5py")
        return kept | {"shard_rows": self.cache.rows(), "versions": {name: version(name) for name in names}}

    def __post_init__(self) -> None:
        rows = self.cache.rows()
        if self.repeat > 1 and self.images % rows:
            raise ConfigError(
                f"images: expected at most {rows}, or a multiple of it, because they are repeated in shards of "
                f"{rows}; found {self.images}"
            )


def measure(backbone: Backbone, settings: BenchSettings, folder: Path, progress: Tell | None = None) -> Speeds:
    """Measure extraction on one device.

    Everything runs once before it counts, through the images once, and the features of that are compared. Then every
    round measures all stages, forms and baselines one after the other, so that whatever else the machine does hurts all
    of them alike.

    Parameters
    ----------
    backbone : Backbone
    settings : BenchSettings
    folder : Path
        Empty; gets the images and, one after the other, the feature files.
    progress : callable, optional
        Told what is about to be measured.

    Raises
    ------
    ConfigError
        If a form can't be run on the device, or a batch does not fit into its memory.
    """
    tell = progress or (lambda name: None)
    reference, extractions = _extractions(backbone, settings)
    device = reference.device
    tell(f"{settings.images} images, and features to compare")
    files = listed(folder, make_jpegs(folder, settings.images, settings.seed))
    ahead = images_ahead(int(device.type != "cpu"), settings.cache.rows())
    with Decoder(settings.workers, DecodeSettings(largest_side=max(reference.sides)), ahead=ahead) as decoder:
        stages = Stages(backbone, reference, files, decoder, settings.cache, settings.repeat)
        stages.resize()
        stages.write(files)
        # Before the forms, because what these products set in PyTorch would have compiled nets compiled again.
        for precision in _precisions(settings, device):
            matrix_rate(device, precision, 0)
        forms = [_Measured(stages, form, extractions[form], tell) for form in settings.forms]
        plain = _baselines(stages, settings, tell)
        acts = _acts(stages, settings, forms, plain)
        rates = _rounds(acts, settings.rounds, tell)
    return Speeds(
        device=device_name(device),
        decoding=rates[DECODING],
        resizing=rates[RESIZING],
        writing=rates[WRITING],
        forms=tuple(one.speeds(rates) for one in forms),
        plain=tuple(one.speeds(rates) for one in plain),
        matrix_multiply_adds={name: max(rates[_matrix(name)].rounds) for name in _precisions(settings, device)},
        image_multiply_adds=stages.multiply_adds(),
    )


def default_images(device: str) -> int:
    """Return how many images are enough: a shard on a GPU, whose batches are large; few on the CPU."""
    return CPU_IMAGES if device.startswith("cpu") else RunSettings(device=device).rows()


class _Measured:
    """A form that has run once."""

    def __init__(self, stages: Stages, form: Form, extraction: Extraction, tell: Tell) -> None:
        tell(f"once before it counts: {form}")
        self.form, self.extraction = form, extraction
        # The reference ran when the stages were made.
        features = stages.expected if extraction is stages.extraction else stages.features(extraction)
        self._least = _least_cosine(features, stages.expected)
        self.batches = stages.batches(extraction)
        self.network()

    def network(self) -> None:
        run_network(self.extraction, self.batches)

    def speeds(self, rates: dict[str, Rates]) -> FormSpeeds:
        return FormSpeeds(
            form=self.form,
            network=rates[_network(self.form)],
            together=rates[_together(str(self.form))],
            least_cosine=self._least,
        )


class _Plain:
    """A baseline that has run once."""

    def __init__(self, stages: Stages, extractor: PlainExtractor, precision: str, tell: Tell) -> None:
        tell(f"once before it counts: {plain_name(precision)}")
        self.precision = precision
        self._stages, self._extractor = stages, extractor
        self._paths = [stages.files.file_of(row) for row in range(len(stages.files))]
        with stages.out() as out:
            extractor.write(self._paths, out)
            self._least = _least_cosine(read_features(out), stages.expected)

    def run(self) -> None:
        with self._stages.out() as out:
            self._extractor.write(self._paths, out)

    def speeds(self, rates: dict[str, Rates]) -> PlainSpeeds:
        theirs = in_torchvision(self._stages.backbone.model)
        return PlainSpeeds(
            precision=self.precision,
            way=self._extractor.way,
            module="torchvision's net" if theirs else "torch.nn, as torchvision has no such net",
            together=rates[_together(plain_name(self.precision))],
            least_cosine=self._least,
        )


def _baselines(stages: Stages, settings: BenchSettings, tell: Tell) -> list[_Plain]:
    one = stages.extraction

    def made(way: Way) -> PlainExtractor:
        return PlainExtractor(stages.backbone, one.sides, one.settings.layer, one.device, way)

    def seconds(extractor: PlainExtractor) -> float:
        first = partial(extractor.features, stages.files.file_of(0))
        first()
        return _seconds(first, settings.seconds, one.device)

    found = {plain_precision(one.device): made("float32")} if settings.plain else {}
    if settings.plain and any(form.precision == "bf16" for form in settings.forms):
        tell(f"{plain_name('bf16')}: {' or '.join(BF16_WAYS)}")
        found["bf16"] = min(map(made, BF16_WAYS), key=seconds)
    return [_Plain(stages, extractor, precision, tell) for precision, extractor in found.items()]


def _extractions(backbone: Backbone, settings: BenchSettings) -> tuple[Extraction, dict[Form, Extraction]]:
    """Return what all are compared with, and every form; the first may be among the others."""

    def made(form: Form, compiled: bool) -> Extraction:
        options: dict[str, Any] = form._asdict()
        kept = ExtractionSettings(
            scales=settings.scales,
            layer=settings.layer,
            batch_pixels=settings.batch_pixels,
            compiled=compiled,
            **options,
        )
        return Extraction(backbone, kept, settings.device)

    reference = made(REFERENCE, False)
    return reference, {
        form: reference if form == REFERENCE and not settings.compiled else made(form, settings.compiled)
        for form in settings.forms
    }


def _least_cosine(features: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(cosines(features, expected).min())


def _acts(stages: Stages, settings: BenchSettings, forms: list[_Measured], plain: list[_Plain]) -> dict[str, Act]:
    """Return what is measured in every round, by its name."""
    device = stages.extraction.device

    def rate(count: int, act: Callable[[], None]) -> Act:
        return lambda: count / _seconds(act, settings.seconds, device)

    once, often = len(stages.files), len(stages.often)
    found = {
        DECODING: rate(once, stages.decode),
        RESIZING: rate(once, stages.resize),
        WRITING: rate(often, partial(stages.write, stages.often)),
    }
    for precision in _precisions(settings, device):
        found[_matrix(precision)] = partial(matrix_rate, device, precision, settings.seconds)
    for form in forms:
        found[_network(form.form)] = rate(once, form.network)
        found[_together(str(form.form))] = rate(often, partial(stages.run, form.extraction, stages.often))
    return found | {_together(plain_name(one.precision)): rate(once, one.run) for one in plain}


def _precisions(settings: BenchSettings, device: torch.device) -> list[str]:
    """Return those of the forms and of the baselines, each once."""
    forms = [form.precision for form in settings.forms]
    return list(dict.fromkeys([*forms, plain_precision(device)] if settings.plain else forms))


def _rounds(acts: dict[str, Act], rounds: int, tell: Tell) -> dict[str, Rates]:
    found: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(1, rounds + 1):
        for name, act in acts.items():
            tell(f"round {number} of {rounds}: {name}")
            found[name].append(act())
    return {name: Rates(tuple(values)) for name, values in found.items()}


def _seconds(act: Callable[[], object], least: float, device: torch.device) -> float:
    """Return the mean time of doing something as often as fills the least time."""
    times = 0
    wait_for(device)
    start = time.perf_counter()
    while not times or time.perf_counter() - start < least:
        act()
        wait_for(device)
        times += 1
    return (time.perf_counter() - start) / times


def _matrix(precision: str) -> str:
    return f"matrix product, {precision}"


def _network(form: Form) -> str:
    return f"{form}: network"


def _together(name: str) -> str:
    return f"{name}: files to file"
