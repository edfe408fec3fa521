"""Which folders of a tree are splits, and which are classes: one rule for extraction and for training."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from vggfeat.checks import check_choice
from vggfeat.datasets.files import listed, path_in
from vggfeat.errors import ConfigError, DatasetError

Layout = Literal["splits", "classes"]
"""What the folders of the first level are, where a user says so."""
SPLITS = ("train", "val", "test")
"""Names by which protocols know splits."""

_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation"), "test"),
}
# They say nothing of a split, and no class is called so.
_FILLERS = frozenset((
    "set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures",
    "split", "folder", "file", "files", "jpeg", "jpegs", "jpg", "png", "jpegimages", "mask", "masks", "label", "labels",
    "annotation", "annotations",
))  # fmt: skip
_NUMBERED = re.compile(r"(.*[^-_ \d])[-_ ]?(\d{1,3})")
_NEAR = 0.81


def check_layout(layout: Layout | None, name: str) -> None:
    """Check that a layout is known, and given for the data set folder; ConfigError otherwise."""
    if layout is None:
        return
    check_choice("layout", layout, get_args(Layout))
    if name != "folder":
        raise ConfigError(f"layout: expected it for the data set folder alone, found {layout!r} for {name}")


class Level(NamedTuple):
    """Where the folders of classes are."""

    splits: dict[str, str]
    """Name of a split -> the folder that holds its class folders, or its images; empty if there are no splits."""
    base: str
    """Without splits, the folder that holds the class folders, or all images; empty for the root."""
    notes: tuple[str, ...]

    @property
    def folders(self) -> dict[str, str]:
        """Split -> folder, or "" -> base where there are no splits."""
        return self.splits or {"": self.base}


class _Top(NamedTuple):
    """A folder of the level that is looked at."""

    folder: str
    """Its path, or that of the only folder in it that repeats its name or is called images and the like."""
    inside: frozenset[str]
    """Names of the folders in that; "" for images of its own."""


def split_name(text: str) -> str | None:
    """Return train, val or test for a name that says this and nothing else: Training, VALID, test_images, val2017."""
    words = _words(text)
    known = {word for word in words if word in _WORDS}
    if len(known) != 1 or not all(word in known or word in _FILLERS or word.isdigit() for word in words):
        return None
    return _WORDS[known.pop()]


def listed_split(text: str) -> str:
    """Return the name of a split that a list names: train, val or test in any spelling, train-1 and the like, or as is.

    Raises ValueError if it is none of these, but nearly one.
    """
    lower = text.lower()
    numbered = _NUMBERED.fullmatch(lower)
    if numbered:
        stem = "held-out" if re.fullmatch("held[-_ ]?out", numbered[1]) else split_name(numbered[1])
        return f"{stem}-{int(numbered[2])}" if stem else text
    name = split_name(text)
    near = [word for word in _WORDS if sorted(word) == sorted(lower)]
    near = near or difflib.get_close_matches(lower, _WORDS, n=1, cutoff=_NEAR)
    if name is None and near:
        raise ValueError(f"found {text[:40]!r}; did you mean {_WORDS[near[0]]}?")
    return name or text


def find_level(root: Path | str, images: Iterable[str], layout: Layout | None = None) -> Level:
    """Tell splits from classes by the names of folders, and by what they hold.

    A folder that alone holds everything is passed over. The folders next to each other below are splits if all are
    named so (in any case: train, training, trn; val, valid, validation, dev; test, testing, eval), or if all hold
    folders of the same names; else they are classes.

    Parameters
    ----------
    root : Path, or address
        For messages.
    images : iterable of str
        Paths relative to the root, with forward slashes; one of each folder will do.
    layout : "splits" or "classes", optional
        What the user says.

    Returns
    -------
    Level

    Raises
    ------
    DatasetError
        If they may be either, two folders are the same split, or a split has no class of the training images.
    """
    folders = {path.rpartition("/")[0] for path in images}
    base = _base(folders)
    tops = _tops(folders, base)
    place = f"{root}/{base}" if base else str(root)
    notes = [f"Read below {base}, which holds everything."] if base and tops else []
    if not tops:
        return Level({}, base, ())
    kind = layout or _kind(place, tops)
    if kind == "classes":
        named = [name for name in tops if split_name(name)]
        return Level({}, base, (*notes, *_class_notes(named, layout)))
    splits = _named(place, tops)
    if layout is None:
        _check_shared(place, splits)
    return Level({name: top.folder for name, (_, top) in splits.items()}, "", (*notes, *_split_notes(splits, tops)))


def class_of(path: str, folder: str) -> str | None:
    """Return the class of an image in a split folder (or base): "" directly in it, None if it is not below it."""
    if folder and not path.startswith(f"{folder}/"):
        return None
    first, below, _ = path[len(folder) + bool(folder) :].partition("/")
    return first if below else ""


def class_name_notes(classes: Iterable[str]) -> list[str]:
    """Name the classes whose names differ only in what is hardly seen, and those that are called as kinds of files.

    That is capitals, blanks, the form of accents in Unicode, and how a number is written.
    """
    notes = alike_notes("classes", classes := tuple(classes))
    if len(classes) > 1 and all(_looks(name) in _FILLERS for name in classes):
        notes.append(
            f"Read as classes, though their names are those of kinds of files: {listed(classes)}; if they are none, "
            "list the images in a manifest."
        )
    return notes


def alike_notes(what: str, names: Iterable[str]) -> list[str]:
    """Name those of several classes or groups whose names hardly differ, see `class_name_notes`."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(_looks(name), []).append(name)
    pairs = [" and ".join(map(ascii, several)) for several in alike.values() if len(several) > 1]
    return [f"Read as different {what}, though their names are nearly the same: {listed(pairs)}."] if pairs else []


