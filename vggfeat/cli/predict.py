"""`vggfeat predict` and `vggfeat explain`: a saved model on images: their classes, and where a score comes from."""

from pathlib import Path

import click

from vggfeat.cli.options import (
    ALLOW_FAILED,
    DEVICE,
    NET,
    OVERWRITE,
    PATH,
    QUIET,
    SPREADSHEET_SAFE,
    WorkerOptions,
    json_option,
    net_files,
    print_notes,
    with_options,
)
from vggfeat.cli.output import make_folder, say, say_json, say_lines, say_note, terminal_width
from vggfeat.cli.progress import Progress
from vggfeat.cli.svm import ProbabilityOptions
from vggfeat.errors import ConfigError, counted
from vggfeat.results.record import write_file
from vggfeat.runtime.devices import default_device, ready_device
from vggfeat.runtime.targets import check_target


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--model", required=True, type=PATH, metavar="RUN|MODEL",
              help="Folder of `vggfeat svm --fit-all`, or a model in such a folder.")  # fmt: skip
@click.option("--weights", multiple=True, metavar=NET,
              help="The net of the model's features; several where they were fused. [by SHA-256]")  # fmt: skip
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes of an image that are named.")
@with_options(ProbabilityOptions, "probability")
@DEVICE
@with_options(WorkerOptions, "working")
@ALLOW_FAILED
@click.option("--out", type=PATH, metavar="FILE.csv", help="Write all scores as CSV.")
@OVERWRITE
@SPREADSHEET_SAFE
@json_option("Print JSON instead of a table.")
@QUIET
def predict(
    images: tuple[Path, ...],
    model: Path,
    weights: tuple[str, ...],
    top: int,
    probability: ProbabilityOptions,
    device: str | None,
    working: WorkerOptions,
    allow_failed: int,
    out: Path | None,
    overwrite: bool,
    spreadsheet_safe: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Say what is on images, by a model of `svm`.

    IMAGES are files, or folders with images at any depth. Their features are extracted in memory, by the net and the
    settings that the model's file names, and scored; nothing but --out is written. An image that can't be read is a
    row with its reason, and the others go on; the exit code is 3 then.

    \b
    Examples:
      vggfeat predict holiday/ more/1.jpg --model photos.svm
      vggfeat predict holiday/ --model photos.svm --probabilities --abstain-below 0.5 --out holiday.csv
    """
    from vggfeat.predict import list_images, nets_of, predict_images
    from vggfeat.protocols.apply import open_model
    from vggfeat.results.predictions import images_table, predictions_json, scores_csv

    if out is None and (overwrite or spreadsheet_safe):
        name = "--overwrite" if overwrite else "--spreadsheet-safe"
        raise ConfigError(f"{name}: expected together with --out, found alone; leave it out, or give --out")
    target = None
    if out is not None:
        target = check_target(out, inputs=[*images, model, *net_files(*weights)], overwrite=overwrite)
        make_folder(target.parent)
    files, notes = list_images(images)
    for note in notes:
        say_note(note)
    saved = open_model(model)
    nets = nets_of(saved, weights)
    for net in nets:
        print_notes(net)
    with Progress("predict", "images", quiet=quiet) as bar:
        bar.update(0, len(files))
        found = predict_images(
            saved,
            files,
            nets,
            probability.settings(),
            device=ready_device(device),
            workers=working.processes(),
            progress=bar.update,
        )
    if target is not None:
        write_file(target, scores_csv(found, spreadsheet_safe=spreadsheet_safe))
    if as_json:
        say_json(predictions_json(found, model=saved.path, top=top))
    else:
        say_lines(images_table(found, top=top, width=terminal_width()))
        if out is not None:
            say(f"{out}: {counted(len(files), 'image{s}')}")
    return 3 if int(found.failed.sum()) > allow_failed else 0


@click.command()
@click.argument("image", type=PATH, metavar="IMAGE")
@click.option("--model", type=PATH, required=True, metavar="RUN|model.safetensors",
              help="A model of `vggfeat svm`, or the folder of a run with its model.safetensors.")  # fmt: skip
@click.option("--class", "name", metavar="NAME", help="Whose score is explained. [the highest]")
@click.option("--weights", multiple=True, metavar=NET,
              help="The net of the features, once for each. [by SHA-256, in weights/]")  # fmt: skip
@DEVICE
@click.option("--out", type=PATH, metavar="FILE.png", help="The drawing. [IMAGE.evidence.png, here]")
@OVERWRITE
@json_option("Print the sums of every scale and class as JSON.")
def explain(
    image: Path,
    model: Path,
    name: str | None,
    weights: tuple[str, ...],
    device: str | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw where in an image the score of a class comes from.

    A linear SVM on averages over an image is a sum over its positions: what each adds is exact, and with the intercept
    the sum is the score. The drawing is orange where the image speaks for the class and blue where against it.

    \b
    Examples:
      vggfeat explain holiday.jpg --model voc2007.svm
      vggfeat explain holiday.jpg --model voc2007.svm --class dog --weights D.safetensors --out dog.png
    """
    from vggfeat.explain import explain as explain_image
    from vggfeat.protocols.apply import find_model
    from vggfeat.results.evidence import evidence_json, evidence_text, overlay

    chosen = find_model(model)
    out = out or Path(f"{image.stem}.evidence.png")
    target = check_target(out, inputs=[image, model, chosen, *net_files(*weights)], overwrite=overwrite)
    make_folder(target.parent)
    found = explain_image(image, chosen, name=name, weights=weights, device=device or default_device())
    content = evidence_json(found, str(image), str(chosen))
    write_file(target, overlay(found))
    if as_json:
        say_json({**content, "drawing": str(target)})
        return
    say_lines(evidence_text(content))
    say(str(out))
