"""Images that failed: their list next to a feature file, and the line that counts them.

A reason of a row reads "reason: message".
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from vggfeat.errors import Failure, StoreError
from vggfeat.runtime.durable import Files, atomic_write, open_bounded
from vggfeat.samples import DataSet, LabelledImages
from vggfeat.store.layout import Status
from vggfeat.store.reader import FeatureFile, count_reasons

_FIELDS = ("id", "path", "reason", "message")
"""Of a line of the list of failures."""
_LONGEST_LINE = 1 << 20


def tally(*, total: int, done: int, resumed: int, reasons: Iterable[str]) -> str:
    """Say in a line how far a run has come.

    Parameters
    ----------
    total : int
        Images in all.
    done : int
        Of these, how many are finished, whether they failed or not.
    resumed : int
        Of these, how many earlier runs had finished.
    reasons : iterable of str
        One for each that failed.
    """
    counts = count_reasons(reasons)
    failed = sum(counts.values())
    found = [f"{done - failed} of {total} images done"]
    if failed:
        found.append(f"{failed} failed ({', '.join(f'{count} {reason}' for reason, count in counts.items())})")
    if done < total:
        found.append(f"{total - done} left")
    if resumed:
        found.append(f"{resumed} by earlier runs")
    return ", ".join(found)


def failures_path(out: Path) -> Path:
    """Name the list of failures of a feature file.

    It has the whole name of the file in its own, as the folder of its parts has: several files may stand in one folder.
    """
    return out.with_name(f"{out.name}.failures.jsonl")


def is_failures_list(path: Path) -> bool:
    """Say whether a file is a list of failures, by its first line; OSError if it can't be read."""
    try:
        with open_bounded(path) as file:
            return list(json.loads(file.readline(_LONGEST_LINE))) == list(_FIELDS)
    except (StoreError, ValueError, TypeError, RecursionError):
        return False


def failures_of(out: Path) -> dict[int, str]:
    """Read from a feature file which rows failed, and why."""
    with FeatureFile(out) as file:
        return {row: file.reasons[row] for row in np.flatnonzero(file.status == Status.FAILED).tolist()}


def write_failures(
    out: Path, dataset: DataSet | LabelledImages, failures: Mapping[int, str], *, files: Files, temp: Path | None = None
) -> None:
    """Write the list of failures of a feature file, if it differs; without failures there is none.

    Parameters
    ----------
    out : Path
        The feature file.
    dataset : DataSet
    failures : mapping of int to str
        Row -> "reason: message".
    files : Files
        Carries out what changes the disk.
    temp : Path, optional
        Name of the list until it is complete; see `vggfeat.runtime.durable.atomic_write`.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    path, ids = failures_path(out), dataset.ids
    content = "".join(_line(ids[row], dataset.paths[row], failures[row]) for row in sorted(failures)).encode()
    if not content:
        if os.path.lexists(path):
            files.remove(path)
            files.sync_folder(path.parent)
    elif not _holds(path, content):
        with atomic_write(files, path, temp=temp) as sink:
            sink.write(content)


def _line(name: str, path: str, text: str) -> str:
    failure = Failure.of(text)
    found = dict(zip(_FIELDS, (name, path, failure.reason, failure.message), strict=True))
    return f"{json.dumps(found)}\n"


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
