"""`vggfeat audit`: features in, what is wrong with the images and labels out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.features import DescriptorOptions
from vggfeat.cli.given import GivenFile
from vggfeat.cli.options import PATH, WorkerOptions, make_folder, option, terminal_width, with_options
from vggfeat.cli.output import say, say_json, say_lines
from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from vggfeat.audit import AuditSettings


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
@click.argument("files", type=PATH, nargs=-1, metavar="FEATURES.h5...")
@with_options(AuditOptions, "chosen")
@with_options(DescriptorOptions, "descriptors")
@with_options(GivenFile, "given")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Entries of a list on the terminal.")
@click.option("--out", type=PATH, metavar="PAGE.html", help="Write a page as well.")
@click.option("--root", "images", type=PATH, metavar="ROOT",
              help="Where the images are, for the page or with --descriptors: as for `extract`.")  # fmt: skip
@with_options(WorkerOptions, "workers")
@click.option("--json", "as_json", is_flag=True, help="Print all lists as JSON.")
@click.option("--quiet", is_flag=True, help="No progress.")
def audit(
    files: tuple[Path, ...],
    chosen: AuditOptions,
    descriptors: DescriptorOptions,
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
    from vggfeat.cli.progress import Progress
    from vggfeat.results.audit import audit_json, audit_page, audit_text
    from vggfeat.results.page_files import check_page_place, write_page

    inputs = given.inputs(files)
    if images is not None and out is None and given.file is None:
        raise ConfigError("--root: expected together with --out, found alone; leave it out, or give --out")
    if out is not None:
        check_page_place(out, [*inputs, *([images] if images else [])])
        make_folder(out.parent)
    table = given.read(inputs, descriptors, images)
    with Progress("audit", "steps", quiet=quiet) as bar:
        found = audit_table(
            table, chosen.settings(), progress=lambda doing, done, total: bar.update(done, total, doing)
        )
    content = audit_json(found, table, str(inputs[0]))
    if out is not None:
        write_page(out, audit_page(content, images, workers=workers.processes()))
    if as_json:
        say_json(content)
        return
    say_lines(audit_text(content, top=top, width=terminal_width()))
    if out is not None:
        say(str(out))
