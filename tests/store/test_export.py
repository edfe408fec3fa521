"""Exports, each read back by its own format's reader."""

import csv
import errno
import importlib.util
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.io import loadmat

from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.durable import Files
from vggfeat.store.export import KINDS, Table, write

IDS = ("plain", "a\nb", 'c,"d"\'', "é𝄞", " space ", "=1+1")
N, D = len(IDS), 7
THERE = [kind for kind in KINDS if kind != "h5ad" or importlib.util.find_spec("anndata")]
DESCRIPTORS = np.random.default_rng(3).standard_normal((N, D)).astype(np.float32)
DESCRIPTORS[0, :4] = [0, -0.0, np.finfo(np.float32).tiny, 1 / 3]
LABELS = np.array([[1, -1], [0, 2], [3, 1], [-1, -1], [1, 1], [0, 0]], np.int8)
CLASSES = ("cat", "dining table")
SPLITS = {"train-1": np.array([0, 2, 5]), "train_1": np.array([1]), "1st": np.array([], np.int64)}


def make_table(**changes):
    columns = {
        "ids": IDS,
        "paths": tuple(f"folder/{name}" for name in IDS),
        "descriptors": DESCRIPTORS,
        "labels": LABELS,
        "classes": CLASSES,
        "splits": SPLITS,
    }
    return Table(**(columns | changes))


def same_bits(found):
    return np.asarray(found, np.float32).tobytes() == DESCRIPTORS.tobytes()


def test_npz_comes_back_without_pickle(tmp_path):
    with np.load(write(tmp_path / "x.npz", "npz", make_table()), allow_pickle=False) as found:
        assert same_bits(found["descriptors"])
        assert found["descriptors"].dtype == np.float32
        assert tuple(found["ids"]) == IDS
        assert found["paths"][1] == "folder/a\nb"
        assert (found["labels"] == LABELS).all()
        assert tuple(found["classes"]) == CLASSES
        assert found["split_train-1"].tolist() == [0, 2, 5]
        assert set(found) == {"descriptors", "ids", "paths", "labels", "classes", *(f"split_{name}" for name in SPLITS)}


def test_parquet_comes_back(tmp_path):
    found = pq.read_table(write(tmp_path / "x.parquet", "parquet", make_table()))
    assert str(found.schema.field("descriptor").type) == f"fixed_size_list<element: float>[{D}]"
    assert same_bits(found["descriptor"].to_pylist())
    assert tuple(found["id"].to_pylist()) == IDS
    assert found["path"].to_pylist()[3] == "folder/é𝄞"
    assert str(found.schema.field("label_cat").type) == "int8"
    assert found["label_dining table"].to_pylist() == [-1, 2, 1, -1, 1, 0]
    assert found["split_train-1"].to_pylist() == [True, False, True, False, False, True]


