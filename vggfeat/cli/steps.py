"""Commands run one after the other in one process, each printed as a user would type it."""

import shlex

from vggfeat.cli.output import say
from vggfeat.cli.signals import is_main


def run_step(*arguments: object) -> int:
    """Print a command line, run it, and return its exit code."""
    from vggfeat.cli import run

    words = [str(argument) for argument in arguments]
    if is_main():
        say(f"$ vggfeat {shlex.join(words)}")
    return run(words)
