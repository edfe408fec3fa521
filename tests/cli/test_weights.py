"""What kind of file it is, what is known of it, and the commands that say so."""

import dataclasses
import hashlib
import http.server
import importlib
import importlib.metadata
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from other_nets import state_dict_of
from vggfeat.cli import run
from vggfeat.errors import WeightsError
from vggfeat.nets.families import initialise
from vggfeat.nets.vgg import VGG
from vggfeat.weights import imagenet_classes, load_backbone, save_weights, sources
from vggfeat.weights.load import examine, load_file, verify
from vggfeat.weights.sniff import FORMATS, recognise
from vggfeat.weights.sources import PUBLISHED, identify

PAGE = Path(__file__).parents[2] / "data" / "weights.md"


def net(config="A", classes=7, pool="floor"):
    model = VGG(config, classes, width=1 / 64, pool=pool)
    initialise(model, torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, net(), mean=[1, 2, 3], classes=list("abcdefg"), training={"steps": 3})
    return path


@pytest.fixture
def pth(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(state_dict_of(net()), path)
    return path


# What a file is


def write_torch(path):
    torch.save({"a": torch.zeros(2)}, path)


def write_old_torch(path):
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def write_keras(path):
    with h5py.File(path, "w") as file:
        file["block1_conv1/kernel:0"] = np.zeros(3)


def write_keras_with_user_block(path):
    with h5py.File(path, "w", userblock_size=1024) as file:
        file["block1_conv1/kernel:0"] = np.zeros(3)


def write_mat(path):
    with path.open("wb") as file:
        scipy.io.savemat(file, {"layers": np.zeros(3)})


def write_new_mat(path):
    with h5py.File(path, "w", userblock_size=512) as file:
        file["layers"] = np.zeros(3)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")


def write_timm(path):
    save_file({"features.0.weight": torch.zeros(2)}, path)


def write_long_timm(path):
    save_file({f"features.{i}.weight": torch.zeros(2) for i in range(100)}, path, metadata={"format": "pt"})


def length_delimited(tag, content):
    assert len(content) < 0x80
    return tag + bytes([len(content)]) + content


def write_caffe(path):
    path.write_bytes(length_delimited(b"\x0a", b"VGG_ILSVRC_16_layers") + length_delimited(b"\x12", b"\x22\x01a"))


def write_new_caffe(path):
    path.write_bytes(length_delimited(b"\x0a", b"VGG") + length_delimited(b"\xa2\x06", b"\x0a\x01a"))


def write_nameless_caffe(path):
    path.write_bytes(length_delimited(b"\xa2\x06", b"\x0a\x01a"))


def write_caffe_with_inputs(path):
    path.write_bytes(length_delimited(b"\x0a", b"VGG") + length_delimited(b"\x1a", b"data") + b"\x20\x0a\x20\x03")


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (write_torch, "pytorch"),
        (write_old_torch, "pytorch"),
        (write_keras, "keras"),
        (write_keras_with_user_block, "keras"),
        (write_mat, "matconvnet"),
        (write_new_mat, "matconvnet"),
        (write_timm, "timm"),
        (write_long_timm, "timm"),
        (write_caffe, "caffe"),
        (write_new_caffe, "caffe"),
        (write_nameless_caffe, "caffe"),
        (write_caffe_with_inputs, "caffe"),
    ],
)
def test_a_format_is_known_by_its_content_whatever_the_file_is_called(tmp_path, write, kind):
    for name in ("x", "x.safetensors", "x.pth", "x.prototxt"):
        write(tmp_path / name)
        assert recognise(tmp_path / name) == kind
    assert kind in FORMATS


def test_our_own_format_is_known_by_its_metadata(own):
    assert recognise(own) == "vggfeat"
    assert own.rename(own.with_name("a.caffemodel")).exists()
    assert load_backbone(own.with_name("a.caffemodel")).model.config == "A"


def table(path):
    path.write_bytes(b"\x00\x01\x02some index" + struct.pack("<Q", 0xDB4775248B80FB57))


