"""The package inside other programs: names, errors, types, what is shown of objects, and silence."""

import logging
import pickle
import re
import subprocess
import sys
from contextlib import contextmanager
from functools import _lru_cache_wrapper, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vggfeat
from feature_files import CLASSES, FEATURES, IDS, LABELS, data_set, write_file
from vggfeat import errors
from vggfeat.cli import EXIT_CODES
from vggfeat.errors import ConfigError, StoreError
from vggfeat.protocols import ProtocolSettings
from vggfeat.samples import Task
from vggfeat.svm import LinearOneVsRest, SvmSettings
from vggfeat.weights import load_backbone

pandas = pytest.importorskip("pandas")

ROOT = Path(__file__).parents[1]
ESCAPED = re.compile(r"[^ -~]")


@pytest.fixture
def path(tmp_path):
    return write_file(tmp_path / "x.h5")


def single_label(count=12):
    labels = np.where(np.arange(count)[:, None] % 2 == [0, 1], 1, -1).astype(np.int8)
    splits = {"train": np.arange(0, count // 2), "test": np.arange(count // 2, count)}
    return data_set([f"s{n}" for n in range(count)], labels, splits=splits, task=Task.SINGLE_LABEL)


@pytest.fixture
def result(tmp_path):
    data = single_label()
    features = np.random.default_rng(0).random((len(data), 1, 1, 3), dtype=np.float32) + (
        data.labels[:, :1, None] == 1
    )[:, :, None].astype(np.float32) * [1, 0, 0]
    write_file(tmp_path / "s.h5", features, data)
    settings = ProtocolSettings(grid=(1.0, 4.0), svm=SvmSettings(jobs=1))
    return vggfeat.run_protocol(vggfeat.read_descriptors(tmp_path / "s.h5"), settings)


def test_every_error_is_documented_with_its_exit_code():
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, vggfeat.VggfeatError)]
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    told = {name: int(code) for name, code in re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)}
    assert told == {cls.__name__: cls.exit_code for cls in classes}
    listed = {int(code) for code in re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)}
    assert set(told.values()) <= listed
    assert vggfeat.errors is errors
    assert issubclass(vggfeat.errors.ImageError, vggfeat.VggfeatError)
    assert all(pickle.loads(pickle.dumps(made)).args for made in (ConfigError("x"), errors.ImageError("empty", "x")))


@pytest.mark.long  # mypy alone takes 20 s; `.ci/run` checks the same program with the package.
def test_a_program_under_strict_types_uses_the_public_face():
    words = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "tests/support/typed_program.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Success: no issues found in 1 source file\n")


def test_nothing_is_printed_in_a_program(path, capfd):
    image = np.zeros((40, 50, 3), np.uint8)
    with vggfeat.Extractor("random:A:0:0.03125", 224, device="cpu", errors="nan") as extractor:
        extractor.transform([image, b"broken", image])
        assert len(extractor.failures_) == 1
        extractor.maps(image)
    vggfeat.load_features(path)
    assert capfd.readouterr() == ("", "")  # a warning is an error here
    # Without it, Python itself prints what a library logs as a warning.
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("vggfeat").handlers)


def test_objects_are_shown_in_a_line(path, result):
    with vggfeat.FeatureFile(path) as file:
        assert repr(file) == f"FeatureFile({str(path)!r}, 'manifest': 4 rows, Q = 256, 384, image, 2 channels)"
        assert "ids=('a', 'b', 'c', 'd')" in repr(file.dataset)
        assert "labels=<(4, 2) int8>" in repr(file.dataset)
        assert "splits=<test, train, val>" in repr(file.dataset)
    assert repr(file) == f"FeatureFile({str(path)!r}, closed)"
    loaded = vggfeat.load_features(path)
    assert repr(loaded) == (
        "LoadedFeatures(descriptors=<(4, 2) float32>, labels=<(4, 2) int8>, ids=['a', 'b', 'c', 'd'], "
        "classes=('cat', 'dog'))"
    )
    table = vggfeat.read_descriptors(path)
    dataset = vggfeat.FeatureDataset(path)
    backbone = load_backbone("random:A:0:0.03125")
    shown = [loaded, table, dataset, backbone, result, result.runs[0], result.runs[0].choice, result.runs[0].model]
    for one in shown:
        assert len(repr(one)) < 500, repr(one)
        assert not ESCAPED.search(repr(one))


def test_names_of_strangers_are_escaped_where_objects_are_shown():
    hostile = data_set(("a\x1b[2J", "b", "c", "d"), splits={"tr\nain": np.array([0])}, name="x\x1b")
    assert not ESCAPED.search(repr(hostile))


