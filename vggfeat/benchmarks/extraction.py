"""How fast extraction is, stage by stage and from JPEG files to HDF5, beside what a user would write."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggfeat.benchmarks.ceilings import device_name, matrix_rate, wait_for
from vggfeat.benchmarks.jpegs import listed, make_jpegs
from vggfeat.benchmarks.plain import PlainExtractor, in_torchvision
from vggfeat.benchmarks.speeds import DECODING, RESIZING, WRITING, Form, FormSpeeds, PlainSpeeds, Rates, Speeds
from vggfeat.benchmarks.stages import Batch, Stages, run_network
from vggfeat.caching import CacheSettings
from vggfeat.contract import cosines
from vggfeat.extraction import Extraction, ExtractionSettings, Layer
from vggfeat.images.decoding import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.passes import Row
from vggfeat.weights import Backbone

REFERENCE = Form("fp32", "size")
"""What the features of all forms are compared with."""
PLAIN = "plain baseline"
Tell = Callable[[str], None]
Act = Callable[[], float]
"""Measures one thing once, and returns its rate."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is measured, and how long."""

    scales: tuple[int, ...]
    """Q, smallest picture sides in pixels."""
    forms: tuple[Form, ...]
    layer: Layer = "fc7"
    pictures: int = 24
    """JPEG files."""
    repeat: int = 1
    """How many times writing, and the run from files to file, go through them."""
    seed: int = 0
    """Of the pictures."""
    device: str = "cpu"
    workers: int = 2
    """Processes that decode."""
    batch_pixels: int | None = None
    """Pixels in one pass; None: the default of extraction."""
    compiled: bool = False
    """Compile the net of every form."""
    rounds: int = 3
    """Times that everything is measured, in turn."""
    seconds: float = 2.0
    """Least time of each measurement: it goes through the pictures as often as that takes."""
    plain: bool = True
    """Measure the plain baseline as well."""


def measure(backbone: Backbone, settings: BenchSettings, folder: Path, progress: Tell | None = None) -> Speeds:
    """Measure extraction on one device.

    Everything runs once before it counts, and the features of that are compared. Then every round measures all stages,
    forms and the baseline one after the other, so that whatever else the machine does hurts all of them alike.

    Parameters
    ----------
    backbone : Backbone
    settings : BenchSettings
    folder : Path
        Empty; gets the pictures and, one after the other, the feature files.
    progress : callable, optional
        Told what is about to be measured.

    Raises
    ------
    ConfigError
        If a form can't be run on the device, or a picture does not fit into its memory.
    """
    tell = progress or (lambda name: None)
    extractions = _extractions(backbone, settings)
    reference = extractions[REFERENCE]
    tell(f"{settings.pictures} pictures, and features to compare")
    files = listed(folder, make_jpegs(folder, settings.pictures, settings.seed))
    cache = CacheSettings(device=settings.device, workers=settings.workers)
    decode = DecodeSettings(largest_side=max(reference.sides))
    with Decoder(settings.workers, decode) as decoder:
        stages = Stages(backbone, reference, files, decoder, cache, settings.repeat)
        expected = _stacked(stages.rows)
        least = {
            form: float(cosines(_stacked(stages.compute(extractions[form])), expected).min()) for form in settings.forms
        }
        plain = _Plain(stages) if settings.plain else None
        acts = _acts(stages, settings, extractions, plain)
        rates = _rounds(acts, settings.rounds, tell)
    return Speeds(
        device=device_name(reference.device),
        decoding=rates[DECODING],
        resizing=rates[RESIZING],
        writing=rates[WRITING],
        forms=tuple(
            FormSpeeds(
                form=form,
                network=rates[_network(form)],
                together=rates[_together(form)],
                least_cosine=least[form],
            )
            for form in settings.forms
        ),
        plain=plain.speeds(rates[PLAIN], expected) if plain else None,
        matrix_multiply_adds={form.precision: max(rates[_matrix(form.precision)].rounds) for form in settings.forms},
        picture_multiply_adds=stages.multiply_adds(),
    )


class _Plain:
    """The baseline, and the features that it had when it warmed up."""

    def __init__(self, stages: Stages) -> None:
        one = stages.extraction
        self._stages = stages
        self._extractor = PlainExtractor(stages.backbone, one.sides, one.settings.layer, one.device)
        self._paths = [stages.files.file_of(row) for row in range(len(stages.files))]
        self._features = np.stack([self._extractor.features(path) for path in self._paths])

    def run(self) -> None:
        with self._stages.out() as out:
            self._extractor.write(self._paths, out)

    def speeds(self, together: Rates, expected: NDArray[np.float32]) -> PlainSpeeds:
        theirs = in_torchvision(self._stages.backbone.model)
        return PlainSpeeds(
            module="torchvision's net" if theirs else "torch.nn, as torchvision has no such net",
            together=together,
            least_cosine=float(cosines(self._features, expected).min()),
        )


def _extractions(backbone: Backbone, settings: BenchSettings) -> dict[Form, Extraction]:
    chosen: dict[str, Any] = {"batch_pixels": settings.batch_pixels} if settings.batch_pixels else {}
    found = {}
    for form in dict.fromkeys((REFERENCE, *settings.forms)):
        options: dict[str, Any] = chosen | form._asdict()
        kept = ExtractionSettings(scales=settings.scales, layer=settings.layer, compiled=settings.compiled, **options)
        found[form] = Extraction(backbone, kept, settings.device)
    return found


def _stacked(rows: list[Row]) -> NDArray[np.float32]:
    """(N, S, C)."""
    return np.stack([row.features[:, 0] for row in rows if row.features is not None])


def _acts(
    stages: Stages, settings: BenchSettings, extractions: dict[Form, Extraction], plain: _Plain | None
) -> dict[str, Act]:
    """Return what is measured in every round, by its name."""
    device = stages.extraction.device

    def rate(count: int, act: Callable[[], None]) -> Act:
        return lambda: count / _seconds(act, settings.seconds, device)

    once, often = len(stages.files), len(stages.often)
    found = {
        DECODING: rate(once, stages.decode),
        RESIZING: rate(once, stages.resize),
        WRITING: rate(often, stages.write),
    }
    batches: dict[str, list[Batch]] = {}
    for form in settings.forms:
        extraction = extractions[form]
        if form.batching not in batches:
            batches[form.batching] = stages.batches(extraction)
        found[_matrix(form.precision)] = partial(matrix_rate, device, form.precision, settings.seconds)
        found[_network(form)] = rate(once, partial(run_network, extraction, batches[form.batching]))
        found[_together(form)] = rate(often, partial(stages.run, extraction))
    return found | ({PLAIN: rate(once, plain.run)} if plain else {})


def _rounds(acts: dict[str, Act], rounds: int, tell: Tell) -> dict[str, Rates]:
    found: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(1, rounds + 1):
        for name, act in acts.items():
            tell(f"round {number} of {rounds}: {name}")
            found[name].append(act())
    return {name: Rates(tuple(values)) for name, values in found.items()}


def _seconds(act: Callable[[], None], least: float, device: torch.device) -> float:
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


def _together(form: Form) -> str:
    return f"{form}: files to file"
