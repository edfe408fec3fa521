"""`vggfeat inspect` and `vggfeat export`: show a feature file, write its descriptors for other programs."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from vggfeat.cli.descriptors import DescriptorOptions
from vggfeat.cli.extraction import named_after
from vggfeat.cli.options import OVERWRITE, PATH, SPREADSHEET_SAFE, json_option, with_options
from vggfeat.cli.output import make_folder, say, say_json
from vggfeat.errors import ConfigError, counted
from vggfeat.runtime.storage import open_storage
from vggfeat.runtime.targets import check_target
from vggfeat.store import KINDS

LONGEST = 300
"""Characters of a value that `inspect` prints."""
SHOWN_MISSING = 5
"""Shards that it names."""


@click.command()
@click.argument("file", type=PATH, metavar="FEATURES.h5|RUN")
@click.option("--failed", is_flag=True, help="List every image that failed, with its reason.")
@json_option("Print everything as JSON.")
def inspect(file: Path, failed: bool, as_json: bool) -> int:
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
    if as_json:
        say_json(facts | {"provenance": provenance, "problems": problems, "failures": dict(failures)})
        return 6 if problems else 0
    for name, value in facts.items():
        say(f"{name:11} {_plain(value)}")
    for name, value in sorted(provenance.items()):
        say(f"  {name:22} {_short(_plain(value))}")
    _say_trouble(failures if failed else (), problems)
    say("sound: every checksum fits" if not problems else "NOT SOUND: make it again")
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
    if as_json:
        more = {"missing_shards": missing, "failures": dict(failures)}
        say_json(facts | {"provenance": plan.key | plan.provenance, "problems": found.problems} | more)
        return 6 if found.problems else 0
    for name, value in facts.items():
        say(f"{name:11} {'-' if value is None else value}")
    for path in missing[:SHOWN_MISSING]:
        say(f"missing: {path}")
    if len(missing) > SHOWN_MISSING:
        say(f"missing: {len(missing) - SHOWN_MISSING} more; --json has all")
    _say_trouble(failures, found.problems)
    if found.problems:
        say("NOT SOUND: do what is said of each, and give `vggfeat extract --plan` again")
    elif missing:
        say(f"sound so far; to finish it: vggfeat extract --plan {plan.where}")
    else:
        say("sound: every checksum fits")
    return 6 if found.problems else 0


def _failed(ids: Sequence[str], reasons: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, why) for name, why in zip(ids, reasons, strict=True) if why]


def _say_trouble(failures: Sequence[tuple[str, str]], problems: Sequence[str]) -> None:
    for name, why in failures:
        say(f"failed: {name}: {why}")
    for problem in problems:
        say(f"problem: {problem}")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    # A file of posteriors has the words of a thousand classes.
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters; --json has all)"


@click.command()
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FEATURES.h5|RUN...")
@click.option("--to", "kind", type=click.Choice(KINDS), required=True)
@click.option("--out", type=PATH, help="The file to write. [first FILE with the new suffix]")
@with_options(DescriptorOptions, "descriptors")
@click.option("--split", "splits", multiple=True, help="Only rows of this split; may be given several times.")
@OVERWRITE
@SPREADSHEET_SAFE
@json_option("Print what was written as JSON.")
def export(
    files: tuple[Path, ...],
    kind: str,
    out: Path | None,
    descriptors: DescriptorOptions,
    splits: tuple[str, ...],
    overwrite: bool,
    spreadsheet_safe: bool,
    as_json: bool,
) -> None:
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
    if as_json:
        facts = {"file": str(target), "descriptors": count, "length": length, "join": join, "left_out": missing}
        say_json(facts)
        return
    left_out = f", {counted(missing, 'failed image{s}')} left out" if missing else ""
    say(f"{target}: {counted(count, 'descriptor{s}')} of {counted(length, 'value{s}')}, join {join}{left_out}")
