"""Identity of a run: what must be equal to resume it, and words for what differs."""

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import UntrustedHDF5, canonical_json, open_hdf5
from vggfeat.runtime.durable import disk_errors, open_bounded
from vggfeat.runtime.storage import root_text
from vggfeat.samples import DataSet
from vggfeat.store.layout import FORMAT, POSTERIORS, Shape
from vggfeat.store.reader import FeatureFile, FileReport

_CHUNK_BYTES = 1 << 24
_LONGEST_SHOWN = 100
_LONGEST_ROW = 1000
_LONGEST_LINE = 1 << 16
_MOST_SHOWN = 50
_DEEPEST = 8
_DIGEST = re.compile(r'"[0-9a-f]{64}"')
IMAGE_SIZES = "image_sizes_sha256"
"""Of a key: the sizes in bytes of all image files."""
_OF_LIST = ("fingerprint", "rows")
_MEANING: dict[tuple[str, ...], str] = {
    ("fingerprint",): " (other ids, paths, classes, labels, boxes, splits, groups or columns)",
    ("weights_sha256",): " (another weights file)",
    (IMAGE_SIZES,): " (image files have come, gone or changed: --retry-failed makes those of a finished file again)",
}


class RunTicket(NamedTuple):
    """What the processes of a run tell each other when the first has opened its parts; plain data."""

    manifest: dict[str, Any]
    """All that must be equal in the others."""
    pending: list[int]
    """Shards still to be done, ascending."""
    done: int
    """Rows in finished shards."""
    complete: bool
    """Whether the feature file is finished."""
    kept: list[int]
    """For each row the row of the finished file that it keeps, -1 for none; empty if nothing is kept of a file."""


class ReplaceableError(StoreError):
    """A feature file, but damaged or of another run."""


class FinishedRun(NamedTuple):
    """A feature file of the run that is asked for."""

    report: FileReport
    other_images: bool
    """Whether image files have other sizes by now, which is of the same run only for those who allow it."""
    other_rows: bool
    """Whether its list is another by now, likewise."""


def matching(
    out: Path, manifest: dict[str, Any], *, sound: bool = False, retry_failed: bool = False, extend: bool = False
) -> FinishedRun | None:
    """Say what the feature file of exactly this run holds; None if there is no file.

    Parameters
    ----------
    out : Path
    manifest : dict
        As `describe` makes it.
    sound : bool
        Read every byte.
    retry_failed : bool
        Take it for the same run if image files have other sizes by now, or if fewer pixels were allowed an image.
    extend : bool
        Take it for the same run then, and if images have come or gone, or their labels, splits and the like are others.

    Raises
    ------
    ReplaceableError
        If it is of another run (every difference is named) or damaged; of damage that only the checksums tell, with
        `sound` alone.
    StoreError
        If it is no feature file.
    """
    if not os.path.lexists(out):
        return None
    try:
        file = FeatureFile(out)
    except StoreError as error:
        if is_damaged(out):
            raise ReplaceableError(f"{error}; make it again with --overwrite, or choose another output") from None
        raise StoreError(f"{error}; it is left as it is: move it away or choose another output") from None
    with file:
        found = _description(file.dataset_name, file.fingerprint, len(file), file.key, file.shape)
        expected = {name: manifest[name] for name in found}
        other_rows = extend and any(found[name] != expected[name] for name in _OF_LIST)
        if other_rows:
            expected |= {name: found[name] for name in _OF_LIST}
        sizes = file.key.get(IMAGE_SIZES)
        other_images = (retry_failed or extend) and sizes != expected["key"].get(IMAGE_SIZES)
        if other_images:
            expected["key"] = expected["key"] | {IMAGE_SIZES: sizes}
        if retry_failed or extend:
            expected["key"] = _with_smaller_limit(expected["key"], file.key)
        different = differences(found, expected)
        if different:
            different += _made_with(different, file.provenance)
            raise ReplaceableError(
                f"{out}: expected features of the same settings, found others: {'; '.join(different)}; "
                f"{_remedy(found, expected)}choose another output, or ask to overwrite it (--overwrite)"
            )
        try:
            if sound:
                file.check()
            return FinishedRun(file.report(), other_images, other_rows)
        except StoreError as error:
            raise ReplaceableError(f"{error}; make it again with --overwrite, or choose another output") from None


def is_damaged(path: Path) -> bool:
    """Say whether what can't be read as a feature file was one, as far as can be seen, or is HDF5 nobody can read.

    StoreError if the disk doesn't give its bytes now, which says nothing of them.
    """
    if not path.is_file():
        return False
    with (
        disk_errors(path, "reading", "nothing was changed; fix it and give the same command again"),
        path.open("rb") as file,
    ):
        size = os.fstat(file.fileno()).st_size
        while file.read(_CHUNK_BYTES):
            pass
    try:
        if not h5py.is_hdf5(path):
            return not size
        with open_hdf5(path) as opened:
            return UntrustedHDF5(opened, str(path), size).text("format") == FORMAT
    except StoreError:
        return False
    except Exception:  # h5py lets out whatever a damaged file makes of its insides
        return True


