"""`vggfeat svm`: features in, a table of results out; or a saved model and new features in, predictions out."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from vggfeat.cli.commands import COUNT, FLOATS, argument, command, flag, json_option, option, refuse_options
from vggfeat.cli.config import SVM
from vggfeat.cli.features import GivenOptions
from vggfeat.cli.options import named_after
from vggfeat.cli.output import (
    Progress,
    claim_folder,
    files_and_page,
    say,
    say_json,
    say_lines,
    say_note,
    show,
    terminal_width,
)
from vggfeat.cli.signals import is_main
from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.system import processes_of_all
from vggfeat.svm import SOLVERS
from vggfeat.wording import listed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vggfeat.descriptor_stream import DescriptorSet
    from vggfeat.protocols.apply import PredictionSettings
    from vggfeat.protocols.rules import ProtocolSettings
    from vggfeat.runtime.distributed import World

ONLY_APPLY = ("top", "probabilities", "abstain_below", "spreadsheet_safe")
WITH_APPLY = {"files", "more_files", "model", "out", "as_json", "quiet", *ONLY_APPLY}
"""What --apply can be given with: all the rest is in the model."""
MOST_NAMED = 8
"""Settings that a note names."""
DIFFICULT = ["ignore", "negative", "positive"]

RESULTS = ("results.json", "table.txt", "scores.npz", "results.png", "learning-curve.png", "model.safetensors",
           "model-split-*.safetensors", "model-fold-*.safetensors", "results-*-test.tar.gz", "run.sha256")  # fmt: skip
PREDICTIONS = ("predictions.csv", "predictions.json", "scores.npz", "run.sha256")


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """What is trained and tested, and how."""

    title: ClassVar[str] = "Protocol"
    protocol: str = option(default="auto",
        type=["auto", "voc", "voc-server", "caltech", "given-splits", "k-fold"],
        help="Protocol of training and test; auto: the paper's for the data set in the file.")  # fmt: skip
    grid: tuple[float, ...] | None = option(type=FLOATS, help="Values of C to choose from. [1/32, 1/16, ... 1024]")
    folds: int | None = option(type=click.IntRange(2), help="Folds of a cross-validation. [5]")
    rule: str = option(type=["auto", "11-point", "area"], default="auto",
        help="Rule of average precision in the headline; auto: 11-point for VOC-2007, else area.")  # fmt: skip
    difficult_in_training: str = option("--difficult-training", type=DIFFICULT, default="ignore",
        help="How images with difficult objects only are used in training.")  # fmt: skip
    difficult_in_scoring: str = option("--difficult-scoring", type=DIFFICULT, default="ignore",
        help="How they are used in scoring; the official rule is to ignore them.")  # fmt: skip
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of folds and held-out images.")
    fit_all: bool = flag(help="Finally train model.safetensors on all labelled images, with the chosen C.")
    learning_curve: bool = flag(help="Also train on 1/16 to 1/2 of the images, to see whether more images would help.")
    solver: str = option(type=["auto", *SOLVERS], default="auto",
        help=" ".join(f"{name}: {entry.words}." for name, entry in SOLVERS.items())
        + " auto: newton; stream where the descriptors would take more than half of the free memory.")  # fmt: skip
    device: str | None = option(help="Device of the solver newton: cuda, cuda:1, ... [the CPU, by NumPy]")
    jobs: int | None = option(type=click.IntRange(1, 256),
        help="Worker processes of the solver liblinear, or threads of the solver stream. [one a core]")  # fmt: skip

    def settings(self, solver: str) -> "ProtocolSettings":
        """Return them as `vggfeat.run_protocol` takes them, with a solver in the place of auto."""
        from vggfeat.protocols.rules import ProtocolSettings
        from vggfeat.svm import SvmSettings

        if self.jobs is not None and not SOLVERS[solver].jobs:
            others = " or ".join(name for name, entry in SOLVERS.items() if entry.jobs)
            raise ConfigError(f"--jobs: expected together with --solver {others}, found {solver}; leave it out")
        svm = SvmSettings(solver=solver, device=self.device, jobs=self.jobs or -1, seed=self.seed)
        own = {name: value for name, value in vars(self).items() if name not in ("solver", "device", "jobs")}
        return ProtocolSettings(svm=svm, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class ProbabilityOptions:
    """What is said of scores."""

    title: ClassVar[str] = "Probabilities"
    probabilities: bool = flag(help="Also give the probability of each class; needs a model of `svm --fit-all`.")
    abstain_below: float | None = option(type=click.FloatRange(0, 1), metavar="P",
        help="Give no class with a probability below P. [no limit]")  # fmt: skip

    def settings(self) -> "PredictionSettings":
        """Return them as `vggfeat.protocols.apply_model` takes them."""
        from vggfeat.protocols.apply import PredictionSettings

        return PredictionSettings(probabilities=self.probabilities, abstain_below=self.abstain_below)


@command(config=SVM.option)
def svm(
    *,
    files: tuple[Path, ...] = argument(nargs=-1, metavar="FEATURES.h5|RUN..."),
    more_files: tuple[Path, ...] = option("--features", multiple=True, metavar="FILE.h5",
        help="A feature file; the same as naming it without an option."),
    model: Path | None = option("--apply", metavar="MODEL|RUN",
        help="Train nothing: rank or label the images of the feature files with a saved model."),
    top: int = option(type=COUNT, default=5,
        help="With --apply: number of images named for each class, and of classes for each image."),
    probability: ProbabilityOptions,
    given: GivenOptions,
    protocol: ProtocolOptions,
    out: Path | None = option(help="Folder for the results. [FILE.svm, or FILE.applied, by the first FILE]"),
    spreadsheet_safe: bool,
    as_json: bool = json_option("Print the JSON file instead of the table."),
    quiet: bool,
) -> None:  # fmt: skip
    """Choose C, train linear SVMs and test them, by the protocol of the data set in the feature file.

    Several feature files of the same images are fused by stacking their descriptors, in the order given.

    VOC-2007: C on train and val, refit on both, test. VOC-2012 and actions: C by cross-validation in train, test on
    val, and the server's archive for test. Caltech: three splits, 20 % of training held out for C. Your own
    images: their splits if they have some, else a k-fold cross-validation. The folder receives results.json,
    table.txt, results.png, scores.npz, the trained SVMs, and the archive.

    With --apply, the SVMs of an earlier run rank new images (several classes an image) or label them (one class).
    The new features must have been extracted as those that the model was trained on. The folder receives
    predictions.csv, predictions.json and scores.npz.

    Sets beyond one machine: give the same command to torchrun. The solver is stream then, each process reads some of
    the rows, the first writes, and the results are the same, bit by bit.

    \b
    Examples:
      vggfeat svm --features voc2007.h5
      vggfeat svm voc2007-D.h5 voc2007-E.h5 --out voc2007-DE.svm
      vggfeat svm holiday.h5 --protocol k-fold --folds 10 --json
      vggfeat svm --descriptors clip.parquet --dataset voc2007 --root VOCdevkit
      vggfeat svm photos.h5 --fit-all
      vggfeat svm holiday.h5 --apply photos.svm --probabilities --abstain-below 0.5
      torchrun --nproc-per-node 4 -m vggfeat svm /disk/run
    """
    files = tuple(given.inputs(files + more_files))
    if model is not None:
        _refuse_several("--apply")
        settled = {str(param.name) for param in click.get_current_context().command.params} - WITH_APPLY
        refuse_options(settled, "not together with --apply, where the model decides")
        _apply(model, files, top, probability, out or named_after(files[0], ".applied"), spreadsheet_safe, as_json)
        return
    refuse_options(ONLY_APPLY, "expected together with --apply, found alone")
    several = processes_of_all() > 1
    if given.file is not None:
        _refuse_several("--descriptors")
    solver = "stream" if several and protocol.solver == "auto" else _choose_solver(protocol, files, given)
    if not SOLVERS[solver].streams:
        _refuse_several(f"--solver {solver}")
    settings = protocol.settings(solver)

    from vggfeat.protocols.rules import run_protocol
    from vggfeat.results.svm import svm_record, write_results
    from vggfeat.svm import check_device

    folder = out or named_after(files[0], ".svm")

    def claim() -> None:
        _refuse_folder_with(folder, "predictions.json", "results")
        claim_folder(folder, RESULTS, "vggfeat-results", inputs=files)

    with ExitStack() as opened:
        table: DescriptorSet
        world = opened.enter_context(_joined()) if several else None
        if world is None:
            claim()
        else:
            world.on_main(claim)
        if SOLVERS[solver].streams and given.file is None:
            table = opened.enter_context(given.stream(files, world))
        else:
            table = given.read(files, given.data_root)
        check_device(settings.svm.device)
        bar = opened.enter_context(Progress("svm", "problems", quiet=quiet or not is_main()))
        result = run_protocol(table, settings, progress=bar.update_stage)
    if not is_main():
        return
    record = svm_record(result)
    _note_replaced(folder, record.content["settings"])
    written = write_results(result, table.dataset, folder)
    lines = record.text(width=terminal_width()).split("\n")
    names, page = files_and_page(folder, written)
    show(as_json, record.content, [*lines, names, f"{page} --root ROOT"])


def _refuse_several(what: str) -> None:
    if processes_of_all() > 1:
        raise ConfigError(f"{what}: expected one process with it, found {processes_of_all()}; leave torchrun out")


def _joined() -> "AbstractContextManager[World]":
    from vggfeat.runtime.distributed import open_world

    return open_world("cpu", os.environ, lost=StoreError, advice="nothing is written: start all again")


def _choose_solver(protocol: ProtocolOptions, files: tuple[Path, ...], given: GivenOptions) -> str:
    """Return the solver that is asked for, or else the one that the memory suffices for; say so if it is not newton."""
    if protocol.solver != "auto" or given.file is not None or protocol.device is not None:
        return "newton" if protocol.solver == "auto" else protocol.solver

    memory = given.memory(files)
    if not memory.exceeded:
        return "newton"
    say_note(
        f"the descriptors take {memory.needed / 2**30:.1f} GiB, and {(memory.free or 0) / 2**30:.1f} GiB of memory are "
        f"free: they are read again and again by the solver stream; --solver newton reads them once"
    )
    return "stream"


def _note_replaced(folder: Path, settings: Any) -> None:
    """Say in which settings the results in the folder differ, before others replace them."""
    import json

    from vggfeat.store.identity import differences

    try:
        before = json.loads((folder / "results.json").read_bytes())["settings"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # there are none, or none that can be read
    names = [line.partition(":")[0] for line in differences(before, settings)]
    if names:
        say_note(f"{folder}: results of other settings in it are replaced; other: {listed(names, MOST_NAMED)}")


def _refuse_folder_with(folder: Path, file: str, kind: str) -> None:
    """Refuse a folder of which half would be replaced, and the rest taken for part of these results."""
    if os.path.lexists(folder / file):
        raise StoreError(f"{folder}: expected a folder for {kind}, found {file} in it; choose another --out")


def _apply(
    model: Path,
    files: tuple[Path, ...],
    top: int,
    probability: ProbabilityOptions,
    folder: Path,
    spreadsheet_safe: bool,
    as_json: bool,
) -> None:
    from vggfeat.protocols.apply import apply_model, find_model
    from vggfeat.results.predictions import predictions_json, predictions_table, write_predictions

    _refuse_folder_with(folder, "results.json", "predictions")
    claim_folder(folder, PREDICTIONS, "vggfeat-predictions", inputs=[model, *files])
    model = find_model(model)
    predictions = apply_model(model, files, probability.settings())
    written = write_predictions(predictions, folder, model=model, top=top, spreadsheet_safe=spreadsheet_safe)
    if as_json:
        say_json(predictions_json(predictions, model=model, top=top))
        return
    say_lines(predictions_table(predictions, top=top, width=terminal_width()))
    say(files_and_page(folder, written)[0])
