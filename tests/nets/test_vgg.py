"""The nets against Tables 1 and 2 of the paper, slow arithmetic, and torchvision's and timm's, batch-normalised too."""

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision import models

from other_nets import (
    NARROW,
    decoded,
    difference,
    draw,
    image,
    our_maps,
    state_dict_of,
    torchvision_maps,
    torchvision_net,
)
from vggfeat.cli import run
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.nets import vgg
from vggfeat.nets.families import FAMILIES, initialise
from vggfeat.nets.transforms import clear, inside, margin, normalise
from vggfeat.nets.vgg import NETS, VGG, local_response_norm
from vggfeat.training.recipe import Recipe, recipe_for
from vggfeat.weights import load_backbone, random_backbone, torchvision_names
from vggfeat.weights.export import export_onnx, export_torchvision
from vggfeat.weights.pytorch import TORCHVISION_MEAN, TORCHVISION_STD

PARAMETERS = {
    "A": 132_863_336,
    "A-LRN": 132_863_336,
    "B": 133_047_848,
    "C": 133_638_952,
    "D": 138_357_544,
    "E": 143_667_240,
}
MILLIONS_IN_TABLE_2 = {"A": 133, "A-LRN": 133, "B": 133, "C": 134, "D": 138, "E": 144}
WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}
TORCHVISION = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}


def small(config: str, seed: int = 0, **options) -> VGG:
    model = VGG(config, 10, **{"width": 1 / 16, **options})
    initialise(model, torch.Generator().manual_seed(seed))
    return model.eval()


def with_biases(model: VGG, seed: int = 1) -> VGG:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
    return model


@pytest.mark.parametrize("config", list(NETS))
def test_parameter_counts_of_table_2(config):
    with torch.device("meta"):
        model = VGG(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[config]
    assert round(count / 1e6) == MILLIONS_IN_TABLE_2[config]
    assert len(model.layers) == WEIGHT_LAYERS[config]


@pytest.mark.parametrize("config", list(TORCHVISION))
def test_full_nets_have_as_many_parameters_as_torchvision_publishes(config):
    weights = torchvision.models.get_model_weights(TORCHVISION[config]).IMAGENET1K_V1
    assert weights.meta["num_params"] == PARAMETERS[config]


@pytest.mark.long
@pytest.mark.parametrize("config", list(TORCHVISION))
def test_full_width_equals_torchvision(config):
    net = torchvision.models.get_model(TORCHVISION[config], weights=None).eval()
    model = VGG(config).eval()
    net.load_state_dict(state_dict_of(model), strict=True)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, found = net(images), model(images)["fc8"].flatten(1)
    assert (found - expected).abs().max().item() <= 1e-5 * max(expected.abs().max().item(), 1)


@pytest.mark.parametrize("pool", ["floor", "ceil"])
@pytest.mark.parametrize("config", ["A", "C", "E"])
def test_dense_maps_equal_a_sliding_window_over_pool5(config, pool):
    model = with_biases(small(config, pool=pool))
    images = torch.randn(1, 3, 260, 331, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        maps = model(images, model.maps)
    pool5 = maps["pool5"][0].numpy().astype(np.float64)
    weights = {name: layer.weight.detach().numpy().astype(np.float64) for name, layer in model.layers.items()}
    biases = {name: layer.bias.detach().numpy().astype(np.float64) for name, layer in model.layers.items()}
    rows, columns = pool5.shape[1] - 6, pool5.shape[2] - 6
    assert maps["fc7"].shape[2:] == (rows, columns) == (model.map_side("fc7", 260), model.map_side("fc7", 331))
    for y in range(rows):
        for x in range(columns):
            window = pool5[:, y : y + 7, x : x + 7].reshape(-1)
            fc6 = np.maximum(weights["fc6"].reshape(256, -1) @ window + biases["fc6"], 0)
            fc7 = np.maximum(weights["fc7"][:, :, 0, 0] @ fc6 + biases["fc7"], 0)
            fc8 = weights["fc8"][:, :, 0, 0] @ fc7 + biases["fc8"]
            for name, value in (("fc6", fc6), ("fc7", fc7), ("fc8", fc8)):
                np.testing.assert_allclose(maps[name][0, :, y, x], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "batch_norm", "ceil"), [("A", False, False), ("D", True, False), ("E", False, True)]
)
def test_every_map_is_what_a_hook_on_torchvision_sees(config, batch_norm, ceil):
    net = torchvision_net(config, batch_norm=batch_norm, ceil=ceil)
    name = f"{config}-BN" if batch_norm else config
    model = FAMILIES[name](name, 10, width=1 / NARROW, pool="ceil" if ceil else "floor").eval()
    tensors = net.state_dict()
    ours = {key: tensors[theirs] for key, theirs in torchvision_names(name).items()}
    shapes = model.layers.state_dict()
    model.layers.load_state_dict({key: tensor.reshape(shapes[key].shape) for key, tensor in ours.items()})
    hidden = [layer for layer in model.maps if layer.startswith(("relu", "pool"))]
    seen = {}
    hooked = [module for module in net.features if isinstance(module, torch.nn.ReLU | torch.nn.MaxPool2d)]
    for layer, module in zip(hidden, hooked, strict=True):
        module.register_forward_hook(lambda _, __, out, layer=layer: seen.update({layer: out.clone()}))
    images = torch.randn(2, 3, 231, 259, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        net.features(images)
        found = model(images, model.maps)
    assert [*seen] == hidden
    assert torch.equal(found["conv5"], found[hidden[-2]])
    for layer, expected in seen.items():
        assert (found[layer] - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert found[layer].shape[1:] == (
            model.maps[layer].channels,
            model.map_side(layer, 231),
            model.map_side(layer, 259),
        )


@pytest.mark.parametrize("pool", ["floor", "ceil"])
def test_the_least_side_of_a_map_gives_it_one_position(pool):
    model = small("A", pool=pool)
    for layer in model.maps:
        side = model.least_side(layer)
        assert model.map_side(layer, side) == 1
        assert side == 1 or model.map_side(layer, side - 1) < 1
    assert model.least_side("fc8") == model.min_side
    assert model.least_side("pool5") == (32 if pool == "floor" else 1)


def test_a_net_is_shown_in_one_line():
    assert repr(small("A")) == "VGG(A, width 0.0625, pooling rounded by floor, 10 classes, 506,306 parameters)"


def test_conv5_is_pooled_to_pool5():
    model = small("D")
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, 224, 256), ("conv5", "pool5"))
    assert maps["conv5"].shape == (1, 32, 14, 16)
    assert torch.equal(F.max_pool2d(maps["conv5"], 2), maps["pool5"])


# Sides of pool5 and positions for Q, and the long side 500 (ceil 16 -> 10, floor 15 -> 9): Sect. 3.2.
@pytest.mark.parametrize(("side", "pool", "pool5", "positions"), [
    *((224, "floor", 7, 1), (256, "floor", 8, 2), (288, "floor", 9, 3), (352, "floor", 11, 5)),
    *((384, "floor", 12, 6), (416, "floor", 13, 7), (512, "floor", 16, 10), (640, "floor", 20, 14)),
    *((768, "floor", 24, 18), (500, "floor", 15, 9), (500, "ceil", 16, 10), (224, "ceil", 7, 1)),
    *((193, "ceil", 7, 1), (192, "ceil", 6, 0), (223, "floor", 6, 0)),
])  # fmt: skip
def test_map_sides(side, pool, pool5, positions):
    model = small("A", pool=pool)
    assert (model.map_side("pool5", side), model.map_side("fc8", side)) == (pool5, positions)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, side, 224), ("pool5",))["pool5"].shape[2] == pool5
    assert (side >= model.min_side) == (positions >= 1)


