"""Exports, run by the libraries that they are made for."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torchvision import models
from torchvision.transforms.v2 import functional as tvf

from other_nets import NARROW, difference, image, our_maps, torchvision_maps, torchvision_net
from vggfeat.errors import ConfigError, StoreError
from vggfeat.nets.families import initialise
from vggfeat.nets.vgg import VGG
from vggfeat.weights import IMAGENET_MEAN, Backbone, load_backbone
from vggfeat.weights.export import export_onnx, export_torchvision

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OURS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}


def backbone_of(config, *, pool="floor", mean=IMAGENET_MEAN, std=(1.0, 1.0, 1.0), width=1 / NARROW, classes=10):
    model = VGG(config, classes, width=width, pool=pool)
    generator = torch.Generator().manual_seed(5)
    initialise(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=generator)
    return Backbone(model=model.eval().requires_grad_(False), source="x", sha256="0" * 64, mean=mean, std=std)


def run_onnx(path, pixels, layer):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([layer], {"images": pixels.float().numpy()})[0])


@pytest.mark.parametrize("config", ["A", "A-LRN", "B", "C", "D", "E"])
@pytest.mark.parametrize("pool", ["floor", "ceil"])
def test_onnx_runtime_gives_our_scores_at_any_size(tmp_path, config, pool):
    backbone = backbone_of(config, pool=pool, std=(58.0, 57.0, 55.0))
    export_onnx(backbone, tmp_path / "net.onnx")
    for height, width in ((224, 224), (231, 290)):
        pixels = image(height, width)
        found = run_onnx(tmp_path / "net.onnx", pixels[None], "fc8")
        shares = difference({"fc8": found}, our_maps(backbone, pixels))
        assert shares["fc8"] < 1e-4, (height, width, shares)


@pytest.mark.parametrize("layer", ["relu1_1", "pool3", "relu5_1", "conv5", "pool5", "fc6", "fc7", "fc8"])
def test_onnx_of_every_map_for_two_images(tmp_path, layer):
    backbone, pixels = backbone_of("D", pool="ceil"), [image(224, 230, seed) for seed in (1, 2)]
    export_onnx(backbone, tmp_path / "net.onnx", layer=layer)
    found = run_onnx(tmp_path / "net.onnx", torch.stack(pixels), layer)
    assert len(found) == 2
    for one, its_pixels in zip(found, pixels, strict=True):
        assert difference({layer: one[None]}, our_maps(backbone, its_pixels))[layer] < 1e-4


def test_onnx_says_what_it_takes_and_where_it_came_from(tmp_path):
    backbone = replace(backbone_of("A"), classes=tuple("abcdefghij"))
    export_onnx(backbone, tmp_path / "net.onnx", layer="fc7")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    sides = [side.dim_param or side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["N", 3, "H", "W"]
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}["vggfeat"])
    assert about == backbone.describe() | {"classes": list("abcdefghij")}
    assert not any("fc8" in tensor.name for tensor in model.graph.initializer)
    assert "RGB, 0 to 255" in model.doc_string


def test_onnx_without_the_package_and_with_an_unknown_layer(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="layer: expected one of relu1_1, pool1"):
        export_onnx(backbone_of("A"), tmp_path / "x.onnx", layer="fc9")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install onnx$"):
        export_onnx(backbone_of("A"), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def as_told(told, pixels):
    return tvf.normalize(pixels / 255, told["mean"], told["std"])[None]


@pytest.mark.parametrize("letter", ["A", "B", "D", "E"])
def test_torchvision_loads_it_and_gives_our_maps(tmp_path, letter):
    backbone, pixels = backbone_of(letter, pool="ceil"), image()
    told = export_torchvision(backbone, tmp_path / "x.pth", fold=False)
    net = torchvision_net(letter)
    net.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True), strict=True)
    assert (OURS[told["model"]], told["exact"]) == (letter, True)
    shares = difference(torchvision_maps(net, as_told(told, pixels)), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-4, shares


def test_folded_it_takes_torchvisions_own_normalisation(tmp_path):
    # Zero kernels but for the centre see no border: what is left must be exact.
    backbone, pixels = backbone_of("D", std=(50.0, 60.0, 70.0)), image()
    first = backbone.model.layers["conv1_1"].weight
    first[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    told = export_torchvision(backbone, tmp_path / "x.pth")
    preset = models.VGG16_Weights.IMAGENET1K_V1.transforms()
    assert told["mean"] == pytest.approx(preset.mean)
    assert told["std"] == pytest.approx(preset.std)
    assert not told["exact"]
    net = torchvision_net("D")
    net.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True), strict=True)
    shares = difference(torchvision_maps(net, as_told(told, pixels)), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-4, shares


def test_folded_only_what_is_padded_differs(tmp_path):
    backbone, pixels = backbone_of("D"), image()
    told = export_torchvision(backbone, tmp_path / "x.pth")
    net = torchvision_net("D")
    net.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    x = (pixels[None] - torch.tensor(IMAGENET_MEAN)[:, None, None]).float()
    with torch.inference_mode():
        apart = (net.features[0](as_told(told, pixels)) - backbone.model.layers["conv1_1"](x)).abs()
    assert apart[:, :, 1:-1, 1:-1].max() < 1e-4 * 255
    # At the border: half a grey level in each of three colours, under 5 of 9 weights at most.
    weights = backbone.model.layers["conv1_1"].weight.abs().sum((1, 2, 3)).max()
    assert 0.01 < apart.max() < 0.5 * weights
    shares = difference(torchvision_maps(net, as_told(told, pixels)), our_maps(backbone, pixels))
    assert 1e-5 < shares["fc7"] < 0.01, shares


def test_torchvisions_own_net_comes_back_bit_for_bit(tmp_path):
    net = torchvision_net("E")
    torch.save(net.state_dict(), tmp_path / "a.pth")
    for fold in (True, False):
        assert export_torchvision(load_backbone(tmp_path / "a.pth"), tmp_path / "b.pth", fold=fold)["exact"]
        again = torch.load(tmp_path / "b.pth", weights_only=True)
        assert list(again) == list(net.state_dict())
        assert all(torch.equal(again[name], tensor) for name, tensor in net.state_dict().items())


def test_nets_that_torchvision_has_not_and_folders_that_do_not_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"torchvision: net: expected one of A, B, D, E, A-BN, .*, found 'C'"):
        export_torchvision(backbone_of("C"), tmp_path / "x.pth")
    for export in (export_torchvision, export_onnx):
        with pytest.raises(StoreError, match="writing the weights failed: No such file or directory"):
            export(backbone_of("A"), tmp_path / "no" / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_in_full_width_torchvisions_function_takes_it(tmp_path):
    backbone = backbone_of("D", width=1, classes=1000)
    told = export_torchvision(backbone, tmp_path / "x.pth", fold=False)
    net = getattr(models, told["model"])(weights=None)
    net.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True), strict=True)
    pixels = image()
    shares = difference(torchvision_maps(net.eval(), as_told(told, pixels)), our_maps(backbone, pixels))
    assert max(shares.values()) < 1e-4, shares
    export_onnx(backbone, tmp_path / "x.onnx")
    found = run_onnx(tmp_path / "x.onnx", pixels[None], "fc8")
    assert difference({"fc8": found}, our_maps(backbone, pixels))["fc8"] < 1e-4