def _remedy(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Name the way to keep the features of a file that differs in nothing but its list of images."""
    same_key = found["key"] | {IMAGE_SIZES: expected["key"].get(IMAGE_SIZES)} == expected["key"]
    of_list = found["fingerprint"] != expected["fingerprint"] and found["key"].get("layer") != POSTERIORS
    same = same_key and found | {name: expected[name] for name in (*_OF_LIST, "key")} == expected
    return "compute only what is new (extract --extend), " if of_list and same else ""


def _with_smaller_limit(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return our key with the limit on pixels of theirs if that is smaller: with ours, no row of theirs is another."""
    before, now = (key.get("decode") for key in (theirs, ours))
    return ours | {"decode": before} if higher_limit(before, now) else ours


def higher_limit(before: Any, now: Any) -> bool:
    """Say whether two `decode` entries of keys differ in nothing but that more pixels are allowed an image now."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return False
    limit, own = before.get("max_pixels"), now.get("max_pixels")
    return isinstance(limit, int) and isinstance(own, int) and limit < own and now | {"max_pixels": limit} == before


def describe(dataset: DataSet, key: dict[str, Any], shape: Shape, shard_rows: int) -> dict[str, Any]:
    """Write down all that must be equal for a run to be continued."""
    plain_key = json.loads(canonical_json(key, "key"))  # As it will be read again: tuples are lists there.
    described = _description(dataset.name, dataset.fingerprint(), len(dataset), plain_key, shape)
    return {"format": "vggfeat-parts", "version": 1, "shard_rows": shard_rows, **described}


def _description(name: str, fingerprint: str, rows: int, key: dict[str, Any], shape: Shape) -> dict[str, Any]:
    return {
        "dataset": name,
        "fingerprint": fingerprint,
        "rows": rows,
        "key": key,
        "scales": list(shape.scales),
        "regions": list(shape.regions),
        "channels": shape.channels,
    }


def differences(found: Any, expected: dict[str, Any]) -> list[str]:
    """Name everything in which a description that was read differs from ours, with both values; 50 and how many more.

    What is deeper than 8 levels is one value, so that no description takes more than its own size.
    """
    ours, theirs = dict(_flat(expected)), dict(_flat(found))
    names = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    shown = [_difference(name, theirs.get(name), ours.get(name)) for name in names[:_MOST_SHOWN]]
    return shown if len(names) <= _MOST_SHOWN else [*shown, f"and {len(names) - _MOST_SHOWN} more"]


def other_run(folder: Path, inputs: Path, different: list[str], dataset: DataSet) -> StoreError:
    """Return the refusal of unfinished parts of another run."""
    if any(line.startswith("fingerprint:") for line in different):
        different = [*different, first_other_row(inputs, dataset)]
    return StoreError(
        f"{folder}: expected parts of the same run, found another: {'; '.join(different)}; "
        "run with the old settings, delete the folder, or choose another output"
    )


def other_process(out: Path, different: list[str]) -> StoreError:
    """Return the refusal of a process that is not of the run that it joins."""
    return StoreError(
        f"{out}: expected the same run in all its processes, found another in this one: {'; '.join(different)}; "
        "start all with the same command on machines of one kind"
    )


def first_other_row(inputs: Path, dataset: DataSet) -> str:
    """Say which row of a data set is the first that differs from a frozen list of ids and paths."""
    ours = ([name, path] for name, path in zip(dataset.ids, dataset.paths, strict=True))
    try:
        with open_bounded(inputs) as lines:
            theirs = (json.loads(line) for line in iter(lambda: lines.readline(_LONGEST_LINE), b""))
            for row, (found, expected) in enumerate(itertools.zip_longest(theirs, ours)):
                if expected is None or found != expected:
                    found, expected = (_short(ascii(pair), _LONGEST_ROW) for pair in (found, expected))
                    return f"row {row} is the first that differs: found {found}, expected {expected}"
    except (OSError, ValueError, RecursionError, StoreError):
        return f"{inputs.name} can't be read, so that the first row that differs is not known"
    return "ids and paths are the same, so classes, labels, boxes, splits, groups or columns differ"


def resolved(out: Path) -> Path:
    """Follow links to where a file would really be written; StoreError if that is a folder, or in none."""
    target = Path(os.path.realpath(root_text(out)))
    if not target.parent.is_dir():
        raise StoreError(f"{out}: expected a folder {target.parent}, found none; make it first")
    if target.is_dir():
        raise StoreError(f"{out}: expected the name of a file, found a folder; add a file name")
    return target


def _flat(value: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict) and value and len(name) < _DEEPEST:
        for key, inner in value.items():
            yield from _flat(inner, (*name, key))
    else:
        yield name, json.dumps(value, sort_keys=True)


def _difference(name: tuple[str, ...], found: str | None, expected: str | None) -> str:
    return f"{_name(name)}: found {_short(found)}, expected {_short(expected)}{_MEANING.get(name[-1:], '')}"


def _made_with(different: list[str], provenance: Any) -> list[str]:
    """Say by name which weights a file is of, if others are asked for."""
    weights = provenance.get("weights") if isinstance(provenance, dict) else None
    if not isinstance(weights, str) or not any(line.startswith("weights_sha256:") for line in different):
        return []
    return [f"the file was made with {_short(json.dumps(weights))}"]


def _name(name: tuple[str, ...]) -> str:
    return _short(json.dumps(".".join(name).removeprefix("key."))[1:-1])


def _short(text: str | None, longest: int = _LONGEST_SHOWN) -> str:
    if text is None:
        return "none"
    if _DIGEST.fullmatch(text):
        return f'"{text[1:9]}..."'
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
