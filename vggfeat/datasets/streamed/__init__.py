"""Images that are too many, or too far, to be listed in memory: folders at an address, tar sets, lists in Parquet.

All of them become a `vggfeat.listing.Listing`. What is found is kept on this machine's disk (in $TMPDIR, compressed)
until all classes are known, so that a store is listed once, and memory does not grow with the number of rows.
"""

from vggfeat.checks import check_choice
from vggfeat.datasets.levels import Layout, check_layout
from vggfeat.datasets.manifest import ListSettings
from vggfeat.datasets.streamed.folders import list_folder
from vggfeat.datasets.streamed.tables import list_tables
from vggfeat.datasets.streamed.tars import list_tars
from vggfeat.errors import ConfigError
from vggfeat.listing import Listing
from vggfeat.runtime.storage import StorageSettings

KINDS = ("folder", "tar", "parquet")
"""What can be listed in a stream: by folders, as webdataset and as Parquet keep images."""


def list_images(
    kind: str,
    root: str,
    *,
    storage: StorageSettings = StorageSettings(),  # noqa: B008  frozen
    layout: Layout | None = None,
    listing: ListSettings | None = None,
) -> Listing:
    """List images of this machine or of a store.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    root : str
        A folder or an address: of a tree of images, of tar or Parquet files; or one such file; or several by a
        pattern, as in s3://bucket/train-{0000..0146}.tar.
    storage : StorageSettings
    layout : "splits" or "classes", optional
        For folders, as `vggfeat.datasets.folder.read`.
    listing : ListSettings, optional
        For Parquet: which columns are what, where their names do not tell.

    Raises
    ------
    ConfigError
        If there is no such kind, an option does not go with it, or nothing reads such an address.
    DatasetError
        If nothing is there, or it is not as it should be; the message names file and row.
    StoreError
        If the store can't be read.
    """
    check_choice("kind of data set", kind, KINDS)
    check_layout(layout, kind)
    if listing not in (None, ListSettings()) and kind != "parquet":
        raise ConfigError(f"--column and --label-separator: expected them for lists alone, found one for {kind}")
    if kind == "folder":
        return list_folder(root, storage, layout)
    return list_tars(root, storage) if kind == "tar" else list_tables(root, storage, listing or ListSettings())
