"""Descriptors of another program: matched by name, refused where they can't be trusted, and treated like our own."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_files import data_set, write_file
from vggfeat.cli import run
from vggfeat.errors import StoreError
from vggfeat.given import MISSING, match_names, notes, read_given
from vggfeat.results.page import make_page
from vggfeat.samples import DataSet, Task
from vggfeat.store.export import write
from vggfeat.table import read_descriptors, rows_of, to_table

PATHS = ("cat/1.jpg", "cat/2.png", "dog/1.jpg", "dog/3.tar.gz")
VALUES = np.arange(1, 13, dtype=np.float32).reshape(4, 3)


def images(root="", ids=PATHS, paths=PATHS):
    labels = np.where(np.arange(len(ids))[:, None] % 2 == np.arange(2), 1, -1).astype(np.int8)
    return DataSet(
        name="folder", task=Task.SINGLE_LABEL, classes=("cat", "dog"), ids=ids, paths=paths, labels=labels, root=root
    )


def npz(path, names=PATHS, values=VALUES):
    np.savez(path, ids=np.array(names, np.str_), descriptors=values)
    return path


def npy(path, names=PATHS, values=VALUES):
    np.save(path, values)
    path.with_suffix(".csv").write_text("n,path\n" + "".join(f"{n},{name}\n" for n, name in enumerate(names)))
    return path


def parquet(path, names=PATHS, values=VALUES):
    pq.write_table(pa.table({"id": list(names), "descriptor": [row.tolist() for row in values]}), path)
    return path


WRITERS = pytest.mark.parametrize("writer", [npz, npy, parquet], ids=lambda one: one.__name__)


@WRITERS
def test_rows_find_their_images_whatever_the_order(tmp_path, writer):
    order = [2, 0, 3, 1]
    path = writer(tmp_path / f"x.{writer.__name__}", [PATHS[row] for row in order], VALUES[order])
    table = read_given(path, images(), normalisation="none")
    np.testing.assert_array_equal(table.descriptors, VALUES)
    assert table.ok.all()
    assert notes(table) == []
    assert table.settings["given"]["net"] == "given"
    unit = read_given(path, images())
    np.testing.assert_allclose(np.linalg.norm(unit.descriptors, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("form", [
    lambda path: path,
    lambda path: path.rpartition(".")[0],
    lambda path: f"./{path}",
    lambda path: path.replace("/", "\\"),
    lambda path: f"/data/photos/{path}",
    lambda path: f"{path.rpartition('.')[0]}.webp",
], ids=["path", "stem", "dot", "windows", "absolute", "other ending"])  # fmt: skip
def test_an_image_is_known_by_its_path_in_every_usual_form(form):
    found = match_names([form(path) for path in PATHS], images(root="/data/photos"), "x")
    assert found.row_of.tolist() == [0, 1, 2, 3]
    assert found.strangers == []


def test_an_image_is_known_by_its_id_first():
    data = images(ids=("000001", "000002", "cat/1.jpg", "x"))
    assert match_names(["000002", "cat/1.jpg"], data, "x").row_of.tolist() == [-1, 0, 1, -1]


def test_several_samples_of_one_image_share_its_descriptor():
    data = images(ids=("a/1", "a/2", "b/1", "c/1"), paths=("a.jpg", "a.jpg", "b.jpg", "c.jpg"))
    assert match_names(["a", "c.jpg"], data, "x").row_of.tolist() == [0, 0, -1, 1]
    assert match_names(["a/2", "b"], data, "x").row_of.tolist() == [-1, 0, 1, -1]


def test_of_two_images_whose_names_differ_by_ending_or_case_each_gets_its_own():
    """The file knows more images than the data set: cat/1.png and CAT/1.JPG are none of it."""
    for names in (["cat/1.png", "cat/1.jpg", "CAT/1.JPG"], ["cat/1.jpg", "CAT/1.JPG", "cat/1.png"]):
        found = match_names(names, images(), "x")
        assert found.row_of.tolist() == [names.index("cat/1.jpg"), -1, -1, -1]
        assert sorted(found.strangers) == ["CAT/1.JPG", "cat/1.png"]
    with pytest.raises(StoreError, match=r"found two for '000001', named '000001' and '000001.jpg'"):
        match_names(["000001", "000001.jpg"], images(ids=("000001",), paths=("voc/000001.jpg",)), "x")


def test_what_does_not_match_is_named_with_counts(tmp_path):
    path = npz(tmp_path / "x.npz", ["cat/1", "cat/9", "dog/7", "dog/8", "dog/9"], np.ones((5, 3), np.float32))
    table = read_given(path, images())
    assert table.ok.tolist() == [True, False, False, False]
    assert table.reasons[1] == f"{MISSING}: none in x.npz"
    assert notes(table) == [
        "3 of 4 samples of folder have no descriptor in x.npz: 'cat/2.png', 'dog/1.jpg', 'dog/3.tar.gz'",
        "in x.npz 4 names are no images of folder: 'cat/9', 'dog/7', 'dog/8', ...",
    ]


@pytest.mark.parametrize(("names", "said"), [
    (["cat/1.jpg", "cat/1"], r"expected one descriptor for an image, found two for 'cat/1.jpg', named 'cat/1.jpg'"),
    (["cat/1.jpg", "cat/1.jpg"], r"expected one descriptor for an image, found two"),
    (["a", "b"], r"expected names of images of folder such as 'cat/1.jpg' .* found 'a'"),
])  # fmt: skip
def test_names_that_mean_an_image_twice_or_none_are_refused(names, said):
    with pytest.raises(StoreError, match=f"x: {said}"):
        match_names(names, images(), "x")


def test_a_name_without_ending_that_two_images_have_is_refused():
    data = images(ids=("1.jpg", "1.png", "2.jpg", "3.jpg"), paths=("1.jpg", "1.png", "2.jpg", "3.jpg"))
    with pytest.raises(StoreError, match=r"found '1', which may be '1.jpg' or '1.png'; write its ending"):
        match_names(["1"], data, "x")
    assert match_names(["1.png"], data, "x").row_of.tolist() == [-1, 0, -1, -1]


@WRITERS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, writer, bad):
    values = VALUES.copy()
    values[2, 1] = bad
    path = writer(tmp_path / f"x.{writer.__name__}", values=values)
    with pytest.raises(StoreError, match=r"expected finite numbers, found others in 1 descriptor, .*'dog/1.jpg'"):
        read_given(path, images())


def test_pickled_objects_are_never_read(tmp_path):
    class Bad:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    np.save(tmp_path / "x.npy", np.array([[Bad()]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", ids=np.array([Bad()], dtype=object), descriptors=VALUES[:1])
    for name in ("x.npy", "x.npz"):
        with pytest.raises(StoreError, match="expected descriptors that can be read"):
            read_given(tmp_path / name, images())


@pytest.mark.parametrize(("name", "make", "said"), [
    ("x.txt", lambda path: path.write_text("1"), "expected a file named .parquet, .npz or .npy"),
    ("x.npz", lambda path: None, "expected a file of descriptors, found none"),
    ("x.npz", lambda path: path.write_bytes(b"PK\3\4"), "can be read"),
    ("x.npz", lambda path: np.savez(path, ids=np.array(["a"])), "found no descriptors"),
    ("x.npz", lambda path: npz(path, PATHS[:3]), "expected a name for each of 4 descriptors, found 3"),
    ("x.npy", lambda path: np.save(path, VALUES), "expected the names of the images in .*x.csv"),
    ("x.npy", lambda path: np.save(path, VALUES[0]), "found float32 of shape"),
    ("x.parquet", lambda path: path.write_bytes(b"PAR1PAR1"), "can be read"),
    ("x.parquet", lambda path: pq.write_table(pa.table({"id": ["a"]}), path), "found id"),
    ("x.parquet", lambda path: pq.write_table(pa.table({"id": [1], "descriptor": [[1.0]]}), path), "found int64"),
    ("x.parquet", lambda path: pq.write_table(pa.table({"id": ["a", "b"], "descriptor": [[1.0], [1.0, 2.0]]}), path),
     "found 1 and 2"),
    ("x.parquet", lambda path: pq.write_table(pa.table({"id": ["a"], "descriptor": [[None]]}), path), "numbers"),
])  # fmt: skip
def test_what_can_not_be_read_is_refused_in_one_line(tmp_path, name, make, said):
    make(tmp_path / name)
    with pytest.raises(StoreError, match=re.compile(f"{name}: .*{said}")):
        read_given(tmp_path / name, images())


def test_half_precision_and_doubles_become_float32(tmp_path):
    for kind in ("<f2", "<f8", ">f4"):
        table = read_given(npz(tmp_path / "x.npz", values=VALUES.astype(kind)), images(), normalisation="none")
        assert table.descriptors.dtype == np.float32
        np.testing.assert_array_equal(table.descriptors, VALUES)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_our_own_exports_are_read_back(tmp_path, kind):
    write_file(tmp_path / "x.h5")
    table = read_descriptors(tmp_path / "x.h5")
    write(tmp_path / f"x.{kind}", kind, to_table(table, rows_of(table.dataset, None)))
    again = read_given(tmp_path / f"x.{kind}", data_set())
    np.testing.assert_allclose(again.descriptors, table.descriptors, atol=1e-7)


@pytest.fixture
def photos(tmp_path):
    """A folder of images, which are not read, and descriptors of them that tell the classes."""
    names = [f"{name}/{number}.jpg" for name in ("cat", "dog") for number in range(10)]
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    values = np.random.default_rng(0).random((20, 8)).astype(np.float32) + np.repeat(np.eye(2, 8), 10, axis=0) * 3
    return parquet(tmp_path / "clip.parquet", [name[:-4] for name in names], values.astype(np.float32))


def test_the_protocol_runs_on_them_as_on_a_feature_file(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["svm", "--descriptors", "clip.parquet", "--dataset", "folder", "--root", "photos", "--quiet"]
    assert run([*words, "--json", "--folds", "2", "--grid", "1"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["protocol"] == "k-fold"
    assert [one["name"] for one in results["classes"]] == ["cat", "dog"]
    assert results["settings"]["features"]["given"]["file"] == "clip.parquet"
    assert results["settings"]["features"]["join"] == "given"
    assert (tmp_path / "clip.svm" / "results.json").is_file()
    assert "given" in make_page([tmp_path / "clip.svm"]).content.decode()
    model = "clip.svm/model-fold-1.safetensors"
    write_file(tmp_path / "x.h5")
    capsys.readouterr()
    assert run(["svm", "x.h5", "--apply", model]) == 7
    assert "expected a model that says how its features were made" in capsys.readouterr().err


def test_they_can_be_audited_probed_and_mapped(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--descriptors", "clip.parquet", "--dataset", "folder", "--root", "photos"]
    assert run(["audit", *words, "--quiet", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["rows"], content["copies_known"]) == (20, False)
    assert content["training"]["labelled"] == 20
    assert run(["map", *words[:4], "--method", "pca", "--json"]) == 4, "no data set in data/folder"
    assert run(["probe", *words, "--probes", "knn", "--shots", "1", "--repeats", "2", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values"][0]["mean"] == 1.0


@pytest.mark.parametrize(("words", "said"), [
    (["--descriptors", "clip.parquet"], "--descriptors: expected --dataset as well"),
    (["--dataset", "folder", "x.h5"], "--dataset: expected together with --descriptors"),
    (["--root", "photos", "x.h5"], "--root: expected together with --descriptors"),
    (["x.h5", "--descriptors", "clip.parquet", "--dataset", "folder"], "expected no feature files with it"),
    (["--descriptors", "clip.parquet", "--dataset", "folder", "--root", "photos", "--join", "mean"], "--join: not"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(photos, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert run(["svm", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "clip.svm").exists()
