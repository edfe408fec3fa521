"""`vggfeat reproduce`: the pipelines, which stand outside the package and import it, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import click

from vggfeat.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "_pipelines", _PACKAGE.parent / "pipelines")
"""Of the pipelines in a wheel, and in a checkout."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", metavar="[NAME [OPTIONS]]", nargs=-1, type=click.UNPROCESSED)
@click.option("--json", "as_json", is_flag=True, help="Print the list of rows as JSON.")
def reproduce(words: tuple[str, ...], as_json: bool) -> int:
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
