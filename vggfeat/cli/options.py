"""What commands have in common: kinds of values, and groups of options that arrive as one object."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vggfeat.cli.output import say_note
from vggfeat.errors import ConfigError, VggfeatError
from vggfeat.runtime.devices import default_batch_pixels, default_workers
from vggfeat.weights import load_backbone
from vggfeat.weights.sources import find_file

if TYPE_CHECKING:
    from vggfeat.extract import RunSettings
    from vggfeat.images.decode import DecodeSettings
    from vggfeat.nets.backbone import Backbone
    from vggfeat.weights.importing import Preprocessing

PATH = click.Path(path_type=Path, readable=False)
"""What reads a file says whether it is there and can be read."""
LAYOUT = click.option("--layout", type=click.Choice(["splits", "classes"]),
                      help="What the folders at the top of your own images are, where it can't be told.")  # fmt: skip
"""For all commands that read class folders."""
NET = "FILE|NAME|small|random:NET:SEED:WIDTH"
"""What the help calls the value of --weights."""
PRECISIONS = "fp32", "winograd", "tf32", "bf16", "fp16"
"""Of convolutions; which a device has is checked when it is known."""
DEVICE = click.option("--device", help="cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]")
ALLOW_FAILED = click.option("--allow-failed", type=click.IntRange(0), default=0, show_default=True,
                            help="Failed images for exit code 0.")  # fmt: skip
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an existing file.")
QUIET = click.option("--quiet", is_flag=True, help="No progress.")


def json_option(help: str = "Print as JSON.") -> Callable[[Any], Any]:  # noqa: A002  as click calls it
    """Return the option of all commands whose result a program may read."""
    return click.option("--json", "as_json", is_flag=True, help=help)


class Parsed(click.ParamType):
    """Text that a function turns into a value.

    Parameters
    ----------
    name : str
        What the help calls the value.
    expected : str
        What a message says was expected.
    parse : callable
        Takes the text; raises ValueError for others.
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


def Numbers(kind: type[int] | type[float]) -> Parsed:  # noqa: N802  it is used as a type
    """Return the type of numbers separated by commas."""
    return Parsed("N,N,...", "numbers separated by commas", lambda text: tuple(map(kind, text.split(","))))


def Words() -> Parsed:  # noqa: N802
    """Return the type of words separated by commas."""
    return Parsed("WORD,WORD,...", "words", lambda text: tuple(part.strip() for part in text.split(",")))


def Scale() -> Parsed:  # noqa: N802
    """Return the type of a side in pixels, or of a range of sides; a single side is a range of one."""
    return Parsed("S|LOWEST:HIGHEST", "a side in pixels, or lowest:highest", _scale)


def Sides() -> Parsed:  # noqa: N802
    """Return the type of height and width of an image."""
    return Parsed("HEIGHTxWIDTH", "HEIGHTxWIDTH in pixels", _sides)


def _scale(text: str) -> tuple[int, int]:
    lowest, _, highest = text.partition(":")
    return int(lowest), int(highest or lowest)


