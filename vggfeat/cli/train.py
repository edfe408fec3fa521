"""`vggfeat train` and `vggfeat localise train`: labelled images in, a net for classes or boxes out."""

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import click

from vggfeat.cli.commands import COUNT, SCALE, command, flag, option
from vggfeat.cli.config import TRAIN
from vggfeat.cli.options import load_net, net_files
from vggfeat.cli.output import Progress, duration, say, say_json, say_left_out, say_note
from vggfeat.cli.signals import is_main, signals_as_flag
from vggfeat.runtime.devices import LearningPrecision, default_device, default_workers, keep_freed_memory
from vggfeat.runtime.output_paths import check_folder
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.localisation.train import BoxData
    from vggfeat.training.recipe import TrainingSettings
    from vggfeat.training.trainer import Outcome
    from vggfeat.training.trainer import Progress as StepProgress


RUN = ("run.json", "log.jsonl", "curves.png", "weights.safetensors", "unreadable.jsonl", "statistics-*.json")
"""Files of a run. What is in its folder already, the run itself looks at."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What every training command takes: the end of the recipe, and how the work is done."""

    title: ClassVar[str] = "Recipe and work"
    dropout: float | None = option(type=click.FloatRange(0, 0.999), help="Dropout probability of fc6 and fc7. [0.5]")
    momentum: float | None = option(type=click.FloatRange(0, 0.999), help="Momentum of SGD. [0.9]")
    weight_decay: float | None = option(type=click.FloatRange(0), help="L2 penalty on the weights. [0.0005]")
    colour_shift: float | None = option(
        type=click.FloatRange(0), help="Standard deviation of the random colour shift. [0.1]"
    )
    full_decode: bool = flag(help="Decode JPEG files at full size, never at 1/2, 1/4 or 1/8 of it.")
    drops: int | None = option(type=click.IntRange(0), help="How often the learning rate is divided by 10. [3]")
    patience: int | None = option(
        type=COUNT, help="Validations without a gain after which the learning rate is divided. [5]"
    )
    validate_every: int | None = option(type=COUNT, metavar="STEPS", help="Steps between validations. [an epoch]")
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of everything that is random.")
    device: str | None = option(help="cpu, cuda, cuda:1, ... [a GPU if there is one]")
    precision: LearningPrecision | None = option(
        type=get_args(LearningPrecision),
        help="Precision of the convolutions and matrix products. [bf16 on a GPU, else fp32]",
    )
    compiled: bool = flag("--compile", help="Compile the net, which starts slowly and is then faster on a GPU.")
    micro_batch: int | None = option(
        type=COUNT, help="Images in one pass through the net, which bounds the memory. [as many as fit]"
    )
    workers: int | None = option(type=click.IntRange(0, 256),
        help="Processes that decode images. [one a core, at most 16]")  # fmt: skip
    checkpoint_every: int | None = option(type=COUNT, metavar="STEPS", help="Steps between checkpoints. [1000]")
    log_every: int | None = option(type=COUNT, metavar="STEPS", help="Steps between lines of the log. [50]")
    as_json: bool = flag("--json", help="Print the summary as JSON.")
    quiet: bool = flag(help="Show no progress.")

    def recipe(self) -> dict[str, Any]:
        """Return the fields of `vggfeat.training.recipe.Recipe` that they decide."""
        names = ("dropout", "momentum", "weight_decay", "colour_shift", "drops", "patience", "validate_every")
        return {"seed": self.seed, "reduced": not self.full_decode, **given(vars(self), names)}

    def settings(self) -> "TrainingSettings":
        """Return how the work is done, and prepare the process for it."""
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
    def progress(self, title: str, out: Path) -> "Iterator[StepProgress]":
        """Show a bar, and hand out what updates it and returns whether Ctrl-C or SIGTERM has arrived.

        A signal is raised at the end, with a note of what the run has left in `out`.
        """
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


