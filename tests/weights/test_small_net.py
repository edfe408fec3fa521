"""The net that comes with the package: its size, where it comes from, and what the documents say of it."""

import importlib.resources
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from small_net import GOOD_FOR, MOST_BYTES, SEED, SHARE, STAGES
from vggfeat.errors import WeightsError
from vggfeat.weights import load, load_backbone
from vggfeat.weights.sources import find_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small():
    return load_backbone("small")


def test_it_is_small_enough_for_the_package():
    file = importlib.resources.files("vggfeat.weights") / "small.safetensors"
    assert len(file.read_bytes()) <= MOST_BYTES


def test_other_bytes_than_those_of_the_package_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "BUNDLED_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match=r"small: expected the net of the package, SHA-256 0000.*install vggfeat"):
        load_backbone("small")
    with pytest.raises(WeightsError, match="small: expected the net of the package"):
        load.examine(find_file("small"))  # `weights show small`


def test_it_is_net_a_at_an_eighth_of_the_width(small):
    assert (small.model.config, small.model.width, small.model.num_classes) == ("A", 0.125, 480)
    assert small.trained
    assert small.std == (1.0, 1.0, 1.0)
    assert len(set(small.classes)) == 480


def test_its_metadata_hold_the_recipe_of_the_pipeline(small):
    made = small.facts["made_by"]
    assert (made["seed"], made["share"]) == (SEED, SHARE)
    assert made["stages"] == [asdict(stage) for stage in STAGES]
    assert small.facts["training"]["step"] == int(re.search(r"--steps (\d+)", STAGES[-1].training)[1])


def test_the_documents_give_the_errors_that_its_trainer_measured(small):
    told = " ".join((ROOT / "docs" / "weights.md").read_text(encoding="utf-8").split())
    found = small.facts["training"]["validation"]
    top1, top5 = (100 * found[f"{name}_error"] for name in ("top1", "top5"))
    assert f"top-1 error {top1:.1f} %, top-5 error {top5:.1f} %" in told
    assert f"{found['images']:,} validation images of 480 classes" in told


def test_it_says_which_layer_serves_other_images_best(small):
    assert small.facts["good_for"] == GOOD_FOR
    told = " ".join((ROOT / "docs" / "weights.md").read_text(encoding="utf-8").split())
    assert "`--layer fc6`" in told
