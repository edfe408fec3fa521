"""`vggfeat train`: labelled images in, a net out."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.config import TRAIN
from vggfeat.cli.options import LAYOUT, PATH, Scale, load_net, net_files, option, with_options
from vggfeat.cli.output import say, say_json, say_note
from vggfeat.cli.signals import is_main, signals_as_flag

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.training.recipe import TrainingSettings
    from vggfeat.training.trainer import Outcome, Progress

SHOWN_FAILURES = 5
RUN = ("run.json", "log.jsonl", "curves.png", "weights.safetensors", "unreadable.jsonl", "statistics-*.json")
"""Files of a run. What is in its folder already, the run itself looks at."""
RECIPE = ("width", "pool", "batch", "max_steps", "learning_rate", "initialisation", "normal_std")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What every training command takes: the end of the recipe, and how the work is done."""

    dropout: float | None = option(
        "--dropout", type=click.FloatRange(0, 0.999), help="Probability, of fc6 and fc7. [0.5]"
    )
    momentum: float | None = option("--momentum", type=click.FloatRange(0, 0.999), help="Of SGD. [0.9]")
    weight_decay: float | None = option(
        "--weight-decay", type=click.FloatRange(0), help="L2 penalty on the weights. [0.0005]"
    )
    colour_shift: float | None = option(
        "--colour-shift", type=click.FloatRange(0), help="Deviation of the random colour shift. [0.1]"
    )
    full_decode: bool = option(
        "--full-decode", is_flag=True, help="Decode JPEGs at full size, never at 1/2, 1/4 or 1/8 of it."
    )
    drops: int | None = option(
        "--drops", type=click.IntRange(0), help="How often the learning rate is divided by 10. [3]"
    )
    patience: int | None = option(
        "--patience", type=click.IntRange(1), help="Validations without a gain before that. [5]"
    )
    validate_every: int | None = option(
        "--validate-every", type=click.IntRange(1), metavar="STEPS", help="Steps between validations. [an epoch]"
    )
    seed: int = option("--seed", type=click.IntRange(0), default=0, help="Of everything that is random.")
    device: str | None = option("--device", help="cpu, cuda, cuda:1, ... [a GPU if there is one]")
    precision: str | None = option(
        "--precision", type=click.Choice(["fp32", "bf16"]), help="Of the net. [bf16 on a GPU, else fp32]"
    )
    compiled: bool = option("--compile", is_flag=True, help="Compile the net: slow to start, then faster on a GPU.")
    micro_batch: int | None = option(
        "--micro-batch", type=click.IntRange(1), help="Images in one pass: bounds the memory. [what fits]"
    )
    workers: int | None = option(
        "--workers", type=click.IntRange(0, 256), help="Processes that decode images. [one a core, at most 16]"
    )
    checkpoint_every: int | None = option(
        "--checkpoint-every", type=click.IntRange(1), metavar="STEPS", help="Steps between checkpoints. [1000]"
    )
    log_every: int | None = option(
        "--log-every", type=click.IntRange(1), metavar="STEPS", help="Steps between lines of the log. [50]"
    )
    as_json: bool = option("--json", is_flag=True, help="Print the summary as JSON.")
    quiet: bool = option("--quiet", is_flag=True, help="No progress.")

    def recipe(self) -> dict[str, Any]:
        """Return the fields of `vggfeat.training.recipe.Recipe` that they decide."""
        names = ("dropout", "momentum", "weight_decay", "colour_shift", "drops", "patience", "validate_every")
        return {"seed": self.seed, "reduced": not self.full_decode, **given(vars(self), names)}

    def settings(self) -> "TrainingSettings":
        """Return how the work is done, and prepare the process for it."""
        from vggfeat.runtime.devices import default_device, default_workers, keep_freed_memory
        from vggfeat.training.recipe import TrainingSettings

        device = self.device or default_device()
        if device == "cpu":
            keep_freed_memory()
        return TrainingSettings(
            device=device,
            workers=default_workers() if self.workers is None else self.workers,
            compile=self.compiled,
            **given(vars(self), ("precision", "micro_batch", "checkpoint_every", "log_every")),
        )

    def say(self, sentence: str) -> None:
        """Print a sentence at once; of several processes only the first does."""
        if not self.quiet:
            say_note(sentence)

    @contextmanager
    def progress(self, title: str, out: Path) -> "Iterator[Progress]":
        """Show a bar, and hand out what updates it and returns whether Ctrl-C or SIGTERM has arrived.

        A signal is raised at the end, with a note of what the run has left in `out`.
        """
        from vggfeat.cli.progress import Progress
        from vggfeat.training.run_folder import what_is_kept

        try:
            with Progress(title, "steps", quiet=self.quiet or not is_main()) as bar, signals_as_flag() as stop:

                def update(done: float, total: float, note: str) -> bool:
                    bar.update(done, total, note)
                    return stop()

                yield update
        except KeyboardInterrupt as error:
            if kept := what_is_kept(out):
                error.add_note(kept)
            raise


