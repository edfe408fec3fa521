"""`vggfeat demo`: the whole main job on rendered pictures."""

from pathlib import Path

import click

from vggfeat.cli.types import make_folder

NET = "random:A:0:0.25"


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("vggfeat-demo"), show_default=True,
    help="Folder for pictures, features and results.",
)  # fmt: skip
@click.option("--weights", default=NET, show_default=True, help="The net; the default one is not trained.")
@click.option("--scales", default="224,256", show_default=True, help="Q, smallest picture sides in pixels.")
@click.option("--size", type=click.Choice(["tiny", "demo"]), default="demo", show_default=True, help="Of the data set.")
def demo(out: Path, weights: str, scales: str, size: str) -> int:
    """Render a small imitation of VOC-2007, extract features, train and test the SVMs: minutes, no downloads.

    The commands are printed as they run, and each can be given by hand.

    \b
    Example:
      vggfeat demo --out /tmp/vggfeat-demo
    """
    from vggfeat.cli.steps import run_step
    from vggfeat.devices import default_workers

    data, features, results = out / "voc2007", out / "voc2007.h5", out / "voc2007.svm"
    rendered = ["data", "synth", "voc2007", "--root", data, "--size", size, "--workers", default_workers()]
    extracted = ["--dataset", "voc2007", "--root", data, "--weights", weights, "--scales", scales]
    extracted += ["--out", features, "--overwrite"]
    make_folder(out)
    for step in (rendered, ["extract", *extracted], ["svm", "--features", features, "--out", results]):
        code = run_step(*step)
        if code:
            return code
    click.echo("")
    click.echo("The pictures are rendered, not photographs: the number shows that all parts work, nothing more.")
    if weights.startswith("random:"):
        click.echo("The net is not trained. With trained weights: vggfeat demo --weights FILE")
    click.echo(f"pictures {data}, features {features}, results {results}")
    return 0
