"""State dicts of PyTorch: torchvision's, those converted from Caffe, timm's; and what is to be refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VGG16_Weights
from torchvision.transforms.v2 import functional as tvf

from other_nets import NARROW, difference, draw, image, our_maps, torchvision_maps, torchvision_net
from vggfeat.errors import WeightsError
from vggfeat.weights import IMAGENET_MEAN, Backbone, load_backbone

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


def test_the_file_with_nan_in_its_classifier_is_refused_with_the_reason(tmp_path):
    state = torchvision_net("D").state_dict()
    for name, tensor in state.items():
        if name.startswith("classifier"):
            tensor.fill_(torch.nan)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"NaN alone.*IMAGENET1K_FEATURES.*can't give fc6 and fc7: take"):
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
        with pytest.raises(WeightsError, match=r"conv1_1\.weight: expected floating-point numbers"):
            load_backbone(tmp_path / "x.pth")


def test_more_numbers_than_bytes_are_refused_before_they_are_made(tmp_path):
    state = dict(torchvision_net("A").state_dict())
    state["classifier.6.weight"] = torch.zeros(1).expand(1 << 40, 256)
    state["classifier.6.bias"] = torch.zeros(1).expand(1 << 40)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="at most a number per byte, found 28257448"):
        load_backbone(tmp_path / "x.pth")


def test_convolutions_alone_are_refused_with_the_reason(tmp_path):
    state = {name: t for name, t in torchvision_net("D").state_dict().items() if name.startswith("features")}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="without fc6, fc7, fc8"):
        load_backbone(tmp_path / "x.pth")


def test_any_flipped_byte_of_a_state_dict_is_an_error_of_ours_or_still_loads(tmp_path):
    torch.save(torchvision_net("A").state_dict(), tmp_path / "net.pth")
    whole = (tmp_path / "net.pth").read_bytes()
    found = set()
    for position in [*range(0, 4000, 61), *range(len(whole) - 6000, len(whole), 97)]:
        (tmp_path / "x.pth").write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            found.add(type(load_backbone(tmp_path / "x.pth")))
        except WeightsError as error:
            found.add(str(error))
    assert len(found) > 5
    assert all(f"{tmp_path}/x.pth: " in message for message in found - {Backbone})
