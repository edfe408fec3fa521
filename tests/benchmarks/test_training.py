"""The benchmark of training: what is counted, what is measured, and what holds training up."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from vggfeat import synthetic
from vggfeat.benchmarks.roofline import layer_costs
from vggfeat.benchmarks.training import plain_net, training_images, training_multiply_adds
from vggfeat.cli import run
from vggfeat.nets.vgg import VGG


def test_training_goes_through_every_layer_three_times_but_the_first():
    with torch.device("meta"):
        model = VGG("A")
    forward = sum(layer.multiply_adds for layer in layer_costs(model, 224, 224))
    assert training_multiply_adds(model, 224) == 3 * forward - 224 * 224 * 64 * 27


@pytest.mark.parametrize(("config", "pool"), [("A-LRN", "floor"), ("C", "ceil")])
def test_the_plain_loop_has_the_same_net(config, pool):
    model = VGG(config, 5, width=1 / 32, pool=pool).eval()
    plain = plain_net(model, dropout=0.5).eval()
    ours = model.state_dict()
    plain.load_state_dict(
        {
            name: own.reshape(shape.shape)
            for (name, shape), own in zip(plain.state_dict().items(), ours.values(), strict=True)
        }
    )
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), model(images)["fc8"].flatten(1))


def test_without_a_folder_as_many_images_are_made_as_are_asked_for():
    said = []
    with training_images(None, 10, said.append) as images:
        assert (len(images), len(images.classes)) == (10, 8)
        assert images.targets.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
        file = Path(images.place(0).file)
        with Image.open(file) as image:
            assert max(image.size) <= 500
    assert said == ["making 10 images"]
    assert not file.exists()


def test_the_command_measures_and_names_what_holds_training_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vggfeat.benchmarks.roofline.MATRIX_SIDE", {"cpu": 256})
    size = synthetic.Settings(image_side=64, classes=3, train=8, val=6, test=1)
    synthetic.write("ilsvrc", tmp_path, size=size)
    words = ["bench", "train", "--root", str(tmp_path), "--net", "A", "--width", "0.03125", "--batch", "8",
             "--workers", "0", "--device", "cpu", "--seconds", "0.1"]  # fmt: skip
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["decoding alone", "loading alone", "step alone", "plain loop's step", "both"]
    assert all(row["rate"] > 0 for row in rows.values())
    slower = min("loading", "step", key=lambda name: rows[f"{name} alone"]["rate"])
    assert found["held_up_by"] == slower
    step = rows["step alone"]
    expected = step["rate"] * found["image_multiply_adds"] / found["matrix_multiply_adds"]
    assert step["share"] == pytest.approx(expected)
    assert 0 <= rows["both"]["waiting"] <= 1
    assert found["settings"]["images"] == 24
    assert found["settings"]["micro_batch"] == found["settings"]["batch"] == 8
    assert run(words) == 0
    shown = capsys.readouterr().out
    for words in ("decoding alone", "loading alone", "step alone", "both", "of the matrix rate", "held up by: "):
        assert words in shown
