"""Folders that commands leave behind, read back: what is on a page, and nothing that the page doesn't need.

m = rows of a test, K = classes.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.datasets.catalogue import DATASETS
from vggfeat.errors import ConfigError, StoreError
from vggfeat.formats.npz import UNREADABLE, Wanted, read_arrays
from vggfeat.protocols.folds import unit_names
from vggfeat.results.checked_json import SVM_FORMAT, check_svm, parse, parse_object, parse_settings
from vggfeat.results.record import DASH, percent
from vggfeat.runtime.checksums import ENTRY, RunFiles, short_checksum, unsealed
from vggfeat.runtime.rendered import RENDERED
from vggfeat.wording import quoted

MOST_JSON, MOST_TEXT, MOST_SCORES = 1 << 28, 1 << 28, 1 << 30
"""Bytes that are read of a file of results, of a text, and of scores, packed as well as unpacked."""
MOST_SPLITS = 4
"""Splits whose sizes are said."""


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
    groups: tuple[str, ...] | None = None
    """m groups, where the samples have some."""

    @property
    def images(self) -> tuple[str, ...]:
        """Return m names that rows of one image, or of one group, have in common, as far as that is known."""
        return tuple(unit_names(self.ids if self.paths is None else self.paths, self.groups))


@dataclass(frozen=True, kw_only=True, eq=False)
class SvmRun:
    """A folder of `vggfeat svm`."""

    name: str
    """What the page calls it; unique on the page."""
    results: Mapping[str, Any]
    """results.json."""
    tests: tuple[Scores, ...]
    """One for each entry of runs in results.json; none where scores.npz is missing."""
    folder: Path = Path()
    """Folder that it was read from."""

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return tuple(row["name"] for row in self.results["classes"])

    @property
    def metric(self) -> str:
        """Key of the headline's measure."""
        return str(self.results["metric"]["key"])

    @property
    def single(self) -> bool:
        """Whether an image has one class."""
        return bool(self.results["dataset"]["task"] == "single-label")

    @property
    def tested(self) -> str:
        """What the headline is of."""
        tests = self.results["runs"]
        return f"on {tests[0]['plan']['tested']}" if len(tests) == 1 else f"mean of {len(tests)} tests"

    def deviation(self, metric: str) -> float | None:
        """Return that of a measure over several tests, from 0 to 1."""
        found: float | None = (self.results["deviation"] or {"values": {}})["values"].get(metric)
        return found

    def value(self, metric: str) -> str:
        """Return a measure over all classes and tests, in per cent, with its deviation."""
        results, deviation = self.results, self.deviation(metric)
        value = results["headline"] if metric == self.metric else results["secondary"][metric]["value"]
        return f"{percent(value, DASH)} %" + ("" if deviation is None else f" ± {percent(deviation)}")

    @property
    def interval(self) -> str:
        """The headline's, in words; empty where there is none."""
        found = self.results.get("interval") or {"low": None}
        if found["low"] is None or found["high"] is None:
            return ""
        return f"{100 * found['level']:g} % interval: {percent(found['low'])} to {percent(found['high'])} %"

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Images that failed, with their reasons, as far as they are known."""
        return [(row["id"], row["reason"]) for row in self.results["dataset"].get("failures", ())]

    def facts(self) -> dict[str, str]:
        """Say what was computed of which images by which net, as far as it is known."""
        dataset, files = self.results["dataset"], self.results["settings"].get("features", {}).get("files", [])
        made = [file.get("provenance", {}) for file in files]
        unit = DATASETS[dataset["name"]].unit if dataset["name"] in DATASETS else "images"
        splits = ", ".join(f"{name} {count}" for name, count in dataset.get("splits", {}).items())
        several = len(dataset.get("splits", {})) > MOST_SPLITS
        count = f"{dataset['samples']}{'' if several or not splits else f' ({splits})'}" if "samples" in dataset else ""
        rendered = f"{RENDERED}, not photographs" if any(one.get("images") == RENDERED for one in made) else ""
        found = {
            unit: [count, rendered],
            "net": [_net(one) for one in made],
            "weights": [one.get("weights", "") for one in made],
            "scales": [f"Q = {', '.join(map(str, file['scales']))}" for file in files if file.get("scales")],
            "regions": [" and ".join(file["regions"]) for file in files if file.get("regions")],
            "layer": [one.get("layer", "") for one in made],
        }
        said = {name: "; ".join(dict.fromkeys(filter(None, values))) for name, values in found.items()}
        return {name: words for name, words in said.items() if words}


def _net(made: Mapping[str, Any]) -> str:
    """Name a net by its provenance."""
    width = made.get("width", 1)
    words = [made.get("net", ""), f"width {width:g}" * (width != 1), "untrained" * (not made.get("trained", True))]
    return ", ".join(filter(None, words))


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


AnyRun = SvmRun | TrainingRun | OtherRun


def read_runs(folders: Sequence[Path]) -> list[AnyRun]:
    """Read folders of results.

    `folders`: of `svm`, `train`, or another command that writes a results.json. They are returned in the same order.
    Raises ConfigError if no folder is given, or one twice; StoreError if a folder holds no results, or some that can't
    be read.
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
    files = RunFiles(folder)
    with _reading(folder):
        if "results.json" in files.sums or os.path.lexists(folder / "results.json"):
            return _run_with_results(files, name)
        if os.path.lexists(folder / "log.jsonl"):
            return _training_run(files, name)
    found = "a file" if folder.is_file() else "neither"
    raise StoreError(
        f"{folder}: expected the folder of a run, with results.json or log.jsonl in it, found {found}; give the "
        "folder that `vggfeat svm --out` or `vggfeat train --out` was given"
    )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        raise StoreError(f"{error.filename or folder}: reading failed: {cause}; fix it") from error
    except (*UNREADABLE, AttributeError) as error:
        raise StoreError(
            f"{folder}: expected results as vggfeat writes them, found some that can't be read "
            f"({type(error).__name__}: {error}); make them again"
        ) from error


