"""`vggfeat demo` and `vggfeat reproduce`: many commands as one. Pipelines stand outside the package."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click

from vggfeat.cli.commands import INTEGERS, argument, command, json_option, option
from vggfeat.cli.options import load_net
from vggfeat.cli.output import make_folder, say, show
from vggfeat.cli.signals import is_main
from vggfeat.errors import ConfigError
from vggfeat.runtime.devices import default_workers
from vggfeat.runtime.output_paths import check_target
from vggfeat.runtime.rendered import MARKER

NET = "small"


@command()
def demo(
    *,
    out: Path = option(default=Path("vggfeat-demo"), help="Folder for images, features and results."),
    weights: str = option(default=NET, help="The net; small is the one that comes with vggfeat."),
    scales: tuple[int, ...] = option(type=INTEGERS, default=(224, 256), show_default="224,256",
        help="Q, smallest image sides in pixels."),
    size: str = option(type=["tiny", "demo"], default="demo", help="Size of the data set."),
    as_json: bool = json_option("Print the figures as JSON, and the rest to standard error."),
    quiet: bool,
) -> int:  # fmt: skip
    """Render a small imitation of VOC-2007, extract features, train and test the SVMs, make a page: no downloads.

    Then the same with the same net untrained, to show what the training of the net was good for. The commands are
    printed as they run, and each can be given by hand.

    \b
    Example:
      vggfeat demo --out /tmp/vggfeat-demo
    """
    nets = _nets(weights)
    for name in nets:
        # The features of an earlier demo may be replaced, those that somebody else has put there may not.
        check_target(out / f"{name}.h5", ours=lambda _: (out / "voc2007" / MARKER).is_file(), called="one of a demo")
    make_folder(out)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        for step in _steps(out, nets, scales, size):
            code = run_step(*step, *(["--quiet"] if quiet and "--quiet" not in step else []))
            if code:
                return code
    found = _found(out, nets)
    show(as_json, found, _lines(found))
    return 0


def run_step(*arguments: object) -> int:
    """Print a command line as a user would type it, run it in this process, and return its exit code."""
    from vggfeat.cli import run

    words = [str(argument) for argument in arguments]
    if is_main():
        say(f"$ vggfeat {shlex.join(words)}")
    return run(words)


def _steps(out: Path, nets: dict[str, str], scales: tuple[int, ...], size: str) -> Iterator[list[object]]:
    data = out / "voc2007"
    yield ["data", "synth", "voc2007", "--root", data, "--size", size, "--workers", default_workers()]
    for name, net in nets.items():
        features = out / f"{name}.h5"
        extracted = ["--dataset", "voc2007", "--root", data, "--weights", net, "--scales", ",".join(map(str, scales))]
        yield ["extract", *extracted, "--out", features, "--overwrite"]
        yield ["svm", "--features", features]
    folders = [out / f"{name}.svm" for name in reversed(nets)]
    yield ["report", *folders, "--root", data, "--out", out / "report.html", "--quiet"]


def _nets(weights: str) -> dict[str, str]:
    """Name the runs, and their weights: the net asked for, and the same net untrained unless it is that already."""
    backbone = load_net(weights)
    if not backbone.trained:
        return {"voc2007": weights}
    return {"voc2007": weights, "voc2007-untrained": f"random:{backbone.model.config}:0:{backbone.model.width!r}"}


def _found(out: Path, nets: dict[str, str]) -> dict[str, Any]:
    runs = []
    for name, net in nets.items():
        folder = out / f"{name}.svm"
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        runs.append({"weights": net, "folder": str(folder), **{key: results[key] for key in ("metric", "headline")}})
    chance = results["chance"]["value"]
    return {"images": str(out / "voc2007"), "runs": runs, "chance": chance, "page": str(out / "report.html")}


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    for run in found["runs"]:
        yield f"{run['weights']}: {run['metric']['name']} {100 * run['headline']:.1f} %"
    yield f"chance: {100 * found['chance']:.1f} %"
    yield "The images are rendered, not photographs: the numbers say nothing about VOC-2007."
    if len(found["runs"]) == 1:
        yield "The net is not trained. With the net that comes with vggfeat: vggfeat demo"
    folders = ", ".join(run["folder"] for run in found["runs"])
    yield f"images {found['images']}, features and results {folders}, to look at {found['page']}"


_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "_pipelines", _PACKAGE.parent / "pipelines")
"""Of the pipelines in a wheel, and in a checkout."""


@command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def reproduce(
    *,
    words: tuple[str, ...] = argument(metavar="[NAME [OPTIONS]]", nargs=-1, type=click.UNPROCESSED),
    as_json: bool = json_option("Print the list of rows as JSON."),
) -> int:  # fmt: skip
    """Reproduce a row of Tables 3 to 6, 11 and 12 of the VGG paper, and compare the numbers.

    Without NAME, all rows are listed with the numbers that are expected; `vggfeat reproduce NAME --help` shows the
    options of one. With --twin it runs in miniature, on rendered images with narrow nets: minutes, no data, no weights.

    \b
    Examples:
      vggfeat reproduce
      vggfeat reproduce voc2007_d --root VOCdevkit --weights D.safetensors
      vggfeat reproduce voc2007_d --twin
    """
    runner = next((place / "run.py" for place in _PLACES if (place / "run.py").is_file()), None)
    if runner is None:
        raise ConfigError(f"pipelines: expected run.py in {_PLACES[0]} or {_PLACES[1]}, found none; install again")
    with subprocess.Popen([sys.executable, runner, *(("--json",) if as_json else words or ("--help",))]) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt as stop:
            # Ctrl-C and a closed terminal reach the whole group; a SIGTERM may have been for this process alone.
            child.send_signal(getattr(stop, "number", 0))
            code = child.wait()
    return code if code >= 0 else 128 - code