def _sides(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


def option(*names: str, **settings: Any) -> Any:
    """Declare a field of a group of options: the arguments are those of `click.option`.

    An option without a default is None when it is not given, and its help says in brackets what holds then.
    """
    default = settings.get("default", False if settings.get("is_flag") else None)
    if default is not None and not settings.get("is_flag"):
        settings.setdefault("show_default", True)
    return field(default=default, metadata={"names": names, "settings": settings})


def with_options(group: type, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a group, which it receives as one object under a name."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(*args: Any, **given: Any) -> Any:
            values = {one.name: given.pop(one.name) for one in fields(group)}
            return command(*args, **given, **{name: group(**values)})

        for one in reversed(fields(group)):
            run = click.option(*one.metadata["names"], one.name, **one.metadata["settings"])(run)
        return run

    return decorate


SPREADSHEET_SAFE = click.option(
    "--spreadsheet-safe",
    is_flag=True,
    help="In CSV, put ' before names that a spreadsheet would run as formulas. [names as they are]",
)


@dataclass(frozen=True, kw_only=True)
class ForwardOptions:
    """How a net runs over images."""

    precision: str = option(
        "--precision", type=click.Choice(PRECISIONS), default="fp32",
        help="Of the convolutions; winograd: float32 with fewer multiplications, on the CPU. With another than fp32, "
        "some images are computed in fp32 as well and compared.",
    )  # fmt: skip
    interpolation: str = option(
        "--interpolation", type=click.Choice(["bilinear", "bicubic"]), default="bilinear",
        help="How images are rescaled.",
    )  # fmt: skip
    batch_pixels: int | None = option(
        "--batch-pixels", type=click.IntRange(1), help="Pixels in one batch. [2^20 on the CPU, 2^22 to 2^24 on a GPU]"
    )

    def given(self, device: str) -> dict[str, Any]:
        """Return the fields of `vggfeat.forward.ForwardSettings` that they decide."""
        batch_pixels = self.batch_pixels or default_batch_pixels(device)
        return {"precision": self.precision, "interpolation": self.interpolation, "batch_pixels": batch_pixels}


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Who decodes image files."""

    workers: int | None = option(
        "--workers", type=click.IntRange(0, 256), help="Processes that decode images. [one a core, at most 16]"
    )

    def processes(self) -> int:
        """Return how many processes decode."""
        return default_workers() if self.workers is None else self.workers


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """Which images are taken."""

    max_pixels: int | None = option(
        "--max-pixels", type=click.IntRange(1), help="Larger images fail by name. [89478485]"
    )
    allow_truncated: bool = option(
        "--allow-truncated", is_flag=True, help="Take images that end early; the rest of them is grey."
    )

    def settings(self) -> "DecodeSettings":
        """Return the limits for an image."""
        from vggfeat.images.decode import DecodeSettings

        limits = {"max_pixels": self.max_pixels} if self.max_pixels else {}
        return DecodeSettings(allow_truncated=self.allow_truncated, **limits)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(LimitOptions, WorkerOptions):
    """How image files are decoded."""

    time_limit: float = option("--time-limit", type=click.FloatRange(0.1), default=30.0, help="Seconds an image.")

    def settings(self) -> "DecodeSettings":
        """Return the limits for an image."""
        return replace(super().settings(), timeout=self.time_limit)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is cut up, resumed and repeated."""

    shard_rows: int | None = option(
        "--shard-rows", type=click.IntRange(1, 65536), help="Images between two restart points. [32, on a GPU 256]"
    )
    allow_failed: int = option(
        "--allow-failed", type=click.IntRange(0), default=0, help="Failed images for exit code 0."
    )
    retry_failed: bool = option(
        "--retry-failed", is_flag=True, help="Compute again what failed, or has changed, since."
    )
    overwrite: bool = option("--overwrite", is_flag=True, help="Replace a file that is damaged or of other settings.")

    def settings(self, device: str, workers: int) -> "RunSettings":
        """Return them as `vggfeat.extract_features` takes them."""
        from vggfeat.extract import RunSettings

        return RunSettings(
            device=device,
            workers=workers,
            shard_rows=self.shard_rows,
            overwrite=self.overwrite,
            retry_failed=self.retry_failed,
        )


@dataclass(frozen=True, kw_only=True)
class PreprocessingOptions:
    """Which pixels a net takes, for a file of another library that does not say it."""

    mean: tuple[float, ...] | None = option(
        "--mean", type=Numbers(float),
        help="Subtracted from the 3 channels, in the order of --channels and the units of --range. [by format]",
    )  # fmt: skip
    std: tuple[float, ...] | None = option(
        "--std", type=Numbers(float), help="Divided by after that, as --mean. [by format]"
    )
    channels: str | None = option("--channels", type=click.Choice(["rgb", "bgr"]), help="Their order. [by format]")
    highest: str | None = option(
        "--range", type=click.Choice(["1", "255"]), help="Highest value of a pixel. [by format]"
    )
    pool_rounding: str | None = option(
        "--pool-rounding", type=click.Choice(["floor", "ceil"]), help="Of the poolings' outputs. [by format]"
    )

    def stated(self) -> "Preprocessing":
        """Return them as `vggfeat.weights.load.load_file` takes them."""
        from vggfeat.weights.importing import Preprocessing

        about: dict[str, Any] = {name: getattr(self, name) for name in ("mean", "std", "channels", "pool_rounding")}
        return Preprocessing(**about, range=int(self.highest) if self.highest else None)  # type: ignore[arg-type]


def load_net(spec: str | None) -> "Backbone":
    """Load a net by `vggfeat.load_backbone`, and note what its user should know of it."""
    backbone = load_backbone(spec)
    print_notes(backbone)
    return backbone


def print_notes(backbone: "Backbone") -> None:
    """Write to standard error what was assumed of a net's file, and what was passed over in it."""
    from vggfeat.weights.importing import notes

    for note in notes(backbone):
        say_note(note)


def refuse_options(context: click.Context, names: Collection[str], why: str) -> None:
    """Refuse options that decide nothing here: to ignore them would be to say yes and do something else.

    Raises
    ------
    ConfigError
        If one of these parameters was given.
    """
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
