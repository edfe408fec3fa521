"""What Tables 3 to 6 share: the posteriors of every net and mode are saved once, and rows are fused from the files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steps import Options, must_run, read_results, report_row
from vggfeat.cli.signals import is_main
from vggfeat.errors import ConfigError
from vggfeat.synthetic import Settings, write
from vggfeat.weights import load_backbone

WEIGHTS = "weights.safetensors"
SPREAD = 0.5
"""How far a faithful run may lie from the paper's number, in points: our judgement of the choices that it leaves open
(rescaling, colours of the decoder, chance of the training)."""
TWIN_IMAGES = Settings(image_side=96, classes=6, train=2, val=6)
TWIN_SIDES = (224, 240)


def net_name(net: str, scale: str) -> str:
    """Return what the pipeline that trains a net is called."""
    return f"ilsvrc_{net}_{scale}".lower().replace("-", "_").replace(":", "_")


def render_twin(options: Options) -> None:
    """Render the few images that twins train and are tested on."""
    write("ilsvrc", options.data("ilsvrc"), seed=0, size=TWIN_IMAGES, workers=1)


def check_net(weights: Path | str, net: str) -> None:
    """Check that a file holds the net that a row of the paper is about.

    Raises
    ------
    WeightsError
        If it can't be loaded.
    ConfigError
        If it is another net.
    """
    found = load_backbone(weights).model.config
    if found != net:
        raise ConfigError(f"{weights}: expected weights of net {net}, found net {found}")


def save_posteriors(name: str, weights: Path, mode: str, sides: Sequence[int], options: Options) -> list[Path]:
    """Run a net over the validation images, unless that was done.

    Returns
    -------
    list of Path
        The files of its posteriors; empty in a process of torchrun that is not the main one.
    """
    folder = options.out / f"{name}-classified"
    chosen = ["--weights", weights, "--mode", mode, "--scales", _joined(sides), *options.device_and_precision()]
    if options.twin:
        chosen += ["--workers", "0", "--device", "cpu"]
    must_run("classify", "--root", options.data("ilsvrc"), *chosen, "--out", folder)
    if not is_main():
        return []
    return [folder / part["file"] for part in read_results(folder)["posteriors"]]


def fuse_posteriors(files: Sequence[Path], sides: Sequence[int] | None, out: Path) -> dict[str, Any]:
    """Fuse saved posteriors, of some scales or of all, and return the results."""
    chosen = [argument for file in files for argument in ("--posteriors", file)]
    must_run("classify", *chosen, *(("--scales", _joined(sides)) if sides else ()), "--out", out)
    return read_results(out)


def report_errors(results: dict[str, Any], table: int, top1: float, top5: float) -> None:
    """Print our top-1 and top-5 error next to those of a row of the paper."""
    ours = [100 * results[name] for name in ("top1_error", "top5_error")]
    report_row(
        f"{ours[0]:.1f} %, {ours[1]:.1f} %",
        f"{top1} %, {top5} % (Table {table}, top-1 and top-5 error)",
        comparable=any(row["table"] == table for row in results["paper"]),
        within=max(abs(ours[0] - top1), abs(ours[1] - top5)) <= SPREAD,
        spread=SPREAD,
    )


def _joined(sides: Sequence[int]) -> str:
    return ",".join(map(str, sides))
