"""`vggfeat data`: what data sets there are, whether a copy is whole, its splits, and rendered imitations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat import synthetic
from vggfeat.cli.options import LAYOUT, PATH, QUIET, Parsed, Words, json_option, option, with_options
from vggfeat.cli.output import say, say_json, say_left_out, terminal_width
from vggfeat.cli.progress import Progress
from vggfeat.errors import ConfigError, counted
from vggfeat.runtime.devices import default_workers
from vggfeat.runtime.targets import check_folder

if TYPE_CHECKING:
    from vggfeat.datasets.check import DatasetReport
    from vggfeat.datasets.levels import Layout
    from vggfeat.datasets.manifest import ListSettings

SHOWN_FAILURES = 10
PACKED = ("index.json", "packing.json", "train.npz", "val.npz", "unreadable.jsonl")
ROOT = click.option("--root", type=PATH, help="Its place. [$VGGFEAT_DATA/NAME, data/NAME]")


def _column(text: str) -> tuple[str, str]:
    name, _, heading = text.partition("=")
    if not (name and heading):
        raise ValueError
    return name.strip(), heading.strip()


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """How the list of --dataset manifest is read, where it does not tell it itself."""

    columns: tuple[tuple[str, str], ...] = option(
        "--column", multiple=True, type=Parsed("NAME=HEADING", "NAME=HEADING, for instance path=Photo", _column),
        help="In a list, the heading of the column path, labels, split, box, id or group; may be given several times.",
    )  # fmt: skip
    one_hot: tuple[str, ...] | None = option(
        "--one-hot", type=Words(), help="In a list, headings of columns of 0 and 1 that are a class each."
    )
    label_separator: str | None = option(
        "--label-separator", type=click.Choice([";", "|", ",", "none"]),
        help="In a list, between several labels of an image. [; in a column called labels]",
    )  # fmt: skip
    encoding: str | None = option("--encoding", help="Of a list in CSV: cp1252, latin-1, ... [utf-8, or by its mark]")
    sheet: str | None = option("--sheet", help="Of a list in an Excel workbook. [the only one with content]")

    def settings(self) -> "ListSettings":
        """Return them as `vggfeat.open_dataset` takes them."""
        from vggfeat.datasets.manifest import ListSettings

        columns = dict(self.columns)
        if len(columns) < len(self.columns):
            given = ", ".join(map("=".join, self.columns))
            raise ConfigError(f"--column: expected each column once, found {given}; leave one out")
        return ListSettings(
            columns=columns,
            one_hot=self.one_hot or (),
            label_separator=self.label_separator,  # type: ignore[arg-type]
            encoding=self.encoding,
            sheet=self.sheet,
        )

    def told(self, layout: "Layout | None") -> dict[str, Any]:
        """Return what was told of a list, with --layout, as a plan keeps it: a value for each option that was given."""
        given = {"layout": layout, **{one.name: getattr(self, one.name) for one in fields(self)}}
        given["columns"] = dict(self.columns)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value}

    def as_planned(self, planned: Mapping[str, Any], layout: "Layout | None") -> "tuple[Layout | None, ListOptions]":
        """Return what a plan was told of its list; ConfigError if something else is told now."""
        names = {"layout": "--layout"} | {one.name: one.metadata["names"][0] for one in fields(self)}
        for name, value in self.told(layout).items():
            if value != planned.get(name):
                raise ConfigError(
                    f"{names[name]}: expected {_shown(planned.get(name))}, as the list was planned, found "
                    f"{_shown(value)}; leave it out"
                )
        told = {name: value for name, value in planned.items() if name != "root"}
        told["one_hot"] = tuple(planned.get("one_hot", ())) or None
        told["columns"] = tuple(planned.get("columns", {}).items())
        return told.pop("layout", None), ListOptions(**told)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(map("=".join, value.items()))
    return "none" if value is None else value if isinstance(value, str) else ",".join(value)


@click.group()
def data() -> None:
    """List, check, split and imitate data sets."""


@data.command("list")
@json_option()
def list_(as_json: bool) -> None:
    """List the data sets that can be read, with the paper's settings for each.

    \b
    Example:
      vggfeat data list
    """
    from vggfeat.datasets.catalogue import DATASETS

    if as_json:
        fields = ("name", "title", "scales", "regions", "join", "protocol")
        say_json([{field: getattr(record, field) for field in fields} for record in DATASETS.values()])
        return
    from vggfeat.results.text import align

    rows = [["name", "join", "regions", "Q", "title"]]
    rows += [
        [record.name, record.join, ",".join(record.regions), ",".join(map(str, record.scales)), record.title]
        for record in DATASETS.values()
    ]
    for line in align(rows, left=len(rows[0]), width=terminal_width()):
        say(line)


@data.command()
@click.argument("name")
@ROOT
@LAYOUT
@with_options(ListOptions, "listing")
@click.option("--all", "everything", is_flag=True, help="List the numbers that agree as well.")
@json_option()
def check(
    name: str,
    root: Path | None,
    layout: "Layout | None",
    listing: ListOptions,
    everything: bool,
    as_json: bool,
) -> int:
    """Compare a copy with the official numbers, and name what is missing and where it is published.

    \b
    Example:
      vggfeat data check voc2007 --root VOCdevkit
      vggfeat data check manifest --root list.xlsx --column path=Photo --column labels=Diagnosis

    Exit code 4 if the copy is not complete.
    """
    from vggfeat.datasets.check import check_copy

    report = check_copy(name, root, layout, listing.settings())
    if as_json:
        fields = {"name": report.name, "root": report.root, "complete": report.complete, "problem": report.problem}
        rows = {
            "counts": [{**count._asdict(), "agrees": count.agrees} for count in report.counts],
            "missing": [problem._asdict() for problem in report.missing],
            "notes": list(report.notes),
            "archives": [archive._asdict() for archive in report.archives],
        }
        say_json(fields | rows)
        return 0 if report.complete else 4
    for line in _lines(report, everything):
        say(line)
    return 0 if report.complete else 4


@data.command()
@click.argument("name")
@ROOT
@LAYOUT
@with_options(ListOptions, "listing")
@click.option("--out", type=PATH, help="Folder for the lists. [NAME-splits]")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@json_option()
def splits(
    name: str,
    root: Path | None,
    layout: "Layout | None",
    listing: ListOptions,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the ids of every split to a text file of its own.

    \b
    Example:
      vggfeat data splits caltech101 --root caltech-101 --out splits/
    """
    from vggfeat.datasets.catalogue import open_dataset, resolve_root
    from vggfeat.datasets.check import write_splits

    folder, inputs = out or Path(f"{name}-splits"), [resolve_root(name, root)]
    found = open_dataset(name, root, layout, listing.settings())
    written = write_splits(found, folder, overwrite=overwrite, inputs=inputs)
    if as_json:
        say_json({"files": [str(path) for path in written]})
        return
    for path in written:
        say(str(path))