def test_local_response_norm_equals_the_original_formula():
    a = np.random.default_rng(0).normal(0, 50, (1, 9, 2, 3))
    expected = np.empty_like(a)
    for i in range(9):
        total = sum(a[:, j] ** 2 for j in range(max(0, i - 2), min(8, i + 2) + 1))
        expected[:, i] = a[:, i] / (2 + 1e-4 * total) ** 0.75
    np.testing.assert_allclose(local_response_norm(torch.from_numpy(a)).numpy(), expected, rtol=1e-12)


def test_lrn_stands_once_after_the_first_convolution():
    plain, normalised = small("A"), small("A-LRN")
    images = torch.randn(1, 3, 224, 224) * 60
    with torch.inference_mode():
        x = local_response_norm(F.relu(plain.layers["conv1_1"](images)))
        for name in ("conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2"):
            if name.endswith("1"):
                x = F.max_pool2d(x, 2)
            x = F.relu(plain.layers[name](x))
        assert torch.allclose(normalised(images, ("conv5",))["conv5"], x, rtol=1e-4)


@pytest.mark.parametrize(("config", "reach"), [("A", 59), ("D", 90), ("E", 118)])
def test_reach_is_what_a_position_can_see(config, reach):
    model = small(config)
    with torch.no_grad():  # all weights positive, so that nothing that is seen cancels out
        for name, parameter in model.named_parameters():
            parameter.fill_(0.01 if name.endswith("weight") else 0.0)
    assert model.maps["conv5"].reach == model.maps["fc8"].reach == reach
    assert model.maps["relu1_1"].reach == 1
    images = torch.ones(1, 3, 96 * 5, 32, requires_grad=True)
    model(images, ("conv5",))["conv5"][:, :, 14:16].sum().backward()
    seen = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    # Max-pooling passes the gradient to one pixel of each cell, so the outermost may be missed by its own width.
    assert 14 * 16 - reach <= seen.min() <= 14 * 16 - reach + 32
    assert seen.max() <= 16 * 16 + reach - 1


