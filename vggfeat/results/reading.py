"""Folders that commands leave behind, read back: what is on a page, and nothing that the page doesn't need.

m = rows of a test, K = classes.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, StoreError
from vggfeat.results.checked_json import SVM_FORMAT, check_svm, parse, read_json
from vggfeat.runtime.checksums import ENTRY, unsealed


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One test of an SVM run, row by row."""

    ids: tuple[str, ...]
    """m names of samples."""
    paths: tuple[str, ...] | None
    """m image files, relative to the root of the data set; None in folders of vggfeat before it kept them."""
    boxes: NDArray[np.float64] | None
    """(m, 4) left, top, right, bottom in pixels, NaN where there is none."""
    labels: NDArray[np.int8]
    """(m, K) of 1, -1, 0, as they were scored."""
    scores: NDArray[np.float64]
    """(m, K); -inf where the image failed."""

    @property
    def images(self) -> tuple[str, ...]:
        """Return m names that rows of one image have in common, as far as that is known."""
        return self.ids if self.paths is None else self.paths


@dataclass(frozen=True, kw_only=True, eq=False)
class SvmRun:
    """A folder of `vggfeat svm`."""

    name: str
    """What the page calls it; unique on the page."""
    results: Mapping[str, Any]
    """results.json."""
    tests: tuple[Scores, ...]
    """One for each entry of runs in results.json; none where scores.npz is missing."""

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return tuple(row["name"] for row in self.results["classes"])

    @property
    def metric(self) -> str:
        """Key of the headline's measure."""
        return str(self.results["metric"]["key"])


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """A folder of `vggfeat train`."""

    name: str
    settings: Mapping[str, Any]
    """run.json; empty if there is none."""
    log: tuple[Mapping[str, Any], ...]
    """Lines of log.jsonl, in order."""
    unreadable: tuple[tuple[str, str], ...]
    """(path, reason) of images that were left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OtherRun:
    """A folder with a results.json of another command."""

    name: str
    results: Mapping[str, Any]
    table: str
    """table.txt; empty if there is none."""


_UNREADABLE = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip

AnyRun = SvmRun | TrainingRun | OtherRun


def read_runs(folders: Sequence[Path]) -> list[AnyRun]:
    """Read folders of results.

    Parameters
    ----------
    folders : sequence of Path
        Of `svm`, `train`, or another command that writes a results.json.

    Returns
    -------
    list of SvmRun, TrainingRun or OtherRun
        In the same order.

    Raises
    ------
    ConfigError
        If no folder is given, or one twice.
    StoreError
        If a folder holds no results, or some that can't be read.
    """
    if not folders:
        raise ConfigError("runs: expected at least one folder of results, found none")
    real = [folder.resolve() for folder in folders]
    twice = next((folder for folder, place in zip(folders, real, strict=True) if real.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"runs: expected different folders, found {twice} twice")
    return [_read(folder, name) for folder, name in zip(folders, _names(real), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Name folders by as little of the end of their paths as tells them apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]).removesuffix(".svm") for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> AnyRun:
    with _reading(folder):
        if (folder / "results.json").is_file():
            results = read_json(folder / "results.json")
            if results.get("format") == SVM_FORMAT:
                return _svm_run(folder, name, results)
            return OtherRun(name=name, results=results, table=_text(folder / "table.txt"))
        if (folder / "log.jsonl").is_file():
            return _training_run(folder, name)
    raise StoreError(
        f"{folder}: expected the folder of a run, with results.json or log.jsonl in it, found neither; give the "
        "folder that `vggfeat svm --out` or `vggfeat train --out` was given"
    )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise StoreError(
            f"{folder}: expected results as vggfeat writes them, found some that can't be read "
            f"({type(error).__name__}: {error}); make them again"
        ) from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _svm_run(folder: Path, name: str, results: dict[str, Any]) -> SvmRun:
    check_svm(folder / "results.json", results)
    tests: tuple[Scores, ...] = ()
    if (folder / "scores.npz").is_file():
        # Opened here, because NumPy leaves a file open that it can't read.
        with (folder / "scores.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            tests = tuple(_scores(found, number) for number in range(1, len(results["runs"]) + 1))
    run = SvmRun(name=name, results=results, tests=tests)
    if any(one.scores.shape[1] != len(run.classes) for one in tests):
        raise ValueError("results.json and scores.npz: expected the same classes in both")
    return run


def _scores(found: Any, number: int) -> Scores:
    def texts(what: str) -> tuple[str, ...]:
        return tuple(map(str, found[f"{what}_{number}"].tolist()))

    boxes = found.get(f"boxes_{number}")
    test = Scores(
        ids=texts("ids"),
        paths=texts("paths") if f"paths_{number}" in found else None,
        boxes=boxes,
        labels=found[f"labels_{number}"].astype(np.int8),
        scores=found[f"scores_{number}"].astype(np.float64),
    )
    rows = len(test.ids)
    shapes = (test.scores.shape, test.labels.shape)
    fits = shapes[0] == shapes[1] and len(shapes[0]) == 2 and shapes[0][0] == rows
    if not fits or len(test.images) != rows or (boxes is not None and boxes.shape != (rows, 4)):
        raise ValueError(f"scores.npz: expected arrays of equal length, found {rows} ids and {shapes}")
    if np.isnan(test.scores).any():
        raise ValueError("scores.npz: expected scores to rank by, found NaN")
    return test


def _training_run(folder: Path, name: str) -> TrainingRun:
    settings = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    lines = tuple(line for line in _lines(folder / "log.jsonl") if type(line.get("step")) is int)
    left_out = [(str(line.get("path")), str(line.get("reason"))) for line in _lines(folder / "unreadable.jsonl")]
    return TrainingRun(name=name, settings=settings, log=lines, unreadable=tuple(left_out))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, without their checksums; the last line may be unfinished, and is left out."""
    lines = _text(path).split("\n")
    sealed = any(f'"{ENTRY}"' in text for text in lines)  # Logs of before have no checksums.
    for number, text in enumerate(lines, start=1):
        try:
            line = parse(text)
            found = unsealed(line) if sealed else dict(line)
        except (ValueError, TypeError) as error:
            if number == len(lines) or not sealed:
                continue
            raise StoreError(
                f"{path}: line {number}: expected an object that fits its checksum, found damage ({error}); remove it"
            ) from None
        yield found
