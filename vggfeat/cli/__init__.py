"""The command line: a skin over the library. Errors become one line and an exit code; nothing is computed here."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from vggfeat.cli.bench import bench
from vggfeat.cli.bench_extraction import bench_extraction
from vggfeat.cli.bench_roofline import bench_roofline
from vggfeat.cli.bench_training import bench_training
from vggfeat.cli.classify import classify
from vggfeat.cli.data import data
from vggfeat.cli.demo import demo
from vggfeat.cli.extract import extract
from vggfeat.cli.features import export, inspect
from vggfeat.cli.localise import localise
from vggfeat.cli.report import report
from vggfeat.cli.signals import NAMES, Terminated, listen, stop_listening
from vggfeat.cli.similar import similar
from vggfeat.cli.steps import leads
from vggfeat.cli.svm import svm
from vggfeat.cli.train import train
from vggfeat.cli.weights import weights
from vggfeat.errors import VggfeatError

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a defect of vggfeat: please report it
  2    a setting that is not allowed
  3    done, but more pictures failed than --allow-failed
  4    data set missing or not in its official layout
  5    weights missing, damaged or of another network
  6    file that can't be written, read or continued
  7    SVM stage that can't be carried out
  8    training that can't be carried out
  129  stopped by SIGHUP: its terminal was closed
  130  stopped by Ctrl-C
  141  stopped because nobody reads the output any more
  143  stopped by SIGTERM"""


KEPT = "what was finished is kept, and the same command goes on from there"
KEPT_BY_TRAINING = "the newest checkpoint is kept, and the same command with --resume goes on from there"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES)
@click.version_option(package_name="vggfeat")
def group() -> None:
    """Transfer-learning features from VGG nets, linear SVMs on them, and the training of such nets.

    \b
    Example, the two stages of the VGG paper's Appendix B on VOC-2007:
      vggfeat extract --dataset voc2007 --root VOCdevkit --weights D.safetensors
      vggfeat svm --features voc2007.h5

    \b
    To see it work without data or weights:
      vggfeat demo
    """


for _command in (bench_extraction, bench_roofline, bench_training):
    bench.add_command(_command)
for _command in (extract, svm, inspect, export, train, classify, localise, weights, data, bench, report, similar, demo):
    group.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    listen(lambda number: f"{_line(_stopped(number, arguments))}\n")
    code = run(arguments)
    stop_listening()
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        result = group.main(args=arguments, prog_name="vggfeat", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except VggfeatError as error:
        _say(str(error), error)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        return _stop(signal.SIGINT, error.__cause__ or error, arguments)
    except Terminated as error:
        return _stop(error.number, error, arguments)
    except (BrokenPipeError, SystemExit):
        # click turns a closed pipe into SystemExit; in this mode it ends the process for no other reason.
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141


def _stop(number: int, error: BaseException, arguments: Sequence[str] | None) -> int:
    stop_listening()
    _say(_stopped(number, arguments), error)
    return 128 + number


def _stopped(number: int, arguments: Sequence[str] | None) -> str:
    words = sys.argv[1:] if arguments is None else arguments
    return f"stopped by {NAMES[number]}; {KEPT_BY_TRAINING if 'train' in words[:2] else KEPT}"


def _say(message: str, error: BaseException) -> None:
    """Say why the command ends, after what the error has been told on its way: how far the work has come."""
    for note in getattr(error, "__notes__", ()) if leads() else ():
        click.echo(f"note: {note}", err=True)
    click.echo(_line(message), err=True)


def _line(message: str) -> str:
    name = "vggfeat" if leads() else f"vggfeat, process {os.environ['RANK']}"
    return f"{name}: {message}"
