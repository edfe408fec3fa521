"""How fast extraction is, stage by stage and from JPEG files to HDF5, next to what a user would write."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from vggfeat.benchmarks.made_up import LONGEST, images_on_disk
from vggfeat.benchmarks.measure import Column, Report, Say, in_turns, machine, rate
from vggfeat.benchmarks.net_peers import peer_subjects
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
    enough_memory,
    plain_precision,
)
from vggfeat.errors import ConfigError
from vggfeat.extract import RunSettings, images_ahead, shards_ahead
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.samples import DataSet
from vggfeat.weights import Backbone

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
    """Of the images."""
    rounds: int = 3
    """Times that everything is measured, in turns."""
    seconds: float = 2.0
    """Least time of each measurement: it goes through the images as often as that takes."""
    plain: bool = True
    """Measure the plain and the tuned loop, and other libraries, as well."""

    def shards(self, run: RunSettings) -> RunSettings:
        """Return how the runs from files to file are cut up: every shard has the same images, in the same batches.

        Raises
        ------
        ConfigError
            If the images do not fill shards.
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

    Parameters
    ----------
    backbone : Backbone
    forms : sequence of ExtractionSettings
        Ways to compute the same features: they differ in precision and batching alone.
    plan : Plan
    run : RunSettings
    say : callable

    Returns
    -------
    Report
        Rows: every stage alone; of every form the net alone, and files to file; the net alone by onnxruntime and
        OpenVINO, where they are installed and the device is the CPU; the plain and the tuned loop from files to file in
        PyTorch's float32 and, if a form is in bf16, in that. `share`: of the matrix rate of the precision, as if every
        multiplication of a convolution were made; `ratio` and `ratio_tuned`: to the plain and the tuned loop in the
        same precision, of winograd in float32.

    Raises
    ------
    ConfigError
        If a form can't be run on the device, a batch does not fit into its memory, or an image fails.
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

    Parameters
    ----------
    rates : mapping of str to sequence of float
        Images per second of everything that was measured, round by round; of matrix products multiply-adds per second.
    facts : mapping of str to mapping
        What is known of each subject; `precision` where its share is of the matrix rate.
    multiply_adds : float
        Of an image and its mirror at all scales.
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
