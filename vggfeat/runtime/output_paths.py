"""Where a command may write: the one rule for every output, checked before any work.

1. A link is followed: the file that it leads to is checked and replaced, and the link stays.
2. A folder, pipe, socket or device is never replaced.
3. Neither is an input, whatever name or link it is given by, nor a file that lies in a folder of inputs.
4. Any other file is replaced if it is one of ours that the command makes again, or with --overwrite.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.checksums import SUMS, read_sums
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, open_bounded
from vggfeat.runtime.storage import is_remote, root_text

Ours = Callable[[Path], bool]
"""Says by its content whether a regular file is one that this command makes, and may make again; OSError if it can't be
read."""
LONGEST_NAME = 180
"""Bytes of the name of an output. File systems allow 255, of which ".failures.jsonl", process and ".tmp" take some."""
CLAIM = ".unfinished.json"
"""In a folder of results while a command writes there, so that it is known again after a kill."""
_ANY_FORMAT = "vggfeat-"
_JSON = (".json", ".jsonl")
_FORMAT = re.compile(rb'"format": ?"([^"]{1,60})"')
_CHUNK = 1 << 20


def anything(_: Path) -> bool:
    """Take every file for ours: whoever writes it looks at its content before it replaces it."""
    return True


def nothing(_: Path) -> bool:
    """Take no file for ours."""
    return False


def check_name(out: Path, option: str = "--out") -> None:
    """Check before the work that an output, and the files written next to it, can have their names.

    StoreError if its name is so long that lists and temporary files named after it can't be made.
    """
    name = os.fsencode(Path(os.path.realpath(out)).name)
    if len(name) > LONGEST_NAME:
        raise StoreError(
            f"{out}: expected a name of at most {LONGEST_NAME} bytes, because files next to it have longer ones, "
            f"found {len(name)}; choose a shorter {option}"
        )


def check_target(
    path: str | os.PathLike[str],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool | None = None,
    ours: Ours = nothing,
    called: str = "",
    option: str = "--out",
) -> Path:
    """Check that a file may be made or replaced, whose folder need not exist, and return where it really is.

    `inputs` are files and folders that the command reads; those that do not exist don't matter. `overwrite` says
    whether a file that is not ours may be replaced, and is None where the command has no such option; `ours`, whether a
    file is one that this command makes. For messages, `called` is what those files are, `option` where the name comes
    from.

    ConfigError if it is an input; StoreError if it may not be replaced, or its name is too long.
    """
    real = _real(path, option)
    check_name(real, option)
    state = _state(real)
    if state is None:
        return real
    where = f"{path}" if os.path.abspath(path) == str(real) else f"{path} (which is {real})"
    if not stat.S_ISREG(state.st_mode):
        raise StoreError(f"{where}: expected the name of a file, found {_kind(state)}; choose another {option}")
    known, folders = _identities(inputs)
    if _identity(state) in known:
        raise ConfigError(
            f"{option}: expected another file than the inputs, found {where}, which is one; choose another name"
        )
    with disk_errors(real, "reading", "nothing was changed; fix it"):
        if ours(real):
            return real
    if any(real.is_relative_to(folder) for folder in folders):
        raise ConfigError(f"{option}: expected no file of the inputs, found {where} among them; choose another name")
    if not overwrite:
        advice = "" if overwrite is None else "give --overwrite, or "
        expected = f"{called} or no file, found another file" if called else "a new file, found one there"
        raise StoreError(f"{where}: expected {expected}; {advice}choose another {option}")
    return real


def check_folder(
    folder: str | os.PathLike[str],
    names: Iterable[str],
    *,
    kinds: tuple[str, ...],
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool | None = None,
    option: str = "--out",
) -> Path:
    """Check that files may be written into a folder, which need not exist, and return where it really is.

    Files whose names fit one of the patterns are ours, and are replaced, where one of them is JSON with a "format" that
    begins with one of `kinds`, where the folder has the checksums of a run, or where a command that was stopped has
    left its claim. A link in it is not ours. All else is as for `check_target`.

    ConfigError if the folder, or one of the files, is an input; StoreError if one may not be replaced, or the folder is
    none.
    """
    real = _real(folder, option)
    check_name(real, option)
    state = _state(real)
    if state is not None and not stat.S_ISDIR(state.st_mode):
        raise StoreError(f"{folder}: expected a folder, found {_kind(state)}; choose another {option}")
    present, inputs = list(_present(real, (*names, CLAIM))), tuple(inputs)
    if real in _identities(inputs)[1]:
        raise ConfigError(f"{option}: expected another folder than the inputs, found {folder}; choose another")
    own = _is_ours(real, present, kinds)
    for path in present:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise StoreError(f"{path}: expected a file of vggfeat, found a link; move it away")
        check_target(path, inputs=inputs, overwrite=overwrite, ours=anything if own else nothing, option=option)
    return real


def claim(folder: Path, kinds: tuple[str, ...]) -> None:
    """Note in a folder that exists who is writing there; OSError if the disk refuses."""
    if (folder / CLAIM).exists():
        return
    with atomic_write(DISK, folder / CLAIM) as file:
        file.write(f'{{"format": "{kinds[0]}"}}\n'.encode())


def unclaim(folder: Path, names: Iterable[str], kinds: tuple[str, ...]) -> None:
    """Remove the claim, unless the files that are there would not be known as ours without it."""
    present = list(_present(folder, tuple(names)))
    with contextlib.suppress(OSError, StoreError):  # It is gone, or it can stay.
        if not present or any(path.suffix in _JSON and _names_format(path, kinds) for path in present):
            (folder / CLAIM).unlink()


def _real(path: str | os.PathLike[str], option: str) -> Path:
    """Return where a place of this machine really is, links followed; ConfigError if it is at an address."""
    if is_remote(path):
        raise ConfigError(
            f"{option}: expected a place on this machine, found an address of a store; write it here, and copy it there"
        )
    return Path(os.path.realpath(root_text(path)))


def _is_ours(folder: Path, present: list[Path], kinds: tuple[str, ...]) -> bool:
    """Say whether the files in a folder are of a command whose formats begin so.

    Results that are damaged say nothing; then the checksums of a run do, unless another file names another command's.
    """
    named = [path for path in present if path.suffix in _JSON]
    if any(_names_format(path, kinds) for path in named):
        return True
    try:
        run = bool(read_sums(folder / SUMS))
    except StoreError:
        return False
    return run and not any(_names_format(path, (_ANY_FORMAT,)) for path in named)


def _names_format(path: Path, kinds: tuple[str, ...]) -> bool:
    """Say whether a file is JSON that names a format which begins so; StoreError if the disk refuses to say."""
    with disk_errors(path, "reading", "nothing was changed; fix it"):
        try:
            with open_bounded(path) as file:
                before = b""
                while block := file.read(_CHUNK):
                    if any(name.decode(errors="replace").startswith(kinds) for name in _FORMAT.findall(before + block)):
                        return True
                    before = block[-80:]
        except (FileNotFoundError, StoreError):
            pass  # It is gone, or no regular file, of which `check_folder` says so.
    return False


def _present(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    try:
        found = sorted(os.listdir(folder))
    except OSError:
        return
    exact = set(patterns)
    globs = [pattern for pattern in patterns if "*" in pattern]
    yield from (folder / name for name in found if name in exact or any(fnmatch(name, glob) for glob in globs))


def _state(real: Path) -> os.stat_result | None:
    try:
        return os.lstat(real)  # A link that is left here leads in a circle.
    except OSError:
        return None  # Whoever makes it says what is wrong with its folder.


def _identities(inputs: Iterable[str | os.PathLike[str]]) -> tuple[set[tuple[int, int]], list[Path]]:
    """Return what tells the files among the inputs from others, and the folders."""
    known, folders = set(), []
    for path in map(root_text, inputs):
        try:
            state = os.stat(path)
        except (OSError, ValueError):
            continue  # It is missing, or the name of a net: whoever reads it says so.
        if stat.S_ISDIR(state.st_mode):
            folders.append(Path(os.path.realpath(path)))
        else:
            known.add(_identity(state))
    return known, folders


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _kind(state: os.stat_result) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFREG: "a file",
             stat.S_IFLNK: "a link that leads in a circle"}  # fmt: skip
    return kinds.get(stat.S_IFMT(state.st_mode), "a device")
