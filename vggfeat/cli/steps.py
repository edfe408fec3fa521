"""Commands run one after the other in one process, each printed as a user would type it."""

import os
import shlex

import click


def leads() -> bool:
    """Whether this process prints: of those that torchrun started, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def run_step(*arguments: object) -> int:
    """Print a command line, run it, and return its exit code."""
    from vggfeat.cli import run

    words = [str(argument) for argument in arguments]
    if leads():
        click.echo(f"$ vggfeat {shlex.join(words)}")
    return run(words)


def must_run(*arguments: object) -> None:
    """Run a command line as `run_step`, and end the process with its exit code unless that is 0."""
    code = run_step(*arguments)
    if code:
        raise SystemExit(code)
