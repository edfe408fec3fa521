"""Which pixels a net takes: what its user states, where a file of another library does not say it; and what to note.

The same numbers serve for RGB from 0 to 255, BGR from 0 to 255 less a mean, or RGB from 0 to 1 less a mean and over a
deviation, and no file can tell by its weights which. What is assumed is said, and can be stated instead.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from vggfeat.nets.backbone import Backbone, Pool
    from vggfeat.weights.importing import ParsedNet

ASSUMED = "assumed: "
"""How `imported["mean_from"]` begins where the format or the names of a file only suggest what it takes."""
_HIGHEST_UNIT = 1.5
"""No mean and no deviation of pixels from 0 to 1 is higher."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a net takes, as stated; None means what the file says or its format suggests."""

    mean: tuple[float, ...] | None = None
    """3 numbers, in the order of `channels` and the units of `range`."""
    std: tuple[float, ...] | None = None
    """As `mean`."""
    channels: Literal["rgb", "bgr"] | None = None
    range: Literal[1, 255] | None = None
    """Highest value of a pixel."""
    pool_rounding: "Pool | None" = None

    def stated(self) -> dict[str, Any]:
        """Return what was stated, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def apply(self, path: Path, parsed: "ParsedNet") -> "ParsedNet":
        """Replace what was assumed of a file.

        Raises
        ------
        ConfigError
            If a number can't be meant in its units, or other channels or another range come without mean and std.
        """
        if not self.stated():
            return parsed
        order: Any = (self.channels or parsed.channel_order).upper()
        highest = self.range or parsed.pixel_range
        changed = (order, highest) != (parsed.channel_order, parsed.pixel_range)
        if changed and (self.mean is None or self.std is None):
            raise ConfigError(
                f"{path}: expected mean and std along with other channels or another range than {parsed.channel_order} "
                f"and {parsed.pixel_range}, found {', '.join(self.stated())}; state --mean and --std in these units"
            )
        for name in ("mean", "std"):
            _check(name, getattr(self, name), highest)
        changes: dict[str, Any] = {"channel_order": order, "pixel_range": highest}
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None:
                changes[name] = tuple(value * 255 / highest for value in values)
        if self.mean is not None:  # any other alone says nothing of the mean
            changes |= {"mean_from": "stated", "assumed": False}
        if self.pool_rounding is not None:
            changes["model"] = _rebuilt(path, parsed.model, self.pool_rounding)
        notes = {**parsed.notes, "stated": self.stated()}
        return replace(parsed, notes=notes, **changes)


def notes(backbone: "Backbone") -> list[str]:
    """Return what the user of a net should know of how its file was read, one line each."""
    about, lines = backbone.imported, []
    if str(about.get("mean_from")).startswith(ASSUMED):
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (backbone.mean, backbone.std))
        lines.append(
            f"{backbone.source}: which pixels the net takes is assumed from its format, not known: "
            f"{about['channel_order']}; 0 to 255, less {mean}, over {std} in RGB; to state it: vggfeat weights convert "
            "with --channels, --range, --mean and --std"
        )
    for name, words in _WORDS.items():
        if name in about:
            lines.append(f"{backbone.source}: {words} {about[name]}")
    return lines


_WORDS = {
    "taken_from": "the weights of this checkpoint were taken from",
    "next_to": "what the checkpoint has next to them is not used:",
    "left_out": "what are no tensors is not used:",
    "names_less": "its keys were read without",
    "without": "the file is incomplete: it has no",
}


def _check(name: str, values: tuple[float, ...] | None, highest: int) -> None:
    if values is None:
        return
    least = 0.0 if name == "std" else -math.inf
    if len(values) != 3 or not all(math.isfinite(value) and value > least for value in values):
        raise ConfigError(f"{name}: expected 3 finite numbers{' above 0' if name == 'std' else ''}, found {values}")
    small, low = max(map(abs, values)) <= 1, any(values) and set(values) != {1.0}
    if highest == 1 and max(map(abs, values)) > _HIGHEST_UNIT:
        raise ConfigError(f"{name}: expected numbers for pixels up to 1, found {values}; or state --range 255")
    if highest == 255 and small and low:
        raise ConfigError(f"{name}: expected numbers for pixels up to 255, found {values}; or state --range 1")


def _rebuilt(path: Path, model: Any, pool: "Pool") -> Any:
    from vggfeat.weights.importing import empty_model

    about = {name: getattr(model, name) for name in ("config", "num_classes", "width", "last")}
    return empty_model(path, about | {"pool": pool})