@data.command()
@click.argument("name", metavar=f"[{'|'.join(synthetic.LAYOUTS)}]")
@click.option("--root", type=PATH, required=True, help="A folder that is new or empty.")
@click.option("--size", type=click.Choice(synthetic.SIZES), default="demo", show_default=True,
              help="Counts and sides of the images.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another number, other images.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Rendering processes.")
@json_option()
@QUIET
def synth(name: str, root: Path, size: str, seed: int, workers: int, as_json: bool, quiet: bool) -> None:
    """Render a small, learnable imitation of a data set in its official layout.

    formulas imitates none: fractals, surfaces, leaves and bodies in class folders, below train and val, for `train`.

    \b
    Example:
      vggfeat data synth voc2007 --root data/voc2007
    """
    check_folder(root, [synthetic.MARKER], kinds=(), overwrite=True, option="--root")
    with Progress(f"synth {name}", "images", quiet=quiet) as bar:
        fresh = synthetic.write(name, root, seed=seed, size=size, workers=workers, progress=bar.update)
    if as_json:
        facts = {"root": str(root), "name": name, "size": size, "seed": seed, "rendered": fresh}
        say_json(facts)
        return
    say(f"{root}: {name}, size {size}, seed {seed}: {'rendered' if fresh else 'was there already'}")


