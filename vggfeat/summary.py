"""Summary of a run, read from its finished feature file."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.forward.rerun import LEAST_COSINE
from vggfeat.samples import Box
from vggfeat.store.failures import failures_path, tally
from vggfeat.store.identity import resolved
from vggfeat.store.layout import Status
from vggfeat.store.reader import FeatureFile, count_reasons
from vggfeat.wording import counted


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run has left behind."""

    path: Path
    """The feature file."""
    total: int
    """Samples in the data set."""
    resumed: int
    """Samples that an earlier run had finished."""
    failures: tuple[tuple[str, str], ...]
    """(id, reason) of every sample that failed, in row order, earlier runs included."""
    seconds: float
    """Time of this run."""
    halvings: int
    """Batches that did not fit into memory and were halved."""
    enlarged: int
    """Images that themselves, or whose boxes, had to grow more than eightfold to reach the largest scale."""
    failures_file: Path | None = None
    """File that lists the failures, a JSON object a line; None if none failed."""
    notes: tuple[str, ...] = ()
    """What a user should know, a sentence each."""

    @property
    def failed_by_reason(self) -> dict[str, int]:
        """Return how many failed for each reason, the most frequent first."""
        return count_reasons(reason for _, reason in self.failures)

    def to_json(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return {**asdict(self), "path": str(self.path), "failures_file": self.failures_file and str(self.failures_file)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Summary":
        """Return what `to_json` was made from."""
        file, failures = fields["failures_file"], tuple((name, reason) for name, reason in fields["failures"])
        more = {
            "path": Path(fields["path"]),
            "failures": failures,
            "failures_file": None if file is None else Path(file),
        }
        return cls(**{**fields, **more, "notes": tuple(fields["notes"])})

    def tally(self) -> str:
        """Say in a line what became of the samples."""
        reasons = (reason for _, reason in self.failures)
        return tally(total=self.total, done=self.total, resumed=self.resumed, reasons=reasons)


def summarise(path: Path, *, resumed: int, seconds: float, halvings: int) -> Summary:
    """Read what a run has left behind."""
    with FeatureFile(path) as file:
        failed = np.flatnonzero(file.status != Status.DONE)
        failures = tuple((file.dataset.ids[row], file.reasons[row]) for row in failed)
        made_by = file.provenance
        enlarged = int((8 * _smallest_sides(file) < max(made_by["sides"])).sum())
        total = len(file.dataset)
    return Summary(
        path=path,
        total=total,
        resumed=resumed,
        failures=failures,
        seconds=seconds,
        halvings=halvings,
        enlarged=enlarged,
        failures_file=failures_path(resolved(path)) if failures else None,
        notes=(*_notes(made_by, enlarged, halvings), *_precision_notes(made_by)),
    )


def _smallest_sides(file: FeatureFile) -> NDArray[np.int64]:
    """Return the smallest side of all regions, for every row that is done."""
    done = np.flatnonzero(file.status == Status.DONE)
    sizes = np.asarray(file.sizes, dtype=np.int64)[done]
    smallest = [sizes.min(axis=1)] if "image" in file.regions else []
    if "box" in file.regions and file.dataset.boxes is not None:
        boxes = zip(file.dataset.boxes[done], sizes[:, ::-1], strict=True)
        # A box of the stored pixels may lie in an image whose sides have changed places since.
        inside = [Box(*box).within(*size) or Box(*box).within(*size[::-1]) for box, size in boxes]
        edges = np.array(inside, dtype=np.int64).reshape(-1, 4)
        smallest.append((edges[:, 2:] - edges[:, :2]).min(axis=1))
    return np.min(smallest, axis=0)


def _notes(made_by: dict[str, Any], enlarged: int, halvings: int) -> Iterator[str]:
    layer = str(made_by.get("layer", "fc7"))
    least = "7x7 window of the net" if layer.startswith("fc") else f"position of {layer}"
    for scale, side in zip(made_by["scales"], made_by["sides"], strict=True):
        if side != scale:
            yield f"Q = {scale} is too short for one {least}: images were enlarged to {side} instead"
    if enlarged:
        images = counted(enlarged, "image{s} {were} enlarged")
        yield f"{images} more than eightfold to reach Q = {max(made_by['sides'])}"
    if halvings:
        batches = counted(halvings, "batch{es} did not fit into memory and {were} halved")
        yield f"{batches}; --batch-pixels sets their size"


def _precision_notes(made_by: dict[str, Any]) -> Iterator[str]:
    precision, compared = made_by["precision"], made_by.get("float32_cosine")
    if compared is None:
        return
    if compared["least"] is None:
        yield f"{precision}: no image could be computed again in float32, so nothing is known of the difference"
        return
    images = counted(compared["images"], "image{s}")
    again = f"{precision}: computed again in float32, the least cosine of a vector of {images} is"
    advice = "" if compared["least"] >= LEAST_COSINE else f", below {LEAST_COSINE}: with this net take --precision fp32"
    yield f"{again} {compared['least']:.6f}{advice}"
