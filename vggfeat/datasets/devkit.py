"""What the ILSVRC development kit and the lists of the Kaggle copy say of classes and validation images."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vggfeat.datasets.files import read_text
from vggfeat.errors import DatasetError, VggfeatError
from vggfeat.formats.mat5 import read_mat

KIT = "ILSVRC2012_devkit_t12"
MAPPING = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"
_META = ("meta.mat", "meta_clsloc.mat")
_TRUTH = ("ILSVRC2012_validation_ground_truth.txt", "ILSVRC2015_clsloc_validation_ground_truth.txt")
_MOST = 1 << 26


class Kit(NamedTuple):
    """The two files of a development kit that matter here."""

    meta: Path
    truth: Path


def find_kit(places: Iterable[Path]) -> Kit | None:
    """Look for a development kit in some folders: by its name, as `data`, or the files themselves."""
    for place in places:
        for folder in (place / KIT / "data", place / KIT, place / "devkit" / "data", place / "data", place):
            meta = next((folder / name for name in _META if (folder / name).is_file()), None)
            truth = next((folder / name for name in _TRUTH if (folder / name).is_file()), None)
            if meta and truth:
                return Kit(meta, truth)
    return None


def read_classes(kit: Kit) -> tuple[dict[int, str], dict[str, str]]:
    """Read the kit's classes.

    Raises DatasetError if the file is no MATLAB file with `synsets`.

    Returns
    -------
    wnids : dict
        The kit's number -> WNID, of the classes and their ancestors. These numbers are not the order of the WNIDs.
    words : dict
        WNID -> words.
    """
    try:
        table = read_mat(kit.meta, ["synsets"])["synsets"]
        table = table if isinstance(table, list) else [table]
        number = next(name for name in table[0] if name.startswith("ILSVRC") and name.endswith("_ID"))
        rows = [(int(row[number].array().item()), str(row["WNID"]), str(row["words"])) for row in table]
    except (VggfeatError, LookupError, AttributeError, TypeError, ValueError, OverflowError, StopIteration) as error:
        raise DatasetError(
            f"{kit.meta}: expected the classes of the development kit, found {type(error).__name__}: {error}; "
            "unpack the kit again"
        ) from error
    return {row[0]: row[1] for row in rows}, {row[1]: row[2] for row in rows}


def read_truth(kit: Kit, wnids: dict[int, str]) -> list[str]:
    """Read the WNID of each validation image, in the order of the file names.

    Raises DatasetError if a line is not the number of a class; the message names the line.
    """
    known = {str(number): wnid for number, wnid in wnids.items()}
    found = []
    for line, text in enumerate(read_text(kit.truth, _MOST).split(), start=1):
        if text not in known:
            raise DatasetError(
                f"{kit.truth}, line {line}: expected the number of a class of the kit, found {text[:40]!r}"
            )
        found.append(known[text])
    return found


def read_solution(path: Path) -> dict[str, str]:
    """Read the WNID of each validation image, by name without ending, from the list of the Kaggle copy.

    Raises DatasetError if the file can't be read or a line has no label; the message names the line.
    """
    found = {}
    for number, line in enumerate(read_text(path, _MOST).splitlines(), start=1):
        name, _, labels = line.partition(",")
        if line and not labels.strip():
            raise DatasetError(f"{path}, line {number}: expected a name and its label, found {line[:80]!r}")
        if line:
            found[name] = labels.split()[0]
    return found


def read_mapping(path: Path) -> dict[str, str]:
    """Read words by WNID from lines of "WNID words"."""
    pairs = (line.split(maxsplit=1) for line in read_text(path, _MOST).splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
