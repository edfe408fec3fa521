"""Images of a page: which rows explain a number, and small copies of their files, boxes drawn, as data addresses.

m = rows of a test, K = classes.
"""

import base64
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vggfeat.datasets.catalogue import open_dataset
from vggfeat.errors import ConfigError, ImageError, VggfeatError
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.images.upright import turn_boxes
from vggfeat.metrics import predict_classes
from vggfeat.results.reading import Scores
from vggfeat.samples import STORED_FRAME

SIDES = (128, 96)
"""Largest width and height of a small copy in pixels."""
QUALITY = 78
BUDGET = 1000
"""Small copies on a page; at some 3.5 kB each this makes the few megabytes that a page may have."""
MOST_PER_LIST = 8
OUTSIDE = "outside the given folder"
"""Why there is no small copy of an image whose path leads elsewhere."""

Progress = Callable[[int, int], None]
"""Called with the number of small copies made, and that of all."""


class Key(NamedTuple):
    """An image, and the box in it that is drawn."""

    path: str
    box: tuple[float, float, float, float] | None

    @classmethod
    def of(cls, path: str, box: Any) -> "Key":
        """Return the key of an image whose box is a list, as JSON has it."""
        return cls(path, None if box is None else tuple(box))


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a test that explains the value of a class."""

    key: Key
    id: str
    rank: int
    """Rank of its score for the class, from 1."""
    score: float
    verdict: str
    """right, wrong, missed, ignored (it does not count), or other: a negative that costs nothing."""
    said: str
    """Single-label sets: the true class, or the predicted one, whichever is another; else empty."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The rows that explain the value of a class, most telling first."""

    highest: tuple[Example, ...]
    """Best scores, right or wrong."""
    alarms: tuple[Example, ...]
    """Other negatives that rank before a positive, the best scores first; of single-label sets those given to the
    class."""
    missed: tuple[Example, ...]
    """Positives that rank behind a negative, the worst scores first; of single-label sets those given to another.
    None of them is among the highest."""


def examples_of(tests: Sequence[Scores], k: int, classes: Sequence[str], *, single: bool, most: int) -> Examples:
    """Choose the rows of all tests that explain the value of class number `k`; rows whose image failed are none.

    The tests take turns, and no image is chosen twice.
    """
    found = [_examples_of_test(test, k, classes, single, most) for test in tests]
    shown: set[Key] = set()

    def choose(kind: int) -> tuple[Example, ...]:
        turns = chain.from_iterable(zip_longest(*(lists[kind] for lists in found)))
        new = {one.key: one for one in reversed([one for one in turns if one and one.key not in shown])}
        chosen = tuple(reversed(new.values()))[:most]
        shown.update(one.key for one in chosen)
        return chosen

    highest, alarms, missed = map(choose, range(3))
    return Examples(highest=highest, alarms=alarms, missed=missed)


