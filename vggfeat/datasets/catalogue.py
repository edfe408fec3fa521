"""The catalogue: one record for each data set, and the function that opens a data set by its name.

Counts are those of the development kits (VOC2007 and VOC2012, Sect. 2) and of the Caltech pages; `data/NAME.md` says
where each comes from. Scales, regions and join are those of the VGG paper, App. B; its numbers are of Tables 11 and 12.

A new data set needs a reader in this folder, a record here, a page `data/NAME.md` and a test.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from vggfeat.datasets import caltech, folder, manifest, voc
from vggfeat.datasets.levels import Layout, check_layout
from vggfeat.datasets.record import Count, DatasetRecord, PaperNumbers, PaperRow
from vggfeat.errors import ConfigError, DatasetError
from vggfeat.runtime.rendered import is_rendered
from vggfeat.samples import DataSet, Task

RENDERED_NOTE = "The images are rendered, not photographed: results on them say nothing about photographs."
_VOC_SCALES = (256, 384, 512, 640, 768)


def _of_splits(published: bool, **counts: tuple[int, int, int]) -> Iterator[Count]:
    """Count what train, val and test of VOC have; a test set that is not published can't be checked."""
    for number, split in enumerate(("train", "val", "trainval", "test")):
        for what, (train, val, test) in counts.items():
            yield Count(split, what, None, (train, val, train + val, test)[number], published or split != "test")


def _positives(split: str, classes: tuple[str, ...], numbers: str) -> tuple[Count, ...]:
    pairs = zip(classes, numbers.split(), strict=True)
    return tuple(Count(split, cls, None, int(number)) for cls, number in pairs)


def _caltech_counts(images: int, classes: int, rule: caltech.SplitRule) -> tuple[Count, ...]:
    total = (Count("all", "images", None, images), Count("all", "classes", None, classes))
    sizes = {"train": rule.train * classes, "held-out": rule.held_out * classes}
    if rule.test is None:
        sizes["test"] = images - sizes["train"]
    splits = tuple(Count(f"{part}-{k}", "images", None, n) for k in (1, 2, 3) for part, n in sizes.items())
    return total + splits


_RECORDS = (
    DatasetRecord(
        name="voc2007",
        title="PASCAL VOC 2007 classification",
        reader=partial(voc.read, year=2007),
        task=Task.MULTI_LABEL,
        scales=_VOC_SCALES,
        protocol="voc",
        average_precision="11-point",
        counts=(
            *_of_splits(True, images=(2501, 2510, 4952)),
            *_positives(
                "trainval",
                voc.CLASSES,
                "238 243 330 181 244 186 713 337 445 141 200 421 287 245 2008 245 96 229 261 256",
            ),
            *_positives(
                "test", voc.CLASSES, "204 239 282 172 212 174 721 322 417 127 190 418 274 222 2007 224 97 223 259 229"
            ),
        ),
        archives=voc.ARCHIVES[2007],
        paper=PaperNumbers(
            table=11,
            measure="mean average precision on test, by a rule that it doesn't name",
            rows=(
                PaperRow(("D",), 89.3, tolerance=0.5),
                PaperRow(("E",), 89.3, tolerance=0.5),
                PaperRow(("D", "E"), 89.7, tolerance=0.5),
            ),
        ),
    ),
    DatasetRecord(
        name="voc2012",
        title="PASCAL VOC 2012 classification",
        reader=partial(voc.read, year=2012),
        task=Task.MULTI_LABEL,
        scales=_VOC_SCALES,
        protocol="voc-server",
        average_precision="area",
        counts=(
            *_of_splits(False, images=(5717, 5823, 10991)),
            *_positives(
                "trainval",
                voc.CLASSES,
                "670 552 765 508 706 421 1161 1080 1119 303 538 1286 482 526 4087 527 325 507 544 575",
            ),
        ),
        archives=voc.ARCHIVES[2012],
        # comp2: trained on other data as well, as ImageNet weights are (VOC2012 development kit).
        server_file="results/VOC2012/Main/comp2_cls_test_{name}.txt",
        paper=PaperNumbers(
            table=11,
            measure="mean average precision on test, by the server",
            rows=(
                PaperRow(("D",), 89.0, tolerance=1.0),
                PaperRow(("E",), 89.0, tolerance=1.0),
                PaperRow(("D", "E"), 89.3, tolerance=1.0),
            ),
        ),
    ),
    DatasetRecord(
        name="voc2012-action",
        title="PASCAL VOC 2012 action classification",
        reader=voc.read_actions,
        task=Task.MULTI_LABEL,
        unit="people",
        scales=_VOC_SCALES,
        regions=("image", "box"),
        protocol="voc-server",
        average_precision="area",
        counts=(
            *_of_splits(False, images=(2296, 2292, 4569), people=(3134, 3144, 6283)),
            *_positives("trainval", voc.ACTIONS, "495 457 619 530 578 534 561 456 476 597"),
        ),
        archives=voc.ARCHIVES[2012],
        # comp10: trained on other data as well.
        server_file="results/VOC2012/Action/comp10_action_test_{name}.txt",
        paper=PaperNumbers(
            table=12,
            measure="mean average precision on test, by the server",
            rows=(
                PaperRow(("D", "E"), 79.2, tolerance=1.5),
                PaperRow(("D", "E"), 84.0, tolerance=1.5, regions=("image", "box")),
            ),
        ),
    ),
    DatasetRecord(
        name="caltech101",
        title="Caltech-101",
        reader=partial(caltech.read, variety=101),
        task=Task.SINGLE_LABEL,
        join="stack",
        protocol="caltech",
        counts=(
            *_caltech_counts(9144, 102, caltech.OFFICIAL[101]),
            Count("all", "BACKGROUND_Google", None, 467),
            Count("all", "airplanes", None, 800),
            Count("all", "inline_skate", None, 31),
        ),
        archives=(caltech.ARCHIVES[101],),
        paper=PaperNumbers(
            table=11,
            measure="mean class recall over 3 splits of its own",
            rows=(
                PaperRow(("D",), 91.8, deviation=1.0),
                PaperRow(("E",), 92.3, deviation=0.5),
                PaperRow(("D", "E"), 92.7, deviation=0.5),
            ),
        ),
    ),
    DatasetRecord(
        name="caltech256",
        title="Caltech-256",
        reader=partial(caltech.read, variety=256),
        task=Task.SINGLE_LABEL,
        join="stack",
        protocol="caltech",
        counts=(
            *_caltech_counts(30607, 257, caltech.OFFICIAL[256]),
            Count("all", "257.clutter", None, 827, verified=False),
        ),
        archives=(caltech.ARCHIVES[256],),
        paper=PaperNumbers(
            table=11,
            measure="mean class recall over 3 splits of its own",
            rows=(
                PaperRow(("D",), 85.0, deviation=0.2),
                PaperRow(("E",), 85.1, deviation=0.3),
                PaperRow(("D", "E"), 86.2, deviation=0.3),
            ),
        ),
    ),
    DatasetRecord(name="folder", title="Your own images, a folder per class", reader=folder.read, task=None),
    DatasetRecord(
        name="manifest", title="Your own images, in a list (CSV, Excel)", reader=manifest.read_manifest, task=None
    ),
)

