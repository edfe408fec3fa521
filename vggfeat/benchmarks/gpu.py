"""The first hour on a GPU, as one command: ceilings, tests, extraction, SVMs and training, part by part.

Every part is measured by the benchmark of its name. It is kept as soon as it is finished, so that a second run goes on
behind it; one that fails says why, costs no other, and is tried again by the next run.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from xml.etree import ElementTree

import torch

from vggfeat.benchmarks.extraction import open_stages
from vggfeat.benchmarks.measure import Column, Report, Say, images_on_disk, listed, machine, rate
from vggfeat.benchmarks.roofline import copy_rate, empty_net, image_costs, layer_costs, matrix_rate, summarise
from vggfeat.benchmarks.stages import STAGES, Stages, enough_memory
from vggfeat.errors import ConfigError, ResourceError
from vggfeat.extract import RunSettings
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.nets.transforms import rescaled_size
from vggfeat.results.record import write_file
from vggfeat.runtime.checksums import sealed
from vggfeat.runtime.devices import checked_device, default_batch_pixels
from vggfeat.runtime.journal import Journal
from vggfeat.runtime.system import peak_memory
from vggfeat.samples import DataSet
from vggfeat.weights import random_backbone

FILES = JOURNAL, JSON, TABLE, BEGUN = "gpu.jsonl", "gpu.json", "gpu.txt", "gpu.begun"
FORMAT = "vggfeat-bench-gpu"
PRECISIONS = {"cpu": ("bf16", "fp32"), "cuda": ("bf16", "tf32", "fp16", "fp32")}
BATCHINGS = ("size", "padded")
ACTS = {
    "matrix product": "matrix", "memory copy": "copy", "tests": "tests", "svm": "svm", "train": "train",
    "extract": "extract",
}  # fmt: skip
"""What a part is called, up to its comma -> the method of `Bench` that measures it."""
TESTS = ("tests/forward/test_gpu.py", "tests/training/test_data.py")
"""Files with claims about a GPU."""
TEST_SECONDS = 120
"""Longest time of the tests."""
PASS_SECONDS = 10.0
"""Aimed at for all images once in float32: it decides how many there are."""
COLUMNS = {
    "name": Column(""),
    "tera_ops": Column("Tflop/s"),
    "giga_bytes": Column("GB/s"),
    "rate": Column("images/s"),
    "share": Column("of the roofline", ".0%"),
    "waiting": Column("waiting", ".0%"),
    "decode": Column("decode ms", unit=1e-3),
    "resize": Column("resize ms", unit=1e-3),
    "net": Column("net ms", unit=1e-3),
    "wait": Column("wait ms", unit=1e-3),
    "passes": Column("passes", ".0f"),
    "shapes": Column("shapes", ".0f"),
    "least_cosine": Column("least cosine", ".8f"),
    "worst_gap": Column("gap", ".1e"),
    "passed": Column("passed", ".0f"),
    "failed": Column("failed", ".0f"),
    "skipped": Column("skipped", ".0f"),
    "seconds": Column("s", ".3g"),
    "memory": Column("memory GB", ".2f", 1e9),
    "error": Column("failed because"),
}
NOTES = (
    "extract: JPEG files to HDF5; decode, resize, net: of an image, alone",
    "wait: what else an image takes of the whole, the start of all processes included",
    "passes, shapes: batches of the images, and how many differ in number or sides of the images",
    "of the roofline: of the rate at which matrix products and memory copies alone would allow the net",
    "a multiply-add is two operations; s: of the whole part, for svm of the solver; memory: of the device, at most",
)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured."""

    net: str = "D"
    width: float = 1.0
    scales: tuple[int, ...] = (256, 384, 512, 640, 768)
    images: tuple[int, int] = (32, 256)
    """JPEG files: fewest and most."""
    repeat: int = 4
    """How often a run from files to file goes through them, so that its start counts little; in float32 once."""
    seconds: float = 2.0
    """Least time of each measurement."""
    svm: str = "voc"
    """Size of the SVM problem."""
    batch: int = 256
    """Images in a training step."""
    tests: tuple[str, ...] = TESTS
    matrix_side: int | None = None
    """Side of the matrices that measure the ceiling; None: so many that the device is at its best."""
    copy_bytes: int | None = None
    """Bytes of the array that is copied; None: many times what the caches hold."""