def _examples_of_test(
    test: Scores, k: int, classes: Sequence[str], single: bool, most: int
) -> tuple[list[Example], list[Example], list[Example]]:
    """Choose from one test: its highest, then of what is wrong and what is missed as many as may be left of them."""
    order = np.argsort(-test.scores[:, k], kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    order = order[np.isfinite(test.scores[order, k])]
    signs = test.labels[order, k]
    predicted = predict_classes(test.scores) if single and len(order) else np.zeros(len(ranks), dtype=np.int64)
    wrong, missed = _mistakes(signs, predicted[order] == k if single else None)
    # A positive among the highest is right, wherever the negatives are, unless its image went to another class.
    kinds = [signs == 0, wrong, missed & single, signs == 1]
    verdicts = np.select(kinds, ["ignored", "wrong", "missed", "right"], "other")

    def example(row: int, verdict: str) -> Example:
        true = int(test.labels[row].argmax()) if single else k
        other = true if true != k else int(predicted[row])
        return Example(
            key=_key(test, row),
            id=test.ids[row],
            rank=int(ranks[row]),
            score=float(test.scores[row, k]),
            verdict=verdict,
            said=classes[other] if single and other != k else "",
        )

    return (
        list(map(example, order[:most].tolist(), verdicts.tolist())),
        [example(row, "wrong") for row in order[wrong][: 2 * most].tolist()],
        [example(row, "missed") for row in order[missed][::-1][: 3 * most].tolist()],
    )


def per_list(lists: int) -> int:
    """Say how many images a list may have, so that all lists together stay within `BUDGET`."""
    return max(1, min(MOST_PER_LIST, BUDGET // max(1, lists)))


def find_root(root: Path, dataset: str, paths: Sequence[str]) -> Path:
    """Find the folder that the paths of a data set are relative to, given what `vggfeat extract --root` was given.

    Raises ConfigError if no image is there.
    """
    some = paths[:: max(1, len(paths) // 20)]
    places = [root.parent if root.is_file() else root]  # of a list of images, its folder
    with suppress(VggfeatError):
        places.append(Path(open_dataset(dataset, root).root))
    if root.is_dir():
        places = [place for place in places if is_below(root, os.path.realpath(place))]
    for place in reversed(places):
        if any(os.path.isfile(image) for path in some if (image := image_below(place, path))):
            return place
    raise ConfigError(
        f"--root {root}: expected the images of {dataset} there, found none of {len(some)} in it, the first is "
        f"{some[0] if some else '-'!r}; give the root that `vggfeat extract` was given, or, where that holds links to "
        "other folders, the folder that they lead to"
    )


def image_below(root: Path, path: str) -> str | None:
    """Follow all links of a path that a file names; None if it leads out of the folder `root`.

    The file may come from anybody, and the page goes to others: ../../secret.png must not get onto it.
    """
    try:
        image = os.path.realpath(root / path)
    except (OSError, ValueError):  # No name of a file, for instance with a zero byte in it.
        return None
    return image if is_below(root, image) and image != os.path.realpath(root) else None


def is_below(root: Path, real: str) -> bool:
    """Say whether a path without links is that of `root` or lies in it."""
    base = os.path.realpath(root)
    return os.path.commonpath([base, real]) == base


def first_copies(root: Path | None, dataset: str, keys: Iterable[Key], *, workers: int = 1) -> dict[Key, str]:
    """Return small copies of the first `BUDGET` images of some of a data set; none without its root.

    Raises ConfigError if the images are not there.
    """
    wanted = list(dict.fromkeys(keys))[:BUDGET]
    if root is None or not wanted:
        return {}
    place = find_root(root, dataset, [key.path for key in wanted])
    return small_copies(place, wanted, dataset=dataset, workers=workers)


def small_copies(
    root: Path | None, keys: Iterable[Key], *, dataset: str = "", workers: int = 1, progress: Progress | None = None
) -> dict[Key, str]:
    """Make small JPEGs.

    `root`: folder that the paths are relative to, and that none may leave; None for paths that the user has given.
    `dataset`: name of the data set that the boxes are of: some are in stored pixels and turn with the image. `workers`:
    processes that decode; 0 decodes in this one, without limits. What is returned is key -> address with the image in
    it ("data:image/jpeg;base64,..."), or the reason why there is none.
    """
    wanted = list(dict.fromkeys(keys))
    images = {key: os.path.abspath(key.path) if root is None else image_below(root, key.path) for key in wanted}
    found = {key: OUTSIDE for key, image in images.items() if image is None}
    with Decoder(workers, DecodeSettings(timeout=20.0)) as decoder:
        inside = [(key, image) for key, image in images.items() if image is not None]
        requests = (Request(image, (None,), side=max(SIDES)) for _, image in inside)
        for (key, _), answer in zip(inside, decoder.stream(requests), strict=True):
            if isinstance(answer, ImageError):
                found[key] = answer.reason
            else:
                box = key.box
                if box is not None and dataset in STORED_FRAME:
                    box = tuple(turn_boxes(box, answer.orientation, answer.size).tolist())
                found[key] = address_of(answer.regions[0], answer.size, box)
            if progress is not None:
                progress(len(found), len(wanted))
    return {key: found[key] for key in wanted}


def is_image(address: str) -> bool:
    """Tell an address from a reason."""
    return address.startswith("data:")


def reach(found: Mapping[Key, str]) -> tuple[int, int]:
    """Count small copies, and images without one."""
    there = sum(map(is_image, found.values()))
    return there, len(found) - there


def _mistakes(signs: NDArray[np.int8], given: NDArray[np.bool_] | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say of each row of a ranking whether it is wrong, and whether missed; `given` to the class, if one takes all."""
    if given is not None:
        return (signs == -1) & given, (signs == 1) & ~given
    before_a_positive = np.cumsum(signs[::-1] == 1)[::-1] > 0
    behind_a_negative = np.cumsum(signs == -1) > 0
    return (signs == -1) & before_a_positive, (signs == 1) & behind_a_negative


def _key(test: Scores, row: int) -> Key:
    box: Any = None
    if test.boxes is not None and np.isfinite(test.boxes[row]).all():
        box = tuple(test.boxes[row].tolist())
    return Key(test.images[row], box)


def address_of(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    sides: tuple[int, int] = SIDES,
) -> str:
    """Return the address of a small JPEG of an image (h, w, 3), within `sides`, with a box in pixels of `size`."""
    image = Image.fromarray(pixels)
    image.thumbnail(sides, Image.Resampling.BILINEAR)
    if box is not None:
        across, down = image.width / size[1], image.height / size[0]
        left, top, right, bottom = box
        edges = [left * across, top * down, right * across - 1, bottom * down - 1]
        edges[2:] = max(edges[0], edges[2]), max(edges[1], edges[3])
        draw = ImageDraw.Draw(image)
        # Dark around bright, so that it is seen on any ground.
        draw.rectangle([edges[0] - 1, edges[1] - 1, edges[2] + 1, edges[3] + 1], outline=(0, 0, 0))
        draw.rectangle(edges, outline=(255, 214, 0))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
