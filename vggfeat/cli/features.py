"""`vggfeat inspect` and `vggfeat export`: show a feature file, write its descriptors for other programs."""

import json
import os
from pathlib import Path

import click

from vggfeat.cli.options import PATH, Words, make_folder
from vggfeat.errors import ConfigError

LONGEST = 300
"""Characters of a value that `inspect` prints."""


@click.command()
@click.argument("file", type=PATH)
@click.option("--failed", is_flag=True, help="List every image that failed, with its reason.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(file: Path, failed: bool, as_json: bool) -> int:
    """Show what a feature file holds, how it was made, and whether every byte of it is sound.

    \b
    Example:
      vggfeat inspect voc2007.h5

    Exit code 6 if a problem is found.
    """
    from vggfeat.store.reader import FeatureFile, validate

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
        "provenance": provenance,
        "problems": list(report.problems),
    }
    if as_json:
        click.echo(json.dumps(facts | {"failures": dict(failures)}, indent=2))
    else:
        for name, value in facts.items():
            if name not in ("provenance", "problems"):
                click.echo(f"{name:11} {_plain(value)}")
        for name, value in sorted(provenance.items()):
            click.echo(f"  {name:22} {_short(_plain(value))}")
        for name, why in failures if failed else []:
            click.echo(f"failed: {name}: {why}")
        for problem in report.problems:
            click.echo(f"problem: {problem}")
        click.echo("sound: every checksum fits" if not report.problems else "NOT SOUND: make it again")
    return 6 if report.problems else 0


@click.command()
@click.argument("files", type=PATH, nargs=-1, required=True)
@click.option("--to", "kind", type=click.Choice(["npz", "parquet", "csv", "mat"]), required=True)
@click.option("--out", type=PATH, help="The file to write. [first FILE with the new suffix]")
@click.option("--join", type=click.Choice(["mean", "max", "stack"]), help="Over scales. [the paper's for the data set]")
@click.option("--normalisation", type=click.Choice(["blocks", "whole", "none"]), default="blocks", show_default=True)
@click.option("--regions", type=Words(), help="Which of the stored regions to stack: image, box. [all]")
@click.option("--split", "splits", multiple=True, help="Only rows of this split; may be given several times.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(
    files: tuple[Path, ...],
    kind: str,
    out: Path | None,
    join: str | None,
    normalisation: str,
    regions: tuple[str, ...] | None,
    splits: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write descriptors, labels and ids for other programs, joined as `svm` joins them.

    Several files are fused by stacking. Images that failed are left out and counted.

    \b
    Example:
      vggfeat export voc2007.h5 --to parquet --split train --split val
    """
    from vggfeat.cli.svm import default_join
    from vggfeat.store.export import write
    from vggfeat.table import read_descriptors, rows_of, to_table

    chosen = join or default_join(files[0])
    table = read_descriptors(files, join=chosen, normalisation=normalisation, regions=regions)  # type: ignore[arg-type]
    rows = rows_of(table.dataset, splits or None)
    kept = rows[table.ok[rows]]
    target = out or files[0].with_suffix(f".{kind}")
    if any(os.path.realpath(target) == os.path.realpath(file) for file in files):
        raise ConfigError(f"--out: expected another file than the features, found {target}; choose another name")
    make_folder(target.parent)
    write(target, kind, to_table(table, kept), overwrite=overwrite)
    count, length, missing = len(kept), table.descriptors.shape[1], len(rows) - len(kept)
    if as_json:
        facts = {"file": str(target), "descriptors": count, "length": length, "join": chosen, "left_out": missing}
        click.echo(json.dumps(facts, indent=2))
        return
    left_out = f", {missing} failed images left out" if missing else ""
    click.echo(f"{target}: {count} descriptors of {length} values, join {chosen}{left_out}")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    # A file of posteriors has the words of a thousand classes.
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters; --json has all)"
