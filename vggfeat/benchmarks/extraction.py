"""How fast extraction is, stage by stage and from JPEG files to HDF5, next to what a user would write."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from vggfeat.benchmarks.ceilings import device_name, matrix_rate
from vggfeat.benchmarks.jpegs import listed, make_jpegs
from vggfeat.benchmarks.stages import (
    CPU_IMAGES,
    MATRIX,
    NETWORK,
    REFERENCE,
    STAGES,
    TOGETHER,
    BenchSettings,
    Form,
    Report,
    Stages,
    plain_name,
)
from vggfeat.extract import RunSettings, images_ahead, shards_ahead
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.weights import Backbone


def default_images(device: str) -> int:
    """Return how many images are enough: a shard on a GPU, whose batches are large; few on the CPU."""
    return CPU_IMAGES if device.startswith("cpu") else RunSettings(device=device).rows()


def measure(
    backbone: Backbone, settings: BenchSettings, folder: Path, report: Report = lambda name: None
) -> dict[str, Any]:
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
    report : callable
        Called with the name of what is about to be measured.

    Returns
    -------
    dict
        All figures, ready for JSON; `bench extract` prints them.

    Raises
    ------
    ConfigError
        If a form can't be run on the device, or a batch does not fit into its memory.
    """
    runners = {form: settings.runner(backbone, form, settings.compiled) for form in settings.forms}
    reference = runners.get(REFERENCE)
    if reference is None or settings.compiled:
        reference = settings.runner(backbone, REFERENCE, False)
    report(f"{settings.images} images, and features to compare")
    files = listed(folder, make_jpegs(folder, settings.images, settings.seed))
    ahead = images_ahead(shards_ahead(reference.device), settings.run.rows())
    with Decoder(settings.workers, DecodeSettings(largest_side=max(reference.sides)), ahead=ahead) as decoder:
        stages = Stages(backbone, reference, files, decoder, settings)
        stages.resize()
        stages.write(files)
        timed = stages.timed()
        # Before the forms, because what these products set in PyTorch would have compiled nets compiled again.
        for precision in settings.precisions(reference.device):
            matrix_rate(reference.device, precision, 0)
            timed[MATRIX + precision] = partial(matrix_rate, reference.device, precision, settings.seconds)
        forms = [stages.add_form(form, runner, timed, report) for form, runner in runners.items()]
        plain = [stages.add_plain(one, timed, report) for one in stages.baselines(report).items()]
        rates: dict[str, list[float]] = {name: [] for name in timed}
        for number in range(1, settings.rounds + 1):
            for name, act in timed.items():
                report(f"round {number} of {settings.rounds}: {name}")
                rates[name].append(act())
    return {"device": device_name(reference.device), **summarise(rates, forms, plain, stages.multiply_adds())}


def summarise(
    rates: Mapping[str, Sequence[float]],
    forms: Sequence[Mapping[str, Any]],
    plain: Sequence[Mapping[str, Any]],
    image_multiply_adds: float,
) -> dict[str, Any]:
    """Return all figures, ready for JSON.

    Parameters
    ----------
    rates : mapping of str to sequence of float
        Images per second of everything that was measured, round by round; of matrix products multiply-adds per second.
    forms, plain : sequence of mapping
        Of `Stages.add_form` and `Stages.add_plain`.
    image_multiply_adds : float
        Of an image and its mirror at all scales.

    Returns
    -------
    dict
        `share`: of the matrix rate of the precision, reached by the median; `ratio`: of files to file, to the plain
        baseline of the same precision; `limit`: the stage that is the slowest alone.
    """
    matrix = {name.removeprefix(MATRIX): max(values) for name, values in rates.items() if name.startswith(MATRIX)}
    baselines = {one["precision"]: median(rates[plain_name(one["precision"]) + TOGETHER]) for one in plain}

    def figures(key: str, precision: str, values: Sequence[float]) -> dict[str, Any]:
        share = median(values) * image_multiply_adds / matrix[precision]
        return {key: _rounds(values), f"{key}_share": share}

    def of_form(form: Mapping[str, Any]) -> dict[str, Any]:
        name, precision = str(Form(form["precision"], form["batching"])), form["precision"]
        network, together = rates[name + NETWORK], rates[name + TOGETHER]
        alone = {stage: median(rates[stage]) for stage in STAGES} | {"network": median(network)}
        return {
            **form,
            **figures("network", precision, network),
            **figures("together", precision, together),
            "ratio": median(together) / baselines[precision] if precision in baselines else None,
            "limit": min(alone, key=alone.__getitem__),
        }

    return {
        "image_multiply_adds": image_multiply_adds,
        "matrix_multiply_adds": matrix,
        **{stage: _rounds(rates[stage]) for stage in STAGES},
        "forms": [of_form(form) for form in forms],
        "plain": [
            {**one, **figures("together", one["precision"], rates[plain_name(one["precision"]) + TOGETHER])}
            for one in plain
        ],
    }


def _rounds(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "rounds": list(values)}