def test_csv_comes_back_to_the_last_bit(tmp_path):
    with open(write(tmp_path / "x.csv", "csv", make_table()), newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head[:4] == ["id", "path", "label_cat", "label_dining table"]
    assert head[4:7] == ["split_train-1", "split_train_1", "split_1st"]
    assert head[7:] == [f"d{index}" for index in range(D)]
    assert tuple(row[0] for row in rows) == IDS
    assert [row[3] for row in rows] == ["-1", "2", "1", "-1", "1", "0"]
    assert [row[4] for row in rows] == ["true", "false", "true", "false", "false", "true"]
    assert same_bits([[float(value) for value in row[7:]] for row in rows])


def test_h5ad_comes_back(tmp_path):
    anndata = pytest.importorskip("anndata")
    found = anndata.read_h5ad(write(tmp_path / "x.h5ad", "h5ad", make_table(groups=tuple("aabbcc"))))
    assert found.X.dtype == np.float32
    assert same_bits(found.X)
    assert tuple(found.obs_names) == IDS
    assert found.obs["path"].iloc[1] == "folder/a\nb"
    assert found.obs["group"].tolist() == list("aabbcc")
    assert found.obs["label_dining table"].tolist() == LABELS[:, 1].tolist()
    assert found.obs["split_train-1"].tolist() == [True, False, True, False, False, True]
    assert found.uns["classes"].tolist() == list(CLASSES)


def test_h5ad_without_its_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(
        ConfigError, match=r"h5ad: the package anndata is missing; pip install 'PATH_OF_CLONE\[anndata\]'"
    ):
        write(tmp_path / "x.h5ad", "h5ad", make_table())
    assert list(tmp_path.iterdir()) == []


def test_mat_comes_back_with_names_that_matlab_allows_and_rows_from_one(tmp_path):
    found = loadmat(write(tmp_path / "x.mat", "mat", make_table()), chars_as_strings=True)
    assert same_bits(found["descriptors"])
    assert found["descriptors"].dtype == np.float32
    shown = [name.replace("𝄞", r"\U0001d11e") for name in IDS]
    assert [cell.item() for cell in found["ids"].ravel()] == shown, "SciPy, MATLAB and Octave count it differently"
    assert [cell.item() for cell in found["classes"].ravel()] == list(CLASSES)
    assert found["labels"].dtype == np.int8
    assert (found["labels"] == LABELS).all()
    splits = found["splits"][0, 0]
    assert splits.dtype.names == ("train_1", "train_1_2", "s_1st")
    assert splits["train_1"].ravel().tolist() == [1, 3, 6]
    assert splits["train_1_2"].ravel().tolist() == [2]


ODD = ("Käse/ä.jpg", "日本語", "ﬀ\u0301", "no 😀", "", "plain")


def test_mat_holds_every_text_in_utf_16_with_the_count_of_its_units(tmp_path):
    """MATLAB and Octave take the count at its word: of UTF-8 they would read the first bytes only."""
    path = write(tmp_path / "x.mat", "mat", make_table(paths=ODD))
    shown = [text.replace("😀", r"\U0001f600") for text in ODD]
    assert ["".join(cell) for cell in loadmat(path)["paths"].ravel()] == shown
    raw = path.read_bytes()
    for text in filter(None, shown):
        units = text.encode("utf-16-le")
        dims = np.array([5, 8, 1, len(text), 1, 0], "<i4").tobytes()  # miINT32, its bytes, 1 x n; no name
        data = np.array([17, len(units)], "<i4").tobytes()  # miUTF16, its bytes
        assert dims + data + units in raw


@pytest.mark.skipif(shutil.which("octave") is None, reason="needs Octave")
def test_octave_reads_a_mat_file(tmp_path):
    path = write(tmp_path / "x.mat", "mat", make_table(paths=ODD))
    program = (
        f"x = load('{path}'); for k = 1:numel(x.paths), printf('%s|', x.paths{{k}}); end; printf('%s ', class("
        "x.descriptors)); printf('%d ', size(x.descriptors), x.labels(:, 1), x.splits.train_1, x.splits.train_1_2)"
    )
    found = subprocess.run(["octave-cli", "--norc", "--eval", program], capture_output=True, check=True)
    texts, _, rest = found.stdout.decode().rpartition("|")
    assert texts.split("|") == [text.replace("😀", r"\U0001f600") for text in ODD]
    assert rest.split() == ["single", str(N), str(D), *map(str, LABELS[:, 0]), "1", "3", "6", "2"]


def test_long_split_names_fit_into_matlab(tmp_path):
    splits = {letter * 100: np.array([0]) for letter in ("a", "b")} | {"a" * 90: np.array([1])}
    found = loadmat(write(tmp_path / "x.mat", "mat", make_table(splits=splits)))
    names = found["splits"].dtype.names
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 63


@pytest.mark.parametrize("kind", THERE)
def test_table_without_classes_or_splits(tmp_path, kind):
    table = make_table(labels=np.zeros((N, 0), np.int8), classes=(), splits={})
    assert write(tmp_path / "x", kind, table).stat().st_size > 0


@pytest.mark.parametrize("kind", THERE)
def test_name_that_is_no_utf8_is_shown_or_kept(tmp_path, kind):
    path = write(tmp_path / "x", kind, make_table(ids=("raw-\udcff", *IDS[1:])))
    if kind == "npz":
        with np.load(path) as found:
            assert found["ids"][0] == "raw-\udcff"
    elif kind == "parquet":
        assert pq.read_table(path)["id"][0].as_py() == r"raw-\xff"
    elif kind == "h5ad":
        assert pytest.importorskip("anndata").read_h5ad(path).obs_names[0] == r"raw-\xff"
    elif kind == "csv":
        assert rb'"raw-\xff"' in path.read_bytes()
    elif kind == "mat":
        assert loadmat(path)["ids"][0, 0].item() == r"raw-\xff"


def test_many_rows_are_written_in_slices(tmp_path, monkeypatch):
    monkeypatch.setattr("vggfeat.store.export._CHUNK_BYTES", 2 * 4 * D)
    found = pq.read_table(write(tmp_path / "x.parquet", "parquet", make_table()))
    assert same_bits(found["descriptor"].to_pylist())
    with open(write(tmp_path / "x.csv", "csv", make_table()), newline="", encoding="utf-8") as file:
        assert tuple(row[0] for row in list(csv.reader(file))[1:]) == IDS


@pytest.mark.parametrize("kind", THERE)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_disk_error_leaves_nothing_and_is_told(tmp_path, kind, number):
    class Failing(Files):
        left = 0

        def write(self, fd, data, offset):
            self.left -= 1
            if self.left < 0:
                raise OSError(number, "no")
            return super().write(fd, data, offset)

    files = Failing()
    write(tmp_path / "whole", kind, make_table())
    messages = set()
    for left in range(1000):
        files.left = left
        try:
            path = write(tmp_path / "x", kind, make_table(), files=files)
            break
        except StoreError as error:
            messages.add(str(error).partition(":")[2])
        assert os.listdir(tmp_path) == ["whole"]
    assert 0 < left < 1000
    assert len(messages) == 1
    assert "writing the export failed" in messages.pop()
    assert path.stat().st_size == (tmp_path / "whole").stat().st_size


def test_existing_file_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"mine")
    with pytest.raises(StoreError, match="found one there"):
        write(tmp_path / "x.npz", "npz", make_table())
    assert (tmp_path / "x.npz").read_bytes() == b"mine"
    write(tmp_path / "x.npz", "npz", make_table(), overwrite=True)
    assert (tmp_path / "x.npz").read_bytes()[:2] == b"PK"
    with pytest.raises(StoreError, match="found a folder"):
        write(tmp_path, "npz", make_table(), overwrite=True)
    with pytest.raises(StoreError, match="No such file"):
        write(tmp_path / "none" / "x.npz", "npz", make_table())


