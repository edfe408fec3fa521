"""Which files a set of tars or lists in Parquet has, by its root: a folder, an address, or a pattern in braces."""

import itertools
import re
from typing import NamedTuple

from vggfeat.datasets.levels import loose_split_name
from vggfeat.errors import DatasetError
from vggfeat.runtime.addresses import is_address
from vggfeat.runtime.storage import Storage, StorageSettings, open_storage

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_OF_RUN = re.compile(r"(.*/)?(?:plan|features/\d{3,})/part-[0-9a-f-]+\.parquet")
_PLAN = "plan.json"
_MOST_FILES = 10**6


class FileSet(NamedTuple):
    """Files below a root."""

    storage: Storage
    paths: list[str]
    """Sorted if they were found in a folder, else as the pattern names them."""


def find_files(root: str, ending: str, settings: StorageSettings) -> FileSet:
    """Find the files that a root stands for.

    Parameters
    ----------
    root : str
        A folder or address, searched at any depth, but not in the runs of vggfeat there; a file with the ending; or
        several by a pattern in braces, train-{0000..0146}.tar or {train,val}.tar.
    ending : str
        ".tar" or ".parquet".
    settings : StorageSettings

    Raises
    ------
    DatasetError
        If there is none, or the pattern stands for more than a million.
    """
    if "{" in root or root.split("?", 1)[0].lower().endswith(ending):
        head = root.split("{", 1)[0]
        folder, slash, _ = head.rpartition("/")
        if not is_address(root):
            folder = folder or ("/" if slash else ".")
        return FileSet(open_storage(folder, settings), _expanded(root[len(folder) + len(slash) :] if slash else root))
    storage = open_storage(root, settings)
    paths, runs = [], set()
    for entry in storage.entries():
        folder, _, name = entry.path.rpartition("/")
        if name == _PLAN:
            runs.add(folder)
        elif name.lower().endswith(ending) and not any(part.startswith(".") for part in entry.path.split("/")):
            paths.append(entry.path)
    if runs:  # of vggfeat: what it keeps there is no list of images
        paths = [path for path in paths if _above(path) not in runs]
    if not paths:
        raise DatasetError(f"{storage.root}: expected files that end with {ending}, found none; correct --root")
    return FileSet(storage, paths)


def _above(path: str) -> str | None:
    """Return the folder of the run that a file would be of."""
    found = _OF_RUN.fullmatch(path)
    return None if found is None else (found[1] or "").rstrip("/")


def _expanded(pattern: str) -> list[str]:
    pieces = _BRACES.split(pattern)  # texts, with what was in braces between them
    choices = [[piece] if number % 2 == 0 else _alternatives(piece) for number, piece in enumerate(pieces)]
    paths = ["".join(parts) for parts in itertools.islice(itertools.product(*choices), _MOST_FILES + 1)]
    if len(paths) > _MOST_FILES:
        raise DatasetError(f"{pattern}: expected a pattern of at most {_MOST_FILES} files, found one of more")
    return paths


def _alternatives(text: str) -> list[str]:
    found = _RANGE.fullmatch(text)
    if not found:
        return text.split(",")
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST_FILES:
        raise DatasetError(f"{{{text}}}: expected a range of 1 to {_MOST_FILES} files, as in 0000..0146")
    return [str(number).zfill(len(found[1])) for number in range(first, last + 1)]


def split_of(path: str) -> tuple[str, ...]:
    """Return the split that the name of a file says, or the folder that it is in: train-00000-of-00002.parquet."""
    folder, _, name = path.rpartition("/")
    found = loose_split_name(name.partition(".")[0]) or loose_split_name(folder.rpartition("/")[2])
    return (found,) if found else ()
