"""Feature files: their descriptors, or those of another program, as options; `vggfeat inspect` and `vggfeat export`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from vggfeat.cli.commands import WORDS, argument, command, flag, json_option, option
from vggfeat.cli.options import named_after
from vggfeat.cli.output import make_folder, say_note, show
from vggfeat.errors import ConfigError
from vggfeat.runtime.output_paths import check_target
from vggfeat.runtime.storage import open_storage
from vggfeat.store import KINDS
from vggfeat.wording import counted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vggfeat.descriptor_stream import DescriptorStream, Memory
    from vggfeat.runtime.distributed import World
    from vggfeat.table import DescriptorTable


@dataclass(frozen=True, kw_only=True)
class DescriptorOptions:
    """How features become descriptors."""

    title: ClassVar[str] = "Descriptors"
    join: str | None = option(
        type=["mean", "max", "stack"],
        help="How the features of the scales are joined. [the paper's way for the data set]",
    )
    normalisation: str = option(type=["blocks", "whole", "none"], default="blocks",
        help="L2-normalise the part of every net and region, then the whole descriptor; the whole only; "
        "or nothing.")  # fmt: skip
    regions: tuple[str, ...] | None = option(type=WORDS, help="Which of the stored regions to stack: image, box. [all]")

    def read(self, files: Sequence[Path]) -> "DescriptorTable":
        """Read feature files."""
        from vggfeat.table import read_descriptors

        return read_descriptors(files, normalisation=self.normalisation, **self._joined())  # type: ignore[arg-type]

    def stream(self, files: Sequence[Path], world: "World | None") -> "AbstractContextManager[DescriptorStream]":
        """Open feature files for going through their descriptors again and again, alone or with other processes."""
        from vggfeat.descriptor_stream import stream_descriptors

        joined = self._joined()
        return stream_descriptors(files, normalisation=self.normalisation, world=world, **joined)  # type: ignore[arg-type]

    def memory(self, files: Sequence[Path]) -> "Memory":
        """Return the memory that the table of feature files takes, and what there is."""
        from vggfeat.descriptor_stream import memory_for

        return memory_for(files, **self._joined())

    def _joined(self) -> dict[str, Any]:
        return {"join": self.join, "regions": self.regions}


@dataclass(frozen=True, kw_only=True)
class GivenFile(DescriptorOptions):
    """The same, or descriptors of another program and the data set that they are of; --root is of images here."""

    file: Path | None = option("--descriptors", metavar="FILE.parquet|.npz|.npy",
        help="Descriptors of another program in the place of feature files; needs --dataset.")  # fmt: skip
    dataset: str | None = option(metavar="NAME",
        help="With --descriptors: name of the data set of the images, see `vggfeat data list`.")  # fmt: skip

    def inputs(self, files: Sequence[Path]) -> list[Path]:
        """Return the files that are read: feature files, or that of the descriptors.

        Raises ConfigError if both are given, or neither, or options that don't go together.
        """
        if self.file is None:
            if self.dataset is not None:
                raise ConfigError("--dataset: expected together with --descriptors, found alone; leave it out")
            if not files:
                name = click.get_current_context().command_path
                raise click.UsageError(f"expected a feature file, found none; for example: {name} voc2007.h5")
            return list(files)
        if files:
            raise ConfigError(f"--descriptors: expected no feature files with it, found {files[0]}; leave one out")
        if self.dataset is None:
            raise ConfigError("--descriptors: expected --dataset as well, found none; name the data set of the images")
        return [self.file]

    def read(self, files: Sequence[Path], root: Path | None = None) -> "DescriptorTable":
        """Read what `inputs` has returned; `root` is that of the data set of given descriptors."""
        if self.file is None or self.dataset is None:
            return super().read(files)
        for name in ("join", "regions"):
            if getattr(self, name) is not None:
                raise ConfigError(f"--{name}: not together with --descriptors, which are made already; leave it out")

        from vggfeat.datasets.catalogue import open_dataset
        from vggfeat.given import notes, read_given

        data = open_dataset(self.dataset, root)
        table = read_given(self.file, data, normalisation=self.normalisation)  # type: ignore[arg-type]
        for note in notes(table):
            say_note(note)
        return table


@dataclass(frozen=True, kw_only=True)
class GivenOptions(GivenFile):
    """The same with the root of the data set, for commands that show no images."""

    data_root: Path | None = option("--root",
        help="With --descriptors: folder of the data set. [$VGGFEAT_DATA/NAME, data/NAME]")  # fmt: skip

    def inputs(self, files: Sequence[Path]) -> list[Path]:
        """Return the files that are read, as `GivenFile`."""
        if self.file is None and self.data_root is not None:
            raise ConfigError("--root: expected together with --descriptors, found alone; leave it out")
        return super().inputs(files)


LONGEST = 300
"""Characters of a value that `inspect` prints."""
SHOWN_MISSING = 5
"""Shards that it names."""


@command()
def inspect(
    *,
    file: Path = argument(metavar="FEATURES.h5|RUN"),
    failed: bool = flag(help="List every image that failed, with its reason."),
    as_json: bool = json_option("Print everything as JSON."),
) -> int:  # fmt: skip
    """Show what a feature file holds, how it was made, and whether every byte of it is sound.

    Of a run in shards, finished or not: what is planned, done, failed by reason, and missing.

    \b
    Examples:
      vggfeat inspect voc2007.h5
      vggfeat inspect /disk/run

    Exit code 6 if a problem is found.
    """
    from vggfeat.store.sharded import is_run

    return _inspect_run(str(file), failed, as_json) if is_run(file) else _inspect_file(file, failed, as_json)


def _inspect_file(file: Path, failed: bool, as_json: bool) -> int:
    from vggfeat.store.reader import FeatureFile, validate

    report = validate(file)
    with FeatureFile(file) as features:
        dataset, provenance = features.dataset, features.provenance
        failures = _failed(dataset.ids, features.reasons)
    facts = {
        "file": str(file),
        "dataset": report.dataset,
        "task": str(dataset.task),
        "rows": report.rows,
        "done": report.done,
        "failed": report.failed,
        "pending": report.pending,
        "reasons": report.reasons,
        "scales": list(report.shape.scales),
        "regions": list(report.shape.regions),
        "channels": report.shape.channels,
        "classes": len(dataset.classes),
        "splits": {name: len(rows) for name, rows in dataset.splits.items()},
        **({} if dataset.groups is None else {"groups": len(set(dataset.groups))}),
        **({"columns": {name: len(set(texts)) for name, texts in dataset.columns.items()}} if dataset.columns else {}),
    }
    problems = list(report.problems)
    lines = [f"{name:11} {_plain(value)}" for name, value in facts.items()]
    lines += [f"  {name:22} {_short(_plain(value))}" for name, value in sorted(provenance.items())]
    lines += _trouble(failures if failed else (), problems)
    lines.append("sound: every checksum fits" if not problems else "NOT SOUND: make it again")
    show(as_json, facts | {"provenance": provenance, "problems": problems, "failures": dict(failures)}, lines)
    return 6 if problems else 0


def _inspect_run(run: str, failed: bool, as_json: bool) -> int:
    """Show what there is of a run, finished or not."""
    from vggfeat.store.plan import read_plan, shard_path
    from vggfeat.store.shard_files import Shard
    from vggfeat.store.sharded import examine

    plan = read_plan(open_storage(run))
    failures: list[tuple[str, str]] = []

    def keep(shard: Shard) -> None:
        if failed or as_json:
            failures.extend(_failed(shard.ids, shard.block.reasons))

    found = examine(plan, keep)
    facts = {
        "run": plan.where,
        "dataset": plan.name,
        "task": str(plan.task),
        "rows": plan.rows,
        "done": found.done,
        "failed": found.failed,
        "reasons": found.reasons,
        "shards": plan.shards,
        "finished": found.shards,
        "missing": len(found.missing),
        "scales": list(plan.shape.scales),
        "regions": list(plan.shape.regions),
        "channels": plan.shape.channels,
        "store": plan.settings.store,
        "dtype": plan.settings.dtype,
        "classes": len(plan.classes),
        "splits": plan.splits,
        "machines": found.machines,
        "root": found.root,
    }
    missing = [shard_path(shard) for shard in found.missing]
    lines = [f"{name:11} {'-' if value is None else value}" for name, value in facts.items()]
    lines += [f"missing: {path}" for path in missing[:SHOWN_MISSING]]
    if len(missing) > SHOWN_MISSING:
        lines.append(f"missing: {len(missing) - SHOWN_MISSING} more; --json has all")
    lines += _trouble(failures, found.problems)
    if found.problems:
        lines.append("NOT SOUND: do what is said of each, and give `vggfeat extract --plan` again")
    elif missing:
        lines.append(f"sound so far; to finish it: vggfeat extract --plan {plan.where}")
    else:
        lines.append("sound: every checksum fits")
    more = {"missing_shards": missing, "failures": dict(failures)}
    show(as_json, facts | {"provenance": plan.key | plan.provenance, "problems": found.problems} | more, lines)
    return 6 if found.problems else 0


def _failed(ids: Sequence[str], reasons: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, why) for name, why in zip(ids, reasons, strict=True) if why]


def _trouble(failures: Sequence[tuple[str, str]], problems: Sequence[str]) -> list[str]:
    return [*(f"failed: {name}: {why}" for name, why in failures), *(f"problem: {problem}" for problem in problems)]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    # A file of posteriors has the words of a thousand classes.
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters; --json has all)"


@command()
def export(
    *,
    files: tuple[Path, ...] = argument(nargs=-1, required=True, metavar="FEATURES.h5|RUN..."),
    kind: str = option("--to", type=KINDS, required=True),
    out: Path | None = option(help="The file to write. [first FILE with the new suffix]"),
    descriptors: DescriptorOptions,
    splits: tuple[str, ...] = option("--split", multiple=True,
        help="Only rows of this split; may be given several times."),
    overwrite: bool,
    spreadsheet_safe: bool,
    as_json: bool = json_option("Print what was written as JSON."),
) -> None:  # fmt: skip
    """Write descriptors, labels and ids for other programs, joined as `svm` joins them.

    Several files are fused by stacking. Images that failed are left out and counted.

    \b
    Example:
      vggfeat export voc2007.h5 --to parquet --split train --split val
    """
    from vggfeat.store.export import write
    from vggfeat.table import rows_of, to_table

    if spreadsheet_safe and kind != "csv":
        raise ConfigError(f"--spreadsheet-safe: expected with --to csv, found {kind}; leave it out")
    target = out or named_after(files[0], f".{kind}")
    check_target(target, inputs=files, overwrite=overwrite)
    table = descriptors.read(files)
    join = table.settings["join"]
    rows = rows_of(table.dataset, splits or None)
    kept = rows[table.ok[rows]]
    make_folder(target.parent)
    write(target, kind, to_table(table, kept), overwrite=overwrite, spreadsheet_safe=spreadsheet_safe)
    count, length, missing = len(kept), table.descriptors.shape[1], len(rows) - len(kept)
    facts = {"file": str(target), "descriptors": count, "length": length, "join": join, "left_out": missing}
    left_out = f", {counted(missing, 'failed image{s}')} left out" if missing else ""
    lines = f"{target}: {counted(count, 'descriptor{s}')} of {counted(length, 'value{s}')}, join {join}{left_out}"
    show(as_json, facts, [lines])
