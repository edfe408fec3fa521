"""Files of results, each replaced in one step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vggfeat.errors import StoreError
from vggfeat.runtime.durable import DISK, atomic_write, temporary_path


def write_files(folder: Path, contents: Mapping[str, bytes], *, own: Sequence[str] = ()) -> list[Path]:
    """Write files into a folder, which is made if needed.

    Parameters
    ----------
    folder : Path
    contents : mapping
        File name -> bytes; files of the same names are replaced, each in one step.
    own : sequence of str
        Patterns of names that only such results have. Files of an earlier run that fit one, and are not written now,
        are removed: beside these results they would be taken for theirs.

    Raises
    ------
    StoreError
        If the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in {path.name for pattern in own for path in folder.glob(pattern)} - contents.keys():
            (folder / stale).unlink()
        return [_replace(folder / name, content) for name, content in contents.items()]
    except OSError as error:
        cause = error.strerror or error
        raise StoreError(f"{folder}: writing the results failed: {cause}; mend it, or choose another folder") from error


def _replace(path: Path, content: bytes) -> Path:
    temporary = temporary_path(path)
    with atomic_write(DISK, path, temp=temporary) as file:
        file.write(content)
    return path
