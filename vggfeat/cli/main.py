"""All commands in one group, and how each of them ends: errors become one line and an exit code."""

import contextlib
import logging
import os
import re
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
from vggfeat.cli.output import encoding_of, say, say_lines, say_note
from vggfeat.cli.plan import merge, plan
from vggfeat.cli.predict import explain, predict, similar
from vggfeat.cli.report import audit, map_, probe, report
from vggfeat.cli.signals import Terminated, breaking_off, interruption, line, number_of, stop_listening, stopped
from vggfeat.cli.svm import svm
from vggfeat.cli.train import train
from vggfeat.cli.weights import weights
from vggfeat.errors import ResourceError, StoreError, VggfeatError, out_of_resources
from vggfeat.results.record import shown_in

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


_LIST = re.compile(r"\s*\n\s*")
"""What click puts between the entries of a list."""
_MAKE_ROOM = "make room in one of them, or set TMPDIR to a folder that has some, and give the same command again"


class _Stopped(BaseException):
    """Carries a Terminated past click, which would print an empty line and wrap it."""


class _Group(click.Group):
    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands section by section, each with a line that is whole."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(command.name), words) for command, words in commands.items()])

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


# The sections of the help: what people come for first stands first.
SECTIONS: dict[str, dict[click.Command, str]] = {
    "Features": {
        extract: "Compute the features of a data set or a folder.",
        plan: "Divide an extraction of any size into shards.",
        merge: "Join the shards of a run into one feature file.",
        inspect: "Show what a feature file or a run holds.",
        export: "Write descriptors, labels and ids for other programs.",
    },
    "Classifiers": {
        svm: "Train linear SVMs, and test them by the data set's protocol.",
        predict: "Classify new images by a model of svm.",
        probe: "Compare with nearest neighbours and logistic regression.",
        report: "Make a page of the results of runs.",
    },
    "Look at images": {
        similar: "List the images that are most like one.",
        audit: "Find copies, wrong labels and outliers.",
        map_: "Show all images on one page, alike ones together.",
        explain: "Draw where in an image a score comes from.",
    },
    "ILSVRC and training": {
        classify: "Measure top-1 and top-5 errors of nets.",
        localise: "Train, evaluate and use nets that find boxes.",
        train: "Train a net by the paper's recipe.",
    },
    "Data sets and weights": {
        data: "List, check, split, pack and imitate data sets.",
        weights: "List, fetch, verify, convert and export nets.",
    },
    "Trials and figures": {
        demo: "See all of it work on rendered images.",
        reproduce: "Run a row of the paper's tables.",
        bench: "Measure speed, next to other programs.",
    },
}
for _commands in SECTIONS.values():
    for _command, _words in _commands.items():
        _command.short_help = _words
        group.add_command(_command)
        for _inner in getattr(_command, "commands", {}).values():
            # The first sentence, whole: click would cut it at 45 characters.
            _inner.short_help = _inner.get_short_help_str(limit=200)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    printed_to = sys.stdout
    try:
        with breaking_off(), _telling_what_is_lost(), shown_in(encoding_of(sys.stdout)):
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
    except (BrokenPipeError, SystemExit) as error:
        # click turns a closed pipe into SystemExit, and puts something else in the place of the stream. What anything
        # else ends the process for has an exit code of its own.
        if isinstance(error, SystemExit) and sys.stdout is printed_to:
            raise
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        _drop(sys.stdout)
        _drop(sys.stderr)
        return 141
    except Exception as error:
        if isinstance(error, OSError) and _printing(error):
            _drop(sys.stdout)
            _say(
                f"standard output: expected to print to it, found: {error.strerror or error}; what was finished is "
                "kept: make room, and give the same command again",
                error,
            )
            return StoreError.exit_code
        if isinstance(error, FileNotFoundError) and "usable temporary directory" in str(error):
            # As `tempfile` says it, which libraries ask as they are imported.
            _say(f"temporary files: expected a folder to write into, found: {error.strerror}; {_MAKE_ROOM}", error)
            return StoreError.exit_code
        if not out_of_resources(error):
            raise
        found = str(error).partition("\n")[0] or type(error).__name__
        _say(
            f"this machine: expected the memory, threads and open files that the command takes, found: {found}; what "
            "was finished is kept: free some, or raise the limits (ulimit -a), and give the same command again",
            error,
        )
        return ResourceError.exit_code


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
        # What a group of commands raises where none is named, from click 8.2 on; its message is the help.
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            say_lines(error.format_message(), err=True)
            return
        if context is not None:
            say_lines(context.get_usage(), err=True)
            say(f"Try '{context.command_path} --help' for help.", err=True)
        say(f"Error: {_LIST.sub(' ', error.format_message())}", err=True)


def _say(message: str, error: BaseException) -> None:
    """Say why the command ends, after the notes that it has got on its way: how far the work has come."""
    with _dropping_errors():
        for note in getattr(error, "__notes__", ()):
            say_note(note)
        say(line(message), err=True)