TINY = Extent(
    net="A", width=1 / 32, scales=(224,), images=(2, 2), repeat=1, seconds=0.01, svm="tiny", batch=2, tests=TESTS[:1],
    matrix_side=256, copy_bytes=1 << 20,
)  # fmt: skip
"""To rehearse the command."""


def measure(
    out: Path,
    device: str,
    extent: Extent,
    *,
    workers: int,
    minutes: float = 7.0,
    overwrite: bool = False,
    say: Say = lambda name: None,
) -> Report:
    """Measure the parts that are not in the folder yet.

    `out`: folder that exists. It receives gpu.jsonl, a line a part; gpu.json, the report; and gpu.txt, its table.
    `workers`: processes that decode. `minutes`: no part begins later than this. `overwrite`: begin again if the folder
    has parts of another machine or extent. The report's rows are those of all parts, earlier runs included. Raises
    ConfigError if the device is not there; StoreError if the folder has parts of another machine or extent, or the disk
    refuses.
    """
    end = time.monotonic() + 60 * minutes
    about = machine(checked_device(device))
    key = {"machine": about, "extent": asdict(extent), "workers": workers}
    names = parts(device)
    with (
        Journal(out / JOURNAL, f"{FORMAT} parts, 1", key, len(names), 1, overwrite=overwrite, retry=_failed) as journal,
        Bench(device, extent, workers, journal) as bench,
    ):
        for number in _in_order([number for (number,) in journal.pending], out / BEGUN, names):
            if time.monotonic() > end:
                break
            say(names[number])
            write_file(out / BEGUN, names[number].encode())
            journal.add([{"row": number, **bench.measure(names[number])}])
            (out / BEGUN).unlink()
        report = _report(device, extent, about, journal.records, [names[number] for (number,) in journal.pending])
    write_file(out / JSON, json.dumps(sealed(report.content()), indent=1).encode())
    write_file(out / TABLE, f"{report.text()}\n".encode())
    return report


def _in_order(pending: list[int], begun: Path, names: Sequence[str]) -> list[int]:
    """Put a part that has ended a whole process to the end, so that it costs no other."""
    last = begun.read_text(errors="replace") if begun.is_file() else ""
    return sorted(pending, key=lambda number: names[number] == last)


def _failed(record: dict[str, Any], changed: set[str]) -> bool:
    return bool(record["error"])


def parts(device: str) -> list[str]:
    """Name what is measured, in order: what takes long comes last."""
    precisions = PRECISIONS[torch.device(device).type]
    products = [f"matrix product, {precision}" for precision in precisions]
    forms = [f"extract, {precision}, {batching}" for batching, precision in product(BATCHINGS, precisions)]
    return [*products, "memory copy", "tests", "svm", "train", *forms]


