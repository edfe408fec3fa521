"""Image sets of the Hugging Face Hub, in their Parquet form, from a server that answers as the Hub does."""

import io

import pyarrow as pa
import pytest
from pyarrow import parquet

pytest.importorskip("huggingface_hub")

import hub_server
from vggfeat.datasets.streamed import list_images
from vggfeat.errors import DatasetError, StoreError
from vggfeat.images.decode import Request
from vggfeat.images.fetch import FetchSettings, fetched

IMAGES = [bytes([number]) * 1000 for number in range(6)]


@pytest.fixture(scope="module")
def server():
    file = io.BytesIO()
    cells = [{"bytes": data, "path": None} for data in IMAGES]
    parquet.write_table(pa.table({"image": cells, "label": ["a", "b"] * 3}), file)
    files = {"README.md": b"a set", "data/train-00000-of-00001.parquet": file.getvalue(), "other/readme.txt": b"x"}
    with hub_server.served(files) as running:
        yield running


def test_a_set_of_the_hub_is_listed_and_its_images_are_read(server):
    found = list_images("parquet", f"hf://datasets/{hub_server.NAME}")
    assert (found.classes, found.splits, found.root) == (("a", "b"), ("train",), f"hf://datasets/{hub_server.NAME}")
    rows = [row for batch in found.batches() for row in batch.to_pylist()]
    requests = [Request(f"{found.root}/{row['file']}", (None,)) for row in rows]
    assert [one.data for one in fetched(requests, FetchSettings())] == IMAGES


def test_a_set_that_is_not_there_is_named(server):
    with pytest.raises((StoreError, DatasetError), match="hf://datasets/me/none"):
        list_images("parquet", "hf://datasets/me/none")
    with pytest.raises(DatasetError, match=r"hf://datasets/me/set/other: expected files that end with \.parquet"):
        list_images("parquet", "hf://datasets/me/set/other")
