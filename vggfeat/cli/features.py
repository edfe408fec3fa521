"""`vggfeat inspect` and `vggfeat export`: show a feature file, write its descriptors for other programs."""

import json
from pathlib import Path

import click

from vggfeat.cli.descriptors import DescriptorOptions
from vggfeat.cli.extraction import named_after
from vggfeat.cli.options import PATH, SPREADSHEET_SAFE, make_folder, with_options
from vggfeat.cli.output import say, say_json
from vggfeat.errors import ConfigError
from vggfeat.store import KINDS

LONGEST = 300
"""Characters of a value that `inspect` prints."""


@click.command()
@click.argument("file", type=PATH, metavar="FEATURES.h5|RUN")
@click.option("--failed", is_flag=True, help="List every image that failed, with its reason.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(file: Path, failed: bool, as_json: bool) -> int:
    """Show what a feature file holds, how it was made, and whether every byte of it is sound.

    Of a run in shards, finished or not: what is planned, done, failed by reason, and missing.

    \b
    Examples:
      vggfeat inspect voc2007.h5
      vggfeat inspect /disk/run

    Exit code 6 if a problem is found.
    """
    from vggfeat.store.reader import FeatureFile, validate
    from vggfeat.store.sharded import is_run

    if is_run(file):
        from vggfeat.cli.plan import show_run

        return show_run(str(file), failed, as_json)

    report = validate(file)
    with FeatureFile(file) as features:
        dataset, provenance = features.dataset, features.provenance
        failures = [(name, why) for name, why in zip(dataset.ids, features.reasons, strict=True) if why]
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
        "provenance": provenance,
        "problems": list(report.problems),
    }
    if as_json:
        say_json(facts | {"failures": dict(failures)})
    else:
        for name, value in facts.items():
            if name not in ("provenance", "problems"):
                say(f"{name:11} {_plain(value)}")
        for name, value in sorted(provenance.items()):
            say(f"  {name:22} {_short(_plain(value))}")
        for name, why in failures if failed else []:
            say(f"failed: {name}: {why}")
        for problem in report.problems:
            say(f"problem: {problem}")
        say("sound: every checksum fits" if not report.problems else "NOT SOUND: make it again")
    return 6 if report.problems else 0


@click.command()
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FEATURES.h5|RUN...")
@click.option("--to", "kind", type=click.Choice(KINDS), required=True)
@click.option("--out", type=PATH, help="The file to write. [first FILE with the new suffix]")
@with_options(DescriptorOptions, "descriptors")
@click.option("--split", "splits", multiple=True, help="Only rows of this split; may be given several times.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@SPREADSHEET_SAFE
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
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
    from vggfeat.runtime.targets import check_target
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
    left_out = f", {missing} failed images left out" if missing else ""
    say(f"{target}: {count} descriptors of {length} values, join {join}{left_out}")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    # A file of posteriors has the words of a thousand classes.
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters; --json has all)"
