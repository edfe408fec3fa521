"""Which pixels a net takes: what is assumed is noted, and what is stated holds."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torchvision.models import VGG16_Weights

from caffe_files import caffemodel, layers_of
from other_nets import difference, image, our_maps, torchvision_net
from vggfeat.cli import run
from vggfeat.errors import ConfigError
from vggfeat.weights import IMAGENET_MEAN, load, load_backbone, sources
from vggfeat.weights.importing import Preprocessing, notes
from vggfeat.weights.load import load_file
from vggfeat.weights.sources import PUBLISHED

AS_CAFFE = ["--channels", "bgr", "--range", "255", "--mean", "103.939,116.779,123.68", "--std", "1,1,1"]
AS_CAFFE += ["--pool-rounding", "ceil"]


@pytest.fixture
def converted(tmp_path):
    """A net that was converted from Caffe, under its own keys, and under those of today's torchvision."""
    state = torchvision_net("D", dropout_first=True, ceil=True).state_dict()
    torch.save(state, tmp_path / "old.pth")
    today = {"classifier.1": "classifier.0", "classifier.4": "classifier.3"}
    names = {name: today.get(name.rpartition(".")[0], name.rpartition(".")[0]) for name in state}
    torch.save({f"{names[n]}.{n.rpartition('.')[2]}": t for n, t in state.items()}, tmp_path / "renamed.pth")
    return tmp_path


def test_a_file_that_cannot_tell_is_noted_and_its_user_can_state_it(converted, capsys):
    wrong, right = load_backbone(converted / "renamed.pth"), load_backbone(converted / "old.pth")
    assert difference(our_maps(right, image()), our_maps(wrong, image()))["fc7"] > 0.1
    assert run(["weights", "convert", str(converted / "renamed.pth"), str(converted / "wrong.safetensors")]) == 0
    noted = capsys.readouterr().err
    assert "note: renamed.pth: which pixels the net takes is assumed from its format, not known: RGB; " in noted
    assert "--channels, --range, --mean and --std" in noted
    own = converted / "own.safetensors"
    assert run(["weights", "convert", str(converted / "renamed.pth"), str(own), *AS_CAFFE]) == 0
    assert "assumed" not in capsys.readouterr().err
    stated = load_backbone(own)
    assert max(difference(our_maps(right, image()), our_maps(stated, image())).values()) < 1e-6
    assert (stated.mean, stated.std, stated.model.pool) == (right.mean, right.std, "ceil")
    about = stated.describe()["imported"]
    assert about["mean_from"] == "stated"
    assert about["stated"]["channels"] == "bgr"
    assert stated.describe() != load_backbone(converted / "wrong.safetensors").describe()


def test_means_of_0_to_1_are_stated_as_they_are_documented(converted):
    half = Preprocessing(mean=(0.5, 0.25, 0.75), std=(0.5, 0.5, 0.5))  # torchvision's names: the range is 1
    backbone = load_file(converted / "renamed.pth", half)
    assert (backbone.mean, backbone.std) == ((127.5, 63.75, 191.25), (127.5, 127.5, 127.5))
    bgr = dataclasses.replace(half, channels="bgr")
    assert load_file(converted / "renamed.pth", bgr).mean == (191.25, 63.75, 127.5)


@pytest.mark.parametrize("stated", [{"range": 1}, {"std": (0.5, 0.5, 0.5)}, {"pool_rounding": "ceil"}])
def test_a_mean_that_was_not_stated_stays_assumed(converted, stated):
    backbone = load_file(converted / "renamed.pth", Preprocessing(**stated))
    assert backbone.imported["mean_from"].startswith("assumed: ")
    assert any("is assumed from its format" in note for note in notes(backbone))


