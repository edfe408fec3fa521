"""Reproduce a row of the VGG paper: `python pipelines/run.py NAME --root DATA --weights FILE`.

    python pipelines/run.py --help          lists every row with the numbers that are expected
    python pipelines/run.py voc2007_d --root VOCdevkit --weights D.safetensors
    python pipelines/run.py voc2007_d --twin

Every row has a twin: rendered images, narrow nets, minutes, no data. A full run ends with 1 if its number lies farther
from the paper's than the row allows.
"""

from collections.abc import Sequence
from functools import partial

import click

import small_net
import tables_3_4
import tables_5_6
import tables_11_12
from steps import command_of
from vggfeat.errors import VggfeatError


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


group = Rows(
    help=__doc__.partition("\n\n")[0],
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
        group.main(args=arguments, prog_name="pipelines/run.py", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except VggfeatError as error:
        click.echo(f"pipelines/run.py: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