@data.command()
@click.option("--root", type=PATH, required=True, help="Training images, as for `train`.")
@LAYOUT
@click.option("--out", type=PATH, required=True, help="A folder that is new or empty.")
@click.option("--side", type=click.IntRange(1), default=512, show_default=True,
              help="Smallest side that images are shrunk to: the largest S to train at.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 95), default=92, show_default=True, help="Of the JPEGs written.")
@click.option("--shard-images", type=click.IntRange(1), default=2048, show_default=True, help="Images in a file.")
@click.option("--workers", type=click.IntRange(0, 256), help="Processes. [one a core, at most 16]")
@json_option()
@QUIET
def pack(
    root: Path,
    layout: "Layout | None",
    out: Path,
    side: int,
    quality: int,
    shard_images: int,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Copy a training set into few large files, with images shrunk to what training needs.

    `train` reads the copy like the original, with fewer and cheaper reads. A run that was stopped resumes when the
    same command is given again.

    \b
    Example:
      vggfeat data pack --root ILSVRC --out ILSVRC-512 --side 512
    """
    from vggfeat.datasets import ilsvrc
    from vggfeat.training.packing import PackSettings
    from vggfeat.training.packing import pack as write

    check_folder(out, PACKED, kinds=(), overwrite=True)  # What is in it, packing itself looks at.
    settings = PackSettings(side=side, quality=quality, shard_images=shard_images)
    count = default_workers() if workers is None else workers
    with Progress("pack", "images", quiet=quiet) as bar:
        packed = write(ilsvrc.read(root, layout), out, settings, workers=count, progress=bar.update)
    if as_json:
        left_out = [{"path": path, "reason": reason} for path, reason in packed.unreadable]
        facts = {"folder": str(out), "images": packed.images, "bytes": packed.bytes, "left_out": left_out}
        say_json(facts)
        return
    say(f"{out}: {counted(packed.images, 'image{s}')}, {packed.bytes / 1e6:.0f} MB")
    say_left_out(packed.unreadable, out / "unreadable.jsonl")


def _lines(report: "DatasetReport", everything: bool) -> Iterator[str]:
    yield f"{report.name} at {report.root}: {'complete' if report.complete else 'NOT COMPLETE'}"
    if report.problem:
        yield f"problem: {report.problem}"
    counts = () if report.problem else report.counts
    for count in sorted(counts, key=lambda count: count.agrees):
        # Of a user's own images there is no official number, so that all of them tell something.
        if everything or not count.agrees or count.expected is None:
            expected = "no official number" if count.expected is None else f"official {count.expected}"
            doubt = "" if count.verified else " (not verified)"
            mark = "ok" if count.agrees else "DIFFERS"
            found = "-" if count.found is None else count.found
            yield f"  {count.split:12} {count.what:22} {found!s:>7}  {expected}{doubt}  {mark}"
    agreeing = sum(count.agrees and count.expected is not None for count in counts)
    if agreeing and not everything:
        yield f"{agreeing} of {len(counts)} numbers are the official ones; --all lists them"
    for problem in report.missing[:SHOWN_FAILURES]:
        yield f"missing: {problem.path}: {problem.reason}"
    if len(report.missing) > SHOWN_FAILURES:
        yield f"missing: {len(report.missing) - SHOWN_FAILURES} more"
    for note in report.notes:
        yield f"note: {note}"
    if not report.complete:
        for archive in report.archives:
            yield f"get: {archive.file} ({archive.algorithm} {archive.checksum}) from {archive.page}"
