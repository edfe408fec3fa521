"""`vggfeat audit` and `vggfeat map`: features in, what is wrong with images out, or a page of all of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.descriptors import GivenFile
from vggfeat.cli.options import PATH, QUIET, WorkerOptions, json_option, option, with_options
from vggfeat.cli.output import make_folder, say, say_json, say_lines, terminal_width
from vggfeat.cli.progress import Progress
from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from vggfeat.audit import AuditSettings
    from vggfeat.projection import ProjectionSettings


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What counts as a problem."""

    near: float = option(
        "--near", type=click.FloatRange(0, 1, min_open=True), default=0.98, help="Least cosine of near duplicates."
    )
    fewest: int = option("--fewest", type=click.IntRange(0), default=10, help="Images that a class should have.")
    neighbours: int = option(
        "--neighbours", type=click.IntRange(1, 1000), default=5,
        help="Nearest images whose mean distance tells an outlier.",
    )  # fmt: skip
    folds: int = option(
        "--folds", type=click.IntRange(2), default=5,
        help="Of the cross-validation that doubts labels: so many times classes times 4 SVMs are trained.",
    )  # fmt: skip
    no_labels: bool = option("--no-labels", is_flag=True, help="Doubt no labels: nothing is trained.")
    seed: int = option("--seed", type=click.IntRange(0), default=0, help="Of the folds.")

    def settings(self) -> "AuditSettings":
        """Return them as `vggfeat.audit.audit_table` takes them."""
        from vggfeat.audit import AuditSettings

        given = {name: getattr(self, name) for name in ("near", "fewest", "neighbours", "folds", "seed")}
        return AuditSettings(labels=not self.no_labels, **given)


@click.command()
@click.argument("files", type=PATH, nargs=-1, metavar="FEATURES.h5|RUN...")
@with_options(AuditOptions, "chosen")
@with_options(GivenFile, "given")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Entries of a list on the terminal.")
@click.option("--out", type=PATH, metavar="PAGE.html", help="Write a page as well.")
@click.option("--root", "images", type=PATH, metavar="ROOT",
              help="Where the images are, for the page or with --descriptors: as for `extract`.")  # fmt: skip
@with_options(WorkerOptions, "workers")
@json_option("Print all lists as JSON.")
@QUIET
def audit(
    files: tuple[Path, ...],
    chosen: AuditOptions,
    given: GivenFile,
    top: int,
    out: Path | None,
    images: Path | None,
    workers: WorkerOptions,
    as_json: bool,
    quiet: bool,
) -> None:
    """Look for copies, near duplicates, wrong labels, outliers and small classes in a feature file.

    Copies have the same bytes; near duplicates a cosine from --near on. Both matter most across splits, and are listed
    first there. Labels are doubted by SVMs that did not see the image; outliers are far from their nearest images. All
    of it is for people to look at: nothing is changed.

    \b
    Examples:
      vggfeat audit photos.h5
      vggfeat audit photos.h5 --root photos --out audit.html
      vggfeat audit --descriptors clip.parquet --dataset folder --root photos
    """
    from vggfeat.audit import audit_table
    from vggfeat.results.audit import audit_json, audit_page, audit_text
    from vggfeat.results.page import check_page_place, write_page

    inputs = given.inputs(files)
    if images is not None and out is None and given.file is None:
        raise ConfigError("--root: expected together with --out, found alone; leave it out, or give --out")
    if out is not None:
        check_page_place(out, [*inputs, *filter(None, (images,))])
        make_folder(out.parent)
    table = given.read(inputs, images)
    with Progress("audit", "steps", quiet=quiet) as bar:
        found = audit_table(table, chosen.settings(), progress=bar.update_stage)
    content = audit_json(found, table, str(inputs[0]))
    if out is not None:
        write_page(out, audit_page(content, images, workers=workers.processes()))
    if as_json:
        say_json(content)
        return
    say_lines(audit_text(content, top=top, width=terminal_width()))
    if out is not None:
        say(str(out))


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

        return ProjectionSettings(**vars(self))


@click.command("map")
@click.argument("files", type=PATH, nargs=-1, metavar="FEATURES.h5|RUN...")
@click.option("--out", type=PATH, default=Path("map.html"), show_default=True, help="The page.")
@click.option("--root", "images", type=PATH, metavar="ROOT",
              help="Where the images are: what `extract --root` was given. [a page without images]")  # fmt: skip
@click.option("--run", "results", type=PATH, metavar="RUN",
              help="A folder of `svm`: colours are the classes that it gave. [the labels, or clusters]")  # fmt: skip
@with_options(ProjectionOptions, "projection")
@with_options(GivenFile, "given")
@with_options(WorkerOptions, "workers")
@json_option("Print places and clusters as JSON.")
def map_(
    files: tuple[Path, ...],
    out: Path,
    images: Path | None,
    results: Path | None,
    projection: ProjectionOptions,
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
    from vggfeat.results.page import check_page_place, write_page

    inputs = given.inputs(files)
    check_page_place(out, [*inputs, *filter(None, (images, results))])
    make_folder(out.parent)
    predicted = None if results is None else predictions_of(results)
    content = map_json(given.read(inputs, images), str(inputs[0]), projection.settings(), predicted)
    write_page(out, map_page(content, images, workers=workers.processes()))
    if as_json:
        say_json({**content, "page": str(out)})
        return
    say_lines(map_text(content))
    say(str(out))
