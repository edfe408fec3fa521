"""A plan: which images a run of any size has, cut into shards, each the work of whoever comes first.

    RUN/plan.json                        what decides the features, what the data set is, the parts with their digests;
                                         the plan exists once it has its name
    RUN/plan/part-000000-1f0c9a3e.parquet
                                         rows of up to 16 shards, with the columns of `vggfeat.listing`; called by its
                                         digest too, so that two that plan at once do not replace each other's
    RUN/features/000/part-000123.parquet a finished shard (`vggfeat.store.shard_files`)

Nobody holds the whole list: it is written in a stream, and who computes a shard reads the part that has it. A part
begins with a shard of its own, so that the last shard of a part may be short. N = rows, K = classes.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_choice, convert_fields
from vggfeat.errors import ConfigError, StoreError
from vggfeat.formats.hdf5 import canonical_json
from vggfeat.listing import FURTHER, LABELS
from vggfeat.runtime.storage import MissingFileError, Storage, joined
from vggfeat.samples import DataSet, Label, Task
from vggfeat.store.checksummed_parquet import unseal
from vggfeat.store.layout import Shape

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT, VERSION = "vggfeat-plan", 1
PART_FORMAT = "vggfeat-plan-part"
PLAN = "plan.json"
PART_SHARDS = 16
"""Shards whose rows are in one part."""
Store = Literal["scales", "mean"]
DType = Literal["float32", "float16"]
_PLAIN = ("name", "splits", "grouped", "boxed", "boxes_as_stored")
"""Fields that plan.json has as they are, below "dataset"."""
_LARGEST_PLAN = 1 << 28
_SHARD = re.compile(r"features/\d{3,}/part-(\d{6,})\.parquet")


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How a run is cut up, and what is kept of each image."""

    shard_rows: int = 4096
    """Images of a shard: what is lost if a process dies, and what is read at a time."""
    store: Store = "scales"
    """scales: the features of every scale. mean: their mean over the scales, all that is needed to join by mean."""
    dtype: DType = "float32"
    """float16 takes half the space, and keeps 11 bits of each value."""

    def __post_init__(self) -> None:
        convert_fields(self)
        check_choice("store", self.store, get_args(Store))
        check_choice("dtype", self.dtype, get_args(DType))
        if not 1 <= self.shard_rows <= 1 << 20:
            raise ConfigError(f"shard_rows: expected 1 to {1 << 20}, found {self.shard_rows}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What plan.json says, and the rows that it leads to."""

    storage: Storage
    key: dict[str, Any]
    """All that decides the features, but for the list, the images and the machine."""
    provenance: dict[str, Any]
    """What else a reader may want to know of how they are made."""
    shape: Shape
    """What is computed of an image."""
    settings: PlanSettings
    name: str
    """Name of the data set."""
    task: Task
    classes: tuple[str, ...]
    root: str
    """Where the images are."""
    splits: dict[str, int] = field(default_factory=dict)
    """Name -> rows."""
    columns: tuple[str, ...] = ()
    """Names of further columns."""
    grouped: bool = False
    """Whether rows have groups."""
    boxed: bool = False
    """Whether rows have boxes."""
    boxes_as_stored: bool
    image_sizes: str = ""
    """SHA-256 over the sizes of the images, a line each."""
    parts: tuple[tuple[int, str], ...] = ()
    """Rows and digest of each part."""
    options: dict[str, Any] = field(default_factory=dict)
    """`vggfeat.listing.Listing.options`."""
    _last: dict[int, "pa.Table"] = field(default_factory=dict, repr=False)

    @cached_property
    def rows(self) -> int:
        """N."""
        return sum(rows for rows, _ in self.parts)

    @cached_property
    def shards(self) -> int:
        """How many there are."""
        return self._shards_before[-1]

    @property
    def where(self) -> str:
        """What messages call it."""
        return self.storage.root

    @cached_property
    def stored_shape(self) -> Shape:
        """What is kept of an image: of the mean, one scale."""
        scales = self.shape.scales if self.settings.store == "scales" else self.shape.scales[:1]
        return Shape(scales=scales, regions=self.shape.regions, channels=self.shape.channels)

    @cached_property
    def token(self) -> str:
        """Digest of all that decides the content of a shard besides its rows."""
        return hashlib.sha256(canonical_json(self.decisive(), PLAN).encode()).hexdigest()

    @cached_property
    def _shards_before(self) -> tuple[int, ...]:
        """Shards before each part, and of all."""
        return (0, *accumulate(-(-rows // self.settings.shard_rows) for rows, _ in self.parts))

    @cached_property
    def _rows_before(self) -> tuple[int, ...]:
        return (0, *accumulate(rows for rows, _ in self.parts))

    def place_of(self, shard: int) -> tuple[int, int]:
        """Return the part of a shard, and its number there; ConfigError if there is no such shard."""
        if not 0 <= shard < self.shards:
            raise ConfigError(f"{self.where}: expected a shard from 0 to {self.shards - 1}, found {shard}")
        part = int(np.searchsorted(self._shards_before, shard, side="right")) - 1
        return part, shard - self._shards_before[part]

    def rows_of(self, shard: int) -> range:
        """Rows of a shard, counted through the whole list."""
        part, number = self.place_of(shard)
        first, step = self._rows_before[part] + number * self.settings.shard_rows, self.settings.shard_rows
        return range(first, min(first + step, self._rows_before[part + 1]))

    def shards_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shard that has each row."""
        parts = np.searchsorted(self._rows_before, rows, side="right") - 1
        within = (rows - np.array(self._rows_before)[parts]) // self.settings.shard_rows
        return np.array(self._shards_before)[parts] + within

    def token_of(self, shard: int) -> str:
        """Digest of all that decides the content of a shard: by it a shard of another plan is known."""
        part, number = self.place_of(shard)
        text = f"{self.token} {self.parts[part][1]} {number}"
        return hashlib.sha256(text.encode()).hexdigest()

    def present(self) -> set[int]:
        """Return the shards that have their name; those of no plan are left out."""
        names = (_SHARD.fullmatch(entry.path) for entry in self.storage.entries("features"))
        found = {int(name[1]) for name in names if name and name[0] == shard_path(int(name[1]))}
        return {shard for shard in found if shard < self.shards}

    def part(self, number: int) -> "pa.Table":
        """Read the rows of a part; StoreError if they are damaged. The last one that was read is kept."""
        if number not in self._last:
            rows, digest = self.parts[number]
            path = part_path(number, digest)
            where = joined(self.where, path)
            try:
                found = unseal(self.storage.read(path), where, PART_FORMAT)
            except MissingFileError:
                raise StoreError(
                    f"{where}: expected a part of the plan, found none; bring it back, or plan again into an "
                    "empty folder"
                ) from None
            if found.sha256 != digest or found.file.metadata.num_rows != rows:
                raise StoreError(
                    f"{where}: expected the part of this plan ({rows} rows), found another "
                    f"({found.file.metadata.num_rows} rows); plan again into an empty folder"
                )
            self._last.clear()
            self._last[number] = found.table()
        return self._last[number]

    def table(self, shard: int) -> "pa.Table":
        """Read the rows of a shard, with the columns of `vggfeat.listing`."""
        part, number = self.place_of(shard)
        return self.part(part).slice(number * self.settings.shard_rows, len(self.rows_of(shard)))

    def data_set(self) -> DataSet:
        """Read the whole list as a data set, all of it in memory; StoreError if a part is damaged."""
        import pyarrow as pa

        return self.data_set_of(pa.concat_tables([self.part(number) for number in range(len(self.parts))]))

    def data_set_of(self, table: "pa.Table") -> DataSet:
        """Return some rows as a data set."""
        labels = np.full((len(table), len(self.classes)), Label.NEGATIVE, dtype=np.int8)
        for name, label in LABELS.items():
            rows, numbers = class_numbers(table[name])
            labels[rows, numbers] = label
        members: dict[str, list[int]] = {name: [] for name in self.splits}
        for row, names in enumerate(table["splits"].to_pylist()):
            for name in names:
                members[name].append(row)
        absent = [np.nan] * 4
        return DataSet(
            name=self.name,
            task=self.task,
            classes=self.classes,
            ids=tuple(table["id"].to_pylist()),
            paths=tuple(table["file"].to_pylist()),
            labels=labels,
            boxes=np.array([box or absent for box in table["box"].to_pylist()]).reshape(-1, 4) if self.boxed else None,
            splits={name: np.array(rows, dtype=np.int64) for name, rows in members.items()},
            groups=tuple(table["group"].to_pylist()) if self.grouped else None,
            columns={name: tuple(table[f"{FURTHER}{name}"].to_pylist()) for name in self.columns},
            root=self.root,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what plan.json says."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.decisive(),
            "provenance": self.provenance,
            "dataset": {
                "task": str(self.task),
                "classes": list(self.classes),
                "columns": list(self.columns),
                "image_sizes_sha256": self.image_sizes,
                "options": self.options,
                **{name: getattr(self, name) for name in _PLAIN},
            },
            "root": self.root,
            "rows": self.rows,
            "shards": self.shards,
            "parts": [{"rows": rows, "sha256": digest} for rows, digest in self.parts],
        }

    def decisive(self) -> dict[str, Any]:
        """Return what must be equal for two plans of one list to be the same."""
        return {
            "key": self.key,
            "scales": list(self.shape.scales),
            "regions": list(self.shape.regions),
            "channels": self.shape.channels,
            "store": self.settings.store,
            "dtype": self.settings.dtype,
            "shard_rows": self.settings.shard_rows,
        }


def part_path(part: int, digest: str) -> str:
    """Name a part of a plan, of which one knows the digest."""
    return f"plan/part-{part:06d}-{digest[:8]}.parquet"


def shard_path(shard: int) -> str:
    """Name a shard: a thousand to a folder."""
    return f"features/{shard // 1000:03d}/part-{shard:06d}.parquet"


def class_numbers(lists: "pa.ChunkedArray") -> tuple[np.ndarray, np.ndarray]:
    """Return the row and the number of each entry of a column of lists of int32."""
    import pyarrow as pa

    if not len(lists):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    whole = pa.concat_arrays(lists.chunks)
    lengths = whole.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(whole)), lengths), whole.flatten().to_numpy(zero_copy_only=False).astype(np.int64)


def read_plan(storage: Storage) -> Plan:
    """Read the plan of a run; StoreError if there is none, or it is damaged or of another version."""
    where = joined(storage.root, PLAN)
    try:
        raw = storage.read(PLAN, 0, _LARGEST_PLAN)
    except MissingFileError:
        if os.path.isfile(storage.root):
            raise StoreError(
                f"{storage.root}: expected the folder of a run that `vggfeat plan` has made, found a file; give "
                "the folder"
            ) from None
        raise StoreError(f"{where}: expected a plan, found none; make one: vggfeat plan --out {storage.root}") from None
    try:
        content = json.loads(raw)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StoreError(f"{where}: expected a plan of vggfeat, found other JSON; choose another folder")
        if content.get("version") != VERSION:
            found = str(content.get("version"))[:20]
            raise StoreError(
                f"{where}: expected a plan of version {VERSION}, found {found}; update vggfeat, or plan again"
            )
        if content.pop("sha256", None) != digest_of_plan(content):
            raise ValueError("its SHA-256 does not fit")
        return _plan(storage, content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{where}: expected the JSON of a plan, found damage ({error}); plan again into an empty folder"
        ) from None


def digest_of_plan(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a plan says, by which damage is found."""
    return hashlib.sha256(canonical_json(content, PLAN).encode()).hexdigest()


def encode_plan(plan: Plan) -> bytes:
    """Turn a plan into the bytes of plan.json."""
    content = plan.to_json()
    return json.dumps(content | {"sha256": digest_of_plan(content)}, indent=1, sort_keys=True).encode() + b"\n"


def _plan(storage: Storage, content: dict[str, Any]) -> Plan:
    data = content["dataset"]
    return Plan(
        storage=storage,
        key=content["key"],
        provenance=content["provenance"],
        shape=Shape(scales=tuple(content["scales"]), regions=tuple(content["regions"]), channels=content["channels"]),
        settings=PlanSettings(shard_rows=content["shard_rows"], store=content["store"], dtype=content["dtype"]),
        task=Task(data["task"]),
        classes=tuple(data["classes"]),
        columns=tuple(data["columns"]),
        root=content["root"],
        image_sizes=data["image_sizes_sha256"],
        parts=tuple((part["rows"], part["sha256"]) for part in content["parts"]),
        options=data.get("options", {}),
        **{name: data[name] for name in _PLAIN},
    )