class Bench:
    """What the parts have in common, made when the first of them asks for it; a context manager."""

    def __init__(self, device: str, extent: Extent, workers: int, journal: Journal) -> None:
        self.device, self.extent, self.journal = torch.device(device), extent, journal
        self.run = RunSettings(device=device, workers=workers)
        self.model = empty_net(extent.net, extent.width, "floor")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def measure(self, part: str) -> dict[str, Any]:
        """Return the rows of a part, ready for JSON, or why it failed."""
        kind, *rest = part.split(", ")
        act = getattr(self, ACTS[kind])
        start, found = time.monotonic(), dict[str, Any]()
        try:
            self._forget_memory()
            found = dict(act(*rest))
            gpu = self.device.type == "cuda"
            found["memory"] = torch.cuda.max_memory_allocated(self.device) if gpu else peak_memory()
            json.dumps(found, allow_nan=False)
        except Exception as caught:  # Whatever it is, the other parts are to be measured.
            found = {"error": f"{type(caught).__name__}: {str(caught).partition(chr(10))[0]}"}
        row = {"name": part, "seconds": time.monotonic() - start, **found}
        return {"part": part, "error": found.get("error", ""), "found": row}

    def _forget_memory(self) -> None:
        """Give back what the part before has left, and count from there."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def matrix(self, precision: str) -> dict[str, Any]:
        """Multiply large matrices."""
        found = matrix_rate(self.device, precision, self.extent.seconds, side=self.extent.matrix_side)
        return {"tera_ops": 2 * found / 1e12, "multiply_adds": found}

    def copy(self) -> dict[str, Any]:
        """Copy a large array."""
        found = copy_rate(self.device, self.extent.seconds, size=self.extent.copy_bytes)
        return {"giga_bytes": found / 1e9, "bytes": found}

    def tests(self) -> dict[str, Any]:
        """Run the tests that claim something of a GPU, in a process of their own."""
        root = Path(__file__).parents[2]
        if not all((root / file).is_file() for file in self.extent.tests):
            raise ConfigError(f"{root}: expected a checkout with {', '.join(self.extent.tests)}, found none")
        with TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "gpu or cuda"]
            command += ["--junitxml", f"{folder}/found.xml", *self.extent.tests]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TEST_SECONDS, check=False)
            if not Path(folder, "found.xml").is_file():
                raise ResourceError(f"tests: expected pytest to run, found: {(done.stderr or done.stdout)[-300:]}")
            return count_tests(ElementTree.parse(f"{folder}/found.xml").getroot())

    def svm(self) -> dict[str, Any]:
        """Choose C and fit, as `vggfeat bench svm` does for vggfeat's solver."""
        from vggfeat.benchmarks.peer import make_problem
        from vggfeat.benchmarks.svm import run_own
        from vggfeat.svm import SvmSettings

        solver = str(self.device) if self.device.type == "cuda" else None
        _, _, row = run_own(make_problem(self.extent.svm), SvmSettings(device=solver))
        return {name: row[name] for name in ("choice_seconds", "fit_seconds", "seconds", "worst_gap", "converged")}

    def train(self) -> dict[str, Any]:
        """Decode, load and step, as `vggfeat bench train` does."""
        from vggfeat.benchmarks.training import labelled, measure
        from vggfeat.training.recipe import Recipe, TrainingSettings

        recipe = Recipe(net=self.extent.net, width=self.extent.width, batch=self.extent.batch)
        run = TrainingSettings(device=str(self.device), workers=self.run.workers)
        report = measure(labelled(self.files), recipe, run, seconds=self.extent.seconds)
        found = {str(row["name"]): row for row in report.rows}
        alone = {f"{name}_rate": found[f"{name} alone"]["rate"] for name in ("decoding", "loading", "step")}
        both = {"rate": found["both"]["rate"], "waiting": found["both"]["waiting"]}
        return {**both, **alone, "matrix_share": found["step alone"]["share"], "settings": report.settings}

    def extract(self, precision: str, batching: str) -> dict[str, Any]:
        """Extract features from files to file, and the net alone."""
        settings = self._settings(precision, batching)
        runner = feature_runner(self._backbone, settings, str(self.device))
        repeat = 1 if precision == "fp32" else self.extent.repeat
        with enough_memory(str(self.device), settings.batch_pixels):
            self.stages.often = listed(Path(self.files.root), self.files.paths, repeat)
            network, together = self.stages.of_form(runner).values()
            net, whole = (self._rate(subject.act) for subject in (network, together))
        shapes = [batch.images.shape for batch in self.stages.batches[batching]]
        decode, resize, write = (1 / self._alone[name] for name in STAGES)
        return {
            "rate": whole, "share": whole * least if (least := self._least_seconds(settings)) else None,
            "decode": decode, "resize": resize, "net": 1 / net, "write": write,
            "wait": max(0.0, 1 / whole - 1 / net - resize),
            "least_cosine": together.facts["least_cosine"], "images": len(self.files), "repeat": repeat,
            "batch_pixels": settings.batch_pixels, "passes": len(shapes), "shapes": len(set(shapes)),
        }  # fmt: skip

    def _settings(self, precision: str, batching: str) -> ExtractionSettings:
        pixels = default_batch_pixels(str(self.device))
        return ExtractionSettings(
            scales=self.extent.scales, precision=precision, batching=batching, batch_pixels=pixels  # type: ignore[arg-type]
        )  # fmt: skip

    @cached_property
    def _backbone(self) -> Any:
        return random_backbone(f"random:{self.extent.net}:0:{self.extent.width!r}")

    @cached_property
    def files(self) -> DataSet:
        """As many images as go through the net in float32 in `PASS_SECONDS`, at the rate of a matrix product."""
        fewest, most = self.extent.images
        sizes = [rescaled_size(375, 500, side) for side in self.extent.scales]
        counted = 2 * sum(layer.multiply_adds for size in sizes for layer in layer_costs(self.model, *size))
        wanted = PASS_SECONDS * self._found("matrix product, fp32", "multiply_adds") / counted
        return self._stack.enter_context(images_on_disk(min(most, max(fewest, int(wanted))), seed=0))

    @cached_property
    def stages(self) -> Stages:
        """The images decoded, and their features in float32 to compare with."""
        reference = feature_runner(self._backbone, self._settings("fp32", "size"), str(self.device))
        return self._stack.enter_context(open_stages(reference, self.files, 1, self.run))

    @cached_property
    def _alone(self) -> dict[str, float]:
        return {name: self._rate(subject.act) for name, subject in self.stages.shared().items()}

    def _rate(self, act: Callable[[], int]) -> float:
        return rate(act, self.device, self.extent.seconds)

    def _least_seconds(self, settings: ExtractionSettings) -> float:
        """Return the least time of an image by the ceilings; 0 if they are not known."""
        multiply_adds = self._found(f"matrix product, {settings.precision}", "multiply_adds")
        copied = self._found("memory copy", "bytes")
        if not (multiply_adds and copied):
            return 0.0
        sizes = [image.size for image in self.stages.images]
        costs = [cost for size in sizes for cost in image_costs(self.model, settings, size)]
        return float(summarise(costs, {"multiply_adds": multiply_adds, "bytes": copied})["seconds"]) / len(sizes)

    def _found(self, part: str, name: str) -> float:
        """Return a figure of a part that is finished; 0 if it is not, or failed."""
        return next((float(one["found"].get(name, 0)) for one in self.journal.records if one["part"] == part), 0.0)


def count_tests(found: ElementTree.Element) -> dict[str, Any]:
    """Return what a file of JUnit's form says of tests."""
    cases = list(found.iter("testcase"))
    bad = [case.get("name", "") for case in cases if {"failure", "error"} & {one.tag for one in case}]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {"passed": len(cases) - len(bad) - skipped, "failed": len(bad), "skipped": skipped}
    return counts | ({"error": f"tests: {', '.join(bad)}"} if bad else {})


def _report(
    device: str, extent: Extent, about: Mapping[str, Any], records: Sequence[dict[str, Any]], left: Sequence[str]
) -> Report:
    again = [f"left for the next run, by the same command: {', '.join(left)}"] if left else []
    failed = sum(bool(record["error"]) for record in records)
    again += [f"{failed} parts failed; the same command tries them again"] if failed else []
    return Report(
        name="gpu",
        settings={"device": device, **asdict(extent)},
        machine=about,
        columns=COLUMNS,
        rows=[record["found"] for record in records],
        figures={"left": list(left)},
        notes=[*NOTES, *again],
    )
