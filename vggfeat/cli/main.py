"""All commands in one group, and how each of them ends: errors become one line and an exit code."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import click

from vggfeat.cli.bench import bench
from vggfeat.cli.classify import classify
from vggfeat.cli.data import data
from vggfeat.cli.demo import demo, reproduce
from vggfeat.cli.extract import extract
from vggfeat.cli.features import export, inspect
from vggfeat.cli.localise import localise
from vggfeat.cli.output import say, say_lines, say_note
from vggfeat.cli.plan import merge, plan
from vggfeat.cli.predict import explain, predict, similar
from vggfeat.cli.report import audit, map_, probe, report
from vggfeat.cli.signals import Terminated, breaking_off, interruption, line, number_of, stop_listening, stopped
from vggfeat.cli.svm import svm
from vggfeat.cli.train import train
from vggfeat.cli.weights import weights
from vggfeat.errors import StoreError, VggfeatError

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a defect of vggfeat: please report it
  2    a setting that is not allowed
  3    done, but more images failed than --allow-failed
  4    data set missing or not in its official layout
  5    weights missing, damaged or of another network
  6    file that can't be written, read or continued
  7    SVM stage that can't be carried out
  8    training that can't be carried out
  9    processes, open files or memory that the system does not give
  129  stopped by SIGHUP: its terminal was closed
  130  stopped by Ctrl-C
  141  stopped because nobody reads the output any more
  143  stopped by SIGTERM"""


class _Stopped(BaseException):
    """Carries a Terminated past click, which would print an empty line and wrap it."""


class _Group(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except Terminated as error:
            raise _Stopped from error


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES
)
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


for _command in (
    extract, plan, merge, svm, predict, inspect, export, train, classify, localise, weights, data, bench, report,
    similar, audit, explain, map_, probe, demo, reproduce,
):  # fmt: skip
    group.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        with breaking_off(), _telling_what_is_lost():
            result = group.main(args=arguments, prog_name="vggfeat", standalone_mode=False)
            if sys.stdout is not None:  # it is None where the process was given none
                sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        _show_usage(error)
        return error.exit_code
    except VggfeatError as error:
        _say(str(error), error)
        return error.exit_code
    except (KeyboardInterrupt, _Stopped, click.Abort) as error:
        first = interruption(error)
        if first is None:  # click makes an Abort of EOFError as well
            raise
        number = number_of(first)
        stop_listening()
        _say(stopped(number, arguments), first)
        return 128 + number
    except (BrokenPipeError, SystemExit):
        # click turns a closed pipe into SystemExit; in this mode it ends the process for no other reason.
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        _drop(sys.stdout)
        _drop(sys.stderr)
        return 141
    except OSError as error:
        if not _printing(error):
            raise
        _drop(sys.stdout)
        _say(
            f"standard output: expected to print to it, found: {error.strerror or error}; what was finished is kept: "
            "make room, and give the same command again",
            error,
        )
        return StoreError.exit_code


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say_note(record.getMessage())


@contextlib.contextmanager
def _telling_what_is_lost() -> Iterator[None]:
    """Print as notes what `runtime.system` logs: what this system can't protect the command from."""
    log, notes = logging.getLogger("vggfeat.runtime.system"), _Notes()
    log.addHandler(notes)
    try:
        yield
    finally:
        log.removeHandler(notes)


def _printing(error: OSError) -> bool:
    """Say whether click's echo, or our own flush, raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code in (click.echo.__code__, run.__code__)


def _drop(stream: TextIO | None) -> None:
    """Let what is printed go nowhere."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _dropping_errors() -> Iterator[None]:
    """Where nothing can be said on standard error, the exit code must do."""
    try:
        yield
    except OSError:
        _drop(sys.stderr)


def _show_usage(error: click.ClickException) -> None:
    """Say what is wrong with the words of a command, and where its help is."""
    with _dropping_errors():
        context = getattr(error, "ctx", None)
        if context is not None:
            say_lines(context.get_usage(), err=True)
            say(f"Try '{context.command_path} --help' for help.", err=True)
        say(f"Error: {' '.join(error.format_message().split())}", err=True)


def _say(message: str, error: BaseException) -> None:
    """Say why the command ends, after the notes that it has got on its way: how far the work has come."""
    with _dropping_errors():
        for note in getattr(error, "__notes__", ()):
            say_note(note)
        say(line(message), err=True)