def zipped(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return write


def tarred(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("vgg_16.ckpt"), io.BytesIO())


def onnx_model(path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    for version in (3, 8, 10):
        path.write_bytes(helper.make_model(graph, ir_version=version, producer_name="p").SerializeToString())
        with pytest.raises(WeightsError, match="ONNX"):
            recognise(path)


def numpy_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def numpy_arrays(path):
    with path.open("wb") as file:
        np.savez(file, conv1_1_W=np.zeros(3), conv1_1_b=np.zeros(3))


PROTOTXT = b'# VGG\nname: "VGG_ILSVRC_16_layers"\ninput: "data"\nlayers {\n  bottom: "data"\n}\n'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file; the download failed"),
        (PROTOTXT, "a prototxt, the drawing of a net without its weights; name the .caffemodel"),
        (b"layer {\n  name: 'conv1_1'\n}\n", "a prototxt"),
        (b"\n\n<!DOCTYPE html>\n<html><head>", "a web page; the download failed"),
        (b"<html>404", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
            "a pointer of Git LFS .* git lfs pull",
        ),
        (onnx_model, "an ONNX model"),
        (b"\x08\x01\x12\x07\x0a\x05graph", "a SavedModel of TensorFlow or a Core ML model"),
        (b"\x0a\x16\x0a\x05input\x12\x0bPlaceholder", "a graph of TensorFlow"),
        (b"\x0a\xf6\x01\x0a\x05input", "a graph of TensorFlow"),
        (table, "a TensorFlow checkpoint"),
        (b"\x1c\x00\x00\x00TFL3\x00\x00", "a model of TensorFlow Lite"),
        (zipped("vgg16/data.pkl", "vgg16/constants.pkl", "vgg16/code/a.py"), "a TorchScript archive"),
        (zipped("a/vgg16.caffemodel", "b"), r"a zip archive of 'a/vgg16\.caffemodel', 'b'; unpack it"),
        (zipped(), "a zip archive of nothing|none of these"),
        (numpy_arrays, r"NumPy arrays \(\.npz\)"),
        (numpy_array, "a NumPy array"),
        (tarred, "a tar archive; unpack it"),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
        (b"BZh91AY&SY", "a bzip2 archive"),
        (b"\xfd7zXZ\x00\x00", "an xz archive"),
        (b"\x12\x01\x00\x00\x00\x00\x00\x00\x00", "parameters of MXNet"),
        (b"\x04\x00\x00\x00\x01\x00\x00\x00\x03", r"a file of Torch7"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a JPEG image"),
        (b"hello", "a text file that begins with 'hello'"),
        (b'{"class_name": "Functional"}', "a text file"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07", "none of these: it begins with 00 01 02 03 04 05 06 07"),
    ],
)
def test_what_people_take_for_weights_is_called_by_its_name(tmp_path, content, found):
    path = tmp_path / "vgg16.caffemodel"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    with pytest.raises(WeightsError, match=rf"vgg16\.caffemodel: expected weights \(.*\), found ({found})") as error:
        load_backbone(path)
    assert "\n" not in str(error.value)


def test_folders_and_pipes_are_refused_and_not_waited_for(tmp_path):
    import os

    with pytest.raises(WeightsError, match="found a folder"):
        load_backbone(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(WeightsError, match="found a SavedModel of TensorFlow"):
        load_backbone(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsError, match="found something that is no file"):
        load_backbone(tmp_path / "pipe")
    with pytest.raises(WeightsError, match="can't read"):
        recognise(tmp_path / "nothing")


def test_the_data_of_a_tensorflow_checkpoint(tmp_path):
    path = tmp_path / "vgg_16.ckpt.data-00000-of-00001"
    path.write_bytes(b"\x00\x01\x02\x03\x04\x05\x06\x07")
    with pytest.raises(WeightsError, match="the data of a TensorFlow checkpoint"):
        recognise(path)


STARTS = [
    b"",
    b"PK\x03\x04",
    b"\x80\x02",
    b"MATLAB 5.0",
    b"\x89HDF\r\n\x1a\n",
    b"\x0a\x03VGG",
    b"\x08\x03\x12",
    PROTOTXT,
]
STARTS += [(30).to_bytes(8, "little") + b'{"a":', (30).to_bytes(8, "little") + b'{"__metadata__":{"vggfeat":']


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=600), end=st.sampled_from([b"", struct.pack("<Q", 2)]))
def test_any_bytes_are_a_format_or_a_refusal_of_one_line(tmp_path, start, rest, end):
    path = tmp_path / "x"
    path.write_bytes(start + rest + end)
    try:
        assert recognise(path) in FORMATS
    except WeightsError as error:
        assert str(path) in str(error) and "\n" not in str(error)  # noqa: PT017, PT018


def test_there_is_a_reader_for_every_format():
    for form in FORMATS.values():
        module, function = form.reader.split(".")
        assert callable(getattr(importlib.import_module(f"vggfeat.weights.{module}"), function))


# The classes


def test_there_are_1000_classes_in_the_order_of_the_nets():
    wnids = [wnid for wnid, _ in imagenet_classes()]
    assert len(wnids) == len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    assert imagenet_classes()[0] == ("n01440764", "tench, Tinca tinca")
    assert imagenet_classes()[278] == ("n02119789", "kit fox, Vulpes macrotis")
    assert imagenet_classes()[65] == ("n01751748", "sea snake")
    assert imagenet_classes()[999][0] == "n15075141"


def test_the_words_are_those_that_torchvision_has_in_that_order():
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    first = [words.split(", ")[0] for _, words in imagenet_classes()]
    differ = {(i, ours, theirs) for i, (ours, theirs) in enumerate(zip(first, _IMAGENET_CATEGORIES, strict=True))}
    # torchvision tells these two apart from their namesakes, 517 and 638.
    assert {row for row in differ if row[1] != row[2]} == {
        (134, "crane", "crane bird"),
        (639, "maillot", "maillot tank suit"),
    }


def test_timm_has_the_same_wnids():
    place = importlib.metadata.distribution("timm").locate_file("timm/data/_info/imagenet_synsets.txt")
    assert Path(place).read_text().split() == [wnid for wnid, _ in imagenet_classes()]


def test_a_thousand_channels_without_names_are_those_of_ilsvrc(tmp_path):
    for classes, expected in ((1000, "n02119789"), (999, None)):
        torch.save(state_dict_of(net(classes=classes)), tmp_path / "x.pth")
        backbone = load_file(tmp_path / "x.pth")
        assert (backbone.classes[278] if backbone.classes else None) == expected
        assert ("classes_from" in backbone.imported) is (expected is not None)


# The published files


def test_the_table_agrees_with_torchvision():
    from torchvision import models

    for model in (f"vgg{number}{kind}" for number in (11, 13, 16, 19) for kind in ("", "_bn")):
        one = PUBLISHED[f"{model.replace('_', '-')}-torchvision"]
        theirs = models.get_model_weights(model).IMAGENET1K_V1
        assert one.addresses == (theirs.url,)
        measured = theirs.meta["_metrics"]["ImageNet-1K"]
        assert one.top1_error == pytest.approx(100 - measured["acc@1"])
        assert one.top5_error == pytest.approx(100 - measured["acc@5"])
        assert one.checksum[1].startswith(re.search(r"-([0-9a-f]{8})\.pth", theirs.url)[1])
        if one.bytes:
            assert one.bytes / 2**20 == pytest.approx(theirs.meta["_file_size"], abs=0.001)


def test_the_table_agrees_with_keras():
    for number in (16, 19):
        one = PUBLISHED[f"vgg{number}-keras"]
        place = importlib.metadata.distribution("keras").locate_file(f"keras/src/applications/vgg{number}.py")
        source = Path(place).read_text()
        assert "".join(re.findall(r'WEIGHTS_PATH = \(\n +"(.*)"\n +"(.*)"\n\)', source)[0]) == one.addresses[0]
        assert f'file_hash="{one.checksum[1]}"' in source


def test_the_table_is_consistent():
    digits = {"sha256": 64, "sha1": 40, "md5": 32}
    for name, one in PUBLISHED.items():
        assert one.name == name
        assert one.format in FORMATS
        kind, value = one.checksum
        assert re.fullmatch("[0-9a-f]+", value)
        assert len(value) == digits[kind] or (kind == "sha256" and len(value) >= 8)
        assert all(address.startswith("http") for address in one.addresses)
        assert one.addresses[0].startswith("https://")
        assert one.net == {11: "A", 13: "B", 16: "D", 19: "E"}[int(name[3:5])] + ("-BN" if "-bn" in name else "")
        assert Path(one.file).suffix in sources.SUFFIXES
        assert 20 < one.top1_error < 32 > 3 * one.top5_error - 3
    for facts in ("file", "checksum", "addresses"):
        assert len({getattr(one, facts) for one in PUBLISHED.values()}) == len(PUBLISHED)


def test_every_published_file_is_on_its_page_with_address_and_checksum():
    page = PAGE.read_text(encoding="utf-8")
    for one in PUBLISHED.values():
        assert f"`{one.name}`" in page
        assert one.checksum[1] in page
        assert all(address in page for address in one.addresses)


def test_a_file_is_identified_by_any_of_the_three_checksums():
    nothing = {"sha256": "0" * 64, "sha1": "0" * 40, "md5": "0" * 32}
    assert identify(nothing) is None
    for one in PUBLISHED.values():
        kind, value = one.checksum
        assert identify(nothing | {kind: value.ljust(len(nothing[kind]), "f")}) is one


# The commands


def known(monkeypatch, path, name="vgg11-torchvision", **changes):
    """Let the content of a file be a published one."""
    checksum = ("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    one = dataclasses.replace(PUBLISHED[name], checksum=checksum, file=path.name, bytes=path.stat().st_size, **changes)

    monkeypatch.setattr(sources, "_ALL", (one,))
    monkeypatch.setitem(PUBLISHED, name, one)
    return one


def test_list_names_every_published_net_and_what_is_there(tmp_path, monkeypatch, capsys, own):
    monkeypatch.setenv("VGGFEAT_WEIGHTS", str(tmp_path))
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"x")
    (tmp_path / "vgg19-dcbb9e9d.pth.part").write_bytes(b"x")
    assert run(["weights", "list"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[-1] for line in shown.splitlines() if line.startswith("  vgg")}
    assert set(rows) == set(PUBLISHED)
    assert [name for name, here in rows.items() if here == "yes"] == ["vgg16-torchvision"]
    assert "a.safetensors, vgg16-397923af.pth; in the package: small" in shown
    assert run(["weights", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in told["published"] if row["path"]] == [str(tmp_path / "vgg16-397923af.pth")]
    assert [Path(row["path"]).name for row in told["files"]] == ["a.safetensors", "vgg16-397923af.pth"]


def test_show_tells_the_preprocessing_and_every_tensor(pth, capsys):
    assert run(["weights", "show", str(pth)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "PyTorch state dict", "net: A, width 0.015625, 7 classes", "less (123.675, 116.28, 103.53)",
        "over (58.395, 57.12, 57.375)", "poolings: round down", "imported: fc6_order: C,H,W",
        "not known: no published file has it", hashlib.sha256(pth.read_bytes()).hexdigest(),
    ):  # fmt: skip
        assert words in shown
    assert re.search(r"fc6\.weight +64x8x7x7 +25088", shown)
    assert run(["weights", "show", str(pth), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["imported"]["format"] == "torchvision"
    assert len(told["tensors"]) == 22
    assert told["numbers"] == sum(parameter.numel() for parameter in net().parameters())
    assert told["md5"] == hashlib.md5(pth.read_bytes()).hexdigest()


def test_show_and_verify_take_names_too(tmp_path, monkeypatch, capsys, own):
    monkeypatch.setenv("VGGFEAT_WEIGHTS", str(tmp_path))
    for name in ("a", "small"):
        assert run(["weights", "verify", name]) == 0
    assert "net A, 2259600 numbers, all finite" in capsys.readouterr().out
    assert run(["weights", "show", "vgg16-caffe"]) == 5
    assert "get it with vggfeat weights fetch vgg16-caffe" in capsys.readouterr().err


def test_a_converted_net_keeps_numbers_preprocessing_and_where_it_came_from(pth, tmp_path, capsys):
    target = tmp_path / "new" / "x.safetensors"
    assert run(["weights", "convert", str(pth), str(target)]) == 0
    assert "x.safetensors: net A" in capsys.readouterr().out
    source, made = load_backbone(pth), load_backbone(target)
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(tensor, made.model.state_dict()[name])
    assert (made.mean, made.std, made.model.pool) == (source.mean, source.std, source.model.pool)
    assert made.imported == source.imported
    assert made.imported["file"] == "net.pth"
    assert made.imported["file_sha256"] == hashlib.sha256(pth.read_bytes()).hexdigest()
    assert made.describe()["imported"] == source.imported
    assert made.facts == {}


def test_converting_twice_changes_nothing(pth, tmp_path):
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    assert run(["weights", "convert", str(pth), str(once)]) == 0
    assert run(["weights", "convert", str(once), str(twice)]) == 0
    assert once.read_bytes() == twice.read_bytes()
    assert run(["weights", "convert", str(once), str(once), "--overwrite"]) == 2, "it may be the only copy"
    assert once.read_bytes() == twice.read_bytes()


def test_a_net_of_ours_keeps_its_training_when_it_is_made_smaller(own, tmp_path):
    half = tmp_path / "half.safetensors"
    assert run(["weights", "convert", str(own), str(half), "--float16"]) == 0
    assert half.stat().st_size < 0.6 * own.stat().st_size
    made = load_backbone(half)
    assert made.facts == {"training": {"steps": 3}}
    assert made.classes == tuple("abcdefg")
    assert made.imported == {}


def test_convert_wants_a_name_that_will_be_found(pth, tmp_path, capsys):
    assert run(["weights", "convert", str(pth), str(tmp_path / "x.pth")]) == 2
    assert "expected a name that ends in .safetensors" in capsys.readouterr().err


def test_verify_knows_a_published_file_and_what_was_made_from_it(pth, tmp_path, monkeypatch, capsys):
    one = known(monkeypatch, pth)
    assert run(["weights", "verify", str(pth)]) == 0
    shown = capsys.readouterr().out
    assert f"known: vgg11-torchvision, published at {one.addresses[0]}" in shown
    assert "top-1 error 31.0 %, top-5 error 11.4 % on ILSVRC-2012 validation, single centre crop" in shown
    target = tmp_path / "x.safetensors"
    assert run(["weights", "convert", str(pth), str(target)]) == 0
    assert load_backbone(target).imported["published"] == "vgg11-torchvision"
    capsys.readouterr()
    assert run(["weights", "verify", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["sound"], told["published"], told["top1_error"]) == (True, "vgg11-torchvision", 30.98)
    assert run(["weights", "verify", str(target)]) == 0
    assert "it says that it was converted from vgg11-torchvision" in capsys.readouterr().out


def test_the_name_of_a_published_file_with_another_checksum_is_not_sound(pth, capsys):
    renamed = pth.rename(pth.with_name("vgg16-397923af.pth"))
    assert run(["weights", "verify", str(renamed)]) == 5
    shown = capsys.readouterr().out
    assert "NOT SOUND" in shown
    assert "expected sha256 397923af" in shown
    assert "vggfeat weights fetch vgg16-torchvision" in shown


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("classifier.3.weight", float("nan"), "fc7.weight: expected finite numbers"),
        ("classifier.3.weight", 0.0, "fc7.weight: expected the weights of a trained layer, found 0 4096 times"),
        ("features.0.weight", 0.25, "conv1_1.weight: expected the weights of a trained layer, found 0.25 27 times"),
    ],
)
def test_verify_finds_nan_and_blank_layers(tmp_path, capsys, name, value, problem):
    state = state_dict_of(net())
    state[name] = torch.full_like(state[name], value)
    torch.save(state, tmp_path / "x.pth")
    assert run(["weights", "verify", str(tmp_path / "x.pth")]) == 5
    assert problem in capsys.readouterr().out
    assert run(["weights", "verify", str(tmp_path / "x.pth"), "--json"]) == 5
    told = json.loads(capsys.readouterr().out)
    assert not told["sound"]
    assert problem in told["problems"][0]


def test_verify_of_what_is_no_net(tmp_path, capsys):
    (tmp_path / "x.caffemodel").write_bytes(PROTOTXT)
    assert run(["weights", "verify", str(tmp_path / "x.caffemodel")]) == 5
    assert "a prototxt" in capsys.readouterr().out
    assert verify(tmp_path / "x.caffemodel").file is None


def test_export_to_torchvision_and_onnx_writes_what_was_asked_for(own, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")

    words = ["weights", "export", str(own), "--to"]
    assert run([*words, "torchvision", "--out", str(tmp_path / "t.pth")]) == 0
    assert set(torch.load(tmp_path / "t.pth", weights_only=True)) == set(state_dict_of(net()))
    assert "its mean is not torchvision's" in capsys.readouterr().out
    assert run([*words, "torchvision", "--out", str(tmp_path / "t.pth"), "--as-is", "--overwrite"]) == 0
    assert "not torchvision's" not in capsys.readouterr().out
    assert run([*words, "onnx", "--layer", "fc7", "--out", str(tmp_path / "o.onnx"), "--json"]) == 0
    capsys.readouterr()
    session = onnxruntime.InferenceSession(str(tmp_path / "o.onnx"), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 224, 256)).astype(np.float32)
    (found,) = session.run(["fc7"], {"images": image})
    with torch.inference_mode():
        mean = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
        expected = net().eval()(torch.from_numpy(image) - mean, ["fc7"])["fc7"]
    assert found.shape == (1, 64, 1, 2)
    assert np.allclose(found, expected.numpy(), atol=1e-4)
    assert run([*words, "torchvision", "--layer", "fc7", "--out", str(tmp_path / "t.pth")]) == 2
    assert run([*words, "onnx", "--as-is", "--out", str(tmp_path / "t.pth")]) == 2


# Fetch


def test_list_and_fetch_do_not_wait_for_pytorch(tmp_path):
    code = """
import sys
from vggfeat.cli import run
import vggfeat.weights.download
assert run(["weights", "list"]) == 0
print([name for name in ("torch", "safetensors", "scipy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


class Folder(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Folder(*a, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_fetched_net_is_known_by_its_name_at_once(address, tmp_path, monkeypatch, capsys):
    folder, where = address
    torch.save(state_dict_of(net()), folder / "net.pth")
    known(monkeypatch, folder / "net.pth", addresses=(f"{where}/net.pth",))
    weights = tmp_path / "weights"
    monkeypatch.setenv("VGGFEAT_WEIGHTS", str(weights))
    assert run(["weights", "fetch", "vgg11-torchvision", "--json"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["path"] == str(weights / "net.pth")
    assert "licence: BSD 3-Clause" in shown.err
    assert load_backbone("vgg11-torchvision").model.config == "A"
    assert run(["weights", "verify", "vgg11-torchvision"]) == 0
    assert examine(weights / "net.pth").published.name == "vgg11-torchvision"
    assert run(["weights", "fetch", "vgg11-torchvision"]) == 0
    assert "was there; to use it:\n  vggfeat extract --dataset NAME" in capsys.readouterr().out
    assert run(["weights", "fetch", "vgg11-torchvision", "--out", str(tmp_path / "other"), "--quiet"]) == 0
    assert (tmp_path / "other" / "net.pth").read_bytes() == (folder / "net.pth").read_bytes()
    assert f"--weights {tmp_path / 'other' / 'net.pth'}" in capsys.readouterr().out


def test_a_wrong_file_at_the_address_ends_with_code_5(address, tmp_path, monkeypatch, capsys):
    folder, where = address
    (folder / "net.pth").write_bytes(b"right")
    known(monkeypatch, folder / "net.pth", addresses=(f"{where}/net.pth",))
    (folder / "net.pth").write_bytes(b"wrong")
    assert run(["weights", "fetch", "vgg11-torchvision", "--out", str(tmp_path / "w")]) == 5
    assert "another checksum" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert run(["weights", "fetch", "vgg12"]) == 2
    assert "expected one of vgg16-caffe" in capsys.readouterr().err


def test_extract_takes_a_caffe_file_as_it_is_and_its_features_say_so(tmp_path, capsys):
    from PIL import Image

    from caffe_files import caffemodel, layers_of

    (tmp_path / "net").write_bytes(caffemodel(layers_of("A", width=1, fc=64, classes=5), form="V1"))
    (tmp_path / "own").mkdir()
    Image.new("RGB", (224, 224), (200, 100, 50)).save(tmp_path / "own" / "a.png")
    words = ["extract", "--dataset", "folder", "--root", str(tmp_path / "own"), "--weights", str(tmp_path / "net")]
    words += ["--scales", "224", "--workers", "0", "--device", "cpu", "--quiet", "--out", str(tmp_path / "own.h5")]
    assert run(words) == 0
    with h5py.File(tmp_path / "own.h5") as file:
        made_by = json.loads(file.attrs["provenance"])
        found = file["features"][0, 0, 0]
    assert made_by["imported"]["format"] == "Caffe"
    assert made_by["pool_rounding"] == "ceil"
    backbone = load_backbone(tmp_path / "net")
    image = torch.tensor([200.0, 100.0, 50.0])[:, None, None].expand(1, 3, 224, 224)
    with torch.inference_mode():
        expected = backbone.model(image - torch.tensor(backbone.mean)[:, None, None], ["fc7"])["fc7"].flatten()
    assert np.allclose(found, expected.numpy(), atol=1e-5)
    assert np.count_nonzero(found) > 5
