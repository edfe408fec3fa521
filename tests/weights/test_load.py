"""Loading nets: our own files, torchvision's state dicts, random nets, and everything that is to be refused."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from other_nets import torchvision_net
from vggfeat.errors import ConfigError, StoreError, WeightsError
from vggfeat.nets import families
from vggfeat.nets.families import initialise
from vggfeat.nets.vgg import VGG
from vggfeat.weights import IMAGENET_MEAN, load_backbone, load_bundled, random_backbone, save_weights
from vggfeat.weights import load as finding
from vggfeat.weights.importing import ParsedNet, finish
from vggfeat.weights.match_layers import layers_in_order, match_kernels


@pytest.fixture
def net_file(tmp_path):
    model = VGG("C", 7, width=1 / 32, pool="ceil")
    initialise(model, torch.Generator().manual_seed(3))
    save_weights(tmp_path / "c.safetensors", model, mean=[1.0, 2.0, 3.0], classes=list("abcdefg"))
    return tmp_path / "c.safetensors", model


def test_our_file_comes_back_whole(net_file):
    path, model = net_file
    backbone = load_backbone(path)
    assert backbone.model.config == "C"
    assert (backbone.model.pool, backbone.model.width, backbone.model.num_classes) == ("ceil", 1 / 32, 7)
    assert backbone.mean == (1.0, 2.0, 3.0)
    assert backbone.std == (1.0, 1.0, 1.0)
    assert backbone.classes == tuple("abcdefg")
    assert backbone.source == "c.safetensors"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, backbone.model.state_dict()[name])
    assert not backbone.model.training
    assert json.loads(json.dumps(backbone.describe()))["pool_rounding"] == "ceil"


def test_facts_come_back_and_cannot_replace_what_the_net_needs(tmp_path, net_file):
    recipe = {"net": "C", "steps": 3}
    save_weights(tmp_path / "x.safetensors", net_file[1], mean=[1, 2, 3], recipe=recipe, top1_error=0.25, config="A")
    backbone = load_backbone(tmp_path / "x.safetensors")
    assert backbone.facts == {"recipe": recipe, "top1_error": 0.25}
    assert backbone.model.config == "C"
    assert load_backbone(net_file[0]).facts == {}


def test_float16_halves_the_file_and_rounds_to_11_bits(tmp_path, net_file):
    path, model = net_file
    half = tmp_path / "half.safetensors"
    save_weights(half, model, mean=[1.0, 2.0, 3.0], classes=list("abcdefg"), dtype="float16")
    whole, loaded = load_backbone(path), load_backbone(half)
    assert half.stat().st_size < 0.51 * path.stat().st_size
    assert loaded.describe() == whole.describe() | {"weights": "half.safetensors", "weights_sha256": loaded.sha256}
    for name, tensor in model.layers.state_dict().items():
        found = loaded.model.layers.state_dict()[name]
        assert found.dtype == torch.float32
        # 10 stored bits and an implicit one: half a unit in the last place is 2^-11; below 2^-14, half of 2^-24.
        assert ((found - tensor).abs() <= torch.clamp(tensor.abs() * 2**-11, min=2**-25)).all()
        assert name.endswith("bias") or not torch.equal(found, tensor)
        assert tensor.dtype == torch.float32


def test_weights_that_float16_cannot_hold_are_refused(tmp_path, net_file):
    with torch.no_grad():
        net_file[1].layers["fc7"].weight[0, 0] = 65520.0  # rounds to infinity; 65519 would round to 65504
    with pytest.raises(WeightsError, match=r"fc7\.weight: expected numbers that float16 can hold"):
        save_weights(tmp_path / "x.safetensors", net_file[1], mean=[1, 2, 3], dtype="float16")
    assert not (tmp_path / "x.safetensors").exists()
    with pytest.raises(ConfigError, match="dtype: expected one of float32, float16, found 'int8'"):
        save_weights(tmp_path / "x.safetensors", net_file[1], mean=[1, 2, 3], dtype="int8")


def test_a_net_in_a_package_is_known_by_name(net_file):
    backbone = load_bundled(net_file[0])
    assert backbone.source == "small"
    assert backbone.sha256 == load_backbone(net_file[0]).sha256
    with pytest.raises(WeightsError, match=r"small: expected the net of the package at .*nothing"):
        load_bundled(net_file[0].with_name("nothing"))


def test_the_name_small_is_the_packages_even_where_a_file_has_it(net_file, monkeypatch):
    path, model = net_file
    monkeypatch.setattr(finding, "load_bundled", lambda: "the package's")
    save_weights(path.with_name("small.safetensors"), model, mean=[1, 2, 3])
    assert load_backbone("small", folder=path.parent) == "the package's"
    assert load_backbone(path.with_name("small.safetensors")).source == "small.safetensors"


def test_fingerprint_is_the_sha256_of_the_file(net_file):
    import hashlib

    path, _ = net_file
    assert load_backbone(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_random_nets_repeat_and_differ_by_seed():
    first, again, other = (random_backbone(f"random:A:{seed}:0.0625") for seed in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.source == "random:A:0:0.0625"
    assert not first.trained
    assert first.mean == IMAGENET_MEAN
    deviation = first.model.layers["fc6"].weight.std().item()
    assert deviation == pytest.approx((2 / (32 * 49)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("spec", ["random:A", "random:A:0", "random:A:0:1"])
def test_random_defaults_to_seed_0_and_full_width(spec, monkeypatch):
    # A net of 500 MB is not needed to see which width is asked for.
    monkeypatch.setattr(families, "build", lambda net, *, width: VGG(net, 2, width=width / 32))
    backbone = random_backbone(spec)
    assert backbone.source == "random:A:0:1"
    assert backbone.model.layers["fc7"].weight.shape[0] == 4096 / 32


def test_the_name_of_a_random_net_makes_the_same_net_again():
    backbone = random_backbone("random:A:0:0.0333333333")
    again = random_backbone(backbone.source)
    assert backbone.source == "random:A:0:0.0333333333"
    assert again.describe() == backbone.describe()


def test_random_nets_leave_the_callers_random_state_alone():
    before = torch.get_rng_state()
    random_backbone("random:A:0:0.03125")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mean_pixel_is_rgb():
    assert IMAGENET_MEAN == (123.68, 116.779, 103.939)


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"mean": [1, 2]}, "mean"),
        ({"mean": [1, 2, float("nan")]}, "mean"),
        ({"mean": [1, 2, 3], "std": [1, 0, 1]}, "std"),
        ({"mean": [1, 2, 3], "classes": ["a"]}, "classes"),
    ],
)
def test_facts_that_cannot_belong_to_the_net(tmp_path, net_file, facts, named):
    with pytest.raises(WeightsError, match=f"{named}: expected"):
        save_weights(tmp_path / "x.safetensors", net_file[1], **facts)
    assert not (tmp_path / "x.safetensors").exists()


def test_weights_without_a_mean_are_refused_and_not_guessed_at(tmp_path, net_file):
    about = {"format": 1, "config": "C", "width": 1 / 32, "num_classes": 7, "pool": "ceil", "std": [1, 1, 1]}
    tensors = {name: tensor.contiguous() for name, tensor in net_file[1].layers.state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"vggfeat": json.dumps(about | {"classes": []})})
    with pytest.raises(WeightsError, match="mean: expected 3 finite numbers"):
        load_backbone(tmp_path / "x.safetensors")


@pytest.mark.parametrize("spec", ["random", "random:", "random:Z:0", "random:A:x", "random:A:0:0", "random:A:0:1:2"])
def test_random_specs_that_are_not_understood(spec):
    with pytest.raises(ConfigError, match="expected"):
        load_backbone(spec)


def test_by_name_in_the_folder(net_file):
    path, _ = net_file
    for spec in ("c", "c.safetensors", None):
        assert load_backbone(spec, folder=path.parent).source == "c.safetensors"


def test_without_weights_the_ways_to_get_some_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"found none; ways to get one: --weights FILE .*random:D:0"):
        load_backbone(None, folder=tmp_path / "weights")
    with pytest.raises(WeightsError, match="vgg16: found neither as a file nor in"):
        load_backbone("vgg16", folder=tmp_path)


def test_two_nets_in_the_folder_are_not_guessed_between(net_file):
    path, model = net_file
    save_weights(path.with_name("d.safetensors"), model, mean=[1, 2, 3])
    with pytest.raises(WeightsError, match=r"found c\.safetensors, d\.safetensors"):
        load_backbone(None, folder=path.parent)


def test_nothing_half_written_when_the_folder_is_missing(tmp_path, net_file):
    with pytest.raises(StoreError, match="writing the weights failed"):
        save_weights(tmp_path / "no" / "c.safetensors", net_file[1], mean=[1, 2, 3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors"]


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("canary",)


def test_a_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": Evil()}))
    torch.save({"a": Evil()}, tmp_path / "zip.pth")
    for name in ("plain.pth", "zip.pth"):
        with pytest.raises(WeightsError, match=name):
            load_backbone(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    torch.save(torchvision_net("A").state_dict(), tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="found compressed ones"):
        load_backbone(tmp_path / "bomb.pth")


def change(state, name, value):
    state = dict(state)
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("classifier.0.bias", None, "expected the keys of torchvision"),
        ("extra", torch.zeros(1), "expected the keys of torchvision"),
        (
            "classifier.3.weight",
            torch.zeros(256, 256, dtype=torch.int8),
            r"'classifier\.3\.weight': expected floating-point",
        ),
        (
            "classifier.3.weight",
            torch.zeros(256, 256, dtype=torch.complex64),
            r"'classifier\.3\.weight': expected floating-point",
        ),
        ("classifier.3.weight", torch.zeros(256, 256).to_sparse(), r"'classifier\.3\.weight': expected floating-point"),
        ("classifier.3.weight", torch.zeros(256, 255), r"fc7\.weight: expected shape"),
        ("classifier.0.weight", torch.zeros(1).expand(1 << 20, 1 << 20), r"fc6\.weight: expected shape"),
        ("features.2.weight", torch.zeros(4, 4, 5, 5), r"expected the layers of .* kernel sides \(\(3, 5\), \(3, 3\)"),
        ("features.0.weight", torch.zeros(3), r"expected the layers of .* kernel sides \(\(0, 3\), \(3, 3\)"),
    ],
)
def test_state_dicts_of_another_net_or_damaged(tmp_path, name, value, message):
    torch.save(change(torchvision_net("D").state_dict(), name, value), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=message):
        load_backbone(tmp_path / "net.pth")


def parsed(**changes):
    model = VGG("A", 2, width=1 / 32, pool="ceil")
    initialise(model, torch.Generator().manual_seed(0))
    state = model.layers.state_dict()
    values = {"format": "x", "channel_order": "BGR", "mean_from": "y", "fc6_order": "z", "model": model, **changes}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return state, ParsedNet(shapes=shapes, read=state.__getitem__, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), **values)


def test_what_takes_bgr_is_turned_to_rgb_with_its_mean_and_deviation(tmp_path):
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    state, found = parsed(notes={"more": [1]})
    backbone = finish(tmp_path / "x", found)
    assert (backbone.mean, backbone.std) == ((3.0, 2.0, 1.0), (6.0, 5.0, 4.0))
    first, second = (backbone.model.layers[name].weight for name in ("conv1_1", "conv2_1"))
    assert torch.equal(first, state["conv1_1.weight"][:, [2, 1, 0]])
    assert torch.equal(second, state["conv2_1.weight"])
    assert backbone.imported == {
        "format": "x",
        "file": "x",
        "file_sha256": backbone.sha256,
        "channel_order": "BGR, turned to RGB in conv1_1",
        "mean_from": "y",
        "fc6_order": "z",
        "pool_rounding": "ceil",
        "more": [1],
    }
    _, found = parsed(channel_order="RGB")
    backbone = finish(tmp_path / "x", found)
    assert (backbone.mean, backbone.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def test_numbers_are_read_only_after_all_shapes_were_found_right(tmp_path):
    def read(name):
        raise AssertionError(name)

    (tmp_path / "x").write_bytes(bytes(1 << 20))
    shapes = parsed()[1].shapes
    for changes, message in (
        ({"shapes": shapes | {"fc7.bias": (3,)}}, r"fc7\.bias: expected shape \(128,\), found \(3,\)"),
        ({"shapes": shapes | {"fc9.bias": (3,)}}, r"has an unexpected tensor fc9\.bias"),
        ({"classes": ("a", "b", "c")}, "a class name for each of the 2 channels of fc8, found 3"),
    ):
        with pytest.raises(WeightsError, match=message):
            finish(tmp_path / "x", replace(parsed()[1], read=read, **changes))
    (tmp_path / "x").write_bytes(bytes(1000))
    with pytest.raises(WeightsError, match=r"at most a number per byte, found \d+ numbers in 1000 bytes"):
        finish(tmp_path / "x", replace(parsed()[1], read=read))


def test_weights_that_no_net_has_are_named():
    shapes = parsed()[1].shapes
    for wrong, found in (({}, "none"), (shapes | {"conv1_2.weight": (2, 2, 5, 5)}, "conv1_1, .* with kernel sides")):
        with pytest.raises(WeightsError, match=f"x: expected the layers of a net of the VGG paper .* found {found}"):
            match_kernels(Path("x"), wrong, "floor")


def test_layers_without_names_are_known_by_their_kernels():
    names = layers_in_order(Path("x"), [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1])
    assert names[4:8] == ("conv3_1", "conv3_2", "conv3_3", "conv4_1")
    assert len(layers_in_order(Path("x"), [3] * 8)) == 8
    with pytest.raises(WeightsError, match=r"8, 10, 13 or 16 convolutions .* found 2 with kernel sides 11, 5"):
        layers_in_order(Path("x"), [11, 5])


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"vggfeat": "no JSON"},
        {"vggfeat": "[]"},
        {"vggfeat": json.dumps({"format": 99})},
        {"vggfeat": json.dumps({"format": 1, "config": "Z", "width": 1, "pool": "floor", "num_classes": 3})},
        {"vggfeat": json.dumps({"format": 1, "config": "A", "width": 1e9, "pool": "floor", "num_classes": 3})},
        {
            "vggfeat": json.dumps(
                {"format": 1, "config": "A", "width": 1, "pool": "floor", "num_classes": 3, "mean": [1]}
            )
        },
    ],
)
def test_safetensors_without_our_metadata(tmp_path, metadata):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        load_backbone(tmp_path / "x.safetensors")


def test_any_flipped_byte_or_cut_of_the_header_is_an_error_of_ours_or_still_loads(net_file):
    path, _ = net_file
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for position in range(0, header, 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            load_backbone(path)
        except WeightsError:
            refused += 1
    assert refused > 100
    for length in (0, 5, 8, 100, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            load_backbone(path)
