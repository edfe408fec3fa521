"""One image, by every way that a program can have it, gives the same row."""

import http.server
import io
import sys
import threading
from functools import partial

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from sklearn.compose import ColumnTransformer

from vggfeat import Extractor
from vggfeat.errors import ConfigError, ImageError
from vggfeat.estimator import extractor as extractor_module
from vggfeat.estimator import inputs as module
from vggfeat.images.fetch import FetchSettings
from vggfeat.runtime.storage import StorageSettings

fsspec = pytest.importorskip("fsspec")
pandas = pytest.importorskip("pandas")

NET = "random:A:0:0.03125"
PIXELS = np.random.default_rng(0).integers(0, 256, (50, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def extractor():
    with Extractor(NET, scales=224, device="cpu", workers=1, allow_private=True) as made:
        yield made


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "a b.png"
    Image.fromarray(PIXELS).save(file)
    return file


@pytest.fixture(scope="module")
def expected(extractor, path):
    return extractor.transform([path])


class Silent(http.server.SimpleHTTPRequestHandler):
    def send_head(self):
        if "forbidden" not in self.path:
            return super().send_head()
        self.send_error(403)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def address(path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=path.parent))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)
WAYS = {
    "a text": str,
    "bytes": lambda path: path.read_bytes(),
    "a view of bytes": lambda path: memoryview(path.read_bytes()),
    "a file in memory": lambda path: io.BytesIO(path.read_bytes()),
    "a PIL image": Image.open,
    "an array": lambda _: PIXELS,
    "a reversed array": lambda _: PIXELS[::-1][::-1],
    "an array of floats": lambda _: (PIXELS / 255).astype(np.float32),
    "a tensor": lambda _: TENSOR,
    "a tensor of floats": lambda _: TENSOR.float() / 255,
    "a tensor with gradients": lambda _: (TENSOR / 255).requires_grad_(),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_image_gives_one_row_to_the_bit(extractor, path, expected, way):
    np.testing.assert_array_equal(extractor.transform([WAYS[way](path)]), expected)


def test_addresses_are_read_through_fsspec(extractor, path, expected, address):
    with fsspec.open("memory://images/a.png", "wb") as file:
        file.write(path.read_bytes())
    urls = [f"{address}/a%20b.png", "memory://images/a.png", f"file://{path}"]
    for row in extractor.transform(urls):
        np.testing.assert_allclose(row, expected[0], atol=1e-6)
    np.testing.assert_array_equal(extractor.transform(urls[:1]), expected)
    loud = [url.replace(url.partition("://")[0], url.partition("://")[0].upper(), 1) for url in urls]
    np.testing.assert_array_equal(extractor.transform(loud), extractor.transform(urls))


def test_an_address_that_gives_nothing_is_an_image_that_failed(extractor, address):
    nan = Extractor(NET, scales=224, device="cpu", errors="nan", allow_private=True)
    rows = nan.transform([f"{address.replace('://', '://me:secret@')}/none.png?key=secret", PIXELS])
    assert np.isnan(rows[0]).all()
    assert np.isfinite(rows[1]).all()
    (failure,) = nan.failures_
    assert (failure.index, failure.name) == (0, f"{address}/none.png")
    assert failure.reason == f"missing: {address}/none.png: expected a file at this address, found none"


@pytest.mark.parametrize("secret", ["?key=s e-SECRET", "#token=SECRET", "?a='SECRET"])
def test_no_connection_and_a_refusal_are_no_missing_file_and_tell_no_secret(extractor, address, secret, monkeypatch):
    monkeypatch.setattr(extractor_module, "StorageSettings", partial(StorageSettings, wait=0.001))
    for where, reason, said in (
        (f"{address}/forbidden.png", "unreadable", "refused: ClientResponseError: 403, message='Forbidden'"),
        ("http://127.0.0.1:9/a.png", "unreachable", "failed 5 .*: Cannot connect to host 127.0.0.1:9"),
    ):
        with pytest.raises(ImageError, match=f"image 0: {where}: reading (was )?{said}") as caught:
            extractor.transform([f"{where.replace('://', '://me:p@SECRET@')}{secret}"])
        assert caught.value.reason == reason
        assert "SECRET" not in str(caught.value)


def test_an_address_of_the_own_network_is_not_read_unless_that_is_allowed(address):
    with (
        Extractor(NET, scales=224, device="cpu") as careful,
        pytest.raises(ImageError, match=r"a%20b.png: expected a public address, found a private one") as caught,
    ):
        careful.transform([f"{address}/a%20b.png"])
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("missing", ["fsspec", "s3fs"])
def test_what_is_not_installed_is_named(extractor, missing, monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # as if nobody had used it yet
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"s3://bucket/a\.png: .*(vggfeat\[remote\]|s3fs)"):
        extractor.transform(["s3://bucket/a.png"])


def test_batches_are_lists_of_their_images(extractor):
    batch = np.stack([PIXELS, PIXELS[:, ::-1], 255 - PIXELS])
    listed = extractor.transform(list(batch))
    np.testing.assert_array_equal(extractor.transform(batch), listed)
    tensor = torch.from_numpy(batch.copy()).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(extractor.transform(tensor), listed)


def test_grey_is_grey_by_every_way(extractor, tmp_path):
    grey = PIXELS[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    wanted = extractor.transform([tmp_path / "grey.png"])
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(extractor.transform([image]), wanted)


def test_columns_of_tables_are_lists_of_paths(extractor, path, expected):
    table = pandas.DataFrame({"path": [str(path)] * 2, "weight": [1.0, 2.0]})
    wanted = np.repeat(expected, 2, axis=0)
    np.testing.assert_allclose(extractor.transform(table["path"]), wanted, atol=1e-6)
    np.testing.assert_allclose(extractor.transform(table[["path"]]), wanted, atol=1e-6)
    np.testing.assert_allclose(extractor.transform(table[["path"]].to_numpy()), wanted, atol=1e-6)
    np.testing.assert_allclose(extractor.transform(pyarrow.array(table["path"])), wanted, atol=1e-6)
    for column in ("path", ["path"]):
        both = ColumnTransformer([("image", extractor, column), ("weight", "passthrough", ["weight"])])
        found = both.fit_transform(table)
        assert found.shape == (2, expected.shape[1] + 1)
        np.testing.assert_allclose(found[:, :-1], wanted, atol=1e-6)
    with pytest.raises(ConfigError, match="one column of images, found shape"):
        extractor.transform(table)


def test_an_empty_cell_is_an_image_that_failed(extractor, path):
    nan = Extractor(NET, scales=224, device="cpu", errors="nan")
    cells = [str(path), None, float("nan"), pandas.NA, pandas.NaT, np.float32("nan"), "", " "]
    nan.transform(pandas.Series(cells, dtype=object))
    assert [failure.index for failure in nan.failures_] == [1, 2, 3, 4, 5, 6, 7]
    assert {failure.reason for failure in nan.failures_} == {"missing: none: expected an image, found an empty cell"}
    with pytest.raises(ConfigError, match="found int"):
        nan.transform([3])
    assert nan.failures_ == []


def test_files_are_read_from_where_they_stand_and_left_there(extractor, path, expected):
    file = io.BytesIO(b"head" + path.read_bytes())
    file.seek(4)
    for _ in range(2):
        np.testing.assert_array_equal(extractor.transform([file]), expected)
    assert file.tell() == 4
    with path.open("rb") as opened:
        np.testing.assert_array_equal(extractor.transform([opened]), expected)
    with pytest.raises(ImageError, match=r"a b\.png: expected an open file"):
        extractor.transform([opened])
    with path.open("rb", buffering=0) as opened:
        opened.read = lambda count, read=opened.read: read(min(count, 100))  # as of a connection
        np.testing.assert_array_equal(extractor.transform([opened]), expected)
    for text in (io.StringIO("text"), path.open(encoding="utf-8")):  # Of the second, no text can be read.
        with text, pytest.raises(ConfigError, match="one of text; open it with open\\(path, 'rb'\\)"):
            extractor.transform([text])


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (PIXELS.transpose(2, 0, 1), r"found \(3, 50, 64\); give image.transpose\(1, 2, 0\)"),
        (torch.from_numpy(PIXELS), r"found \(50, 64, 3\); give image.permute\(2, 0, 1\)"),
        (np.zeros((5, 6, 4), np.uint8), r"PIL.Image.fromarray"),
        (np.zeros(5, np.uint8), r"found \(5,\)"),
        (PIXELS.astype(np.int64), "found int64 from 0 to 255; give it as uint8"),
        (PIXELS > 9, "found bool"),
        ((TENSOR / 255).bfloat16(), "found torch.bfloat16"),
        ((TENSOR / 255).to_sparse(), "found torch.float32: can't convert Sparse"),
        (torch.empty(3, 5, 6, device="meta"), "found torch.float32: Cannot copy"),
        (PIXELS.astype(np.float32), r"float32 from 0 to 255; .*\(255 \* image\).round"),
        ((PIXELS / 255 - 0.45) / 0.22, "float64 from -2.04545 to 2.5"),
        (PIXELS / 300, "float64 from 0 to 0.85"),
        ((PIXELS > 9).astype(np.float32), "float32 from 0 to 1"),
        (np.full((5, 6, 3), np.nan), "float64 from nan to nan"),
        (np.zeros((0, 5, 3), np.uint8), "sides above 0"),
    ],
)
def test_arrays_that_could_mean_something_else_are_refused(extractor, image, said):
    with pytest.raises(ImageError, match=rf"image 1: (array|tensor) \(.*{said}"):
        extractor.transform([PIXELS, image])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (b"bytes", "a single bytes"),
        (io.BytesIO(), "a single BytesIO"),
        (Image.new("L", (3, 3)), "a single Image"),
        (PIXELS, r"a batch \(N, H, W, 3\), found a single array"),
        (TENSOR, r"a batch \(N, 3, H, W\), found a single tensor"),
        ({"a": 1}, "found dict"),
        (3, "found int"),
    ],
)
def test_a_single_image_is_no_list(extractor, images, said):
    with pytest.raises(ConfigError, match=said):
        extractor.transform(images)


def test_no_more_addresses_are_drawn_than_are_being_read():
    drawn = []

    def addresses():
        for number in range(100):
            drawn.append(number)
            yield f"memory://none/{number}"

    found = module._downloaded(addresses(), FetchSettings(threads=8))
    next(found)
    found.close()
    assert len(drawn) == 8
