"""Tar sets as webdataset writes them: files of one sample stand together and share a name up to its first dot.

train-000001.tar holds cat/0017.jpg with cat/0017.cls (a number or a name), or cat/0017.json. The tars are indexed once,
by their headers; images stay where they are and are read by their bytes.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from vggfeat.datasets.files import is_image, listed
from vggfeat.datasets.streamed.file_sets import find_files, split_of
from vggfeat.datasets.streamed.spool import ClassSpool, StreamedRow
from vggfeat.errors import DatasetError
from vggfeat.formats.tar import Member, TarIndex
from vggfeat.listing import Listing
from vggfeat.runtime.storage import Storage, StorageSettings
from vggfeat.wording import quoted

READERS = 8
"""Tars that are indexed at a time."""
_LONGEST_LABEL = 1 << 20
_LABELS = ("labels", "label", "cls", "class")
"""Keys of a .json that say what an image shows; the first that is there counts."""
Given = TypeVar("Given")
Made = TypeVar("Made")


def list_tars(root: str, settings: StorageSettings) -> Listing:
    """List the images of a tar set. Memory grows with the largest tar, and with the number of tars.

    Ids are the name of the tar, "/" and the name of the sample; a sample of several images has one for each. Labels
    are what .cls says, or "labels", "label", "cls" or "class" in .json, where "group" is read too. The split is what
    the name of the tar says, or of its folder.

    Raises DatasetError if there is no tar, one has no image or is no whole tar, or a label can't be read; the message
    names tar and member. Raises StoreError if a tar can't be read.
    """
    found = find_files(root, ".tar", settings)
    spool, others = ClassSpool(), dict[str, None]()
    for rows, unread in _side_by_side(partial(_rows, found.storage), found.paths):
        spool.add(rows)
        others |= dict.fromkeys(unread[:5])
    notes = [f"Parts of samples that are neither images nor labels, and ignored: {listed(list(others))}."]
    return spool.listing("tar", found.storage.root, notes if others else ())


def _side_by_side(make: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """Yield what is made of each, in order; a few are made ahead of their turn."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(READERS, "vggfeat-list") as threads:
        try:
            for one in given:
                waiting.append(threads.submit(make, one))
                if len(waiting) >= READERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _rows(storage: Storage, path: str) -> tuple[list[StreamedRow], list[str]]:
    """Return the images of a tar, and endings of what else is in it."""
    tar = TarIndex(storage, path)
    rows: list[StreamedRow] = []
    unread: dict[str, None] = {}
    ids: set[str] = set()
    splits = split_of(path)
    named = (_named(member) for member in tar.members() if not re.search(r"(^|/)(\.|__)", member.name))
    for key, sample in groupby(named, key=itemgetter(0)):
        parts: dict[str, Member] = {}
        for _, ending, member in sample:
            if ending in parts:
                raise _twice(tar, member)
            parts[ending] = member
        images = {ending: member for ending, member in parts.items() if is_image(member.name)}
        unread |= dict.fromkeys(ending for ending in parts if ending not in images and ending not in ("cls", "json"))
        if not images:
            continue
        facts = _facts(tar, parts)
        for ending, member in images.items():
            name = f"{path}/{key}" if len(images) == 1 else f"{path}/{key}.{ending}"
            if name in ids:
                raise _twice(tar, member)
            ids.add(name)
            rows.append(StreamedRow(name, path, member.start, member.size, member.size, splits=splits, **facts))
    if not rows:
        raise DatasetError(f"{tar.where}: expected images in the tar, found none; leave it out")
    return rows, list(unread)


def _twice(tar: TarIndex, member: Member) -> DatasetError:
    return DatasetError(
        f"{tar.where}, member {quoted(member.name)}: expected every file of a sample once, next to each other, "
        "found its name twice; write the tar again, every file once, sorted by name (tar --sort=name)"
    )


def _named(member: Member) -> tuple[str, str, Member]:
    """Return the name of the sample that a member is of, and its ending."""
    folder, slash, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower(), member


def _facts(tar: TarIndex, parts: dict[str, Member]) -> dict[str, Any]:
    """Return what .cls and .json of a sample say, by the fields of a row."""
    facts: dict[str, Any] = {}
    if "json" in parts:
        facts |= _of_json(f"{tar.where}, member {quoted(parts['json'].name)}", _small(tar, parts["json"]))
    if "cls" in parts:
        text = _small(tar, parts["cls"]).decode("utf-8", "replace").strip()
        if not text or not text.isprintable():
            where = f"{tar.where}, member {quoted(parts['cls'].name)}"
            raise DatasetError(f"{where}: expected the number or the name of a class, found {text[:40]!a}")
        facts["labels"] = (text,)
    return facts


def _small(tar: TarIndex, member: Member) -> bytes:
    if member.size > _LONGEST_LABEL:
        where = f"{tar.where}, member {quoted(member.name)}"
        raise DatasetError(f"{where}: expected at most {_LONGEST_LABEL} bytes of labels, found {member.size}")
    return tar.read(member.start, member.size)


def _of_json(where: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: expected JSON, found: {error}") from None
    if not isinstance(found, dict):
        raise DatasetError(f"{where}: expected an object in braces, found {type(found).__name__}")
    facts: dict[str, Any] = {}
    name = next((name for name in _LABELS if found.get(name) is not None), None)
    if name is not None:
        values = found[name] if isinstance(found[name], list) else [found[name]]
        if not all(isinstance(value, int | str) and not isinstance(value, bool) and value != "" for value in values):
            raise DatasetError(f"{where}: expected numbers or names of classes in {name!r}, found {values!r:.80}")
        facts["labels"] = tuple(dict.fromkeys(map(str, values)))
    if isinstance(found.get("group"), int | str):
        facts["group"] = str(found["group"])
    return facts
