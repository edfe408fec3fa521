"""Writing a plan: a list of images in batches becomes parts of many shards, in one stream; plan.json comes last."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, DatasetError, StoreError
from vggfeat.listing import FURTHER, LABELS, Listing, complete_batch
from vggfeat.runtime.durable import disk_errors
from vggfeat.store import identity
from vggfeat.store.checksummed_parquet import digest_of, seal
from vggfeat.store.plan import PART_FORMAT, PART_SHARDS, PLAN, Plan, encode_plan, part_path, read_plan
from vggfeat.store.shard_files import OtherPlanError, open_shard

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int], None]
"""Called with the rows that are planned so far."""
_IN_MEMORY = 1 << 26
"""Bytes of hashes that are kept in memory; more go to the disk."""
_BUCKET = 1 << 22
"""Hashes that are sorted at a time."""
_SALTS = ("", "\0")
"""Of the two hashes by which new ids are told."""


def write_plan(draft: Plan, listing: Listing, progress: Progress = lambda rows: None) -> Plan:
    """Write a plan, of which the draft has no rows, unless it is there already.

    A plan that was not finished is begun anew: what it has left is replaced, part by part.

    Parameters
    ----------
    draft : Plan
        Without rows.
    listing : Listing
    progress : callable

    Raises
    ------
    DatasetError
        If the list has no row, an id twice, or a row that fits no plan.
    StoreError
        If the folder has a plan of other settings (every difference is named), or shards of another plan, or the store
        refuses.
    """
    known = existing(draft)
    if known is not None:
        return known
    with IdHashes() as hashes:
        plan = _written(draft, listing, hashes, progress)
        _check_unique(plan, hashes)
    if not plan.rows:
        raise DatasetError(f"{listing.root}: expected at least one image, found none")
    try:
        _check_shards(plan)
    except OtherPlanError:
        known = existing(draft)  # of somebody who has planned meanwhile, and whose shards these are
        if known is not None:
            return known
        raise
    if plan.storage.write_new(PLAN, encode_plan(plan)):
        return plan
    return _same(read_plan(plan.storage), draft)  # Another has planned meanwhile.


def existing(draft: Plan) -> Plan | None:
    """Return the plan of the same settings that is there, None if none is; StoreError if it is another."""
    return _same(read_plan(draft.storage), draft) if draft.storage.exists(PLAN) else None


def extend_plan(old: Plan, listing: Listing, progress: Progress = lambda rows: None) -> Plan:
    """Plan the rows of a list whose ids are new, behind those of a plan; no part and no shard of it is touched.

    The listing is the data set as it is now; what is gone from it stays in the plan. It is walked twice: to find the
    ids that are new, and to plan them. DatasetError if it is another data set, or an id is there twice; StoreError if
    the store refuses.
    """
    if (listing.name, listing.task) != (old.name, old.task):
        found = f"{listing.name}, {listing.task}"
        raise DatasetError(f"{old.where}: expected the data set of the plan, {old.name}, {old.task}, found {found}")
    classes = (*old.classes, *(name for name in listing.classes if name not in old.classes))
    fresh = _new_hashes(old, listing)
    draft = replace(old, classes=classes, _last={})
    batches = lambda: (_fresh(batch, fresh, listing.classes, classes) for batch in listing.batches())  # noqa: E731
    with IdHashes() as hashes:
        plan = _written(draft, replace(listing, batches=batches), hashes, progress)
        _check_unique(plan, hashes, first=len(old.parts))
    if plan.rows > old.rows:
        _check_shards(plan, first=len(old.parts))  # which takes time; nothing stands between the next two
        if read_plan(old.storage).parts != old.parts:
            raise StoreError(
                f"{old.where}: expected nobody else to extend the plan meanwhile, found another plan; give the same "
                "command again"
            )
        plan.storage.replace(PLAN, encode_plan(plan))
    return plan


def _check_shards(plan: Plan, first: int = 0) -> None:
    """Refuse shards of a run that was there before, which would count as finished by their names alone.

    One of each part is looked at: those of a part are of one plan.
    """
    shards = {plan.place_of(shard)[0]: shard for shard in sorted(plan.present(), reverse=True)}
    for part in sorted(part for part in shards if part >= first):
        try:
            open_shard(plan, shards[part])
        except OtherPlanError as error:
            raise OtherPlanError(
                f"{plan.where}: expected no shards but those of this plan, found others that an earlier run has left "
                f"({str(error).partition('; ')[0]}); delete them, or take another folder"
            ) from None


def _same(found: Plan, draft: Plan) -> Plan:
    # The list itself is not walked again; where the images are may have changed.
    plans = [{**plan.decisive(), "dataset": plan.name, "task": plan.task} for plan in (found, draft)]
    different = identity.differences(*plans)
    if different:
        raise StoreError(
            f"{found.where}: expected a plan of the same settings, or none, found another: {'; '.join(different)}; "
            "choose another --out, or delete that run"
        )
    return found


def _written(draft: Plan, listing: Listing, hashes: "IdHashes", progress: Progress) -> Plan:
    """Write the parts of a list behind those that the draft has, and return the plan of all."""
    tally = _Tally(draft, listing.splits)
    parts = list(draft.parts)
    rows = draft.rows
    complete = (complete_batch(batch, listing.root) for batch in listing.batches())
    for table in _parts(complete, draft.settings.shard_rows * PART_SHARDS):
        tally.add(table, f"{listing.root} (row {rows})")
        with _room_for_hashes():
            hashes.add(table["id"].to_pylist())
        about = {"format": PART_FORMAT, "part": len(parts)}
        raw = seal(table, about, compression="zstd", group_rows=draft.settings.shard_rows)
        digest = digest_of(raw, draft.where)
        draft.storage.replace(part_path(len(parts), digest), raw)
        parts.append((len(table), digest))
        rows += len(table)
        progress(rows)
    return tally.plan(tuple(parts))


def _parts(tables: Iterator["pa.Table"], rows: int) -> Iterator["pa.Table"]:
    """Cut a stream of tables anew, into tables of `rows` rows; the last may have fewer."""
    import pyarrow as pa

    held: list[pa.Table] = []
    count = 0
    for table in tables:
        if held and table.schema != held[0].schema:
            raise DatasetError(
                f"list: expected the same columns in all batches, found {table.schema.names} after "
                f"{held[0].schema.names}"
            )
        held.append(table)
        count += len(table)
        while count >= rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, rows).combine_chunks()
            held, count = [whole.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(held).combine_chunks()


class _Tally:
    """What the whole list is found to have, row by row."""

    def __init__(self, draft: Plan, splits: Sequence[str]) -> None:
        self._draft = draft
        self._splits = Counter(draft.splits | {name: draft.splits.get(name, 0) for name in splits})
        self._grouped, self._boxed, self._columns = draft.grouped, draft.boxed, draft.columns
        self._first = not draft.parts
        self._sizes = hashlib.sha256(draft.image_sizes.encode() if draft.parts else b"")

    def add(self, table: "pa.Table", where: str) -> None:
        """Count the rows of a part, and check that they are those of a data set."""
        grouped = table["group"].null_count < len(table)
        columns = tuple(name.removeprefix(FURTHER) for name in table.schema.names if name.startswith(FURTHER))
        if self._first:
            self._grouped, self._columns, self._first = grouped, columns, False
        without = grouped and (table["group"].null_count or "" in table["group"].to_pylist())
        if grouped != self._grouped or columns != self._columns or without:
            raise DatasetError(
                f"{where}: expected the same columns in all rows, and a group in all or none, found "
                f"{', '.join(table.schema.names)}, {table['group'].null_count} rows without a group"
            )
        self._boxed |= table["box"].null_count < len(table)
        if "box" in self._draft.shape.regions and table["box"].null_count:
            name = table["id"][int(np.argmax(table["box"].is_null().to_numpy()))].as_py()
            raise ConfigError(f"regions: expected a box for every sample of {self._draft.name}, found none for {name}")
        for name in LABELS:
            self._check_classes(table[name], where)
        self._splits.update(chain.from_iterable(table["splits"].to_pylist()))
        for size in table["size"].to_pylist():
            self._sizes.update(f"{size}\n".encode())

    def _check_classes(self, lists: "pa.ChunkedArray", where: str) -> None:
        numbers = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self._draft.classes):
            most = len(self._draft.classes) - 1
            found = f"{numbers.min()} to {numbers.max()}"
            raise DatasetError(f"{where}: expected numbers of classes from 0 to {most}, found {found}")

    def plan(self, parts: tuple[tuple[int, str], ...]) -> Plan:
        """Return the plan of all rows."""
        return replace(
            self._draft, parts=parts, splits=dict(sorted(self._splits.items())), grouped=self._grouped,
            boxed=self._boxed, columns=self._columns, image_sizes=self._sizes.hexdigest(), _last={},
        )  # fmt: skip


class IdHashes(AbstractContextManager["IdHashes"]):
    """Hashes of ids, for lists that do not fit into memory, in a file without a name; a context manager.

    A hash has 64 bits of Python's own, which differ from process to process; of 100 million ids two share one by
    chance once in 3,700 lists, so that ids with a common hash are looked at again, or are hashed with a second `salt`,
    which is appended to them.
    """

    def __init__(self, salt: str = "") -> None:
        self._salt = salt
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, prefix="vggfeat-ids-")  # noqa: SIM115  its owner closes it
        self.count = 0

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, ids: Iterable[str]) -> None:
        """Add ids; OSError if the disk refuses."""
        hashes = _hashes_of(ids, self._salt)
        self._file.write(hashes.tobytes())
        self.count += len(hashes)

    def repeated(self) -> NDArray[np.int64]:
        """Return the hashes that there are more than once."""
        found = [bucket[1:][bucket[1:] == bucket[:-1]] for bucket in self._buckets(self._bucket_count())]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def beyond(self, known: "IdHashes") -> NDArray[np.int64]:
        """Return the hashes, ascending, that are not among the known ones."""
        count = max(self._bucket_count(), known._bucket_count())
        pairs = zip(self._buckets(count), known._buckets(count), strict=True)
        return np.sort(np.concatenate([np.empty(0, np.int64), *(np.setdiff1d(mine, other) for mine, other in pairs)]))

    def _bucket_count(self) -> int:
        return -(-self.count // _BUCKET)

    def _buckets(self, count: int) -> Iterator[NDArray[np.int64]]:
        """Yield all hashes in `count` lists, each sorted; equal ones are in one list."""
        for number in range(count):
            self._file.seek(0)
            chosen = [np.empty(0, np.int64)]
            while raw := self._file.read(8 * _BUCKET):
                hashes = np.frombuffer(raw, np.int64)
                chosen.append(hashes[(hashes % count) == number])
            yield np.sort(np.concatenate(chosen))
        self._file.seek(0, 2)


def _hashes_of(ids: Iterable[str], salt: str = "") -> NDArray[np.int64]:
    """Return the hash of each id."""
    return np.fromiter((hash(f"{name}{salt}") for name in ids), dtype=np.int64)


def _room_for_hashes() -> AbstractContextManager[None]:
    return disk_errors(Path(tempfile.gettempdir()), "keeping hashes of ids", "make room there, or set TMPDIR")


def _new_hashes(plan: Plan, listing: Listing) -> dict[str, NDArray[np.int64]]:
    """Return the hashes, ascending, of what a list has and a plan has not, for each of two salts.

    An id is new if one of its hashes is: that both are those of others happens once in 10^14 lists of 100 million.
    """
    with ExitStack() as stack:
        known, now = ({salt: stack.enter_context(IdHashes(salt)) for salt in _SALTS} for _ in range(2))
        for part in range(len(plan.parts)):
            _add_to(known, plan.part(part)["id"].to_pylist())
        for batch in listing.batches():
            _add_to(now, batch["id"].to_pylist())
        return {salt: now[salt].beyond(known[salt]) for salt in _SALTS}


def _add_to(several: Mapping[str, IdHashes], ids: Sequence[str]) -> None:
    with _room_for_hashes():
        for hashes in several.values():
            hashes.add(ids)


def _check_unique(plan: Plan, hashes: IdHashes, first: int = 0) -> None:
    """Check that no id is in two rows of the parts from `first` on; DatasetError names the first that is."""
    suspect = hashes.repeated()
    if not len(suspect):
        return
    seen: dict[str, int] = {}
    row = sum(rows for rows, _ in plan.parts[:first])
    for part in range(first, len(plan.parts)):
        ids = plan.part(part)["id"].to_pylist()
        for place in np.flatnonzero(np.isin(_hashes_of(ids), suspect)).tolist():
            if not ids[place] or ids[place] in seen:
                earlier = seen.get(ids[place], row + place)
                raise DatasetError(
                    f"{plan.root}: expected every id once, found {ids[place]!a} in the rows {earlier} and "
                    f"{row + place}, counted from 0; take one out"
                )
            seen[ids[place]] = row + place
        row += len(ids)


def _fresh(
    batch: "pa.RecordBatch", fresh: Mapping[str, NDArray[np.int64]], classes: Sequence[str], merged: Sequence[str]
) -> "pa.RecordBatch":
    """Return the rows of a batch that are new, with class numbers of the plan."""
    import pyarrow as pa

    ids = batch["id"].to_pylist()
    new = np.any([_among(_hashes_of(ids, salt), hashes) for salt, hashes in fresh.items()], axis=0)
    chosen = batch.filter(pa.array(new))
    number = {index: merged.index(name) for index, name in enumerate(classes)}
    for name in LABELS:
        if name in chosen.schema.names:
            lists = [[number[value] for value in values or ()] for values in chosen[name].to_pylist()]
            place = chosen.schema.get_field_index(name)
            chosen = chosen.set_column(place, name, pa.array(lists, pa.list_(pa.int32())))
    return chosen


def _among(hashes: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which hashes are among those known, which ascend and may be far more."""
    places = np.searchsorted(known, hashes)
    return np.zeros(len(hashes), bool) if not len(known) else known[np.minimum(places, len(known) - 1)] == hashes
