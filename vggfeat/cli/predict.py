"""`vggfeat predict`, `explain` and `similar`: what is on an image, why, and what is like it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.commands import COUNT, argument, command, json_option, option
from vggfeat.cli.features import DescriptorOptions
from vggfeat.cli.options import NET, WorkerOptions, net_files, print_notes
from vggfeat.cli.output import Progress, make_folder, say, say_json, say_lines, say_note, show, terminal_width
from vggfeat.cli.svm import ProbabilityOptions
from vggfeat.errors import ConfigError
from vggfeat.results.record import write_file
from vggfeat.runtime.devices import ready_device
from vggfeat.runtime.output_paths import anything, check_target
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.store.reader import Features


@command()
def predict(
    *,
    images: tuple[Path, ...] = argument(nargs=-1, required=True),
    model: Path = option(required=True, metavar="RUN|MODEL",
        help="Folder of `vggfeat svm --fit-all`, or a model in such a folder."),
    weights: tuple[str, ...] = option(multiple=True, metavar=NET,
        help="The net of the model's features; give several where they were fused. [found by SHA-256]"),
    top: int = option(type=COUNT, default=3, help="Number of classes named for each image."),
    probability: ProbabilityOptions,
    device: str | None,
    working: WorkerOptions,
    allow_failed: int,
    out: Path | None = option(metavar="FILE.csv", help="Write all scores as CSV."),
    overwrite: bool,
    spreadsheet_safe: bool,
    as_json: bool = json_option("Print JSON instead of a table."),
    quiet: bool,
) -> int:  # fmt: skip
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


@command()
def explain(
    *,
    image: Path = argument(metavar="IMAGE"),
    model: Path = option(required=True, metavar="RUN|model.safetensors",
        help="A model of `vggfeat svm`, or the folder of a run with its model.safetensors."),
    name: str | None = option("--class", metavar="NAME", help="Class whose score is explained. [the class with the "
        "highest score]"),
    weights: tuple[str, ...] = option(multiple=True, metavar=NET,
        help="The net of the model's features; give several where they were fused. [found by SHA-256 in weights/]"),
    device: str | None,
    out: Path | None = option(metavar="FILE.png", help="File for the drawing. [IMAGE.evidence.png in the current "
        "folder]"),
    overwrite: bool,
    as_json: bool = json_option("Print the sums of every scale and class as JSON."),
) -> None:  # fmt: skip
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
    from vggfeat.results.predictions import evidence_json, evidence_text, overlay

    chosen = find_model(model)
    out = out or Path(f"{image.stem}.evidence.png")
    target = check_target(out, inputs=[image, model, chosen, *net_files(*weights)], overwrite=overwrite)
    make_folder(target.parent)
    found = explain_image(image, chosen, name=name, weights=weights, device=device)
    content = evidence_json(found, str(image), str(chosen))
    write_file(target, overlay(found))
    show(as_json, {**content, "drawing": str(target)}, [*evidence_text(content).split("\n"), str(out)])


@command()
def similar(
    *,
    file: Path = argument(metavar="FEATURES.h5|RUN"),
    query: str = option(required=True, metavar="IMAGE|ID", help="An image file, or the id of one in the file."),
    top: int = option(type=click.IntRange(1, 10000), default=20, help="Number of images to name."),
    descriptors: DescriptorOptions,
    weights: str | None = option(metavar=NET,
        help="The net that made the features, for a query that is not in the file. [found by SHA-256 in weights/]"),
    device: str | None,
    place: Path | None = option("--index", metavar="FILE",
        help="Search by an index, which is made if the file is not there; needs the extra search."),
    out: Path | None = option(metavar="PAGE.html", help="Also write an HTML page."),
    images: Path | None = option("--root", metavar="ROOT",
        help="Folder of the images, for the page: what `extract --root` was given."),
    as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Name the images of a feature file that are most like one, by the cosine of their descriptors.

    Every row is compared. An image that is in the file (an id, or a file of the same bytes) needs no net; another
    one is run through the net that made the file, with the same settings. With --index candidates come from a file that
    the first such command makes, and their cosines are exact; an image file always goes through the net. It pays for
    many queries of a million images and more.

    \b
    Examples:
      vggfeat similar voc2007.h5 --query 000012
      vggfeat similar /disk/run --query 000012 --index run.index
      vggfeat similar voc2007.h5 --query holiday.jpg --weights D.safetensors --out like.html --root VOCdevkit
    """
    from vggfeat.descriptor_stream import paper_join
    from vggfeat.results.features import similar_json, similar_page, similar_text
    from vggfeat.results.page import check_page_place, write_page
    from vggfeat.similar import DescriptorSettings, nearest, nearest_by_index, open_index
    from vggfeat.store.sharded import open_features

    if images is not None and out is None:
        raise ConfigError("--root: expected together with --out, found alone; leave it out, or give --out")
    if place is not None:
        check_target(place, inputs=[file, *filter(None, (images, out))], ours=anything, option="--index")
        if out is not None and os.path.realpath(place) == os.path.realpath(out):
            raise ConfigError(f"--index: expected another file than --out, found {place} for both; choose another name")
        make_folder(place.parent)
    if out is not None:
        check_page_place(out, [file, *filter(None, (images,)), query, *net_files(weights)])
        make_folder(out.parent)
    with open_features(file) as features:
        settings = DescriptorSettings(
            join=descriptors.join or paper_join(features),  # type: ignore[arg-type]
            normalisation=descriptors.normalisation,  # type: ignore[arg-type]
            regions=descriptors.regions,
        )
        row, descriptor = _descriptor(features, query, settings, weights, device, known=place is None)
        own = () if row is None else (row,)
        if place is None:
            found = nearest(features, descriptor, settings, top=top, without=own)
        else:
            with Progress("index", "images", quiet=quiet) as bar:
                index = open_index(features, place, settings, bar.update)
            found = nearest_by_index(features, descriptor, index, settings, top=top, without=own)
        content = similar_json(features, query, row, found, settings)
        if out is not None:
            sample = None if row is None else features.dataset[row]
            shown = None if sample is None else (sample.path, sample.box)
            write_page(out, similar_page(content, features.dataset_name, shown, Path(query), images))
    lines = similar_text(content, width=terminal_width()).split("\n")
    show(as_json, content, lines if out is None else [*lines, str(out)])


def _descriptor(
    features: "Features", query: str, settings: Any, weights: str | None, device: str | None, *, known: bool
) -> tuple[int | None, Any]:
    from vggfeat.similar import query_of_row

    if query in features.dataset.ids or not Path(query).is_file():
        return query_of_row(features, query, settings)
    from vggfeat.forward.rerun import find_net
    from vggfeat.similar import extract_query, row_of_image

    row = row_of_image(features, Path(query)) if known else None
    if row is not None:
        return query_of_row(features, features.dataset.ids[row], settings)
    net = find_net(str(features.path), features.provenance, weights)
    made = extract_query(features, Path(query), net, device, regions=settings.regions)
    return None, settings.describe(features, made)[0]
