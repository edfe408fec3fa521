"""`vggfeat demo`: the whole main job on rendered pictures."""

import json
from pathlib import Path

import click

from vggfeat.cli.types import make_folder

NET = "small"


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("vggfeat-demo"), show_default=True,
    help="Folder for pictures, features and results.",
)  # fmt: skip
@click.option("--weights", default=NET, show_default=True, help="The net; small comes with vggfeat.")
@click.option("--scales", default="224,256", show_default=True, help="Q, smallest picture sides in pixels.")
@click.option("--size", type=click.Choice(["tiny", "demo"]), default="demo", show_default=True, help="Of the data set.")
def demo(out: Path, weights: str, scales: str, size: str) -> int:
    """Render a small imitation of VOC-2007, extract features, train and test the SVMs: a minute, no downloads.

    Then the same with the same net untrained, to show what the training of the net was good for. The commands are
    printed as they run, and each can be given by hand.

    \b
    Example:
      vggfeat demo --out /tmp/vggfeat-demo
    """
    from vggfeat.cli.steps import run_step
    from vggfeat.devices import default_workers

    nets = _nets(weights)
    data = out / "voc2007"
    make_folder(out)
    steps = [["data", "synth", "voc2007", "--root", data, "--size", size, "--workers", default_workers()]]
    for name, net in nets.items():
        features = out / f"{name}.h5"
        extracted = ["--dataset", "voc2007", "--root", data, "--weights", net, "--scales", scales]
        steps.append(["extract", *extracted, "--out", features, "--overwrite"])
        steps.append(["svm", "--features", features])
    for step in steps:
        code = run_step(*step)
        if code:
            return code
    _compare(out, nets)
    click.echo(f"pictures {data}, features and results {', '.join(str(out / f'{name}.svm') for name in nets)}")
    return 0


def _nets(weights: str) -> dict[str, str]:
    """Name the runs, and their weights: the net asked for, and the same net untrained unless it is that already."""
    from vggfeat.weights import load_backbone

    backbone = load_backbone(weights)
    if not backbone.trained:
        return {"voc2007": weights}
    return {"voc2007": weights, "voc2007-untrained": f"random:{backbone.model.config}:0:{backbone.model.width!r}"}


def _compare(out: Path, nets: dict[str, str]) -> None:
    click.echo("")
    for name, net in nets.items():
        results = json.loads((out / f"{name}.svm" / "results.json").read_text(encoding="utf-8"))
        click.echo(f"{net}: {results['metric']['name']} {100 * results['headline']:.1f} %")
    click.echo(f"chance: {100 * results['chance']['value']:.1f} %")
    click.echo("The pictures are rendered, not photographs: the numbers say nothing about VOC-2007.")
    if len(nets) == 1:
        click.echo("The net is not trained. With the net that comes with vggfeat: vggfeat demo")
