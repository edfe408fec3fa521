"""What commands have in common: kinds of values, and groups of options that arrive as one object."""

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click
from click.core import ParameterSource

from vggfeat.cli.output import say_note
from vggfeat.errors import ConfigError, VggfeatError
from vggfeat.runtime.devices import default_batch_pixels, default_workers
from vggfeat.runtime.storage import StorageSettings, is_remote, root_text
from vggfeat.weights import load_backbone
from vggfeat.weights.load import BUNDLED
from vggfeat.weights.sources import find_file

if TYPE_CHECKING:
    from vggfeat.extract import RunSettings
    from vggfeat.forward.features import ExtractionSettings
    from vggfeat.images.decode import DecodeSettings
    from vggfeat.nets.backbone import Backbone


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
                     help="What the folders at the top of your own images are, where it can't be told."),
    "device": option(help="cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]"),
    "allow_failed": option(type=click.IntRange(0), default=0, help="Failed images for exit code 0."),
    "overwrite": flag(help="Replace an existing file."),
    "spreadsheet_safe": flag(
        help="In CSV, put ' before names that a spreadsheet would run as formulas. [names as they are]"),
    "as_json": json_option(),
    "quiet": flag(help="No progress."),
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


def command(called: str | None = None, *, group: Any = click, **settings: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a command of a function, whose parameters are what it takes.

    The default of a parameter is what `option` or `argument` returned. One without a default is in `COMMON`, or
    annotated with a group of options, a dataclass, which it receives as one object, and whose `title`, if it has one,
    heads them in the help.
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

        @wraps(function)
        def run(**given: Any) -> Any:
            for name, options in groups.items():
                given[name] = options(**{each.name: given.pop(each.name) for each in fields(options)})
            return function(**given)

        for name, kind, field_, title in reversed(declared):
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
NET = "FILE|NAME|small|random:NET:SEED:WIDTH"
"""What the help calls the value of --weights."""
PRECISIONS = "fp32", "winograd", "tf32", "bf16", "fp16"
"""Of convolutions; which a device has is checked when it is known."""


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


@dataclass(frozen=True, kw_only=True)
class ForwardOptions:
    """How a net runs over images."""

    title: ClassVar[str] = "The net"
    precision: str = option(type=PRECISIONS, default="fp32",
        help="Of the convolutions; winograd: float32 with fewer multiplications, on the CPU. With another than fp32, "
        "some images are computed in fp32 as well and compared.")  # fmt: skip
    interpolation: str = option(type=["bilinear", "bicubic"], default="bilinear", help="How images are rescaled.")
    batch_pixels: int | None = option(type=COUNT, help="Pixels in one batch. [2^20 on the CPU, 2^22 to 2^24 on a GPU]")

    def given(self, device: str) -> dict[str, Any]:
        """Return the fields of `vggfeat.forward.ForwardSettings` that they decide."""
        return {**vars(self), "batch_pixels": self.batch_pixels or default_batch_pixels(device)}


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Who decodes image files."""

    workers: int | None = option(type=click.IntRange(0, 256),
        help="Processes that decode images. [one a core, at most 16]")  # fmt: skip

    def processes(self) -> int:
        """Return how many processes decode."""
        return default_workers() if self.workers is None else self.workers


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """Which images are taken."""

    title: ClassVar[str] = "Decoding"
    max_pixels: int | None = option(type=COUNT, help="Larger images fail by name. [89478485]")
    allow_truncated: bool = flag(help="Take images that end early; the rest of them is grey.")

    def settings(self) -> "DecodeSettings":
        """Return the limits for an image."""
        from vggfeat.images.decode import DecodeSettings

        limits = {"max_pixels": self.max_pixels} if self.max_pixels else {}
        return DecodeSettings(allow_truncated=self.allow_truncated, **limits)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(LimitOptions, WorkerOptions):
    """How image files are decoded."""

    time_limit: float = option(type=click.FloatRange(0.1), default=30.0, help="Seconds an image.")

    def settings(self) -> "DecodeSettings":
        """Return the limits for an image."""
        return replace(super().settings(), timeout=self.time_limit)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is cut up, resumed and repeated."""

    title: ClassVar[str] = "Resuming and failures"
    shard_rows: int | None = option(type=click.IntRange(1, 65536),
        help="Images between two restart points. [32, on a GPU 256]")  # fmt: skip
    allow_failed: int = option(type=click.IntRange(0), default=0, help="Failed images for exit code 0.")
    retry_failed: bool = flag(help="Compute again what failed, or has changed, since.")
    overwrite: bool = flag(help="Replace a file that is damaged or of other settings.")

    def settings(self, device: str, workers: int) -> "RunSettings":
        """Return them as `vggfeat.extract_features` takes them."""
        from vggfeat.extract import RunSettings

        given = {name: value for name, value in vars(self).items() if name != "allow_failed"}
        return RunSettings(device=device, workers=workers, **given)


def load_net(spec: str | None) -> "Backbone":
    """Load a net by `vggfeat.load_backbone`, and note what its user should know of it."""
    backbone = load_backbone(spec)
    print_notes(backbone)
    return backbone


def print_notes(backbone: "Backbone") -> None:
    """Write to standard error what was assumed of a net's file, and what was passed over in it."""
    from vggfeat.weights.importing import notes

    note_all(notes(backbone))


def refuse_options(names: Collection[str], why: str) -> None:
    """Refuse options that decide nothing here: to ignore them would be to say yes and do something else.

    Raises ConfigError if one of these parameters was given.
    """
    context = click.get_current_context()
    for param in context.command.params:
        if param.name in names and context.get_parameter_source(str(param.name)) != ParameterSource.DEFAULT:
            raise ConfigError(f"{param.opts[0]}: {why}; leave it out")


def net_files(*specs: str | None) -> list[Path]:
    """Return the files of nets that are given by file or name; of others there are none."""
    found = []
    for spec in specs:
        with contextlib.suppress(VggfeatError):  # Whoever loads it says what is wrong.
            found.append(find_file(spec, download=False))
    return found


PHOTOGRAPHS = (
    "small has seen rendered images only, so that features of photographs say little, those of --layer fc6 the most; "
    "a net that has seen photographs: vggfeat weights fetch vgg16-caffe"
)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(ForwardOptions):
    """What decides a feature, apart from the net and the image."""

    title: ClassVar[str] = "Features"
    scales: tuple[int, ...] | None = option(type=INTEGERS,
        help="Q, smallest image sides in pixels. [the paper's for the data set]")  # fmt: skip
    regions: tuple[str, ...] | None = option(type=WORDS,
        help="image, box, or image,box. [the paper's for the data set]")  # fmt: skip
    layer: str = option(default="fc7", help="A map of the net: of a VGG relu1_1 to pool5, fc6 to fc8.")
    batching: str = option(type=["size", "padded"], default="size",
        help="Which images run together: of equal size, or of similar size, padded with zeros.")  # fmt: skip
    compiled: bool = flag("--compile",
        help="Compile the net first, for a minute or two; `vggfeat bench extract` shows if it pays.")  # fmt: skip

    def settings(self, name: str, device: str) -> "ExtractionSettings":
        """Return them for a data set, with what the paper took for it where nothing was given."""
        from vggfeat.datasets.catalogue import DATASETS
        from vggfeat.forward.features import ExtractionSettings

        record = DATASETS.get(name, DATASETS["folder"])
        paper = {"scales": self.scales or record.scales, "regions": self.regions or record.regions}
        return ExtractionSettings(**(self.given(device) | paper))


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """How what is not on this machine is read."""

    title: ClassVar[str] = "Stores and servers"
    attempts: int = option(type=COUNT, default=5, help="Of each request to a store or server, if it fails.")
    allow_private: bool = flag(
        help="Read http(s) addresses of this machine and of the own network; lists of others may lead "
        "there.")  # fmt: skip

    def settings(self) -> StorageSettings:
        """Return them as the stores take them."""
        return StorageSettings(**vars(self))


def load_noted_net(weights: str | None, *, rendered: bool) -> "Backbone":
    """Load a net, and note what its user should know of it."""
    backbone = load_net(weights)
    if backbone.source == BUNDLED and not rendered:
        say_note(PHOTOGRAPHS)
    if not backbone.trained:
        say_note(f"{backbone.source} is an untrained net: good for trials, not for results")
    return backbone


def named_after(file: Path, suffix: str) -> Path:
    """Return what an output is called by default: next to its input, or here if that is at an address."""
    return (Path(file.name) if is_remote(file) else file).with_suffix(suffix)


def note_all(notes: Sequence[str]) -> None:
    """Note what a user should know of a copy of the data."""
    for note in notes:
        say_note(note)


def stem(name: str, root: Path | None) -> str:
    """Return what outputs are called: a user's own images are better known by their folder than by "folder"."""
    if name in ("folder", "manifest") and root is not None:
        place = root.resolve()
        return (place.stem if place.is_file() else place.name) or name
    return name
