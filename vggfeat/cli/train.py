"""`vggfeat train`: labelled images in, a net out."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.options import PATH, Scale
from vggfeat.cli.signals import is_main, signals_as_flag
from vggfeat.cli.training_options import training_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.training.trainer import Outcome

SHOWN_FAILURES = 5
RECIPE = ("width", "pool", "batch", "max_steps", "learning_rate", "initialisation", "normal_std", "dropout", "momentum",
          "weight_decay", "colour_shift", "drops", "patience", "validate_every")  # fmt: skip
RUN = ("precision", "micro_batch", "checkpoint_every", "log_every")


@click.command()
@click.option("--root", type=PATH, required=True, metavar="ROOT",
              help="ILSVRC-2012 in any of its layouts, a packed copy, or your own class folders.")  # fmt: skip
@click.option(
    "--net", type=click.Choice(["A", "A-LRN", "B", "C", "D", "E"]), required=True, help="Table 1 of the paper."
)
@click.option("--scale", type=Scale(), default="256", show_default=True,
              help="S, smallest image side in training: 256, 384, or 256:512 for another one each time.")  # fmt: skip
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the newest sound checkpoint in DIR.")
@click.option("--init-from", metavar="FILE|NAME", help="Weights to start from: of net A, or of this net. [random]")
@click.option("--width", type=click.FloatRange(0, min_open=True), help="Factor on the channels of the net. [1]")
@click.option("--pool", type=click.Choice(["floor", "ceil"]), help="Rounding of the pooling output. [floor]")
@click.option("--batch", type=click.IntRange(1), help="Images in a step, over all processes. [256]")
@click.option("--steps", "max_steps", type=click.IntRange(1), help="Most steps. [370000]")
@click.option("--lr", "--learning-rate", "learning_rate", type=click.FloatRange(0),
              help="Learning rate at first. [0.01; 0.001 from weights of this net]")  # fmt: skip
@click.option("--initialisation", type=click.Choice(["glorot", "normal", "he"]), help="Of random layers. [glorot]")
@click.option("--normal-std", type=click.FloatRange(0), help="Deviation, for --initialisation normal. [0.1]")
@training_options
def train(
    root: Path,
    net: str,
    scale: tuple[int, int],
    out: Path,
    resume: bool,
    init_from: str | None,
    full_decode: bool,
    seed: int,
    device: str | None,
    compiled: bool,
    workers: int | None,
    as_json: bool,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Train a net by the recipe of the VGG paper; every default is that of its Sect. 3.1, or says why it is not.

    DIR receives the settings, a log, the last two checkpoints, curves, and weights.safetensors, which `extract`
    takes. A run that was stopped goes on with --resume and ends with the same weights. Several GPUs or machines: give
    the same command to torchrun; --batch stays the batch of all processes together.

    \b
    Examples:
      vggfeat train --root ILSVRC --net A --scale 256 --out nets/A-256
      vggfeat train --root ILSVRC --net D --scale 256 --init-from nets/A-256/weights.safetensors --out nets/D-256
      vggfeat train --root holiday/ --net A --width 0.25 --batch 64 --steps 5000 --out nets/holiday
      torchrun --nproc-per-node 4 -m vggfeat train --root ILSVRC --net A --scale 256 --out nets/A-256

    \b
    Exit codes: 0 done, 8 training that can't be carried out; others: vggfeat --help.
    """
    from vggfeat.cli.progress import Progress
    from vggfeat.datasets import ilsvrc
    from vggfeat.runtime.devices import default_device, default_workers, keep_freed_memory
    from vggfeat.training.recipe import TrainingSettings, recipe_for
    from vggfeat.training.train import train as run_training
    from vggfeat.weights import load_backbone

    started_from = load_backbone(init_from) if init_from else None
    recipe = recipe_for(net, scale, started_from, seed=seed, reduced=not full_decode, **given(chosen, RECIPE))
    run = TrainingSettings(
        device=device or default_device(),
        workers=default_workers() if workers is None else workers,
        compile=compiled,
        **given(chosen, RUN),
    )
    if run.device == "cpu":
        keep_freed_memory()
    data = ilsvrc.read(root)
    say = say_unless(quiet)
    counts = f"{len(data.train)} images to train on, {len(data.val)} to validate, {len(data.classes)} classes"
    say(f"{counts}: {data.layout}")
    with Progress(f"train {net}", "steps", quiet=quiet or not is_main()) as bar, signals_as_flag() as stop:

        def progress(done: float, total: float, note: str) -> bool:
            bar.update(done, total, note)
            return stop()

        outcome = run_training(
            recipe, data, out, started_from=started_from, resume=resume, run=run, progress=progress, say=say
        )
    if is_main():
        show_outcome(outcome, as_json)


def show_outcome(outcome: "Outcome", as_json: bool = False) -> None:
    """Print what a run has left behind."""
    if as_json:
        show_json(outcome)
        return
    show_run(outcome)
    found = outcome.validation
    if found is not None:
        top1, top5 = (100 * found.figures[name] for name in ("top1_error", "top5_error"))
        errors = f"top-1 error {top1:.1f} %, top-5 error {top5:.1f} %"
        click.echo(f"centre crops of {found.images} validation images, step {found.step}: {errors}")
    if outcome.weights is not None:
        click.echo(f"weights: {outcome.weights}; to use them:")
        click.echo(f"  vggfeat extract --dataset NAME --root ROOT --weights {shlex.quote(str(outcome.weights))}")


def show_run(outcome: "Outcome") -> None:
    """Print what is said of a run of any kind."""
    from vggfeat.cli.progress import duration

    resumed = f", {outcome.resumed} of them by earlier runs" if outcome.resumed else ""
    click.echo(f"{outcome.folder}: {outcome.step} steps{resumed}, in {duration(outcome.seconds)}")
    for note in outcome.notes:
        click.echo(f"note: {note}")
    for path, reason in outcome.unreadable[:SHOWN_FAILURES]:
        click.echo(f"left out: {path}: {reason}")
    if len(outcome.unreadable) > SHOWN_FAILURES:
        click.echo(f"left out: {len(outcome.unreadable) - SHOWN_FAILURES} more; all: {outcome.folder}/unreadable.jsonl")
    click.echo(f"as a page: vggfeat report {shlex.quote(str(outcome.folder))}")


def given(chosen: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: chosen[name] for name in names if chosen[name] is not None}


def show_json(outcome: "Outcome") -> None:
    """Print all that is known of a run."""
    import dataclasses
    import json

    click.echo(json.dumps(dataclasses.asdict(outcome), indent=2, default=str))


def say_unless(quiet: bool) -> "Callable[[str], None]":
    """Return what prints a sentence at once; of several processes only the first does."""

    def say(sentence: str) -> None:
        if is_main() and not quiet:
            click.echo(f"note: {sentence}", err=True)

    return say
