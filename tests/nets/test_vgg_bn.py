"""The batch-normalised VGG nets against those of torchvision and timm, and through all that a net goes through."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from other_nets import NARROW, decoded, difference, draw, image, our_maps, torchvision_maps, torchvision_net
from vggfeat.cli import run
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.nets.transforms import normalise
from vggfeat.training.recipe import Recipe, recipe_for
from vggfeat.weights import load_backbone, random_backbone
from vggfeat.weights.export import export_onnx, export_torchvision
from vggfeat.weights.pytorch import TORCHVISION_MEAN, TORCHVISION_STD

onnxruntime = pytest.importorskip("onnxruntime")

LETTERS = ("A", "B", "D", "E")
SIZES = {11: "A", 13: "B", 16: "D", 19: "E"}


def as_published(pixels):
    return normalise(pixels[None].float(), torch.tensor(TORCHVISION_MEAN), torch.tensor(TORCHVISION_STD))


@pytest.fixture
def pth(tmp_path):
    torch.save(torchvision_net("A", batch_norm=True).state_dict(), tmp_path / "bn.pth")
    return tmp_path / "bn.pth"


@pytest.mark.parametrize("letter", LETTERS)
def test_every_map_of_a_large_image_is_torchvisions(tmp_path, letter):
    net, pixels = torchvision_net(letter, batch_norm=True), image(231, 270)
    torch.save(net.state_dict(), tmp_path / "x.pth")
    backbone = load_backbone(tmp_path / "x.pth")
    assert (backbone.model.config, backbone.model.pool) == (f"{letter}-BN", "floor")
    assert (backbone.mean, backbone.std) == (TORCHVISION_MEAN, TORCHVISION_STD)
    shares = difference(torchvision_maps(net, as_published(pixels)), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-5, shares


def timm_maps(net, x):
    pool5 = net.features(x)
    fc6 = net.pre_logits.act1(net.pre_logits.fc1(pool5))
    return {"conv5": net.features[:-1](x), "pool5": pool5, "fc6": fc6, "fc7": net.pre_logits(pool5)}


@pytest.mark.long  # timm alone takes 10 s to import
@pytest.mark.parametrize("layers", SIZES)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_every_map_of_a_large_image_is_timms(tmp_path, layers, suffix):
    from timm.models import vgg as timm_vgg

    narrow = [c if c == "M" else c // NARROW for c in timm_vgg.cfgs[f"vgg{layers}"]]
    net = timm_vgg.VGG(narrow, norm_layer=torch.nn.BatchNorm2d)
    net.pre_logits = timm_vgg.ConvMlp(512 // NARROW, 4096 // NARROW, 7)
    net.head.fc = torch.nn.Linear(4096 // NARROW, 10)
    (save_file if suffix == "safetensors" else torch.save)(draw(net).state_dict(), tmp_path / f"x.{suffix}")
    backbone, pixels = load_backbone(tmp_path / f"x.{suffix}"), image(231, 270)
    assert (backbone.model.config, backbone.imported["format"]) == (f"{SIZES[layers]}-BN", "timm")
    with torch.inference_mode():
        expected = timm_maps(net, as_published(pixels))
        scores = {"fc8": net(as_published(pixels[:, :224, :224]))[:, :, None, None]}
    shares = difference(expected, our_maps(backbone, pixels))
    shares |= difference(scores, our_maps(backbone, pixels[:, :224, :224]))
    assert max(shares.values()) < 1e-5, shares


@pytest.mark.long
@pytest.mark.parametrize("layers", SIZES)
def test_in_full_width_the_libraries_own_models_agree(tmp_path, layers):
    import timm

    pixels = image(231, 270)
    for kind, net in (
        ("torchvision", models.get_model(f"vgg{layers}_bn", weights=None)),
        ("timm", timm.create_model(f"vgg{layers}_bn", pretrained=False)),
    ):
        torch.save(draw(net).state_dict(), tmp_path / "x.pth")
        backbone = load_backbone(tmp_path / "x.pth")
        assert (backbone.model.config, backbone.imported["format"]) == (f"{SIZES[layers]}-BN", kind)
        assert backbone.classes[0] == "n01440764"
        with torch.inference_mode():
            x = as_published(pixels)
            expected = torchvision_maps(net, x) if kind == "torchvision" else timm_maps(net, x)
        shares = difference(expected, our_maps(backbone, pixels))
        assert max(shares.values()) < 1e-5, (kind, shares)


@pytest.mark.parametrize("layer", ["pool5", "fc6", "fc7", "fc8"])
def test_features_are_the_same_whole_in_strips_and_with_padding(pth, layer):
    # A normalised zero is no zero: what lies beyond an image must be cleared behind every layer.
    net, images = load_backbone(pth), decoded((230, 300), (250, 231), (240, 520))
    settings = ExtractionSettings(scales=(225,), layer=layer)
    expected, *others = (
        np.stack([row.features[0, 0] for row in feature_runner(net, chosen).rows(images)])
        for chosen in (
            settings,
            ExtractionSettings(scales=(225,), layer=layer, batch_pixels=225 * 300),
            ExtractionSettings(scales=(225,), layer=layer, batching="padded"),
        )
    )
    for found in others:
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_converted_shown_and_verified(pth, capsys):
    ours = pth.with_name("ours.safetensors")
    assert run(["weights", "convert", str(pth), str(ours)]) == 0
    assert f"{ours}: net A-BN" in capsys.readouterr().out
    backbone, again = load_backbone(pth), load_backbone(ours)
    tensors = again.model.layers.state_dict()
    assert all(torch.equal(tensors.pop(name), tensor) for name, tensor in backbone.model.layers.state_dict().items())
    assert not tensors
    assert run(["weights", "convert", str(ours), str(pth.with_name("twice.safetensors"))]) == 0
    assert pth.with_name("twice.safetensors").read_bytes() == ours.read_bytes()
    capsys.readouterr()
    assert run(["weights", "show", str(pth)]) == 0
    shown = capsys.readouterr().out
    assert "net: A-BN" in shown
    assert "bn1_1.running_var" in shown
    assert run(["weights", "verify", str(pth)]) == 0
    assert "structure: net A-BN" in capsys.readouterr().out


@pytest.mark.parametrize("letter", LETTERS)
def test_torchvisions_own_net_comes_back_bit_for_bit(tmp_path, letter):
    net = torchvision_net(letter, batch_norm=True)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    told = export_torchvision(load_backbone(tmp_path / "a.pth"), tmp_path / "b.pth")
    assert told["model"] == {letter: f"vgg{layers}_bn" for layers, letter in SIZES.items()}[letter]
    again = torch.load(tmp_path / "b.pth", weights_only=True)
    assert list(again) == list(net.state_dict())
    assert all(torch.equal(again[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("layer", ["conv5", "fc8"])
def test_onnx_runtime_gives_our_maps(pth, tmp_path, layer):
    backbone, pixels = load_backbone(pth), image(231, 290)
    export_onnx(backbone, tmp_path / "x.onnx", layer=layer)
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    found = session.run([layer], {"images": pixels[None].float().numpy()})[0]
    assert difference({layer: found}, our_maps(backbone, pixels))[layer] < 1e-4


def test_random_nets_are_there_for_trials():
    backbone = random_backbone("random:D-BN:0:0.0625")
    assert backbone.source == "random:D-BN:0:0.0625"
    assert backbone.sha256 == random_backbone(backbone.source).sha256
    assert 0.01 < our_maps(backbone, image())["fc7"].std() < 1000


def test_training_refuses_them_in_one_line(pth):
    with pytest.raises(ConfigError, match="net: expected one of A, A-LRN, B, C, D, E, found 'D-BN'"):
        Recipe(net="D-BN")
    with pytest.raises(ConfigError, match="expected weights of net D or A to start from, found net A-BN"):
        recipe_for("D", started_from=load_backbone(pth))


def test_statistics_that_are_none_are_refused(pth):
    state = torch.load(pth, weights_only=True)
    state["features.1.running_var"][2] = -1
    torch.save(state, pth)
    with pytest.raises(WeightsError, match=r"bn1_1\.running_var: expected variances from 0 on, found a negative one"):
        load_backbone(pth)
    del state["features.1.running_var"]
    torch.save(state, pth)
    with pytest.raises(
        WeightsError,
        match=r"expected the keys of torchvision's net A-BN, found 'features\.1\.running_var' missing; rename",
    ):
        load_backbone(pth)
