"""A list of images becomes a data set: which of its columns is what, and what the cells say.

N = rows, K = classes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from vggfeat.checks import check_choice
from vggfeat.datasets.cells import Cells, plain, read_cells
from vggfeat.datasets.files import listed
from vggfeat.datasets.folder import label_matrix, row_arrays, split_notes
from vggfeat.datasets.levels import alike_notes, class_name_notes
from vggfeat.datasets.rows import ONE_HOT, read_boxes, read_groups, read_labels, read_one_hot, read_paths, read_splits
from vggfeat.errors import ConfigError, DatasetError
from vggfeat.samples import DataSet, Label, Task
from vggfeat.wording import counted

LabelSeparator = Literal[";", "|", ",", "none"]
COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "labels": ("labels", "label", "class"),
    "split": ("split",),
    "box": ("box",),
    "id": ("id",),
    "group": ("group",),
}
"""What a column may be -> the headings by which it is known, in any capitals, with blanks, `_` and `-` or without."""
_GROUPS = frozenset(("patient", "patientid", "subject", "subjectid", "specimen", "specimenid", "site", "siteid"))
_MOST_COLUMNS = 500
_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """How a list is to be read where it does not tell it itself.

    Raises ConfigError if a column is none of `COLUMNS`, the separator of labels is not allowed, or labels are given
    twice.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    """One of `COLUMNS` -> the heading of it."""
    one_hot: tuple[str, ...] = ()
    """Headings of columns that are a class each and hold 0 or 1, True or False; instead of a column of labels."""
    label_separator: LabelSeparator | None = None
    """What stands between several labels in a cell. None: ";" in a column called labels; elsewhere a cell with ";" is
    refused."""
    encoding: str | None = None
    """Encoding of a CSV file without a byte order mark, UTF-8 by default."""
    sheet: str | None = None
    """Name of the sheet in a workbook with several."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "one_hot", tuple(heading.strip() for heading in self.one_hot))
        for name in self.columns:
            check_choice("--column", name, COLUMNS)
        if self.label_separator is not None:
            check_choice("--label-separator", self.label_separator, get_args(LabelSeparator))
        if self.one_hot and "labels" in self.columns:
            raise ConfigError("--one-hot: expected it or --column labels=HEADING, found both; leave one out")


def read_manifest(path: Path, settings: ListSettings | None = None) -> DataSet:
    """Read a list of images.

    Parameters
    ----------
    path : Path
        A CSV file, Excel workbook or Parquet file, or the folder that holds manifest.csv. Columns are known by their
        headings, see `COLUMNS`; others are kept as text. *path* is relative to the folder of the list. *labels* may be
        "?name": the image is neither positive nor negative for this class. *split* may name several, separated by ";";
        VAL, valid, dev and the like are val, as `listed_split` says. *box* is "left top right bottom" in pixel edges:
        0-based, right and bottom exclusive. *id* defaults to the path. *group* is what images are of that training and
        test must not share.
    settings : ListSettings, optional
        What the list does not tell.

    Returns
    -------
    DataSet
        "manifest": rows in file order; labels (N, K), classes sorted. Single-label if every row has exactly one label,
        multi-label if not, unlabelled if there are none.

    Raises
    ------
    DatasetError
        If a line is malformed or a column may be two things, a path is absolute or leaves the folder, an id occurs
        twice, a split has two names or one that is nearly train, val or test. The message names the line.
    ConfigError
        If a heading of the settings is not there, or a library is missing.
    """
    path, settings = _list_file(Path(path)), settings or ListSettings()
    wanted = {*COLUMNS["path"], *map(plain, (*settings.columns.values(), *settings.one_hot))}
    cells = read_cells(path, wanted, encoding=settings.encoding, sheet=settings.sheet)
    known = _find_columns(cells, settings)
    cells = _without_empty_rows(cells, known["path"])
    column = {name: cells.columns[number] for name, number in known.items()}
    paths, path_notes = read_paths(cells, column["path"])
    labels, classes = _find_labels(cells, known, settings)
    ids = [text.strip() or path for text, path in zip(column.get("id", [""] * len(paths)), paths, strict=True)]
    _check_ids(cells, ids)
    splits, renamed = read_splits(cells, column.get("split", ()))
    groups = read_groups(cells, column.get("group", ()))
    kept, kept_notes = _further_columns(cells, set(known.values()), settings)
    matrix = label_matrix(classes, labels)
    single = all(list(some.values()) == [Label.POSITIVE] for some in labels)
    return DataSet(
        name="manifest",
        task=Task.UNLABELLED if not classes else Task.SINGLE_LABEL if single else Task.MULTI_LABEL,
        classes=classes,
        ids=tuple(ids),
        paths=tuple(paths),
        labels=matrix,
        boxes=read_boxes(cells, column.get("box", ())),
        splits=row_arrays(splits),
        groups=groups,
        columns=kept,
        root=str(path.parent),
        notes=(
            *cells.notes,
            *path_notes,
            *renamed,
            *_label_notes(cells, labels, classes),
            *class_name_notes(classes),
            *split_notes(classes, matrix, splits),
            *alike_notes("groups", groups or ()),
            *_group_notes(groups, splits),
            *kept_notes,
        ),
    )


def _list_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    path /= "manifest.csv"
    if not path.exists():
        raise DatasetError(f"{path}: expected the list of the images, found none; give the list itself with --root")
    return path


def _find_columns(cells: Cells, settings: ListSettings) -> dict[str, int]:
    """Return the number of each column that is known, by its name in `COLUMNS`."""
    chosen = {name: _find_heading(cells, f"--column {name}", heading) for name, heading in settings.columns.items()}
    taken = {*chosen.values(), *(_find_heading(cells, "--one-hot", heading) for heading in settings.one_hot)}
    found = dict(chosen)
    for name, headings in COLUMNS.items():
        if name in chosen or (name == "labels" and settings.one_hot):
            continue
        fits = [k for k, heading in enumerate(cells.headings) if plain(heading) in headings and k not in taken]
        if len(fits) > 1:
            one, other = (cells.headings[k] for k in fits[:2])
            remedy = f"say which with --column {name}={one} or --column {name}={other}"
            raise DatasetError(
                f"{cells.path}, line 1: expected one column of the {name}, found {one!r} and {other!r}; "
                f"{remedy if one != other else 'rename one'}"
            )
        found |= dict.fromkeys([name] * len(fits), *fits)
        lost = [heading for heading in cells.unread if plain(heading) in headings]
        if lost and not fits:
            raise DatasetError(_unreadable(cells, lost[0]))
    if "path" not in found:
        raise DatasetError(
            f"{cells.path}, line 1: expected a heading {', '.join(COLUMNS['path'][:-1])} or {COLUMNS['path'][-1]}, "
            f"found {listed(cells.headings)[:200]!r}; say which column has the paths with --column path=HEADING"
        )
    return found


def _unreadable(cells: Cells, heading: str) -> str:
    return (
        f"{cells.path}: expected text or numbers in the column {heading!r}, found lists or bytes; write them as text, "
        "labels with ; between them, or plan the list with `vggfeat plan --dataset parquet`, which reads them"
    )


def _find_heading(cells: Cells, option: str, heading: str) -> int:
    fits = [number for number, found in enumerate(cells.headings) if found == heading.strip()]
    if not fits and heading.strip() in cells.unread:
        raise DatasetError(_unreadable(cells, heading.strip()))
    if len(fits) != 1:
        raise ConfigError(
            f"{option}: expected one of the headings {listed(cells.headings)} ({cells.path.name}), found {heading!r} "
            f"{counted(len(fits), 'time{s}')}"
        )
    return fits[0]


def _find_labels(
    cells: Cells, known: Mapping[str, int], settings: ListSettings
) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    if settings.one_hot:
        return read_one_hot(cells, {name: _find_heading(cells, "--one-hot", name) for name in settings.one_hot})
    if "labels" in known:
        return read_labels(cells, known["labels"], settings.label_separator)
    return [{} for _ in cells.lines], ()


def _without_empty_rows(cells: Cells, path: int) -> Cells:
    """Leave out rows without any content, as programs write them below a table."""
    suspects = [row for row, text in enumerate(cells.columns[path]) if not text.strip()]
    empty = {row for row in suspects if not any(column[row].strip() for column in cells.columns)}
    if len(empty) == len(cells.columns[path]):
        raise DatasetError(f"{cells.path}: expected lines below the headings, found none")
    if not empty:
        return cells
    rows = [row for row in range(len(cells.lines)) if row not in empty]
    columns: list[Sequence[str]] = [[column[row] for row in rows] for column in cells.columns]
    return cells._replace(columns=columns, lines=[cells.lines[row] for row in rows])


def _label_notes(cells: Cells, labels: Sequence[dict[str, int]], classes: Sequence[str]) -> list[str]:
    notes = []
    # Lists of Python and JSON too, and the commas of Chinese.
    apart = re.compile(r"[,|/&+\t\uff0c\uff1b\u3001]")
    parts = {name: {part.strip(" []'\"") for part in apart.split(name)} - {""} for name in classes}
    seen = Counter(part for several in parts.values() for part in several)
    joined = [
        repr(name) for name, several in parts.items() if several != {name} and any(seen[one] > 1 for one in several)
    ]
    if joined:
        notes.append(
            f"Read as one class each: {listed(joined)}; several labels of an image are separated by ';', or as "
            "--label-separator says."
        )
    bare = [row for row, some in enumerate(labels) if not some]
    most_one = all(list(some.values()) in ([], [Label.POSITIVE]) for some in labels)
    if most_one and 0 < len(bare) < len(labels):
        notes.append(
            f"Read as multi-label, because {counted(len(bare), 'line{s} {have} no label')} (the first is line "
            f"{cells.lines[bare[0]]}); give every line one label to make it single-label."
        )
    return notes


def _check_ids(cells: Cells, ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if first.setdefault(name, row) != row:
            raise DatasetError(
                f"{cells.where(row)}: expected every id once, found {name!r} also in line {cells.lines[first[name]]}; "
                "take one of the two out, or give several boxes on one image an id each"
            )


def _group_notes(groups: Sequence[str] | None, splits: Mapping[str, Sequence[int]]) -> list[str]:
    """Name the groups that training and test share; train-1 and train-2 are of different runs."""
    runs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for split, rows in splits.items():
        number = split.rpartition("-")[2] if re.fullmatch(r".*-\d+", split) else ""
        for group in dict.fromkeys(groups[row] for row in rows) if groups else ():
            runs[number][group].append(split)
    shared = [
        f"{group} ({', '.join(several)})" for run in runs.values() for group, several in run.items() if len(several) > 1
    ]
    return [f"Groups that lie in more than one split: {listed(shared)}; figures may be too good."] if shared else []


def _further_columns(
    cells: Cells, known: set[int], settings: ListSettings
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the columns that mean nothing here, by a name that a feature file can hold."""
    kept: dict[str, tuple[str, ...]] = {}
    nameless, marks = [], []
    for number, (heading, column) in enumerate(zip(cells.headings, cells.columns, strict=True)):
        if number in known or heading in settings.one_hot:
            continue
        name = "".join(letter if letter.isprintable() else " " for letter in heading)
        name = " ".join(name.replace("/", "_").split())[:_LONGEST_NAME]
        if not name:
            nameless += [f"number {number + 1}"] if any(column) else []
            continue
        if name in kept:
            raise DatasetError(
                f"{cells.path}, line 1: expected every heading once, found {heading!r} twice; rename one"
            )
        kept[name] = tuple(column)
        marks += [name] if set(map(str.lower, column)) <= ONE_HOT.keys() else []
    if len(kept) > _MOST_COLUMNS:
        raise DatasetError(f"{cells.path}: expected at most {_MOST_COLUMNS} further columns, found {len(kept)}")
    notes = [f"Columns without a heading, and ignored: {listed(nameless)}."] if nameless else []
    if kept:
        notes.append(f"Kept in the feature file as text: {listed(list(kept))}.")
    if len(marks) > 1 and "labels" not in settings.columns and not settings.one_hot:
        notes.append(f"Columns of 0 and 1: {listed(marks)}; if they are classes, give --one-hot {','.join(marks[:5])}.")
    likely = next((name for name in kept if plain(name) in _GROUPS), None)
    if likely is not None and "group" not in settings.columns:
        notes.append(f"If training and test must not share a {likely}, give --column group='{likely}'.")
    return kept, notes
