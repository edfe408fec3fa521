"""State dicts of PyTorch: torchvision's, those converted from Caffe, timm's; and what is to be refused."""

import argparse
import json
import re
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VGG16_Weights
from torchvision.transforms.v2 import functional as tvf

from other_nets import NARROW, difference, draw, image, our_maps, torchvision_maps, torchvision_net
from reading import load_here
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.weights import IMAGENET_MEAN, Backbone, load_backbone
from vggfeat.weights.export import export_torchvision
from vggfeat.weights.importing import notes
from vggfeat.weights.load import convert, verify
from vggfeat.weights.reader_process import opened_here
from vggfeat.weights.sniff import recognise

TIMM = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}


def as_torchvision_wants(pixels):
    # The numbers of torchvision itself, and its own arithmetic.
    preset = VGG16_Weights.IMAGENET1K_V1.transforms()
    return tvf.normalize(pixels / 255, preset.mean, preset.std)[None]


def as_caffe_wants(pixels):
    return (pixels.flip(0).float() - torch.tensor([103.939, 116.779, 123.68])[:, None, None])[None]


@pytest.mark.parametrize("letter", ["A", "B", "D", "E"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torchvision_gives_torchvisions_maps(tmp_path, letter, legacy):
    net, pixels = torchvision_net(letter), image(231, 270)
    torch.save(net.state_dict(), tmp_path / "vgg.pth", _use_new_zipfile_serialization=not legacy)
    backbone = load_backbone(tmp_path / "vgg.pth")
    assert backbone.model.config == letter
    shares = difference(torchvision_maps(net, as_torchvision_wants(pixels)), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-4, shares
    told = backbone.describe()["imported"]
    assert told["format"] == "torchvision"
    assert (told["channel_order"], told["fc6_order"], told["pool_rounding"]) == ("RGB", "C,H,W", "floor")
    assert told["file_sha256"] == backbone.sha256
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("letter", ["D", "E"])
def test_nets_converted_from_caffe_take_bgr_and_round_up(tmp_path, letter):
    net, pixels = torchvision_net(letter, dropout_first=True, ceil=True), image(231, 270)
    assert {name.rpartition(".")[0] for name in net.state_dict() if name.startswith("classifier")} == {
        "classifier.1", "classifier.4", "classifier.6",
    }  # fmt: skip
    torch.save(net.state_dict(), tmp_path / "vgg16-00b39a1b.pth")
    backbone = load_backbone(tmp_path / "vgg16-00b39a1b.pth")
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, (1.0, 1.0, 1.0))
    expected = torchvision_maps(net, as_caffe_wants(pixels))
    assert expected["fc8"].shape[2:] == (2, 3)  # 231 x 270 gives 8 x 9 rounded up, 7 x 8 rounded down
    shares = difference(expected, our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-4, shares
    assert backbone.imported["channel_order"] == "BGR, turned to RGB in conv1_1"


def renamed_as_timm(net):
    state = {}
    for name, tensor in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in ("classifier.0", "classifier.3"):
            side = 7 if layer == "classifier.0" else 1
            tensor = tensor.unflatten(1, (-1, side, side))
        state[f"{TIMM.get(layer, layer)}.{kind}"] = tensor.contiguous()
    return state


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_timms_names_give_the_same_net(tmp_path, suffix):
    net, pixels = torchvision_net("A"), image()
    path = tmp_path / f"model.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(renamed_as_timm(net), path)
    backbone = load_backbone(path)
    shares = difference(torchvision_maps(net, as_torchvision_wants(pixels)), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-4, shares
    assert backbone.imported["format"] == "timm"
    assert backbone.imported["fc6_order"] == "convolution"


@pytest.mark.long  # timm alone takes 10 s to import
@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_timm_gives_timms_maps(tmp_path, name):
    from timm.models import vgg as timm_vgg

    net = timm_vgg.VGG([c if c == "M" else c // NARROW for c in timm_vgg.cfgs[name]])
    net.pre_logits = timm_vgg.ConvMlp(512 // NARROW, 4096 // NARROW, 7)
    net.head.fc = nn.Linear(4096 // NARROW, 10)
    with torch.device("meta"):
        assert set(net.state_dict()) == set(timm_vgg.VGG(timm_vgg.cfgs[name]).state_dict())
    save_file(draw(net).state_dict(), tmp_path / "model.safetensors")
    backbone, pixels = load_backbone(tmp_path / "model.safetensors"), image(231, 270)
    x = as_torchvision_wants(pixels)
    with torch.inference_mode():
        expected = {"conv5": net.features[:-1](x), "pool5": net.features(x)}
        expected["fc6"] = net.pre_logits.act1(net.pre_logits.fc1(expected["pool5"]))
        expected["fc7"] = net.pre_logits(expected["pool5"])
        crop = net(x[:, :, :224, :224])
    shares = difference(expected, our_maps(backbone, pixels))
    shares["fc8"] = difference({"fc8": crop[:, :, None, None]}, our_maps(backbone, pixels[:, :224, :224]))["fc8"]
    assert max(shares.values()) < 1e-4, shares


@pytest.mark.long
def test_a_file_that_timm_itself_wrote_in_full_width(tmp_path):
    import timm

    net = timm.create_model("vgg11", pretrained=False).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    backbone, pixels = load_backbone(tmp_path / "model.safetensors"), image()
    assert (backbone.mean, backbone.std) == tuple(
        tuple(255 * v for v in net.default_cfg[kind]) for kind in ("mean", "std")
    )
    with torch.inference_mode():
        expected = {"pool5": net.forward_features(as_torchvision_wants(pixels))}
    assert max(difference(expected, our_maps(backbone, pixels)).values()) < 1e-4
    assert backbone.imported["classes_from"]
    assert backbone.classes[0] == "n01440764"


@pytest.mark.parametrize(
    ("broken", "last", "named"),
    [
        ("classifier", "pool5", r"fc6\.weight, fc6\.bias, fc7\.weight, fc7\.bias and 2 more"),
        ("classifier.6.bias", "fc7", r"fc8\.bias"),
        ("classifier.3.weight", "fc6", r"fc7\.weight"),
    ],
)
def test_a_file_with_nan_in_its_last_layers_serves_for_those_before(tmp_path, broken, last, named):
    net, pixels = torchvision_net("D"), image()
    expected = torchvision_maps(net, as_torchvision_wants(pixels))
    state = net.state_dict()
    for name in state:  # torchvision's IMAGENET1K_FEATURES has NaN in all of its classifier
        if name.startswith(broken):
            state[name].view(-1)[-1] = torch.nan
    torch.save(state, tmp_path / "x.pth")
    backbone = load_backbone(tmp_path / "x.pth")
    assert (backbone.model.last, backbone.model.num_classes, backbone.classes) == (last, 0, ())
    there = {name: expected[name] for name in backbone.model.maps if name in expected}
    assert max(difference(there, our_maps(backbone, pixels)).values()) < 1e-4
    assert any(re.search(f"before those with NaN or infinity: {named}$", note) for note in notes(backbone))
    backbone.check_layer(last)
    with pytest.raises(ConfigError, match=rf"found 'fc8'; x\.pth has NaN or infinity in {named}$"):
        backbone.check_layer("fc8")
    assert any(re.match(named, problem) for problem in verify(tmp_path / "x.pth").problems)
    convert(tmp_path / "x.pth", tmp_path / "own.safetensors")
    assert load_backbone(tmp_path / "own.safetensors").imported["not_finite"] == backbone.imported["not_finite"]


def test_a_convolution_with_nan_serves_for_nothing(tmp_path):
    state = torchvision_net("A").state_dict()
    state["features.3.weight"][0, 0, 0, 0] = torch.inf
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"conv2_1\.weight: expected finite numbers, found NaN or infinity"):
        load_backbone(tmp_path / "x.pth")


def test_c_is_told_from_d_by_its_kernels_of_one(tmp_path):
    state = dict(torchvision_net("D").state_dict())
    for name in ("features.14.weight", "features.21.weight", "features.28.weight"):
        state[name] = state[name][:, :, 1:2, 1:2].clone()
    torch.save(state, tmp_path / "c.pth")
    assert load_backbone(tmp_path / "c.pth").model.config == "C"


def test_float64_that_float32_cannot_hold_is_not_finite(tmp_path):
    state = {name: tensor.double() for name, tensor in torchvision_net("A").state_dict().items()}
    state["features.3.bias"][0] = 1e300
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"conv2_1\.bias: expected finite numbers"):
        load_backbone(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_without_plain_numbers_are_refused(tmp_path):
    state = dict(torchvision_net("A").state_dict())
    for odd in (torch.zeros(4, 3, 3, 3, dtype=torch.int8), torch.zeros(4, 3, 3, 3).to_sparse()):
        torch.save(state | {"features.0.weight": odd}, tmp_path / "x.pth")
        with pytest.raises(WeightsError, match=r"'features\.0\.weight': expected floating-point numbers"):
            load_backbone(tmp_path / "x.pth")


def test_more_numbers_than_bytes_are_refused_before_they_are_made(tmp_path):
    state = dict(torchvision_net("A").state_dict())
    state["classifier.6.weight"] = torch.zeros(1).expand(1 << 40, 256)
    state["classifier.6.bias"] = torch.zeros(1).expand(1 << 40)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="at most a number per byte, found 28257448"):
        load_backbone(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("missing", "last", "noted"),
    [
        (("classifier.0", "classifier.3", "classifier.6"), "pool5", "fc6, fc7, fc8"),
        (("classifier.3", "classifier.6"), "fc6", "fc7, fc8"),
        (("classifier.6",), "fc7", "fc8"),
        (("classifier.0",), "pool5", "fc6, and fc7, fc8 of no use behind them"),
    ],
)
def test_a_file_without_some_of_the_last_layers_serves_for_what_it_holds(tmp_path, missing, last, noted):
    net, pixels = torchvision_net("B"), image()
    state = {name: t for name, t in net.state_dict().items() if not name.startswith(missing)}
    torch.save(state, tmp_path / "x.pth")
    backbone = load_backbone(tmp_path / "x.pth")
    assert (backbone.model.config, backbone.model.last, backbone.imported["without"]) == ("B", last, noted)
    expected = torchvision_maps(net, as_torchvision_wants(pixels))
    there = {name: expected[name] for name in backbone.model.maps if name in expected}
    assert last in there
    assert max(difference(there, our_maps(backbone, pixels)).values()) < 1e-4
    assert any("the file is incomplete" in note for note in notes(backbone))
    with pytest.raises(ConfigError, match=f"expected a complete net, found x.pth up to {last}"):
        export_torchvision(backbone, tmp_path / "y.pth")


def data_parallel_of_features(state):
    return {name.replace("features.", "features.module."): tensor for name, tensor in state.items()}


def prefixed(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def best_of(state):
    args = argparse.Namespace(lr=0.1, arch="vgg11")
    more = {"epoch": 90, "best_acc1": np.float64(71.5), "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    return {**more, "arch": "vgg11", "args": args, "state_dict": prefixed("module.")(state)}


@pytest.mark.parametrize(
    ("wrap", "noted"),
    [
        (prefixed("module."), {"names_less": "'module.'"}),
        (prefixed("_orig_mod."), {"names_less": "'_orig_mod.'"}),
        (lambda state: {"n_averaged": torch.tensor(3)} | prefixed("module.")(state), {"names_less": "'module.'"}),
        (prefixed("module._orig_mod.model."), {"names_less": "'module.' and '_orig_mod.' and 'model.'"}),
        (prefixed("net.backbone."), {"names_less": "'net.backbone.'"}),
        (data_parallel_of_features, {"names_less": "'module.'"}),
        (lambda state: {"state_dict": state}, {"taken_from": "'state_dict'"}),
        (
            lambda state: {"model": state, "ema": state, "epoch": 3},
            {"taken_from": "'model'", "next_to": "'ema', 'epoch'"},
        ),
        (lambda state: {"model_state_dict": state}, {"taken_from": "'model_state_dict'"}),
        (lambda state: {"net": state, "acc": 70.1}, {"taken_from": "'net'", "next_to": "'acc'"}),
        (lambda state: {"ema": state}, {"taken_from": "'ema'"}),
        (lambda state: {"my_vgg": state}, {"taken_from": "'my_vgg'"}),
        (lambda state: {"checkpoint": 1, "model": {"state_dict": state}}, {"taken_from": "'model' / 'state_dict'"}),
        (lambda state: {"checkpoint": {"model": state}}, {"taken_from": "'checkpoint' / 'model'"}),
        (
            lambda state: {"checkpoint": {"vgg": {"weights": state}}, "rng": {"torch": torch.zeros(9)}},
            {"taken_from": "'checkpoint' / 'vgg' / 'weights'", "next_to": "'rng'"},
        ),
        (
            lambda state: {"state_dict": prefixed("model.vgg.")(state) | {"loss.weight": torch.zeros(3)}, "epoch": 3},
            {"taken_from": "'state_dict'", "next_to": "'epoch', 'loss.weight'", "names_less": "'model.vgg.'"},
        ),
        (lambda state: dict(state) | {"epoch": 3}, {"left_out": "'epoch'"}),
        (best_of, {"taken_from": "'state_dict'", "names_less": "'module.'"}),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_and_wrapped_nets_are_read_and_the_way_is_noted(tmp_path, wrap, noted, legacy):
    state = torchvision_net("A").state_dict()
    torch.save(state, tmp_path / "plain.pth")
    torch.save(wrap(state), tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    plain, backbone = load_backbone(tmp_path / "plain.pth"), load_backbone(tmp_path / "x.pth")
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, backbone.model.state_dict()[name])
    found = {name: backbone.imported.get(name) for name in ("taken_from", "next_to", "left_out", "names_less")}
    assert noted.items() <= found.items(), found
    said = " ".join(notes(backbone))
    assert all(text in said for text in noted.values())


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (
            lambda state: {"state_dict": prefixed("model.")(state) | prefixed("model_ema.module.")(state)},
            "expected one net, found 2, whose keys begin with 'model.' and 'model_ema.'; save one of them alone: torch",
        ),
        (
            lambda state: prefixed("teacher.net.")(state) | prefixed("student.net.")(state) | {"t": torch.zeros(1)},
            "expected one net, found 2, whose keys begin with 'student.net.' and 'teacher.net.'; save one",
        ),
        (
            lambda state: state | prefixed("ema.")(state) | {"loss.weight": torch.zeros(1)},
            "expected one net, found 2, whose keys begin with 'ema.' and ''; save one",
        ),
        (
            lambda state: state | prefixed("module.")(state),
            "found two, whose keys differ by module or _orig_mod alone, for instance 'features.0.weight' and "
            "'module.features.0.weight'; save one",
        ),
        (
            lambda state: {"epoch": 3, "left": state, "right": {"vgg": state}},
            "found dict with 'epoch', 'left', 'right', 2 of them at 'left', 'right' / 'vgg'; save",
        ),
    ],
)
def test_two_nets_in_a_file_are_named_and_not_guessed_between(tmp_path, wrap, named):
    torch.save(wrap(torchvision_net("A").state_dict()), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=re.escape(named)):
        load_backbone(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (20_000, r"expected the tensors of a net, at most 16384, found 20000"),
        (130_000, r"found safetensors with a header of \d{7,8} bytes, where that of a net has at most 8388608"),
    ],
)
def test_safetensors_of_far_too_many_tensors_are_refused_at_once(tmp_path, count, message):
    path, entry = tmp_path / "x.safetensors", {"dtype": "F32", "shape": []}
    header = json.dumps({f"t{n}": entry | {"data_offsets": [4 * n, 4 * n + 4]} for n in range(count)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * count))
    begun = time.process_time()
    with pytest.raises(WeightsError, match=message), opened_here(recognise(path), path):
        pass
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("change", [
    lambda state: state.pop("classifier.3.bias") is not None and state,
    lambda state: state | {"attention.weight": torch.zeros(2)},
    lambda state: {name.replace("classifier.6.weight", "classifier.6.wieght"): t for name, t in state.items()},
])  # fmt: skip
def test_the_keys_at_fault_are_named(tmp_path, change):
    sound = torchvision_net("D").state_dict()
    state = change(dict(sound))
    for wrapped in (state, prefixed("net.")(state), {"state_dict": state}):
        torch.save(wrapped, tmp_path / "x.pth")
        with pytest.raises(
            WeightsError, match=r"x\.pth: expected the keys of torchvision's net [CD], found "
        ) as caught:
            load_backbone(tmp_path / "x.pth")
        for name in state.keys() ^ sound.keys():
            assert repr(name) in str(caught.value)
        assert "features.0" not in str(caught.value)


def test_keys_of_no_family_are_refused_with_all_families_and_the_way_to_add_one(tmp_path):
    torch.save({f"layer{number}.\x1b[31m{'x' * 500}": torch.zeros(1) for number in range(50)}, tmp_path / "x.pth")
    with pytest.raises(
        WeightsError, match=r"torchvision's, timm's or jcjohnson's .* 50 others: .* and 47 more; .*Another"
    ):
        load_backbone(tmp_path / "x.pth")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"found 'torch.nn.modules.linear.Linear' in it.*not safe to load: save the"):
        load_backbone(tmp_path / "x.pth")


def test_any_flipped_byte_of_a_state_dict_is_an_error_of_ours_or_still_loads(tmp_path):
    torch.save(torchvision_net("A").state_dict(), tmp_path / "net.pth")
    whole = (tmp_path / "net.pth").read_bytes()
    found = set()
    for position in [*range(0, 4000, 61), *range(len(whole) - 6000, len(whole), 97)]:
        (tmp_path / "x.pth").write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            found.add(type(load_here(tmp_path / "x.pth")))
        except WeightsError as error:
            found.add(str(error))
    assert len(found) > 5
    assert all(f"{tmp_path}/x.pth: " in message for message in found - {Backbone})
