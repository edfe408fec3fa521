"""The interface of a net, by a net of another family: one class and one importer take it through the package."""

import numpy as np
import pytest
import torch

from other_nets import decoded, draw
from toy_net import ToyResNet, parse_toy
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.nets import families
from vggfeat.nets.transforms import normalise, rescale, rescaled_size
from vggfeat.weights import load_backbone, pytorch, save_weights
from vggfeat.weights.export import export_onnx


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "toy", ToyResNet)
    monkeypatch.setitem(pytorch.STATE_DICTS, "toy", parse_toy)
    torch.save(draw(ToyResNet()).layers.state_dict(), tmp_path / "toy.pth")
    return load_backbone(tmp_path / "toy.pth")


def features(net, images, **settings):
    rows = feature_runner(net, ExtractionSettings(scales=(40,), **settings)).rows(images)
    assert not any(row.failure for row in rows)
    return np.stack([row.features[0, 0] for row in rows])


@pytest.mark.parametrize("layer", ["pooled", "residual", "logits"])
def test_features_of_another_family_are_means_of_its_maps_whole_in_strips_and_padded(toy, layer):
    images = decoded((40, 60), (50, 41), (45, 90))
    found = features(toy, images, layer=layer)
    for one, row in zip(images, found, strict=True):
        pixels = torch.from_numpy(one.regions[0]).permute(2, 0, 1)
        x = rescale(pixels, rescaled_size(*one.size, 40))[None]
        both = normalise(torch.cat([x, x.flip(3)]), torch.tensor(toy.mean), torch.tensor(toy.std))
        with torch.inference_mode():
            expected = toy.model(both, (layer,))[layer].mean((0, 2, 3)).numpy()
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features(toy, images, layer=layer, batch_pixels=1600), found, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features(toy, images, layer=layer, batching="padded"), found, rtol=1e-4, atol=1e-4)


def test_a_file_of_another_family_takes_rgb_and_is_saved_as_ours(toy, tmp_path):
    assert toy.describe()["net"] == "toy"
    assert toy.mean == (3.0, 2.0, 1.0)
    assert toy.imported["channel_order"] == "BGR, turned to RGB in stem"
    save_weights(tmp_path / "toy.safetensors", toy.model, mean=toy.mean)
    again = load_backbone(tmp_path / "toy.safetensors")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again.model(x, ("logits",))["logits"], toy.model(x, ("logits",))["logits"])


@pytest.mark.parametrize("layer", ["pooled", "residual", "logits"])
def test_a_net_of_another_family_goes_to_onnx_for_images_of_any_size(toy, tmp_path, layer):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(toy, tmp_path / "toy.onnx", layer=layer)
    session = onnxruntime.InferenceSession(tmp_path / "toy.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((40, 61), (2, 7)):
        pixels = 255 * torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            x = normalise(pixels, torch.tensor(toy.mean), torch.tensor(toy.std))
            expected = toy.model(x, (layer,))[layer].numpy()
        (found,) = session.run([layer], {"images": pixels.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("change", "said"), [
    (lambda x: x.clamp_(0, 6), r"made of conv2d, .* found torch\.Tensor\.clamp_ in toy"),
    (lambda x: x[:, :, : x.shape[2]], r"made of conv2d, .* found torch\.Tensor\.shape.* in toy"),
    (lambda x: x + 1, "Add: expected maps and weights of the net, found another"),
])  # fmt: skip
def test_what_onnx_has_no_line_for_is_named(toy, tmp_path, monkeypatch, change, said):
    pytest.importorskip("onnx")
    ahead = ToyResNet.forward
    monkeypatch.setattr(ToyResNet, "forward", lambda net, images, maps: ahead(net, change(images), maps))
    with pytest.raises(ConfigError, match=said):
        export_onnx(toy, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_a_state_dict_that_nobody_knows_is_told_all_families_of_the_table(toy, tmp_path):
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "x.pth")
    known = r"expected the keys of torchvision's, timm's or jcjohnson's nets A, .*, E-BN; or of toy; found 2 others"
    with pytest.raises(WeightsError, match=known):
        load_backbone(tmp_path / "x.pth")


def test_what_another_family_has_not_is_named(toy):
    with pytest.raises(ConfigError, match="layer: expected one of pooled, residual, logits, found 'fc7'"):
        feature_runner(toy, ExtractionSettings())
