"""`vggfeat localise train`: a classification net and images with boxes in, a box net out."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.options import LAYOUT, PATH, load_net, net_files, with_options
from vggfeat.cli.output import say
from vggfeat.cli.signals import is_main
from vggfeat.cli.train import RUN, TrainingOptions, given, show_json, show_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.datasets.levels import Layout
    from vggfeat.localisation.train import BoxData
    from vggfeat.training.trainer import Outcome

RECIPE = ("kind", "layers", "frame", "cut", "least_inside", "several", "unit", "head_std", "batch", "max_steps",
          "learning_rate")  # fmt: skip


@click.command("train")
@click.option("--root", type=PATH, required=True, metavar="ROOT",
              help="ILSVRC-2012 in any of its layouts, or a packed copy.")  # fmt: skip
@LAYOUT
@click.option("--annotations", type=PATH, metavar="DIR",
              help="Folder with train and val of the boxes' XML files. [in ROOT or next to it]")  # fmt: skip
@click.option("--weights", required=True, metavar="FILE|NAME",
              help="Classification net to start from, trained at the same S.")  # fmt: skip
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Resume from the newest sound checkpoint in DIR, which exists.")
@click.option("--kind", type=click.Choice(["pcr", "scr"]), help="A box for each class, or one for all. [pcr]")
@click.option("--layers", type=click.Choice(["all", "fc"]), help="Which learn: all, or fc6, fc7 and fc8. [all]")
@click.option("--scale", type=click.IntRange(1), default=256, show_default=True,
              help="S, smallest image side in training: 256 or 384 in the paper.")  # fmt: skip
@click.option("--frame", type=click.Choice(["window", "image"]),
              help="What boxes are relative to: what the net sees, or the whole image. [window]")  # fmt: skip
@click.option("--cut", type=click.Choice(["whole", "clipped"]), help="Of a box that the crop cuts: [whole]")
@click.option("--least-inside", type=click.FloatRange(0, 1, min_open=True),
              help="Share of a box that a crop must hold to learn from it. [0.5]")  # fmt: skip
@click.option("--several", type=click.Choice(["largest", "closest"]),
              help="Of several boxes, the largest in the crop, or that closest to the answer. [largest]")  # fmt: skip
@click.option("--unit", type=click.FloatRange(0, min_open=True),
              help="What an output of 1 means, in sides of the frame. [0.2]")  # fmt: skip
@click.option("--head-std", type=click.FloatRange(0, min_open=True), help="Deviation of the new layer. [0.01]")
@click.option("--batch", type=click.IntRange(1), help="Images in a step, over all processes. [256]")
@click.option("--steps", "max_steps", type=click.IntRange(1), help="Most steps. [370000]")
@click.option("--lr", "--learning-rate", "learning_rate", type=click.FloatRange(0), help="At first. [0.001]")
@with_options(TrainingOptions, "options")
def localise_train(
    root: Path,
    layout: "Layout | None",
    annotations: Path | None,
    weights: str,
    out: Path,
    resume: bool,
    scale: int,
    options: TrainingOptions,
    **chosen: Any,
) -> None:
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
    from vggfeat.runtime.targets import check_folder

    check_folder(out, RUN, kinds=(), inputs=net_files(weights), overwrite=True)
    started_from = load_net(weights)
    recipe = box_recipe_for(started_from, scale, **options.recipe(), **given(chosen, RECIPE))
    run = options.settings()
    data = _read(root, layout, annotations, options.quiet or not is_main())
    for note in (data.images.layout, *data.train.notes, *data.val.notes):
        options.say(note)
    with options.progress(f"localise train {recipe.kind}", out) as progress:
        outcome = train_boxes(
            recipe, data, out, started_from=started_from, resume=resume, run=run, progress=progress, say=options.say
        )
    if is_main():
        _show(outcome, options.as_json)


def _read(root: Path, layout: "Layout | None", annotations: Path | None, quiet: bool) -> "BoxData":
    from vggfeat.cli.progress import Progress
    from vggfeat.datasets import ilsvrc
    from vggfeat.datasets.ilsvrc_boxes import read_boxes
    from vggfeat.localisation.train import BoxData

    images = ilsvrc.read(root, layout)
    with Progress("boxes", "files", quiet=quiet) as bar:
        progress: Callable[[int, int], None] = bar.update
        train = read_boxes(root, images.train, "train", annotations=annotations, progress=progress)
        val = read_boxes(root, images.val, "val", annotations=annotations, progress=progress)
    return BoxData(images, train, val)


def _show(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        show_json(outcome)
        return
    show_run(outcome)
    found = outcome.validation
    if found is not None:
        error, overlap = (found.figures[name] for name in ("localisation_error", "mean_overlap"))
        say(
            f"centre crops of {found.images} validation images, their class given, step {found.step}: "
            f"localisation error {100 * error:.1f} %, mean overlap {overlap:.3f}"
        )
    if outcome.weights is not None:
        say(f"weights: {outcome.weights}; to use them:")
        say(
            f"  vggfeat localise evaluate --root ROOT --boxes {shlex.quote(str(outcome.weights))} "
            "--classifier FILE --protocol dense --out DIR"
        )