DATASETS: Mapping[str, DatasetRecord] = {record.name: record for record in _RECORDS}
"""Records by name, in the order in which they are shown."""


def lookup(name: str) -> DatasetRecord:
    """Return the record of a data set.

    Raises ConfigError if there is none of this name; the message suggests the nearest.
    """
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(str(name), DATASETS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"data set: expected one of {', '.join(DATASETS)}, found {name!r}{hint}")


def record_or_own(name: str) -> DatasetRecord:
    """Return the record of a data set; for a name that has none, that of one's own images."""
    return DATASETS.get(name, DATASETS["folder"])


def resolve_root(name: str, root: Path | str | None = None) -> Path:
    """Return the folder of a data set: `root`, else $VGGFEAT_DATA/NAME, else data/NAME.

    Raises ConfigError if there is no data set of this name.
    """
    lookup(name)
    if root is not None:
        return Path(root)
    return Path(os.environ.get("VGGFEAT_DATA") or "data") / name


def open_dataset(
    name: str,
    root: Path | str | None = None,
    layout: Layout | None = None,
    listing: manifest.ListSettings | None = None,
) -> DataSet:
    """Read a data set by its name.

    Parameters
    ----------
    name : str
        A name of `DATASETS`.
    root : Path or str, optional
        Its folder, see `resolve_root`; for manifest the list, or the folder that holds a manifest.csv.
    layout : "splits" or "classes", optional
        What the folders of the first level of "folder" are, where their names and content do not tell.
    listing : ListSettings, optional
        How the list of "manifest" is to be read, where it does not tell.

    Raises
    ------
    ConfigError
        If there is no data set of this name, or it is not "folder" and a layout is given, or not "manifest" and
        `listing` says something.
    DatasetError
        If it is not there, or not in its official layout.
    """
    record, where = lookup(name), resolve_root(name, root)
    check_layout(layout, name)
    listing = listing or manifest.ListSettings()
    if name != "manifest" and listing != manifest.ListSettings():
        options = "--column, --one-hot, --label-separator, --encoding and --sheet"
        raise ConfigError(f"{options}: expected them for the data set manifest alone, found one for {name}")
    if not os.path.exists(where):
        raise DatasetError(f"{name}: expected it at {where}, found nothing there; {_remedy(record, where, root)}")
    if name == "manifest":
        data = manifest.read_manifest(where, listing)
    else:
        data = record.reader(where) if layout is None else folder.read(where, layout)
    notes = (*data.notes, RENDERED_NOTE) if is_rendered(data.root) else data.notes
    # Where a program goes later, its images are not.
    return replace(data, root=os.path.abspath(data.root), notes=notes)


def _remedy(record: DatasetRecord, where: Path, root: Path | str | None) -> str:
    """Say how to come to a data set that is not there; of your own images nobody else knows a place."""
    near = None if root is None else _near(where)
    remedies = [f"did you mean {near}?"] if near else []
    if record.archives:
        remedies.append(f"give its place with --root, or set VGGFEAT_DATA to the folder that holds {record.name}")
        remedies.append(f"`vggfeat data check {record.name}` says where it is published")
    elif not near:
        remedies.append("give the place of your images with --root" if root is None else "correct --root")
    return "; ".join(remedies)


def _near(where: Path) -> Path | None:
    """Return what is there and called nearly so."""
    try:
        names = difflib.get_close_matches(where.name, os.listdir(where.parent), n=1)
    except OSError:
        return None
    return where.with_name(names[0]) if names else None