def test_unknown_kind_names_the_known(tmp_path):
    with pytest.raises(ConfigError, match=f"expected one of {', '.join(KINDS)}, found 'xls'"):
        write(tmp_path / "x", "xls", make_table())


def test_mat_that_matlab_could_not_read_is_refused(tmp_path):
    huge = np.broadcast_to(np.float32(1), (N, 1 << 27))
    with pytest.raises(StoreError, match=r"found 3\.0 GiB; use npz"):
        write(tmp_path / "x.mat", "mat", make_table(descriptors=huge))
    assert os.listdir(tmp_path) == []


GROUPS = ("p1", "p1", "p2", "p2", "p3", "=1+1")
FURTHER = {"Age (years)": ("1", "", "3", "é", "-5", "6"), "site": GROUPS}


@pytest.mark.parametrize("kind", THERE)
def test_groups_and_further_columns_come_back(tmp_path, kind):
    path = write(tmp_path / "x", kind, make_table(groups=GROUPS, columns=FURTHER))
    if kind == "npz":
        with np.load(path) as found:
            assert tuple(found["groups"]) == GROUPS
            assert tuple(found["column_Age (years)"]) == FURTHER["Age (years)"]
    elif kind == "mat":
        found = loadmat(path)
        assert [cell.item() for cell in found["groups"].ravel()] == list(GROUPS)
        assert ["".join(cell) for cell in found["column_Age__years_"].ravel()] == list(FURTHER["Age (years)"])
    elif kind == "h5ad":
        assert pytest.importorskip("anndata").read_h5ad(path).obs["group"].tolist() == list(GROUPS)
    elif kind in ("csv", "parquet"):
        text = io.StringIO(path.read_bytes().decode() if kind == "csv" else "", newline="")
        rows = list(csv.DictReader(text)) if kind == "csv" else pq.read_table(path).to_pylist()
        assert list(rows[0])[7:10] == ["group", "column_Age (years)", "column_site"]
        assert [row["group"] for row in rows] == list(GROUPS)
        assert [row["column_Age (years)"] for row in rows] == list(FURTHER["Age (years)"])
    if kind == "csv":
        write(path, kind, make_table(groups=GROUPS, columns=FURTHER), overwrite=True, spreadsheet_safe=True)
        *_, last = csv.DictReader(path.read_text(encoding="utf-8").split("\n")[:-1])
        assert (last["group"], last["column_site"], last["id"]) == ("'=1+1", "'=1+1", "'=1+1")


@pytest.mark.parametrize("change", [
    {"paths": ("a",)}, {"descriptors": DESCRIPTORS[1:]}, {"labels": LABELS[:, :1]}, {"descriptors": LABELS[0]},
    {"groups": GROUPS[1:]}, {"columns": {"a": ()}},
])  # fmt: skip
def test_columns_of_unequal_length_are_refused(change):
    with pytest.raises(StoreError, match=r"expected 6 (paths|values)"):
        make_table(**change)