def test_a_result_is_a_line_a_table_in_a_notebook_and_a_table_of_pandas(result):
    share = f"{100 * result.headline:.1f}"
    assert repr(result).startswith(f"Result({result.protocol} on manifest: mean class recall {share} %, chance 50.0 %")
    html = result._repr_html_()
    assert html.count("<tr>") == 1 + len(CLASSES)
    for row in result.class_rows():
        assert f"<td>{row.name}</td><td>{100 * row.values['recall']:.1f}</td>" in html
    frame = result.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["class"].tolist() == list(CLASSES)
    np.testing.assert_array_equal(frame["recall"], result.runs[0].values["recall"])
    np.testing.assert_array_equal(frame["C"], result.runs[0].choice.C)
    assert frame["test_positives"].tolist() == [3, 3]


def test_what_pandas_is_needed_for_says_so(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        result.to_frame()


def test_loaders_of_pytorch_read_a_feature_file(path):
    dataset = vggfeat.FeatureDataset(path, join="max")
    assert (len(dataset), dataset.classes, dataset.ids) == (4, CLASSES, list(IDS))
    expected = vggfeat.load_features(path, join="max")
    # A fork of a process that has run Ray may die in Ray's own code.
    start = "spawn" if "ray" in sys.modules else "fork"
    for workers in (0, 1):
        dataset[0]  # open before the fork
        loader = DataLoader(
            dataset, batch_size=3, num_workers=workers, multiprocessing_context=start if workers else None
        )
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [3, 1]
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in batches]), expected.descriptors)
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), LABELS)
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again[2][0], expected.descriptors[2])
    for one in (dataset, again):
        one.close()


def test_labels_of_a_single_label_set_are_numbers_of_classes(tmp_path):
    data = single_label(4)
    write_file(tmp_path / "s.h5", FEATURES, data, failed=("s1",))
    with pytest.raises(StoreError, match=r"1 whose image failed at extraction, the first is 's1'; pass failed='drop'"):
        vggfeat.FeatureDataset(tmp_path / "s.h5")
    dataset = vggfeat.FeatureDataset(tmp_path / "s.h5", failed="drop")
    assert [dataset[index][1] for index in range(3)] == [0, 0, 1]
    assert vggfeat.FeatureDataset(tmp_path / "s.h5", "test").ids == ["s2", "s3"]
    with pytest.raises(ConfigError, match="split: expected one of"):
        vggfeat.FeatureDataset(tmp_path / "s.h5", "dev")
    dataset.close()


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def forget():
    """Empty every cache of the package."""
    for module in [module for name, module in sys.modules.items() if name.startswith("vggfeat.")]:
        for cached in vars(module).values():
            if isinstance(cached, _lru_cache_wrapper):
                cached.cache_clear()


@pytest.mark.parametrize("state", [
    partial(default_dtype, torch.float64), partial(default_dtype, torch.bfloat16), partial(torch.device, "meta"),
    torch.inference_mode, torch.no_grad, partial(torch.autocast, "cpu", torch.bfloat16),
], ids=["float64", "bfloat16", "device", "inference", "no_grad", "autocast"])  # fmt: skip
def test_no_state_of_pytorch_in_the_program_changes_a_number(state, tmp_path):
    rng = np.random.default_rng(0)
    images, net = [rng.integers(0, 256, (230, side, 3), dtype=np.uint8) for side in (240, 250)], "random:A:0:0.03125"
    rows, labels = rng.standard_normal((30, 4)), rng.integers(0, 3, 30)

    def numbers():
        forget()  # What is kept was made in another state.
        extractor = vggfeat.Extractor(net, (224, 236), device="cpu")
        maps = extractor.maps(images[0], ["pool1", "fc7"], scale=225)
        model = LinearOneVsRest(device="cpu").fit(rows, labels)
        return [extractor.transform(images), *maps.values(), model.coef_]

    expected, loaded = numbers(), load_backbone(net)
    vggfeat.save_weights(tmp_path / "x.safetensors", loaded.model, mean=loaded.mean)
    with state():
        found, again, own = numbers(), load_backbone(net), load_backbone(tmp_path / "x.safetensors")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.sha256 == loaded.sha256
    for backbone in (again, own, loaded):
        parameters = list(backbone.model.parameters())
        assert {(one.dtype, one.device.type, one.requires_grad) for one in parameters} == {
            (torch.float32, "cpu", False)
        }
        image = torch.rand(1, 3, 32, 32, requires_grad=True)
        backbone.model(image, ["pool1"])["pool1"].sum().backward()
        assert image.grad is not None