def given(chosen: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: chosen[name] for name in names if chosen[name] is not None}


@click.command()
@click.option("--root", type=PATH, required=True, metavar="ROOT",
              help="ILSVRC-2012 in any of its layouts, a packed copy, or your own class folders.")  # fmt: skip
@LAYOUT
@click.option(
    "--net", type=click.Choice(["A", "A-LRN", "B", "C", "D", "E"]), required=True, help="Table 1 of the paper."
)
@click.option("--scale", type=Scale(), default="256", show_default=True,
              help="S, smallest image side in training: 256, 384, or 256:512 for another one each time.")  # fmt: skip
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Resume from the newest sound checkpoint in DIR, which exists.")
@click.option("--init-from", metavar="FILE|NAME", help="Weights to start from: of net A, or of this net. [random]")
@click.option("--width", type=click.FloatRange(0, min_open=True), help="Factor on the channels of the net. [1]")
@click.option("--pool", type=click.Choice(["floor", "ceil"]), help="Rounding of the pooling output. [floor]")
@click.option("--batch", type=click.IntRange(1), help="Images in a step, over all processes. [256]")
@click.option("--steps", "max_steps", type=click.IntRange(1), help="Most steps. [370000]")
@click.option("--lr", "--learning-rate", "learning_rate", type=click.FloatRange(0),
              help="Learning rate at first. [0.01; 0.001 from weights of this net]")  # fmt: skip
@click.option("--initialisation", type=click.Choice(["glorot", "normal", "he"]), help="Of random layers. [glorot]")
@click.option("--normal-std", type=click.FloatRange(0), help="Deviation, for --initialisation normal. [0.1]")
@TRAIN.option()
@with_options(TrainingOptions, "options")
def train(
    root: Path,
    layout: "Layout | None",
    net: str,
    scale: tuple[int, int],
    out: Path,
    resume: bool,
    init_from: str | None,
    options: TrainingOptions,
    **chosen: Any,
) -> None:
    """Train a net by the recipe of the VGG paper; every default is that of its Sect. 3.1, or says why it is not.

    DIR receives the settings, a log, the last two checkpoints, curves, and weights.safetensors, which `extract`
    takes. A run that was stopped resumes with --resume and ends with the same weights. Several GPUs or machines: give
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
    from vggfeat.datasets import ilsvrc
    from vggfeat.runtime.targets import check_folder
    from vggfeat.training.recipe import recipe_for
    from vggfeat.training.train import train as run_training

    check_folder(out, RUN, kinds=(), inputs=net_files(init_from), overwrite=True)
    started_from = load_net(init_from) if init_from else None
    recipe = recipe_for(net, scale, started_from, **options.recipe(), **given(chosen, RECIPE))
    run = options.settings()
    data = ilsvrc.read(root, layout)
    counts = f"{len(data.train)} images to train on, {len(data.val)} to validate, {len(data.classes)} classes"
    options.say(f"{counts}: {data.layout}")
    with options.progress(f"train {net}", out) as progress:
        outcome = run_training(
            recipe, data, out, started_from=started_from, resume=resume, run=run, progress=progress, say=options.say
        )
    if is_main():
        show_outcome(outcome, options.as_json)


def show_outcome(outcome: "Outcome", as_json: bool = False) -> None:
    """Print what a run has left behind."""
    if as_json:
        show_json(outcome)
        return
    show_run(outcome)
    found = outcome.validation
    if found is not None:
        errors = (f"top-{name[3]} error {100 * value:.1f} %" for name, value in found.figures.items())
        say(f"centre crops of {found.images} validation images, step {found.step}: {', '.join(errors)}")
    if outcome.weights is not None:
        say(f"weights: {outcome.weights}; to use them:")
        say(f"  vggfeat extract --dataset NAME --root ROOT --weights {shlex.quote(str(outcome.weights))}")


def show_run(outcome: "Outcome") -> None:
    """Print what is said of a run of any kind."""
    from vggfeat.cli.progress import duration

    resumed = f", {outcome.resumed} of them by earlier runs" if outcome.resumed else ""
    say(f"{outcome.folder}: {outcome.step} steps{resumed}, in {duration(outcome.seconds)}")
    for note in outcome.notes:
        say(f"note: {note}")
    for path, reason in outcome.unreadable[:SHOWN_FAILURES]:
        say(f"left out: {path}: {reason}")
    if len(outcome.unreadable) > SHOWN_FAILURES:
        say(f"left out: {len(outcome.unreadable) - SHOWN_FAILURES} more; all: {outcome.folder}/unreadable.jsonl")
    say(f"as a page: vggfeat report {shlex.quote(str(outcome.folder))}")


def show_json(outcome: "Outcome") -> None:
    """Print all that is known of a run."""
    import dataclasses

    say_json(dataclasses.asdict(outcome))
