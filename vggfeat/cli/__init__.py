"""The command line: a skin over the library. Errors become one line and an exit code; nothing is computed here.

It listens to signals before it loads click and the commands, so importing this package loads neither.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from vggfeat.cli.signals import line, listen, stop_listening, stopped
from vggfeat.lazy import lazy_names

if TYPE_CHECKING:
    from vggfeat.cli.main import EXIT_CODES, group, run

__all__ = ["EXIT_CODES", "entry_point", "group", "run"]


def entry_point(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    listen(lambda number: line(stopped(number, arguments)))
    # PyTorch's threads wait for each other some thousand times a second. Where other programs use the cores as well,
    # those that wait by running in a circle keep the others from what they wait for. Read when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vggfeat.cli.main import run
    from vggfeat.cli.output import say_defect

    sys.excepthook = say_defect
    code = run(arguments)
    stop_listening()
    sys.exit(code)


__getattr__ = lazy_names(__name__, {"vggfeat.cli.main": ("EXIT_CODES", "group", "run")})
