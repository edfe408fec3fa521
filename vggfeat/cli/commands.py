"""How a command declares what it takes: its signature, and dataclasses of options, become options of click."""

from collections.abc import Callable, Collection
from dataclasses import Field, field, fields
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vggfeat.errors import ConfigError
from vggfeat.runtime.storage import root_text


def option(*names: str, **settings: Any) -> Any:
    """Declare an option where its value is declared: as the default of a command's parameter, or a field of a group.

    The arguments are those of `click.option`; without names it is called as the value is, and a list as `type` is a
    choice. An option without a default is None when it is not given, and its help says in brackets what holds then.
    """
    default = settings.get("default", False if settings.get("is_flag") else None)
    if default is not None and not settings.get("is_flag"):
        settings.setdefault("show_default", True)
    return field(default=default, metadata={"make": click.option, "names": names, "settings": settings})


def flag(*names: str, help: str) -> Any:  # noqa: A002  as click calls it
    """Declare an option without a value."""
    return option(*names, is_flag=True, help=help)


def argument(**settings: Any) -> Any:
    """Declare an argument in the same way, as `click.argument`."""
    return field(default=None, metadata={"make": click.argument, "names": (), "settings": settings})


def json_option(help: str = "Print as JSON.") -> Any:  # noqa: A002
    """Declare the option of all commands whose result a program may read."""
    return flag("--json", help=help)


COMMON = {
    "layout": option(type=["splits", "classes"],
                     help="What the top folders of your own images are, where their names do not tell."),
    "device": option(help="cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]"),
    "allow_failed": option(type=click.IntRange(0), default=0, help="Number of failed images up to which the exit code "
        "is 0."),
    "overwrite": flag(help="Replace an existing file."),
    "spreadsheet_safe": flag(
        help="In CSV, put ' before names that a spreadsheet would run as formulas. [names as they are]"),
    "as_json": json_option(),
    "quiet": flag(help="Show no progress."),
}  # fmt: skip
"""Parameter of any command -> what it is, where the command does not say it."""
_UNTITLED = "Options"
PATHS = Path, Path | None, tuple[Path, ...]
"""What is annotated so takes `PATH`."""


def names_of(parameter: str, one: Field[Any]) -> tuple[str, ...]:
    """Return the names that a declaration gives an option; an argument has none."""
    derived = (f"--{parameter.replace('_', '-')}",) if one.metadata["make"] is click.option else ()
    return one.metadata["names"] or derived


class Sectioned(click.Command):
    """A command whose help shows the options of each group that has a title in a section of its own."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a title first."""
        sections: dict[str, list[tuple[str, str]]] = {_UNTITLED: []}
        for param in self.get_params(context):
            record = param.get_help_record(context)
            if record is not None:
                sections.setdefault(getattr(param, "section", _UNTITLED), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def command(
    called: str | None = None, *, group: Any = click, config: Any = None, **settings: Any
) -> Callable[[Callable[..., Any]], Any]:
    """Make a command of a function, whose parameters are what it takes.

    The default of a parameter is what `option` or `argument` returned. One without a default is in `COMMON`, or
    annotated with a group of options, a dataclass, which it receives as one object, and whose `title`, if it has one,
    heads them in the help. `config` is an option that the function does not receive, because it sets the others; the
    help has it above those of what is printed.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        groups, declared = {}, []
        for one in signature(function).parameters.values():
            own = one.default if isinstance(one.default, Field) else COMMON.get(one.name)
            if own is not None:
                declared.append((one.name, one.annotation, own, _UNTITLED))
            else:
                groups[one.name] = one.annotation
                title = getattr(one.annotation, "title", _UNTITLED)
                declared += [(each.name, each.type, each, title) for each in fields(one.annotation)]
        if config is not None:
            names = [name for name, *_ in declared]
            place = names.index("as_json") if "as_json" in signature(function).parameters else len(names)
            declared.insert(place, ("config", Path | None, config, _UNTITLED))

        @wraps(function)
        def run(**given: Any) -> Any:
            for name, options in groups.items():
                given[name] = options(**{each.name: given.pop(each.name) for each in fields(options)})
            return function(**given)

        for name, kind, field_, title in reversed(declared):
            if isinstance(kind, str) and "type" not in field_.metadata["settings"]:
                raise TypeError(f"{name}: expected a type as its annotation, found the text {kind!r}")
            chosen = ({"type": PATH} if kind in PATHS else {}) | field_.metadata["settings"]
            if isinstance(chosen.get("type"), list | tuple):
                chosen["type"] = click.Choice(chosen["type"])
            run = field_.metadata["make"](*names_of(name, field_), name, **chosen)(run)
            vars(run)["__click_params__"][-1].section = title  # where click collects the options of a function
        return group.command(called, cls=Sectioned, **settings)(run)

    return decorate


COUNT = click.IntRange(1)


class _Place(click.Path):
    """A file or folder; file:///data/x is that of this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(root_text(value), param, ctx)


PATH = _Place(path_type=Path, readable=False)
"""What reads a file says whether it is there and can be read."""


class Parsed(click.ParamType):
    """Text that a function turns into a value.

    `name`: what the help calls the value. `expected`: what a message says was expected. `parse`: takes the text; raises
    ValueError for others.
    """

    def __init__(self, name: str, expected: str, parse: Callable[[str], Any]) -> None:
        self.name, self.expected, self.parse = name, expected, parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse text; leave a default as it is."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError:
            self.fail(f"expected {self.expected}, found {value!r}", param, ctx)


def _scale(text: str) -> tuple[int, int]:
    lowest, _, highest = text.partition(":")
    return int(lowest), int(highest or lowest)


def _sides(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


INTEGERS = Parsed("N,N,...", "numbers separated by commas", lambda text: tuple(map(int, text.split(","))))
FLOATS = Parsed("N,N,...", "numbers separated by commas", lambda text: tuple(map(float, text.split(","))))
WORDS = Parsed("WORD,WORD,...", "words", lambda text: tuple(part.strip() for part in text.split(",")))
SCALE = Parsed("S|LOWEST:HIGHEST", "a side in pixels, or lowest:highest", _scale)
"""A single side is a range of one."""
SIDES = Parsed("HEIGHTxWIDTH", "HEIGHTxWIDTH in pixels", _sides)


def refuse_options(names: Collection[str], why: str) -> None:
    """Refuse options that decide nothing here: to ignore them would be to say yes and do something else.

    Raises ConfigError if one of these parameters was given.
    """
    context = click.get_current_context()
    for param in context.command.params:
        if param.name in names and context.get_parameter_source(str(param.name)) != ParameterSource.DEFAULT:
            raise ConfigError(f"{param.opts[0]}: {why}; leave it out")