def test_another_net_in_the_authors_format_is_not_called_theirs(tmp_path):
    path = tmp_path / "places365.caffemodel"
    path.write_bytes(caffemodel(layers_of("D", width=1, fc=64, classes=365)))
    backbone = load_file(path)
    assert backbone.imported["mean_from"] == "assumed: published with the authors' nets"
    assert len(notes(backbone)) == 1
    stated = load_file(path, Preprocessing(mean=(104.0, 113.0, 116.0)))
    assert (stated.mean, stated.imported["mean_from"], notes(stated)) == ((116.0, 113.0, 104.0), "stated", [])


def test_a_published_file_is_known_by_its_checksum(converted, monkeypatch):
    sha256 = hashlib.sha256((converted / "old.pth").read_bytes()).hexdigest()
    known = dataclasses.replace(PUBLISHED["vgg16-jcjohnson"], checksum=("sha256", sha256))
    monkeypatch.setattr(sources, "_ALL", (known,))
    backbone = load_backbone(converted / "old.pth")
    assert (backbone.mean, backbone.imported["mean_from"]) == (IMAGENET_MEAN, "published with the authors' nets")
    assert backbone.imported["published"] == "vgg16-jcjohnson"
    assert notes(backbone) == []


def test_the_net_of_convolutions_that_torchvision_has_keeps_its_own_mean(converted, monkeypatch):
    sha256 = hashlib.sha256((converted / "renamed.pth").read_bytes()).hexdigest()
    preset = VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    assert f"-{load._FEATURES_ONLY}." in VGG16_Weights.IMAGENET1K_FEATURES.url
    monkeypatch.setattr(load, "_FEATURES_ONLY", sha256[:8])
    backbone = load_backbone(converted / "renamed.pth")
    assert backbone.mean == pytest.approx([255 * value for value in preset.mean])
    assert backbone.std == pytest.approx([255 * value for value in preset.std])
    assert notes(backbone) == []


def test_only_the_checksums_that_could_be_known_are_computed(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"abc")
    assert load._checksum_kinds(tmp_path / "x", "caffe") == {"sha256"}
    monkeypatch.setattr(load, "_LEAST_PUBLISHED", 3)
    assert load._checksum_kinds(tmp_path / "x", "caffe") == {"sha256", "sha1"}
    assert load._checksum_kinds(tmp_path / "x", "keras") == {"sha256", "md5"}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"channels": "bgr"}, "expected mean and std along with other channels or another range than RGB and 1"),
        ({"range": 255, "mean": (1.0, 2.0, 3.0)}, "expected mean and std along with"),
        ({"mean": (123.0, 116.0, 103.0)}, "mean: expected numbers for pixels up to 1, .* or state --range 255"),
        ({"mean": (0.4, 0.4, 0.4), "std": (58.0, 57.0, 57.0)}, "std: expected numbers for pixels up to 1"),
        ({"range": 255, "mean": (0.5, 0.5, 0.4), "std": (1.0, 1.0, 1.0)}, "mean: expected .* or state --range 1"),
        ({"range": 255, "mean": (100.0,) * 3, "std": (0.2, 0.2, 0.2)}, "std: expected .* or state --range 1"),
        ({"mean": (0.5, 0.5)}, "mean: expected 3 finite numbers, found"),
        ({"mean": (0.5, 0.5, np.nan)}, "mean: expected 3 finite numbers, found"),
        ({"std": (0.5, 0.5, 0.0)}, "std: expected 3 finite numbers above 0, found"),
    ],
)
def test_what_cannot_be_meant_is_refused(converted, stated, message):
    with pytest.raises(ConfigError, match=message):
        load_file(converted / "renamed.pth", Preprocessing(**stated))


def test_a_file_of_ours_says_it_itself(converted, capsys):
    source, own = str(converted / "old.pth"), str(converted / "own.safetensors")
    assert run(["weights", "convert", source, own]) == 0
    capsys.readouterr()
    assert run(["weights", "convert", own, str(converted / "x.safetensors"), "--mean", "1,2,3"]) == 2
    assert "expected a file of another library to state mean of, found one of vggfeat" in capsys.readouterr().err
    assert not (converted / "x.safetensors").exists()
