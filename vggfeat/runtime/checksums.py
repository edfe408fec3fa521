"""Checksums of what is read again: in a JSON object, of its content; in run.sha256, of the files of a run in a folder.

The checksum of a JSON object is one of its entries, and that of the content, not of the bytes: the file may be
indented, and has its entries in any order.

The files of a run become current together, and nobody reads those of two runs as one. run.sha256 holds the SHA-256 of
each, as `sha256sum -c run.sha256` reads it. A run is replaced in three steps:

1. Every file is written under another name. The old run is whole until here.
2. run.sha256 takes its name, then the others do; the file that is named last in it, for instance results.json, comes
   last. Whatever is in the folder meanwhile does not fit run.sha256, and every reader refuses it.
3. With the last file the new run is whole. What only an earlier run has is removed.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vggfeat.errors import StoreError
from vggfeat.runtime.durable import Files, atomic_write, disk_errors, open_bounded, read_bounded

ENTRY = "checksum"
"""Name of the entry: a SHA-256, 64 hex digits."""
SUMS = "run.sha256"
_LONGEST_SUMS = 1 << 20
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]{0,250})")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum as its last entry; ValueError if it is no JSON."""
    return {**content, ENTRY: _digest(content)}


def unsealed(content: Any) -> dict[str, Any]:
    """Return a JSON object without its checksum, which must be right; ValueError if it is another, or none."""
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    plain = {name: value for name, value in content.items() if name != ENTRY}
    if content.get(ENTRY) != _digest(plain):
        raise ValueError("expected the content that its checksum is of, found damage")
    return plain


def short_checksum(content: Mapping[str, Any]) -> str:
    """Return the first 16 digits of the checksum that `sealed` adds: a name for what others refer to."""
    return _digest(content)[:16]


def sealed_line(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object with its checksum as a line."""
    return json.dumps(sealed(content), allow_nan=False).encode() + b"\n"


def unsealed_line(line: bytes | str) -> dict[str, Any] | None:
    """Return the object of a line, without its checksum; None if it is damaged, or cut."""
    try:
        return unsealed(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def replace_run(
    files: Files, folder: Path, contents: Mapping[str, bytes], *, last: str, own: Sequence[str] = ()
) -> list[Path]:
    """Make files current in a folder, in one step.

    Parameters
    ----------
    files : Files
        Carries out the calls.
    folder : Path
        It exists.
    contents : mapping
        File name -> bytes; files of the same names are replaced.
    last : str
        The one of them without which there is no run.
    own : sequence of str
        Patterns of names that only such runs have; those of an earlier run that fit one and are not written now are
        removed.

    Returns
    -------
    list of Path
        Those of `contents` in its order, and run.sha256.

    Raises
    ------
    OSError
        If the disk refuses. The old run is whole, unless that was as the files took their names.
    StoreError
        If a folder, pipe or device has one of the names.
    """
    names = [*(name for name in contents if name != last), last]
    sums = "".join(f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in names)
    everything = {SUMS: sums.encode(), **{name: contents[name] for name in names}}
    with contextlib.ExitStack() as stack:
        # They take their names as the stack unwinds, the last one first, and none if any can't be written.
        for name, content in reversed(everything.items()):
            path = folder / name
            file = stack.enter_context(atomic_write(files, path))
            file.write(content)
            file.raise_first_error()
    for stale in {path.name for pattern in own for path in folder.glob(pattern)} - contents.keys():
        files.remove(folder / stale)
    return [folder / name for name in (*contents, SUMS)]


class RunFiles:
    """Files of a folder, read only if they are of one run. Folders without run.sha256 are taken as they are.

    StoreError if run.sha256 can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sums = read_sums(folder / SUMS)
        """File name -> 64 hex digits, the one that is written last at the end; empty without run.sha256."""
        self._known: set[str] = set()

    def read(self, name: str, most: int) -> bytes:
        """Read a file of at most `most` bytes.

        StoreError if it is not of this run, too large, or no regular file; OSError if it is not there, or the disk
        refuses.
        """
        content = read_bounded(self.folder / name, most)
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def check(self, *needed: str) -> None:
        """Check that all files are of one run; those that were removed since do no harm, but the last and `needed` do.

        StoreError if they are not.
        """
        for name in self.sums.keys() - self._known:
            path = self.folder / name
            with (
                disk_errors(path, "reading", "fix it"),
                contextlib.suppress(FileNotFoundError),
                open_bounded(path) as file,
            ):
                digest = hashlib.file_digest(file, "sha256")
                self._compare(name, digest.hexdigest())
        missing = [name for name in (*list(self.sums)[-1:], *needed) if not (self.folder / name).is_file()]
        if self.sums and missing:
            raise self.refused(missing[0], "none")

    def refused(self, name: str, found: str) -> StoreError:
        """Return the error that says which file is not of this run, and what to do."""
        return StoreError(
            f"{self.folder / name}: expected the file of the run that {SUMS} lists, found {found}; a run was stopped "
            "while it replaced the files of this folder, or the file was changed: give the command of the run again, "
            f"or, if the file was changed on purpose, remove {SUMS}"
        )

    def _compare(self, name: str, digest: str) -> None:
        if self.sums.get(name, digest) != digest:
            raise self.refused(name, "other bytes")
        self._known.add(name)


def read_sums(path: Path) -> dict[str, str]:
    """Return file name -> 64 hex digits of a run.sha256; nothing if there is none. StoreError if it is damaged."""
    try:
        lines: Iterable[str] = read_bounded(path, _LONGEST_SUMS).decode("ascii").splitlines()
        found = [_LINE.fullmatch(line) for line in lines]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise StoreError(f"{path}: reading failed: {error.strerror or error}; fix it") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path}: expected checksums of the files of a run, found: {error}; move it away") from None
    if not all(found):
        raise StoreError(f"{path}: expected a SHA-256 and a name of a file in each line, found others; move it away")
    return {match[2]: match[1] for match in found if match}
