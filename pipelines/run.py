"""Reproduce a row of the VGG paper: `vggfeat reproduce NAME --root DATA --weights FILE`.

    vggfeat reproduce            lists every row with the numbers that are expected
    vggfeat reproduce voc2007_d --root VOCdevkit --weights D.safetensors
    vggfeat reproduce voc2007_d --twin

Every row has a twin: rendered images, narrow nets, minutes, no data. A full run ends with 1 if its number lies farther
from the paper's than the row allows.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

import click

import small_net
import tables_3_4
import tables_5_6
import tables_11_12
from steps import command_of
from vggfeat.cli.signals import breaking_off, interruption, line, listen, number_of, stop_listening, stopped
from vggfeat.errors import VggfeatError

SELF = ("reproduce",)
"""What a signal stops."""


class Rows(click.Group):
    """Lists the rows in the order of the tables, with their whole promise."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names in the order of the tables."""
        return list(self.commands)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line a row."""
        with formatter.section("Rows"):
            for name, command in self.commands.items():
                formatter.write_text(f"{name}: {command.help}")


def list_rows(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the rows and what they promise for programs, as an eager option."""
    if wanted and isinstance(context.command, click.Group):
        click.echo(json.dumps({name: command.help for name, command in context.command.commands.items()}, indent=2))
        context.exit()


group = Rows(
    help=__doc__.partition("\n\n")[0],
    params=[
        click.Option(
            ["--json"], is_flag=True, is_eager=True, expose_value=False, callback=list_rows, help="List them as JSON."
        )
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
for table in (tables_3_4, tables_5_6, tables_11_12):
    for row in table.ROWS:
        group.add_command(command_of(row.name, row.promise, partial(table.run, row), trains=table is tables_3_4))
group.add_command(
    command_of("small_net", "the small net of the package, on rendered images", small_net.run, trains=True)
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        with breaking_off():
            group.main(args=arguments, prog_name="vggfeat reproduce", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort) as error:
        first = interruption(error)
        if first is None:  # click makes an Abort of EOFError as well
            raise
        number = number_of(first)
        stop_listening()
        click.echo(line(stopped(number, SELF)), err=True)
        return 128 + number
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except VggfeatError as error:
        click.echo(f"vggfeat reproduce: {error}", err=True)
        return error.exit_code
    return 0


def entry_point() -> NoReturn:
    """Run the command line, listen to signals, and end the process with its exit code."""
    listen(lambda number: line(stopped(number, SELF)))
    raise SystemExit(main())


if __name__ == "__main__":
    entry_point()