def given(chosen: Mapping[str, Any], names: Collection[str] | None = None) -> dict[str, Any]:
    """Return the options that were given, of all or of some names."""
    return {name: chosen[name] for name in names or chosen if chosen[name] is not None}


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The beginning of the recipe: the net, and the steps."""

    title: ClassVar[str] = "Recipe"
    width: float | None = option(type=click.FloatRange(0, min_open=True), help="Factor on the channels of the net. [1]")
    pool: str | None = option(type=["floor", "ceil"], help="How the size of a pooling's output is rounded. [floor]")
    batch: int | None = option(type=COUNT, help="Images in one step, over all processes. [256]")
    max_steps: int | None = option("--steps", type=COUNT, help="Largest number of steps. [370000]")
    learning_rate: float | None = option("--lr", "--learning-rate", type=click.FloatRange(0),
        help="Initial learning rate. [0.01; 0.001 from weights of this net]")  # fmt: skip
    initialisation: str | None = option(
        type=["glorot", "normal", "he"], help="Initialisation of layers that start at random. [glorot]"
    )
    normal_std: float | None = option(
        type=click.FloatRange(0), help="Standard deviation for --initialisation normal. [0.1]"
    )


@command(config=TRAIN.option)
def train(
    *,
    root: Path = option(required=True, metavar="ROOT",
        help="Folder of ILSVRC-2012 in any of its layouts, of a packed copy, or of your own classes."),
    layout: "Layout | None",
    net: str = option(type=["A", "A-LRN", "B", "C", "D", "E"], required=True, help="Column of Table 1 of the paper."),
    scale: tuple[int, int] = option(type=SCALE, default="256",
        help="S, the smallest image side in training, in pixels: 256, 384, or 256:512 to draw it for each image."),
    out: Path = option(required=True, metavar="DIR", help="Folder for the run."),
    resume: bool = flag(help="Resume from the newest sound checkpoint in DIR, which exists."),
    init_from: str | None = option(metavar="FILE|NAME",
        help="Weights to start from, of net A or of this net. [random]"),
    chosen: RecipeOptions,
    options: TrainingOptions,
) -> None:  # fmt: skip
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
    from vggfeat.training.recipe import recipe_for
    from vggfeat.training.train import train as run_training

    check_folder(out, RUN, kinds=(), inputs=net_files(init_from), overwrite=True)
    started_from = load_net(init_from) if init_from else None
    recipe = recipe_for(net, scale, started_from, **options.recipe(), **given(vars(chosen)))
    run = options.settings()
    data = ilsvrc.read(root, layout)
    train = counted(len(data.train), "image{s}")
    counts = f"{train} to train on, {len(data.val)} to validate, {len(data.classes)} classes"
    options.say(f"{counts}: {data.layout}")
    with options.progress(f"train {net}", out) as progress:
        outcome = run_training(
            recipe, data, out, started_from=started_from, resume=resume, run=run, progress=progress, say=options.say
        )
    if is_main():
        _show(outcome, options.as_json, _class_figures, "extract --dataset NAME --root ROOT --weights {}")


def _class_figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"top-{name[3]} error {100 * value:.1f} %" for name, value in figures.items())


def _box_figures(figures: Mapping[str, float]) -> str:
    error, overlap = figures["localisation_error"], figures["mean_overlap"]
    return f"localisation error {100 * error:.1f} %, mean overlap {overlap:.3f}"


def _show(
    outcome: "Outcome", as_json: bool, figures: Callable[[Mapping[str, float]], str], use: str, known: str = ""
) -> None:
    """Print what a run has left behind; `use` is what takes its weights, `known` what validation was given."""
    if as_json:
        say_json(asdict(outcome))
        return
    resumed = f", {outcome.resumed} of them by earlier runs" if outcome.resumed else ""
    say(f"{outcome.folder}: {counted(outcome.step, 'step{s}')}{resumed}, in {duration(outcome.seconds)}")
    for note in outcome.notes:
        say(f"note: {note}")
    say_left_out(outcome.unreadable, outcome.folder / "unreadable.jsonl")
    say(f"as a page: vggfeat report {shlex.quote(str(outcome.folder))}")
    found = outcome.validation
    if found is not None:
        say(f"centre crops of {found.images} validation images{known}, step {found.step}: {figures(found.figures)}")
    if outcome.weights is not None:
        say(f"weights: {outcome.weights}; to use them:")
        say(f"  vggfeat {use.format(shlex.quote(str(outcome.weights)))}")


@dataclass(frozen=True, kw_only=True)
class BoxRecipeOptions:
    """The recipe of a box net."""

    title: ClassVar[str] = "Recipe"
    kind: str | None = option(
        type=["pcr", "scr"], help="One box for each class (pcr), or one for all classes (scr). [pcr]"
    )
    layers: str | None = option(type=["all", "fc"], help="Layers that are trained: all, or fc6, fc7 and fc8. [all]")
    scale: int = option(
        type=COUNT, default=256, help="S, the smallest image side in training, in pixels: 256 or 384 in the paper."
    )
    frame: str | None = option(type=["window", "image"],
        help="Frame of the box coordinates: the window that the net sees, or the whole image. [window]")  # fmt: skip
    cut: str | None = option(
        type=["whole", "clipped"],
        help="Target for a box that the crop cuts: the whole box, or its visible part. [whole]",
    )
    least_inside: float | None = option(type=click.FloatRange(0, 1, min_open=True),
        help="Smallest share of a box within the crop for which it is learnt. [0.5]")  # fmt: skip
    several: str | None = option(type=["largest", "closest"],
        help="Target where there are several boxes: the largest in the crop, or the closest to the "
        "output. [largest]")  # fmt: skip
    unit: float | None = option(type=click.FloatRange(0, min_open=True),
        help="Unit of the outputs, in sides of the frame. [0.2]")  # fmt: skip
    head_std: float | None = option(
        type=click.FloatRange(0, min_open=True), help="Standard deviation of the new layer's initial weights. [0.01]"
    )
    batch: int | None = option(type=COUNT, help="Images in one step, over all processes. [256]")
    max_steps: int | None = option("--steps", type=COUNT, help="Largest number of steps. [370000]")
    learning_rate: float | None = option(
        "--lr", "--learning-rate", type=click.FloatRange(0), help="Initial learning rate. [0.001]"
    )


@command("train")
def localise_train(
    *,
    root: Path = option(required=True, metavar="ROOT", help="Folder of ILSVRC-2012 in any of its layouts, or of a "
        "packed copy."),
    layout: "Layout | None",
    annotations: Path | None = option(metavar="DIR",
        help="Folder with train and val of the boxes' XML files. [in ROOT or next to it]"),
    weights: str = option(required=True, metavar="FILE|NAME",
        help="Classification net to start from, trained at the same S."),
    out: Path = option(required=True, metavar="DIR", help="Folder for the run."),
    resume: bool = flag(help="Resume from the newest sound checkpoint in DIR, which exists."),
    chosen: BoxRecipeOptions,
    options: TrainingOptions,
) -> None:  # fmt: skip
    """Train box regression from a classification net, after Appendix A of the VGG paper.

    The last layer is replaced by one that answers with boxes and starts at random; the rest of the recipe is that of
    `vggfeat train`, with a learning rate of 0.001. Only images that have boxes are learnt from. DIR receives what it
    receives there; weights.safetensors is for `localise evaluate` and `localise predict`.

    \b
    Examples:
      vggfeat localise train --root ILSVRC --weights nets/D-256/weights.safetensors --scale 256 --out nets/D-256-pcr
      vggfeat localise train --root ILSVRC --weights D.safetensors --kind scr --layers fc --scale 384 --out nets/scr
      torchrun --nproc-per-node 4 -m vggfeat localise train --root ILSVRC --weights D.safetensors --out nets/D-pcr

    \b
    Exit codes: 0 done, 8 training that can't be carried out; others: vggfeat --help.
    """
    from vggfeat.localisation.nets import box_recipe_for
    from vggfeat.localisation.train import train_boxes

    check_folder(out, RUN, kinds=(), inputs=net_files(weights), overwrite=True)
    started_from = load_net(weights)
    recipe = box_recipe_for(started_from, **options.recipe(), **given(vars(chosen)))
    run = options.settings()
    data = _read_boxes(root, layout, annotations, options.quiet or not is_main())
    for note in (data.images.layout, *data.train.notes, *data.val.notes):
        options.say(note)
    with options.progress(f"localise train {recipe.kind}", out) as progress:
        outcome = train_boxes(
            recipe, data, out, started_from=started_from, resume=resume, run=run, progress=progress, say=options.say
        )
    if is_main():
        use = "localise evaluate --root ROOT --boxes {} --classifier FILE --protocol dense --out DIR"
        _show(outcome, options.as_json, _box_figures, use, known=", their class given")


def _read_boxes(root: Path, layout: "Layout | None", annotations: Path | None, quiet: bool) -> "BoxData":
    from vggfeat.datasets import ilsvrc
    from vggfeat.datasets.ilsvrc_boxes import read_boxes
    from vggfeat.localisation.train import BoxData

    images = ilsvrc.read(root, layout)
    with Progress("boxes", "files", quiet=quiet) as bar:
        train = read_boxes(root, images.train, "train", annotations=annotations, progress=bar.update)
        val = read_boxes(root, images.val, "val", annotations=annotations, progress=bar.update)
    return BoxData(images, train, val)
