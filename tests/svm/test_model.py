"""Models in files: what was written is what is read, and a file with any other byte is refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load, save

from vggfeat.errors import FitError, StoreError
from vggfeat.svm import LinearModel, load_model, save_model
from vggfeat.svm.model import model_bytes


def some_model(classes=3, length=4, seed=0, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "coef": rng.standard_normal((classes, length)),
        "intercept": rng.standard_normal(classes),
        "C": 2.0 ** np.arange(classes),
        "converged": np.arange(classes) != 1,
        "gap": 10.0 ** -np.arange(classes),
    }
    return LinearModel(**(fields | changes))


ABOUT = {"classes": ["cat", "dining table", "né\udcff\n"], "features": {"files": [{"weights_sha256": "00" * 32}]}}
FIELDS = ("coef", "intercept", "C", "converged", "gap")


def assert_same(first, second):
    for name in FIELDS:
        one, two = getattr(first, name), getattr(second, name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    save_model(path, some_model(), ABOUT)
    return path


def test_a_model_comes_back_as_it_was(written):
    model, about = load_model(written)
    assert_same(model, some_model())
    assert about == ABOUT


finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    coef=arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=finite),
    about=st.dictionaries(st.text(), json_values, max_size=4),
    names=st.lists(st.text(), min_size=4, max_size=4),
)
def test_any_model_and_anything_said_of_it_comes_back(tmp_path_factory, coef, about, names):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    model = some_model(len(coef), coef.shape[1], coef=coef)
    about = about | {"classes": names[: len(coef)]}
    save_model(path, model, about)
    found, found_about = load_model(path)
    assert_same(found, model)
    assert found_about == about


def test_scores_of_the_file_are_those_of_the_model(written):
    x = np.random.default_rng(1).random((6, 4), dtype=np.float32)
    np.testing.assert_array_equal(load_model(written)[0].scores(x), some_model().scores(x))


def test_any_damaged_byte_is_refused(written, tmp_path):
    whole = written.read_bytes()
    assert len(whole) < 2000
    path = tmp_path / "damaged.safetensors"
    rng = np.random.default_rng(0)
    for place in range(len(whole)):
        for other in {whole[place] ^ 1, whole[place] ^ 32, int(rng.integers(256)), 32} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            with pytest.raises(FitError, match=r"damaged\.safetensors: expected") as raised:
                load_model(path)
            assert "\n" not in str(raised.value)


def test_a_file_that_is_cut_or_grown_is_refused(written, tmp_path):
    whole = written.read_bytes()
    path = tmp_path / "cut.safetensors"
    for content in [*(whole[:size] for size in range(len(whole))), whole + b"\0", whole + whole]:
        path.write_bytes(content)
        with pytest.raises(FitError, match=r"cut\.safetensors: expected"):
            load_model(path)


def rewritten(written, change=lambda arrays, head: None):
    """The file as another program would write it, with a digest that fits."""
    import hashlib

    content = written.read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["vggfeat-svm"])
    tensors = dict(load(content))
    change(tensors, head)
    head["sha256"] = "0" * 64
    blank = save(tensors, metadata={"vggfeat-svm": json.dumps(head, separators=(",", ":"))})
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def test_the_digest_can_be_made_by_others(written, tmp_path):
    (tmp_path / "m").write_bytes(rewritten(written))
    assert_same(load_model(tmp_path / "m")[0], some_model())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, h: h.update(format=2), "expected a model of format 1, found 2; update vggfeat"),
        (lambda t, h: h.pop("about"), "expected a model that `vggfeat svm` wrote, found one it can't read"),
        (lambda t, h: h["about"].pop("classes"), "expected the names of 3 classes, found None"),
        (lambda t, h: h["about"]["classes"].pop(), "expected the names of 3 classes, found .'cat', 'dining table'."),
        (lambda t, h: h["about"].update(classes=[1, 2, 3]), r"expected the names of 3 classes, found \[1, 2, 3\]"),
        (lambda t, h: h.update(about=[]), "expected the names of 3 classes"),
        (lambda t, h: t.pop("gap"), "expected the tensors coef, intercept, C, gap, converged, found"),
        (lambda t, h: t.update(more=t["C"]), "expected the tensors"),
        (lambda t, h: t.update(coef=t["C"]), "expected the tensors"),
        (lambda t, h: t.update(C=t["C"][:2]), r"C: expected finite float64 of shape \(3,\), found float64 \(2,\)"),
        (lambda t, h: t.update(gap=t["gap"].astype(np.float32)), "gap: expected finite float64 .* found float32"),
        (lambda t, h: t.update(converged=t["C"]), "converged: expected finite bool"),
        (lambda t, h: t.update(intercept=t["C"] * np.nan), "intercept: expected finite float64"),
    ],
)
def test_what_is_no_model_is_refused_even_with_a_digest_that_fits(written, tmp_path, change, words):
    path = tmp_path / "other.safetensors"
    path.write_bytes(rewritten(written, change))
    with pytest.raises(FitError, match=rf"other\.safetensors: {words}"):
        load_model(path)


def test_files_of_other_kinds_are_refused(tmp_path):
    weights = save({"conv1_1.weight": np.zeros((3, 3), np.float32)}, metadata={"vggfeat": "{}"})
    contents = {
        "weights": weights,
        "pickle": pickle.dumps({"coef": 1}),
        "npz": b"PK\x03\x04" + bytes(100),
        "empty": b"",
        "text": b"{}" * 50,
        "long head": (1 << 62).to_bytes(8, "little") + b'{"a":1}',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FitError, match=f"{name}: expected a model that `vggfeat svm` wrote, found another file"):
            load_model(tmp_path / name)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "trap").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FitError):
        load_model(tmp_path / "trap")
    assert not (tmp_path / "sprung").exists()


def test_missing_files_and_folders_are_named(tmp_path, written):
    with pytest.raises(FitError, match=r"none\.safetensors: expected a model file, found none"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(FitError, match=r"expected a model file, found a folder, which holds model\.safetensors"):
        load_model(written.parent)
    with pytest.raises(FitError, match="found a folder, which holds no model"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({}, "expected the names of 3 classes, found None"),
        ({"classes": ["a", "b"]}, "expected the names of 3 classes"),
        ({"classes": ["a", "b", "c"], "x": float("nan")}, "expected texts, finite numbers"),
        ({"classes": ["a", "b", "c"], "x": Path("x")}, "expected texts, finite numbers"),
    ],
)
def test_what_cant_be_written_is_refused_and_leaves_nothing(tmp_path, about, words):
    with pytest.raises(FitError, match=words):
        save_model(tmp_path / "model", some_model(), about)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cant_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    for place, what in (
        ("missing/model", "writing the model failed: .*; choose another place"),
        ("folder", "expected a file to replace"),
    ):
        with pytest.raises(StoreError, match=f"{place}: {what}"):
            save_model(tmp_path / place, some_model(), ABOUT)
    assert os.listdir(tmp_path) == ["folder"]


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "model"
    for seed in (1, 2):
        save_model(path, some_model(seed=seed), ABOUT)
        assert_same(load_model(path)[0], some_model(seed=seed))
    assert os.listdir(tmp_path) == ["model"]


def test_equal_models_give_equal_bytes_in_every_process(written):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_model import ABOUT, model_bytes, some_model
sys.stdout.buffer.write(model_bytes(some_model(), ABOUT))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == written.read_bytes() == model_bytes(some_model(), ABOUT)
