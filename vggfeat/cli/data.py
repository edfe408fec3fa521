"""`vggfeat data`: what data sets there are, whether a copy is whole, its splits, and rendered imitations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from vggfeat import synthetic
from vggfeat.cli.commands import COUNT, PATH, WORDS, Parsed, argument, command, flag, names_of, option
from vggfeat.cli.output import Progress, say, say_json, say_left_out, show, terminal_width
from vggfeat.errors import ConfigError
from vggfeat.runtime.devices import default_workers
from vggfeat.runtime.output_paths import check_folder
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.datasets.check import DatasetReport
    from vggfeat.datasets.levels import Layout
    from vggfeat.datasets.manifest import ListSettings

SHOWN_FAILURES = 10
PACKED = ("index.json", "packing.json", "train.npz", "val.npz", "unreadable.jsonl")
ROOT = option(type=PATH, help="Folder of the data set. [$VGGFEAT_DATA/NAME, data/NAME]")


def _column(text: str) -> tuple[str, str]:
    name, _, heading = text.partition("=")
    if not (name and heading):
        raise ValueError
    return name.strip(), heading.strip()


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """How the list of --dataset manifest is read, where it does not tell it itself."""

    title: ClassVar[str] = "Lists of images"
    columns: tuple[tuple[str, str], ...] = option("--column", multiple=True,
        type=Parsed("NAME=HEADING", "NAME=HEADING, for instance path=Photo", _column),
        help="In a list, the heading of the column path, labels, split, box, id or group; "
        "may be given several times.")  # fmt: skip
    one_hot: tuple[str, ...] | None = option(type=WORDS,
        help="In a list, headings of the columns of 0 and 1, one for each class.")  # fmt: skip
    label_separator: str | None = option(type=[";", "|", ",", "none"], metavar="SEPARATOR",
        help="In a list, what stands between several labels of an image: ';', '|', ',' or none. [';' in a column "
        "called labels]")  # fmt: skip
    encoding: str | None = option(
        help="Encoding of a list in CSV: cp1252, latin-1, ... [utf-8, or by the file's byte order mark]"
    )
    sheet: str | None = option(help="Sheet of an Excel workbook that holds the list. [the only one with content]")

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

    def given(self, layout: "Layout | None") -> dict[str, Any]:
        """Return what was said of a list, with --layout, as a plan keeps it: a value for each option that was given."""
        given = {"layout": layout, **{one.name: getattr(self, one.name) for one in fields(self)}}
        given["columns"] = dict(self.columns)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value}

    def as_planned(self, planned: Mapping[str, Any], layout: "Layout | None") -> "tuple[Layout | None, ListOptions]":
        """Return the options of the list that a plan holds; ConfigError if others are given now."""
        names = {"layout": "--layout"} | {one.name: names_of(one.name, one)[0] for one in fields(self)}
        for name, value in self.given(layout).items():
            if value != planned.get(name):
                raise ConfigError(
                    f"{names[name]}: expected {_shown(planned.get(name))}, as the list was planned, found "
                    f"{_shown(value)}; leave it out"
                )
        kept = {name: value for name, value in planned.items() if name != "root"}
        kept["one_hot"] = tuple(planned.get("one_hot", ())) or None
        kept["columns"] = tuple(planned.get("columns", {}).items())
        return kept.pop("layout", None), ListOptions(**kept)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(map("=".join, value.items()))
    return "none" if value is None else value if isinstance(value, str) else ",".join(value)


@click.group()
def data() -> None:
    """List, check, split and imitate data sets."""


@command("list", group=data)
def list_(*, as_json: bool) -> None:
    """List the data sets that can be read, with the paper's settings for each.

    \b
    Example:
      vggfeat data list
    """
    from vggfeat.datasets.catalogue import DATASETS
    from vggfeat.results.record import align

    fields = ("name", "title", "scales", "regions", "join", "protocol")
    content = [{field: getattr(record, field) for field in fields} for record in DATASETS.values()]
    rows = [["name", "join", "regions", "Q", "title"]]
    rows += [
        [record.name, record.join, ",".join(record.regions), ",".join(map(str, record.scales)), record.title]
        for record in DATASETS.values()
    ]
    show(as_json, content, align(rows, left=len(rows[0]), width=terminal_width()))


@command(group=data)
def check(
    *,
    name: str = argument(),
    root: Path | None = ROOT,
    layout: "Layout | None",
    listing: ListOptions,
    everything: bool = flag("--all", help="Also list the counts that agree."),
    as_json: bool,
) -> int:  # fmt: skip
    """Compare a copy with the official numbers, and name what is missing and where it is published.

    \b
    Example:
      vggfeat data check voc2007 --root VOCdevkit
      vggfeat data check manifest --root list.xlsx --column path=Photo --column labels=Diagnosis

    Exit code 4 if the copy is not complete.
    """
    from vggfeat.datasets.check import check_copy

    report = check_copy(name, root, layout, listing.settings())
    content = {
        **{field: getattr(report, field) for field in ("name", "root", "complete", "problem")},
        "counts": [{**count._asdict(), "agrees": count.agrees} for count in report.counts],
        "missing": [problem._asdict() for problem in report.missing],
        "notes": list(report.notes),
        "archives": [archive._asdict() for archive in report.archives],
    }
    show(as_json, content, _lines(report, everything))
    return 0 if report.complete else 4


@command(group=data)
def splits(
    *,
    name: str = argument(),
    root: Path | None = ROOT,
    layout: "Layout | None",
    listing: ListOptions,
    out: Path | None = option(help="Folder for the lists. [NAME-splits]"),
    overwrite: bool = flag(help="Replace existing files."),
    as_json: bool,
) -> None:  # fmt: skip
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
    files = [str(path) for path in written]
    show(as_json, {"files": files}, files)


@command(group=data)
def synth(
    *,
    name: str = argument(metavar=f"[{'|'.join(synthetic.LAYOUTS)}]"),
    root: Path = option(required=True, help="A folder that is new or empty."),
    size: str = option(type=synthetic.SIZES, default="demo", help="Counts and sides of the images."),
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of the images."),
    workers: int = option(type=click.IntRange(1, 256), default=1, help="Rendering processes."),
    as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Render a small, learnable imitation of a data set in its official layout.

    formulas imitates none: fractals, surfaces, leaves and bodies in class folders, below train and val, for `train`.

    \b
    Example:
      vggfeat data synth voc2007 --root data/voc2007
    """
    check_folder(root, [synthetic.MARKER], kinds=(), overwrite=True, option="--root")
    with Progress(f"synth {name}", "images", quiet=quiet) as bar:
        fresh = synthetic.write(name, root, seed=seed, size=size, workers=workers, progress=bar.update)
    facts = {"root": str(root), "name": name, "size": size, "seed": seed, "rendered": fresh}
    line = f"{root}: {name}, size {size}, seed {seed}: {'rendered' if fresh else 'was there already'}"
    show(as_json, facts, [line])


@command(group=data)
def pack(
    *,
    root: Path = option(required=True, help="Folder of training images, as for `train`."),
    layout: "Layout | None",
    out: Path = option(required=True, help="A folder that is new or empty."),
    side: int = option(type=COUNT, default=512,
        help="Smallest side to which images are shrunk, in pixels: the largest S to train at."),
    quality: int = option(type=click.IntRange(1, 95), default=92, help="Quality of the JPEG files written."),
    shard_images: int = option(type=COUNT, default=2048, help="Images in a file."),
    workers: int | None = option(type=click.IntRange(0, 256), help="Worker processes. [one a core, at most 16]"),
    as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
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