def _run_with_results(files: RunFiles, name: str) -> SvmRun | OtherRun:
    path = files.folder / "results.json"
    if not os.path.lexists(path):
        raise files.refused("results.json", "none")
    results = parse_object(path, files.read("results.json", MOST_JSON))
    run: SvmRun | OtherRun
    if results.get("format") == SVM_FORMAT:
        check_svm(path, results)
        run = SvmRun(name=name, results=results, tests=_tests(files, results), folder=files.folder)
    else:
        run = OtherRun(name=name, results=results, table=_text(files, "table.txt"))
    files.check()
    return run


def _text(files: RunFiles, name: str) -> str:
    """Read a text; empty if there is none. No link is followed, as the page shows it."""
    if not os.path.lexists(files.folder / name):
        return ""
    return files.read(name, MOST_TEXT).decode("utf-8", "replace")


def _tests(files: RunFiles, results: Mapping[str, Any]) -> tuple[Scores, ...]:
    if not os.path.lexists(files.folder / "scores.npz"):
        return ()
    content, classes = files.read("scores.npz", MOST_SCORES), len(results["classes"])
    wanted: dict[str, Wanted] = {}
    for number, run in enumerate(results["runs"], start=1):
        rows = run.get("tested")
        wanted |= {f"{what}_{number}": Wanted("U", (rows,)) for what in ("ids", "paths", "groups")}
        wanted |= {f"scores_{number}": Wanted("f", (rows, classes)), f"labels_{number}": Wanted("i", (rows, classes))}
        wanted[f"boxes_{number}"] = Wanted("f", (rows, 4))
    try:
        found = read_arrays(io.BytesIO(content), wanted, MOST_SCORES)
        return tuple(_scores(found, number) for number in range(1, len(results["runs"]) + 1))
    except UNREADABLE as error:
        raise StoreError(
            f"{files.folder / 'scores.npz'}: expected the scores that results.json is about, found others "
            f"({type(error).__name__}: {error}); make them again with `vggfeat svm`"
        ) from error


def _scores(found: Mapping[str, NDArray[Any]], number: int) -> Scores:
    ids, paths, groups = (found.get(f"{what}_{number}") for what in ("ids", "paths", "groups"))
    if ids is None:
        raise ValueError(f"ids_{number}: expected the names of samples, found none")
    test = Scores(
        ids=tuple(ids.tolist()),
        paths=None if paths is None else tuple(paths.tolist()),
        groups=None if groups is None else tuple(groups.tolist()),
        boxes=found.get(f"boxes_{number}"),
        labels=found[f"labels_{number}"].astype(np.int8, copy=False),
        scores=found[f"scores_{number}"].astype(np.float64, copy=False),
    )
    columns = (test.images, test.labels, test.scores, *([] if test.boxes is None else [test.boxes]))
    lengths = {len(column) for column in columns}
    if lengths != {len(test.ids)}:
        raise ValueError(f"expected arrays of equal length, found {len(test.ids)} ids and {sorted(lengths)}")
    if np.isnan(test.scores).any():
        raise ValueError("expected scores to rank by, found NaN")
    return test


def _training_run(files: RunFiles, name: str) -> TrainingRun:
    settings: Mapping[str, Any] = {}
    if os.path.lexists(files.folder / "run.json"):
        settings = parse_settings(files.folder / "run.json", files.read("run.json", MOST_JSON))
    lines = tuple(line for line in _lines(files, "log.jsonl") if type(line.get("step")) is int)
    _check_run(files.folder / "log.jsonl", settings, lines)
    left_out = [(str(line.get("path")), str(line.get("reason"))) for line in _lines(files, "unreadable.jsonl")]
    return TrainingRun(name=name, settings=settings, log=lines, unreadable=tuple(left_out))


def _check_run(log: Path, settings: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Check that a log is of one run, that of run.json; lines of before name none."""
    runs = list(dict.fromkeys(line["run"] for line in lines if "run" in line))
    expected = short_checksum(settings) if settings else next(iter(runs), None)
    for other in runs:
        if other != expected:
            where = "that run.json describes" if settings else "that its first line names"
            raise StoreError(
                f"{log}: expected lines of the run {expected} {where}, found some of {quoted(other)}; "
                "put the files of one run together"
            )


def _lines(files: RunFiles, name: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, without their checksums; the last line may be unfinished, and is left out."""
    lines = _text(files, name).split("\n")
    sealed = any(f'"{ENTRY}"' in text for text in lines)  # Logs of before have no checksums.
    for number, text in enumerate(lines, start=1):
        try:
            line = parse(text)
            found = unsealed(line) if sealed else dict(line)
        except (ValueError, TypeError) as error:
            if number == len(lines) or not sealed:
                continue
            where = f"{files.folder / name}: line {number}"
            raise StoreError(
                f"{where}: expected an object that fits its checksum, found damage ({error}); remove it"
            ) from None
        yield found
