"""`vggfeat probe`: other classifiers, and fewer images, under the splits of `svm`."""

from pathlib import Path

import click

from vggfeat.cli.descriptors import GivenOptions
from vggfeat.cli.options import PATH, QUIET, Numbers, Words, json_option, with_options
from vggfeat.cli.output import say_json, say_lines, terminal_width
from vggfeat.cli.progress import Progress


@click.command()
@click.argument("files", type=PATH, nargs=-1, metavar="FEATURES.h5|RUN...")
@with_options(GivenOptions, "given")
@click.option("--probes", type=Words(), default="svm,knn,logistic", show_default=True, help="Which classifiers.")
@click.option("--shots", type=Numbers(int), default="1,2,4,8,16", show_default=True,
              help="Images of each class to train on; all are measured as well.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Draws of so few images.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Of a cross-validation.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of draws and folds.")
@json_option()
@QUIET
def probe(
    files: tuple[Path, ...],
    given: GivenOptions,
    probes: tuple[str, ...],
    shots: tuple[int, ...],
    repeats: int,
    folds: int,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure nearest neighbours and logistic regression beside the SVM, on all training images and on few.

    Splits and measure are those of `svm`. The number of neighbours, or C, is chosen on the rows that the protocol holds
    out for it. With few images of each class the spread is over the draws.

    \b
    Examples:
      vggfeat probe voc2007.h5
      vggfeat probe --descriptors clip.parquet --dataset voc2007 --root VOCdevkit --probes knn --shots 1,10
    """
    from vggfeat.protocols.probes import ProbeSettings, run_probes
    from vggfeat.protocols.rules import ProtocolSettings
    from vggfeat.results.probes import probes_json, probes_text

    inputs = given.inputs(files)
    protocol = ProtocolSettings(folds=folds, seed=seed)
    settings = ProbeSettings(probes=probes, shots=shots, repeats=repeats, protocol=protocol)
    table = given.read(inputs, given.data_root)
    with Progress("probe", "measurements", quiet=quiet) as bar:
        measure, values = run_probes(table, settings, progress=bar.update_stage)
    content = probes_json(measure, values, table.dataset.name)
    if as_json:
        say_json(content)
        return
    say_lines(probes_text(content, width=terminal_width()))
