"""`vggfeat map`: all images of a feature file as points on a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.features import DescriptorOptions
from vggfeat.cli.given import GivenFile
from vggfeat.cli.options import PATH, WorkerOptions, make_folder, option, with_options
from vggfeat.cli.output import say, say_json, say_lines

if TYPE_CHECKING:
    from vggfeat.projection import ProjectionSettings


@dataclass(frozen=True, kw_only=True)
class ProjectionOptions:
    """How images get a place in the plane."""

    method: str = option(
        "--method", type=click.Choice(["tsne", "umap", "pca"]), default="tsne",
        help="umap needs the library umap-learn: vggfeat[umap].",
    )  # fmt: skip
    clusters: int | None = option(
        "--clusters", type=click.IntRange(1), help="Of k-means. [the square root of half the images, at most 20]"
    )
    most: int = option("--most", type=click.IntRange(3), default=5000, help="Images; of more, so many are drawn.")
    seed: int = option("--seed", type=click.IntRange(0), default=0, help="Of all random choices.")

    def settings(self) -> "ProjectionSettings":
        """Return them as `vggfeat.projection` takes them."""
        from vggfeat.projection import ProjectionSettings

        given = {name: getattr(self, name) for name in ("method", "clusters", "most", "seed")}
        return ProjectionSettings(**given)


@click.command("map")
@click.argument("files", type=PATH, nargs=-1, metavar="FEATURES.h5...")
@click.option("--out", type=PATH, default=Path("map.html"), show_default=True, help="The page.")
@click.option("--root", "images", type=PATH, metavar="ROOT",
              help="Where the images are: what `extract --root` was given. [a page without images]")  # fmt: skip
@click.option("--run", "results", type=PATH, metavar="RUN",
              help="A folder of `svm`: colours are the classes that it gave. [the labels, or clusters]")  # fmt: skip
@with_options(ProjectionOptions, "projection")
@with_options(DescriptorOptions, "descriptors")
@with_options(GivenFile, "given")
@with_options(WorkerOptions, "workers")
@click.option("--json", "as_json", is_flag=True, help="Print places and clusters as JSON.")
def map_(
    files: tuple[Path, ...],
    out: Path,
    images: Path | None,
    results: Path | None,
    projection: ProjectionOptions,
    descriptors: DescriptorOptions,
    given: GivenFile,
    workers: WorkerOptions,
    as_json: bool,
) -> None:
    """Show all images of a feature file as points on one page, alike ones near each other.

    Point at one to see the image; drag over some to list their ids. The page also shows clusters (k-means) with their
    central images, which is a way into images without labels.

    \b
    Examples:
      vggfeat map photos.h5 --root photos --out map.html
      vggfeat map photos.h5 --run photos.svm --method pca
    """
    from vggfeat.results.map_page import map_json, map_page, map_text, predictions_of
    from vggfeat.results.page_files import check_page_place, write_page

    inputs = given.inputs(files)
    check_page_place(out, [*inputs, *([images] if images else []), *([results] if results else [])])
    make_folder(out.parent)
    predicted = None if results is None else predictions_of(results)
    content = map_json(given.read(inputs, descriptors, images), str(inputs[0]), projection.settings(), predicted)
    write_page(out, map_page(content, images, workers=workers.processes()))
    if as_json:
        say_json({**content, "page": str(out)})
        return
    say_lines(map_text(content))
    say(str(out))
