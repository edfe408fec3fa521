"""`vggfeat similar`: an image in, the images most like it out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.descriptors import DescriptorOptions, default_join
from vggfeat.cli.options import DEVICE, NET, PATH, QUIET, json_option, net_files, with_options
from vggfeat.cli.output import make_folder, say, say_json, say_lines, terminal_width
from vggfeat.cli.progress import Progress
from vggfeat.errors import ConfigError
from vggfeat.runtime.devices import default_device
from vggfeat.runtime.targets import anything, check_target

if TYPE_CHECKING:
    from vggfeat.store.reader import Features


@click.command()
@click.argument("file", type=PATH, metavar="FEATURES.h5|RUN")
@click.option("--query", required=True, metavar="IMAGE|ID", help="An image file, or the id of one in the file.")
@click.option("--top", type=click.IntRange(1, 10000), default=20, show_default=True, help="How many to name.")
@with_options(DescriptorOptions, "descriptors")
@click.option("--weights", metavar=NET,
              help="Of an image that is not in the file: the net that made it. [by SHA-256, in weights/]")  # fmt: skip
@DEVICE
@click.option("--index", "place", type=PATH, metavar="FILE",
              help="Search by an index, which is made if the file is not there: vggfeat[search].")  # fmt: skip
@click.option("--out", type=PATH, metavar="PAGE.html", help="Write a page as well.")
@click.option("--root", "images", type=PATH, metavar="ROOT",
              help="Where the images are, for the page: what `extract --root` was given.")  # fmt: skip
@json_option()
@QUIET
def similar(
    file: Path,
    query: str,
    top: int,
    descriptors: DescriptorOptions,
    weights: str | None,
    device: str | None,
    place: Path | None,
    out: Path | None,
    images: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
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
    from vggfeat.results.page import check_page_place, write_page
    from vggfeat.results.similar import similar_json, similar_page, similar_text
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
    settings = DescriptorSettings(
        join=descriptors.join or default_join(file),  # type: ignore[arg-type]
        normalisation=descriptors.normalisation,  # type: ignore[arg-type]
        regions=descriptors.regions,
    )
    with open_features(file) as features:
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
    if as_json:
        say_json(content)
        return
    say_lines(similar_text(content, width=terminal_width()))
    if out is not None:
        say(str(out))


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
    made = extract_query(features, Path(query), net, device or default_device(), regions=settings.regions)
    return None, settings.describe(features, made)[0]
