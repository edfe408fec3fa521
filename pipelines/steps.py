"""What all pipelines share: their options, and the commands of vggfeat run one after the other in this process."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vggfeat.cli.commands import PATH
from vggfeat.cli.demo import run_step
from vggfeat.cli.output import make_folder
from vggfeat.cli.signals import is_main
from vggfeat.errors import ConfigError

TWIN_TRAINING = ("--width", "0.03125", "--batch", "12", "--steps", "2", "--workers", "0", "--device", "cpu")
"""A net of a thirty-second of the width, two steps: it shows that the commands run, and learns nothing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for on the command line of a pipeline."""

    root: Path | None
    """Where the data set is."""
    out: Path
    """Folder for nets, features and results; what one row has made there, others take."""
    weights: tuple[str, ...]
    """A file or name for each net of the row, in its order."""
    device: str | None
    precision: str
    twin: bool
    """Run the small form, on rendered images with narrow nets."""
    more: tuple[str, ...] = ()
    """Further options, of `vggfeat train`."""

    def data(self, name: str) -> Path:
        """Return the root of a data set: the rendered one of a twin, else the one that was given.

        Raises
        ------
        ConfigError
            If none was given.
        """
        if self.twin:
            return self.out / "data" / name
        if self.root is None:
            raise ConfigError(f"--root: expected the place of {name}, found none; give it, or try --twin")
        return self.root

    def device_and_precision(self) -> list[str]:
        """Return the options that every command takes which runs a net."""
        return (["--device", self.device] if self.device else []) + ["--precision", self.precision]


def command_of(name: str, help: str, run: Any, *, trains: bool = False) -> click.Command:  # noqa: A002  click's word
    """Make the command of a pipeline.

    Parameters
    ----------
    name : str
    help : str
    run : callable
        Takes `Options`.
    trains : bool
        Whether what is not known goes to `vggfeat train`.
    """

    def callback(out: Path | None, more: Sequence[str] = (), **given: Any) -> None:
        out = out or Path("reproduced-twin" if given["twin"] else "reproduced")
        make_folder(out)
        run(Options(out=out, more=tuple(more), **given))

    params: list[click.Parameter] = [
        click.Option(["--root"], type=PATH, help="The data set, in its official layout."),
        click.Option(["--weights"], multiple=True, help="Weights of each net of the row, in its order."),
        click.Option(["--out"], type=PATH, help="Folder for all that is made. [reproduced, or reproduced-twin]"),
        click.Option(["--device"], help="cpu, cuda, cuda:1, ..."),
        click.Option(["--precision"], default="fp32", show_default=True, help="fp32, tf32, bf16 or fp16."),
        click.Option(["--twin"], is_flag=True, help="The small form: rendered images, narrow nets, minutes, no data."),
    ]
    if trains:
        params.append(click.Argument(["more"], nargs=-1, type=click.UNPROCESSED))
    settings = {"ignore_unknown_options": trains, "help_option_names": ["-h", "--help"]}
    return click.Command(name, help=help, callback=callback, params=params, context_settings=settings)


def must_run(*arguments: object) -> None:
    """Print a command of vggfeat, run it, and end the process with its exit code unless that is 0."""
    code = run_step(*arguments)
    if code:
        raise SystemExit(code)


def read_results(folder: Path) -> dict[str, Any]:
    """Return results.json of a folder."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def report_row(ours: str, paper: str, *, comparable: bool, within: bool, spread: float) -> None:
    """Print our numbers next to the paper's; end the process with 1 if they can be compared and are too far apart."""
    if not is_main():
        return
    if not comparable:
        click.echo(f"ours {ours}, not to be compared: these are not the paper's images, nets and scales; paper {paper}")
        return
    click.echo(f"ours {ours}, paper {paper}: {'within' if within else 'OUTSIDE'} {spread} points")
    if not within:
        raise SystemExit(1)