def test_width_scales_every_hidden_layer():
    model = small("D", width=0.25)
    assert [model.layers[n].weight.shape[0] for n in ("conv1_1", "conv5_3", "fc6", "fc7", "fc8")] == [
        16, 128, 1024, 1024, 10,
    ]  # fmt: skip


def test_dropout_only_in_training():
    model = small("A")
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model(images)["fc8"], model(images)["fc8"])
        model.train()
        assert not torch.equal(model(images)["fc8"], model(images)["fc8"])


@pytest.mark.parametrize(("arguments", "options"), [
    (("F",), {}), (("A",), {"pool": "round"}), (("A",), {"width": 0}), (("A", 0), {}), (("A", 1.5), {}),
    (("A",), {"dropout": 2.0}), (("A",), {"dropout": float("nan")}), (("A",), {"width": float("nan")}),
])  # fmt: skip
def test_settings_that_are_not_allowed_are_named(arguments, options):
    with pytest.raises(ConfigError, match="expected"):
        VGG(*arguments, **options)


def test_unknown_maps_are_named():
    with pytest.raises(ConfigError, match="fc9"):
        small("A")(torch.zeros(1, 3, 224, 224), ("fc9",))
    with pytest.raises(ConfigError, match=r"expected names out of .* found \[\]"):
        small("A")(torch.zeros(1, 3, 224, 224), iter(()))


def test_names_of_maps_may_come_one_by_one():
    model, images = small("A"), torch.randn(1, 3, 32, 32)
    found = model(images, (name for name in ("pool1", "relu2_1")))
    assert [*found] == ["pool1", "relu2_1"]
    assert torch.equal(found["pool1"], model(images, ["pool1"])["pool1"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_local_response_normalisation_in_half_precision_is_rounded_and_no_more(dtype):
    maps = torch.rand(2, 16, 3, 4, generator=torch.Generator().manual_seed(0)) * 50
    half = local_response_norm(maps.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half, local_response_norm(maps.to(dtype).float()).to(dtype), rtol=0, atol=0)


SIDES = torch.tensor([(224, 260), (231, 225), (256, 272), (240, 243)])


def clear_all(maps, sides):
    return maps if sides is None else maps.masked_fill_(~inside(maps, sides), 0)


def spoil_the_rest(maps, sides):
    if sides is None:
        return maps
    return clear(maps, margin(maps, sides)).masked_fill_(~inside(maps, sides + 1), torch.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", ["floor", "ceil"])
@pytest.mark.parametrize("config", [*NETS, "A-BN"])
def test_of_padding_no_more_than_a_row_and_a_column_is_read(config, pool, dtype, monkeypatch):
    model = FAMILIES[config](config, 10, width=1 / 32, pool=pool)
    initialise(model, torch.Generator().manual_seed(0))
    model = with_biases(model).eval().to(dtype, memory_format=torch.channels_last)
    images = clear_all(torch.randn(4, 3, 256, 272, generator=torch.Generator().manual_seed(2)) * 60, SIDES).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    names, found = ("relu3_1", "pool5", "fc8"), []
    for cleared in (None, clear_all, spoil_the_rest):
        with monkeypatch.context() as patch, torch.inference_mode():
            if cleared:
                patch.setattr(vgg, "margin", lambda maps, sides: sides)
                patch.setattr(vgg, "clear", cleared)
            found.append(model(images.clone(), names, sides=SIDES))
    for name in names:
        own, all_cleared, spoiled = (maps[name] for maps in found)
        within = inside(own, model.map_side(name, SIDES)).expand_as(own)
        assert within.any(3).any(2).all()
        assert torch.equal(own[within], all_cleared[within])
        assert torch.equal(own[within], spoiled[within])
        assert own[within].isfinite().all()


@pytest.mark.parametrize(("config", "ceil"), [("A", False), ("A-LRN", False), ("D", True), ("A-BN", True)])
def test_a_net_learns_the_same_whether_the_maps_before_its_poolings_are_asked_for_or_not(config, ceil):
    """What is not asked for is pooled before its ReLU: values and gradients are equal, bit by bit."""
    model = FAMILIES[config](config, 10, width=1 / NARROW, pool="ceil" if ceil else "floor").eval()
    images = torch.randn(2, 3, 231, 227, generator=torch.Generator().manual_seed(4))
    found = []
    for maps in (("fc8",), tuple(model.maps)):
        model.zero_grad()
        scores = model(images, maps)["fc8"]
        (scores * torch.arange(10.0)[:, None, None]).sum().backward()
        found.append([scores.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    assert found[0][1].abs().max() > 0
    for quick, asked in zip(*found, strict=True):
        assert torch.equal(quick, asked)


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
    onnxruntime = pytest.importorskip("onnxruntime")
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