def _looks(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(letter for letter in text if unicodedata.category(letter) != "Cf" and not letter.isspace())
    number = re.fullmatch(r"([-+]?)0*(\d+)(?:\.0*)?", seen)
    return f"{number[1].strip('+')}{number[2]}" if number else seen


def _words(text: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()
    words = re.findall(r"[^\W\d_]+|\d+", apart)
    return [word[:-3] if word.endswith("set") and word[:-3] in _WORDS else word for word in words]


def loose_split_name(text: str) -> str | None:
    """As `split_name`, of names that say more: seg_train, train-00000-of-00002."""
    known = {_WORDS[word] for word in _words(text) if word in _WORDS}
    return known.pop() if len(known) == 1 else None


def _inside(folders: Iterable[str], base: str) -> dict[str, set[str]]:
    """Names in a folder -> names in each of them; "" means images of its own."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        if folder == base:
            found.setdefault("", set())
        elif not base or folder.startswith(f"{base}/"):
            first, _, rest = folder[len(base) + bool(base) :].partition("/")
            found.setdefault(first, set()).add(rest.partition("/")[0])
    return found


def _base(folders: set[str]) -> str:
    """Return the folder where the tree begins to branch, or the root if it never does."""
    base = ""
    while True:
        inside = _inside(folders, base)
        name = next(iter(inside), "")
        if "" in inside or not inside:
            # The only folder is a class, unless it is called images or the like.
            return base if base.rpartition("/")[2].lower() in _FILLERS else ""
        if len(inside) > 1 or split_name(name):
            return base
        base = path_in(base, name)


def _tops(folders: set[str], base: str) -> dict[str, _Top]:
    tops = {}
    for name in sorted(set(_inside(folders, base)) - {""}):
        folder, inside = path_in(base, name), set(_inside(folders, path_in(base, name)))
        while len(inside) == 1 and (only := next(iter(inside))) and only.lower() in _FILLERS | {name.lower()}:
            folder = path_in(folder, only)
            inside = set(_inside(folders, folder))
        tops[name] = _Top(folder, frozenset(inside))
    return tops


def _kind(place: str, tops: Mapping[str, _Top]) -> Layout:
    named = {name for name in tops if split_name(name)}
    loose = [loose_split_name(name) for name in tops]
    mixed = None not in loose and len(set(loose)) > 1  # seg_train, seg_test; or train_cat, train_dog, test_cat
    if len(named) == len(tops) or (mixed and len(set(loose)) == len(tops)):
        return "splits"
    inner = [top.inside - _FILLERS for top in tops.values()]
    nested = len(tops) > 1 and all("" not in top.inside for top in tops.values())
    below = [name for top in tops.values() for name in top.inside if split_name(name)]
    if len({split_name(name) for name in below}) > 1:
        raise DatasetError(
            f"{place}: expected splits above classes, found {listed(sorted(set(below)))} below {listed(list(tops))}; "
            "put the splits at the top, list the images in a manifest, or give --layout classes to read classes "
            "without splits"
        )
    same = nested and bool(inner[0]) and all(names == inner[0] for names in inner)
    if same and len(inner[0]) > 1:
        return "splits"
    # A train may well be a class, next to car and bus.
    train_only = all(name.lower() == "train" and "" in tops[name].inside for name in named)
    if train_only and not mixed and not same and not (nested and _alike(inner)):
        return "classes"
    classes = sorted(set[str]().union(*inner) - {""})
    as_splits = f"splits of the classes {listed(classes)}" if classes else "splits without classes"
    raise DatasetError(
        f"{place}: expected folders of splits or folders of classes, found some that may be either: {as_splits}, or "
        f"the classes {listed(list(tops))}; say which with --layout splits or --layout classes"
    )


def _alike(inner: list[frozenset[str]]) -> bool:
    """Whether most folders in each are in others as well."""
    for number, names in enumerate(inner):
        others = frozenset().union(*inner[:number], *inner[number + 1 :])
        if len(names & others) < min(2, len(names)) or 2 * len(names & others) <= len(names):
            return False
    return True


def _named(place: str, tops: Mapping[str, _Top]) -> dict[str, tuple[str, _Top]]:
    """Name of each split -> name and content of its folder: train, val, test, then others."""
    found: dict[str, tuple[str, _Top]] = {}
    for folder, top in tops.items():
        name = split_name(folder) or loose_split_name(folder) or folder
        if name in found:
            raise DatasetError(
                f"{place}: expected one folder for the split {name}, found {found[name][0]} and {folder}; join them, "
                "rename one, or give --layout classes if they are classes"
            )
        found[name] = (folder, top)
    order = {name: number for number, name in enumerate(SPLITS)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _check_shared(place: str, splits: Mapping[str, tuple[str, _Top]]) -> None:
    classes = splits["train"][1].inside - {""} if "train" in splits else frozenset()
    for name, (folder, top) in splits.items():
        others = top.inside - {""}
        if name != "train" and classes and others and not classes & others:
            raise DatasetError(
                f"{place}/{folder}: expected classes of the training images ({listed(sorted(classes))}), found "
                f"{listed(sorted(others))}; name its folders like those of train, or give --layout splits if these are "
                "further classes"
            )


def _class_notes(named: list[str], layout: Layout | None) -> list[str]:
    if not named or layout is not None:
        return []
    return [
        f"Read as a class, because the folders next to it are no splits: {listed(named)}; if it is a split, give "
        "--layout splits."
    ]


def _split_notes(splits: Mapping[str, tuple[str, _Top]], tops: Mapping[str, _Top]) -> list[str]:
    notes = []
    renamed = [f"{folder} as {name}" for name, (folder, _) in splits.items() if folder != name]
    if renamed:
        notes.append(f"Read as splits: {listed(renamed)}.")
    others = [name for name in splits if name not in SPLITS]
    if others:
        classes = sorted(set[str]().union(*(top.inside for top in tops.values())) - {""})
        notes.append(
            f"Read as splits, because their folders have the same names ({listed(classes)}): {listed(others)}; if they "
            "are classes, give --layout classes."
        )
    return notes
