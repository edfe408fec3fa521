"""Lists of images in Parquet, of any length: paths, addresses, or the images themselves, as Hugging Face keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vggfeat.datasets.cells import plain
from vggfeat.datasets.files import listed
from vggfeat.datasets.manifest import COLUMNS, ListSettings
from vggfeat.datasets.rows import cell_box, cell_labels, cell_splits, path_below, usual_separator
from vggfeat.datasets.streamed.file_sets import find_files, split_of
from vggfeat.datasets.streamed.spool import ClassSpool, StreamedRow
from vggfeat.errors import ConfigError, DatasetError
from vggfeat.formats.parquet import CellAddress, batches, hub_features, open_parquet
from vggfeat.listing import BATCH_ROWS, FURTHER, Listing
from vggfeat.runtime.addresses import is_address
from vggfeat.runtime.storage import StorageSettings, joined
from vggfeat.samples import Label

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_NAMES = (*COLUMNS["path"], "url", "imageurl", "uri", "img", "jpg", "jpeg", "png", "webp", "bytes", "imagebytes")
"""Names of columns that hold images, or say where they are, without capitals and `_ -`."""
_SCHEMES = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")
"""Where a row may lead: to no file of this machine, which the one who wrote the list may not know."""


@dataclass(frozen=True)
class _Columns:
    """Which columns are what."""

    image: str
    embedded: bool
    """Whether the column holds the images themselves."""
    known: dict[str, str]
    """labels, split, box, id, group -> the column."""
    classes: Sequence[str] = ()
    """Names that numbers of labels stand for."""
    further: tuple[str, ...] = field(default=())

    @property
    def read(self) -> list[str]:
        return [*([] if self.embedded else [self.image]), *self.known.values(), *self.further]


def list_tables(root: str, settings: StorageSettings, listing: ListSettings) -> Listing:
    """List the rows of Parquet files. Memory does not grow with their number.

    The images are in a column of bytes, or as Hugging Face keeps them; or a column names them, by paths relative to
    the folder of the files or by addresses. Columns are known by their names as those of any list
    (`vggfeat.datasets.manifest.COLUMNS`), and by what Hugging Face's library has written of them; of other columns,
    those of text and numbers are kept as text. Without a column of splits, the name of the file says it.

    Raises DatasetError if there is no file, one is no Parquet file or has other columns than the first, or a cell is
    not as it should be; the message names file and row. Raises ConfigError if a column of the settings is not there.
    Raises StoreError if a file can't be read.
    """
    found = find_files(root, ".parquet", settings)
    spool, first_columns = ClassSpool(), None
    for path in found.paths:
        where = joined(found.storage.root, path)
        file = open_parquet(found.storage, path)
        columns = _columns(file.schema_arrow, where, listing)
        if first_columns is None:
            first_columns = columns
        if columns != first_columns:
            raise DatasetError(
                f"{where}: expected the columns of {joined(found.storage.root, found.paths[0])}, "
                f"{listed(_shown(first_columns))}, found {listed(_shown(columns))}; list them apart"
            )
        _read_file(file, where, path, columns, listing, spool)
    if first_columns is None or not spool.rows:
        raise DatasetError(f"{found.storage.root}: expected rows in the Parquet files, found none")
    notes = [f"Kept in the feature file as text: {listed(first_columns.further)}."] if first_columns.further else []
    return spool.listing("parquet", found.storage.root, notes)


def _shown(columns: _Columns) -> list[str]:
    return [columns.image, *columns.known.values(), *columns.further]


def _columns(schema: "pa.Schema", where: str, listing: ListSettings) -> _Columns:
    hub = hub_features(schema)
    image = _image_column(schema, hub, where, listing)
    known: dict[str, str] = {}
    for name, headings in COLUMNS.items():
        heading = listing.columns.get(name)
        if heading is not None and heading not in schema.names:
            raise ConfigError(f"--column {name}: expected one of the columns {listed(schema.names)}, found {heading!r}")
        fits = [heading] if heading else [one for one in schema.names if plain(one) in headings and one != image]
        if len(fits) > 1 and name != "path":
            raise DatasetError(
                f"{where}: expected one column of the {name}, found {fits[0]!r} and {fits[1]!r}; "
                f"say which with --column {name}={fits[0]}"
            )
        if fits and name != "path":
            known[name] = fits[0]
    classes = _class_names(hub.get(known.get("labels", "")))
    rest = [one for one in schema.names if one != image and one not in known.values()]
    further = tuple(one for one in rest if _is_plain(schema.field(one).type))
    return _Columns(image, _is_embedded(schema.field(image).type), known, classes, further)


def _image_column(schema: "pa.Schema", hub: dict[str, Any], where: str, listing: ListSettings) -> str:
    heading = listing.columns.get("path")
    images = [one for one in schema.names if hub.get(one, {}).get("_type") == "Image"]
    images = images or [one for one in schema.names if plain(one) in _IMAGE_NAMES]
    if heading is not None:
        images = [heading] if heading in schema.names else []
    if len(images) == 1:
        return images[0]
    found = listed(images if images else schema.names) or "no columns"
    if heading is not None:
        raise ConfigError(
            f"--column path: expected one of the columns {listed(schema.names)} ({where}), found {heading!r}"
        )
    raise DatasetError(
        f"{where}: expected one column of images, called image, url, path or the like, found {found}; say which with "
        "--column path=NAME"
    )


def _class_names(feature: Any) -> tuple[str, ...]:
    """Return the names that Hugging Face's library has for the numbers of a column."""
    if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        feature = feature.get("feature")
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _is_embedded(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return bool(types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def _is_plain(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    text = types.is_string(kind) or types.is_large_string(kind)
    return bool(text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _read_file(file: Any, where: str, path: str, columns: _Columns, listing: ListSettings, spool: ClassSpool) -> None:
    row, names = 0, columns.read
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    parts = batches(file, where, names, BATCH_ROWS) if names else _empty_batches(sum(counts))
    for batch in parts:
        cells = {name: batch.column(batch.schema.get_field_index(name)).to_pylist() for name in columns.known.values()}
        places = None if columns.embedded else batch.column(batch.schema.get_field_index(columns.image)).to_pylist()
        rows = [
            _row(f"{where}, row {row + number + 1}", path, row + number, columns, cells, places, number, listing)
            for number in range(batch.num_rows)
        ]
        row += len(rows)
        spool.add(rows, [(f"{FURTHER}{name}", _text(batch, name)) for name in columns.further])


def _empty_batches(rows: int) -> Any:
    import pyarrow as pa

    for start in range(0, rows, BATCH_ROWS):
        yield pa.RecordBatch.from_pydict({"rows": pa.nulls(min(BATCH_ROWS, rows - start))})


def _text(batch: "pa.RecordBatch", name: str) -> "pa.Array":
    import pyarrow as pa

    return batch.column(batch.schema.get_field_index(name)).cast(pa.string()).fill_null("")


def _row(
    where: str, path: str, row: int, columns: _Columns, cells: dict[str, list[Any]], places: list[Any] | None,
    number: int, listing: ListSettings,
) -> StreamedRow:  # fmt: skip
    def cell(name: str) -> Any:
        column = columns.known.get(name)
        return None if column is None else cells[column][number]

    embedded = CellAddress(path, columns.image, row).text
    file = embedded if places is None else _file(where, columns.image, places[number])
    labels = _labels(where, cell("labels"), columns, listing)
    name, group, split = cell("id"), cell("group"), cell("split")
    written = cell_splits(where, str(split)) if split is not None else []
    return StreamedRow(
        file if name is None or name == "" else str(name),
        file,
        labels=tuple(cls for cls, label in labels.items() if label == Label.POSITIVE),
        ignored=tuple(cls for cls, label in labels.items() if label == Label.IGNORED),
        box=_box(where, cell("box")),
        group=None if group is None or group == "" else str(group),
        splits=tuple(dict.fromkeys(known for _, known in written)) if "split" in columns.known else split_of(path),
    )


def _file(where: str, column: str, cell: Any) -> str:
    if not isinstance(cell, str) or not cell:
        raise DatasetError(f"{where}: expected a path or an address in the column {column!r}, found {cell!r:.80}")
    if not is_address(cell):
        return path_below(where, cell)
    scheme = cell.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        raise DatasetError(f"{where}: expected an address of {', '.join(_SCHEMES)}, found {scheme}://")
    return cell


def _labels(where: str, cell: Any, columns: _Columns, listing: ListSettings) -> dict[str, int]:
    """Return the labels of a cell: a number, a name, or a list of these."""
    if isinstance(cell, str) and not columns.classes:
        heading = columns.known["labels"]
        return cell_labels(heading, listing.label_separator or usual_separator(heading), where, cell)
    values = cell if isinstance(cell, list) else [] if cell is None else [cell]
    if columns.classes:
        values = [value for value in values if value != -1]  # as Hugging Face says that a label is withheld
    return dict.fromkeys([_class(where, value, columns.classes) for value in values], int(Label.POSITIVE))


def _class(where: str, value: Any, classes: Sequence[str]) -> str:
    if classes and isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(classes):
            raise DatasetError(f"{where}: expected the number of a class, 0 to {len(classes) - 1}, found {value}")
        return classes[value]
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DatasetError(f"{where}: expected numbers or names of classes, found {value!r:.80}")
    return str(value)


def _box(where: str, cell: Any) -> tuple[float, ...] | None:
    text = " ".join(map(str, cell)) if isinstance(cell, list) else cell
    box = None if text is None else cell_box(where, str(text))
    return None if box is None else tuple(box)
