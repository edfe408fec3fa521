"""Commands run one after the other in one process, each printed as a user would type it."""

import shlex
from collections.abc import Sequence
from typing import Any

import click

from vggfeat.cli.signals import is_main


def run_step(*arguments: object) -> int:
    """Print a command line, run it, and return its exit code."""
    from vggfeat.cli import run

    words = [str(argument) for argument in arguments]
    if is_main():
        click.echo(f"$ vggfeat {shlex.join(words)}")
    return run(words)


def must_run(*arguments: object) -> None:
    """Run a command line as `run_step`, and end the process with its exit code unless that is 0."""
    code = run_step(*arguments)
    if code:
        raise SystemExit(code)


def parse_options(
    arguments: Sequence[str] | None,
    *,
    help: str,  # noqa: A002  click's word
    params: Sequence[click.Option],
    more: bool = False,
) -> dict[str, Any]:
    """Read the command line of a pipeline; after --help the process ends.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default.
    help : str
    params : options
    more : bool
        Take what is not known as well; it stands under "more".
    """
    rest = [click.Argument(["more"], nargs=-1, type=click.UNPROCESSED)] if more else []
    command = click.Command(
        name=None,
        help=help,
        callback=lambda **options: options,
        context_settings={"ignore_unknown_options": more},
        params=[*params, *rest],
    )
    options = command.main(args=arguments, standalone_mode=False)
    if not isinstance(options, dict):
        raise SystemExit(0)
    return options
