"""Box regression: targets and loss by hand, crops against painted boxes, complete runs against their claims."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from box_runs import NAMES, boxes_of, classifier, listed
from train_runs import figures, hash_of
from vggfeat.cli.train import localise_train
from vggfeat.datasets.ilsvrc_boxes import Boxes
from vggfeat.errors import DatasetError, TrainingError
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.localisation.boxes import class_outputs, decode, encode, overlaps
from vggfeat.localisation.nets import BOX_FACTS, BoxRecipe, box_recipe_for, load_box_net
from vggfeat.localisation.train import NO_TARGET, BoxData, BoxRegression, BoxTargets, train_boxes
from vggfeat.samples import ClassificationSet, LabelledImages
from vggfeat.training.checkpoints import read_checkpoint
from vggfeat.training.crops import Crops
from vggfeat.training.data import training_batches, validation_batches
from vggfeat.training.recipe import Recipe, TrainingSettings
from vggfeat.weights import load_backbone, save_weights

NAN = math.nan


# What a crop asks for


def placed(*, rescaled, offset, mirrored=False, side=224) -> Crops:
    one = np.array([rescaled])
    return Crops(one, one, np.array([offset]), np.array([mirrored]), side)


def asked(boxes, crops, *, size=(256, 512), training=True, **recipe) -> list[list[float]]:
    """Numbers that are asked for of one image of class 1; none if it counts nowhere."""
    labels = BoxTargets(
        listed(Path(), ["a.jpg"], [1]), boxes_of(boxes, sizes=[size]), BoxRecipe(**recipe), training=training
    )
    target = labels.of(np.array([0]), np.array([size]), np.array([1]), crops)[0]
    if target[0] == NO_TARGET:
        return []
    assert target[0] == 1
    return [row.tolist() for row in target[1:].reshape(-1, 4) if not np.isnan(row).any()]


def test_a_crop_asks_for_the_box_in_its_own_frame():
    # An image of 512 x 256 pixels, not rescaled; the crop begins in row 16, column 100.
    crops = placed(rescaled=(256, 512), offset=(16, 100))
    assert asked([(100, 16, 324, 240)], crops) == [[0, 0, 1, 1]]
    assert asked([(156, 72, 268, 128)], crops) == [[0, -0.125, 0.5, 0.25]]
    # Of an image twice as large that was annotated before it was shrunken.
    assert asked([(312, 144, 536, 256)], crops, size=(512, 1024)) == [[0, -0.125, 0.5, 0.25]]
    # The longer side is rounded: each axis has its own factor.
    uneven = placed(rescaled=(256, 515), offset=(16, 100))
    assert asked([(0, 0, 512, 256)], uneven, frame="image", least_inside=0.1) == [[0, 0, 1, 1]]
    # In the frame of the image.
    assert asked([(256, 64, 384, 192)], crops, frame="image") == [[0.125, 0, 0.25, 0.5]]


@pytest.mark.parametrize("frame", ["window", "image"])
def test_the_mirror_mirrors_the_box(frame):
    box = (130, 40, 200, 128)
    (plain,) = asked([box], placed(rescaled=(256, 512), offset=(16, 100)), frame=frame)
    # The mirrored image has the box, and the crop, at the same distance from its right edge.
    (turned,) = asked([(512 - 200, 40, 512 - 130, 128)], placed(rescaled=(256, 512), offset=(16, 188)), frame=frame)
    (found,) = asked([box], placed(rescaled=(256, 512), offset=(16, 100), mirrored=True), frame=frame)
    assert found == turned
    assert found != plain


def test_boxes_that_the_crop_cuts():
    crops = placed(rescaled=(256, 512), offset=(16, 100))
    half = [(212, 16, 436, 240)]  # Its left half is inside, 112 of 224 pixels.
    assert asked(half, crops) == [[0.5, 0, 1, 1]]
    assert asked(half, crops, cut="clipped") == [[0.25, 0, 0.5, 1]]
    assert asked([(213, 16, 437, 240)], crops) == []
    assert asked(half, crops, least_inside=0.6) == []
    assert asked([(0, 0, 50, 50)], crops, least_inside=1e-6) == []
    # In validation all boxes count, whole: the centre crop is not the test's.
    assert asked([(0, 0, 50, 50)], crops, training=False, cut="clipped")[0][2:] == pytest.approx([50 / 224, 50 / 224])


def test_of_several_boxes_the_one_with_the_largest_area_inside():
    crops = placed(rescaled=(256, 512), offset=(16, 100))
    # The first is larger, but half of it is outside.
    boxes = [(224, 16, 424, 216), (110, 20, 310, 140), (110, 20, 120, 30)]
    second = encode(torch.tensor(boxes[1]).double(), torch.tensor([100.0, 16, 324, 240]).double()).tolist()
    assert asked(boxes, crops) == [pytest.approx(second)]
    assert len(asked(boxes, crops, several="closest")) == 3
    assert len(asked(boxes, crops, several="closest", least_inside=0.51)) == 2
    assert len(asked(boxes, crops, training=False)) == 3


def test_images_that_are_no_likeness_of_their_annotation_are_left_out():
    labels = BoxTargets(
        listed(Path(), ["a.jpg", "b.jpg", "c.jpg"]), boxes_of(*[[(0, 0, 9, 9)]] * 3, sizes=[(375, 500)] * 3),
        BoxRecipe(), training=False,
    )  # fmt: skip
    crops = Crops(*[np.array([[256, 256]] * 3)] * 2, np.zeros((3, 2), np.int64), np.zeros(3, bool), 224)
    targets = labels.of(np.arange(3), np.array([[192, 256], [500, 375], [193, 256]]), np.ones(3, int), crops)
    assert (targets[:, 0] == NO_TARGET).tolist() == [False, True, False]
    assert labels.unlike == {"b.jpg": "annotation: it says 500 x 375 pixels, the image has 375 x 500"}


def paint(root: Path, turned: bool) -> tuple[LabelledImages, Boxes]:
    """Images of many sizes, black but for a box; some are far larger than S, one is smaller than its annotation.

    Boxes are in stored pixels; `turned`, EXIF turns the images, each another way.
    """
    sizes = [(300, 420), (420, 300), (1300, 1600), (260, 260), (2000, 900), (600, 800)]
    rng, rows, paths = np.random.default_rng(0), [], []
    for number, (height, width) in enumerate(sizes):
        top, left = int(height * rng.uniform(0, 0.4)), int(width * rng.uniform(0, 0.4))
        bottom, right = top + int(height * rng.uniform(0.3, 0.6)), left + int(width * rng.uniform(0.3, 0.6))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[top:bottom, left:right] = 255
        rows.append([(left, top, right, bottom)])
        paths.append(f"{number}.jpg")
        image = Image.fromarray(pixels)
        if number == 5:
            image = image.resize((400, 300))
        exif = Image.Exif()
        exif[0x0112] = (6, 3, 8, 2, 5, 7)[number] if turned else 1
        image.save(root / paths[-1], quality=100, subsampling=0, exif=exif)
    return listed(root, paths), boxes_of(*rows, sizes=sizes)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("side", [224, 64])
def test_the_box_is_where_the_crop_shows_it(tmp_path, side, turned):
    images, boxes = paint(tmp_path, turned)
    recipe = BoxRecipe(least_inside=1e-9)
    drawn = Recipe(scale=(256, 300), crop=side, seed=3, batch=24)
    centred = Recipe(scale=(256, 256), crop=side)
    frame = torch.tensor([0.0, 0, side, side])
    seen = 0
    with Decoder(0, DecodeSettings()) as decoder:
        labels = BoxTargets(images, boxes, recipe, training=True)
        training = training_batches(images, drawn, mean=(0, 0, 0), colours=None, decoder=decoder, labels=labels)
        labels = BoxTargets(images, boxes, recipe, training=False)
        validation = validation_batches(images, centred, mean=(0, 0, 0), decoder=decoder, labels=labels)
        with training, validation:
            for batch in (next(training), next(training), next(validation)):
                for image, target in zip(batch.images, batch.targets, strict=True):
                    shown = image.mean(0) > 127
                    if target[0] == NO_TARGET:
                        assert not shown[1:-1, 1:-1].any()
                        continue
                    rows, columns = torch.nonzero(shown.any(1)).flatten(), torch.nonzero(shown.any(0)).flatten()
                    edges = decode(target[1:5], frame).clamp(0, side)
                    if (edges[2:] - edges[:2]).min() < 3:
                        continue
                    found = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
                    torch.testing.assert_close(found, edges, atol=1.5, rtol=0)
                    seen += 1
    assert seen > 20


# The loss


def regression(kind="pcr", classes=3, **other) -> BoxRegression:
    names = tuple(f"class {k}" for k in range(classes))
    return BoxRegression(BoxRecipe(kind=kind, unit=1.0, **other), names, classifier())


def test_the_loss_is_half_the_squared_distance_of_the_images_class():
    outputs = torch.zeros((3, 12), requires_grad=True)
    targets = torch.tensor([[2, 0.1, 0.2, 0.3, 0.4], [NO_TARGET] * 5, [0, 0, 0, 1, 2]])
    loss, hits, images = regression().loss(outputs, targets)
    assert loss.item() == pytest.approx((0.01 + 0.04 + 0.09 + 0.16 + 1 + 4) / 2)
    assert (hits.item(), images.item()) == (0, 2)
    loss.backward()
    expected = torch.zeros((3, 12))
    expected[0, 8:12] = torch.tensor([-0.1, -0.2, -0.3, -0.4])
    expected[2, 2:4] = torch.tensor([-1.0, -2])
    torch.testing.assert_close(outputs.grad, expected)


def test_outputs_are_in_units_of_a_fifth_of_the_frame():
    assert BoxRecipe().unit == 0.2
    task = replace(regression(), box=BoxRecipe())
    outputs = torch.tensor([[0.0, 0, 4, 5]])
    loss, hits, _ = task.loss(outputs, torch.tensor([[1, 0, 0, 1, 1]]))
    assert loss.item() == pytest.approx(0.5)
    assert hits.item() == 1
    assert task.rate(outputs, torch.tensor([[1, 0, 0, 1, 1]]))[1].item() == pytest.approx(0.8)


def test_four_outputs_for_all_classes_learn_from_every_image():
    outputs = torch.zeros((2, 4), requires_grad=True)
    loss, _, _ = regression("scr").loss(outputs, torch.tensor([[2, 0.1, 0, 0, 0], [0, 0, 0, 1, 0]]))
    loss.backward()
    torch.testing.assert_close(outputs.grad, torch.tensor([[-0.1, 0, 0, 0], [0, 0, -1, 0]]))


def test_of_several_targets_the_closest_counts():
    outputs = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
    none = [NAN] * 4
    loss, hits, _ = regression("scr").loss(outputs, torch.tensor([[1, 0, 0, 1, 3, 0, 0, 1, 0.6, *none]]))
    assert loss.item() == pytest.approx(0.08)
    assert hits.item() == 1  # 0.6 of the area of the larger one.
    loss.backward()
    torch.testing.assert_close(outputs.grad, torch.tensor([[0, 0, 0, 0.4]]))


def test_what_is_no_number_is_not_hidden():
    loss, _, _ = regression("scr").loss(torch.tensor([[NAN, 0, 1, 1]]), torch.tensor([[1, 0, 0, 1, 1, *[NAN] * 4]]))
    assert loss.isnan()


def test_a_validation_by_hand():
    task = regression("scr")
    outputs = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 1, 0.49], [0, 0, 1, 1], [0.2, 0, -1, 1]])
    targets = torch.full((5, 9), NAN)
    targets[:, :5] = torch.tensor([0.0, 0, 0, 1, 1])
    # The second box of the first image is far away, of the fourth it is the one that is met.
    targets[0, 5:] = torch.tensor([5.0, 5, 1, 1])
    targets[3, 1:] = torch.tensor([5.0, 5, 1, 1, 0, 0, 1, 0.8])
    unread = torch.full((2, 9), NO_TARGET)
    sums = task.rate(torch.cat([outputs, torch.zeros(2, 4)]), torch.cat([targets, unread]))
    found = task.validation(9, sums.tolist())
    # Overlaps 1, 0.5 (which counts), 0.49, 0.8, and 0 for a box of negative width.
    assert (found.step, found.images) == (9, 5)
    assert found.localisation_error == found.error == pytest.approx(2 / 5)
    assert found.mean_overlap == pytest.approx((1 + 0.5 + 0.49 + 0.8) / 5)
    assert len(task.rated) == len(sums)


# Runs


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> BoxData:
    """Images with a bright square on a dark ground; one in eight has no box."""
    root, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(1)
    lists = []
    for part, count in (("train", 32), ("val", 12)):
        rows, paths = [], []
        for number in range(count):
            side, (top, left) = int(rng.integers(60, 120)), rng.integers(0, 70, 2).tolist()
            pixels = rng.integers(0, 60, (200, 200, 3)).astype(np.uint8)
            pixels[top : top + side, left : left + side] += 180
            paths.append(f"{part}-{number}.png")
            Image.fromarray(pixels).save(root / paths[-1])
            rows.append([] if number % 8 == 7 else [(left, top, left + side, top + side)])
        lists.append((listed(root, paths), boxes_of(*rows, sizes=[(200, 200)] * count)))
    (train, train_boxes_), (val, val_boxes) = lists
    return BoxData(ClassificationSet(train=train, val=val, classes=NAMES, words={}, layout=""), train_boxes_, val_boxes)


def box_recipe(**other) -> BoxRecipe:
    return box_recipe_for(classifier(), **{"batch": 4, "max_steps": 6, "validate_every": 3, "dropout": 0.2, **other})


def run(data: BoxData, out: Path, recipe: BoxRecipe | None = None, **other):
    told = {"workers": 0, "checkpoint_every": 2, "log_every": 2}
    return train_boxes(
        recipe or box_recipe(), data, out, started_from=classifier(), run=TrainingSettings(**told), **other
    )


@pytest.fixture(scope="module")
def whole(squares, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run(squares, out)


def test_a_run_leaves_what_it_says(whole):
    out, outcome = whole
    names = {"checkpoints", "curves.png", "log.jsonl", "run.json", "weights.safetensors"}
    assert names <= {path.name for path in out.iterdir()}
    lines = figures(out)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 4, 6]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [3, 6]
    assert all(0 <= line["localisation_error"] <= 1 for line in lines)
    # 4 of 32 and 1 of 12 have no box.
    assert lines[1]["epoch"] == pytest.approx(2 * 4 / 28, rel=1e-5)
    assert outcome.validation.images == 11
    net = load_box_net(outcome.weights)
    assert (net.kind, net.classes, net.backbone.mean) == ("pcr", NAMES, (100.0, 110.0, 120.0))
    told = net.backbone.facts["training"]
    assert told["validation"]["localisation_error"] == outcome.validation.localisation_error
    assert told["recipe"]["learning_rate"] == 1e-3
    assert told["started_from"] == "0" * 64
    assert BOX_FACTS not in told


def test_the_last_validation_is_right(squares, whole):
    net, found = load_box_net(whole[1].weights), []
    for row in np.flatnonzero(squares.val.has).tolist():
        with Image.open(squares.images.val.place(row).file) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        crop = F.interpolate(pixels[None], (256, 256), mode="bilinear", antialias=True)[:, :, 16:240, 16:240]
        outputs = net.backbone.model(crop - torch.tensor(net.backbone.mean)[:, None, None])["fc8"].flatten(1)
        numbers = class_outputs(outputs, torch.tensor([squares.images.val.targets[row]]))
        frame = torch.tensor([16.0, 16, 240, 240])
        truth = torch.from_numpy(squares.val.of(row)).float() * 256 / 200
        found.append(overlaps(decode(numbers, frame), truth).item())
    assert whole[1].validation.mean_overlap == pytest.approx(np.mean(found), abs=1e-4)


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(squares, whole, tmp_path, stopped_after):
    outcome = run(squares, tmp_path / "x", progress=lambda step, *rest: step >= stopped_after)
    assert (outcome.weights, outcome.step) == (None, stopped_after)
    outcome = run(squares, tmp_path / "x", resume=True)
    assert outcome.resumed == stopped_after
    assert hash_of(outcome.weights) == hash_of(whole[1].weights)
    assert figures(tmp_path / "x") == figures(whole[0])


def test_a_run_of_other_boxes_or_choices_is_not_gone_on_with(squares, whole):
    moved = squares.train.edges.copy()
    moved[0, 0] += 1
    for data, recipe, named in (
        (squares._replace(train=replace(squares.train, edges=moved)), box_recipe(), r"data\.boxes"),
        (squares, box_recipe(cut="clipped"), r"localisation\.cut: expected clipped, found whole"),
        (squares, box_recipe(layers="fc"), r"localisation\.layers"),
    ):
        with pytest.raises(TrainingError, match=named):
            run(data, whole[0], recipe, resume=True)


def test_layers_that_do_not_learn_keep_their_bits(squares, tmp_path):
    outcome = run(squares, tmp_path / "x", box_recipe(layers="fc", kind="scr", max_steps=2))
    old, new = classifier().model.state_dict(), load_backbone(outcome.weights).model.state_dict()
    for name, tensor in old.items():
        if "fc8" not in name:
            assert torch.equal(tensor, new[name]) == ("conv" in name), name
    (newest,) = sorted((tmp_path / "x" / "checkpoints").iterdir())[-1:]
    names = read_checkpoint(newest).tensors.keys()
    assert {name.split(".")[2] for name in names if name.startswith("momentum")} == {"fc6", "fc7", "fc8"}
    assert {f"model.{name}" for name in old} <= names


def test_boxes_are_learnt(squares, tmp_path):
    start = classifier(width=1 / 16)
    recipe = box_recipe_for(
        start, kind="scr", batch=8, max_steps=40, validate_every=40, dropout=0.0, learning_rate=3e-4
    )
    outcome = train_boxes(
        recipe, squares, tmp_path / "x", started_from=start, run=TrainingSettings(workers=0, log_every=5)
    )
    losses = [line["loss"] for line in figures(tmp_path / "x") if line["kind"] == "train"]
    assert losses[-1] < 0.2 * losses[0]
    assert outcome.validation.localisation_error < 0.2
    assert outcome.validation.mean_overlap > 0.6


def test_a_loss_that_is_no_number_stops_the_run(squares, tmp_path):
    with pytest.raises(TrainingError, match="NaN or infinite at a learning rate of 1e"):
        run(squares, tmp_path / "x", box_recipe(learning_rate=1e18))
    assert not (tmp_path / "x" / "weights.safetensors").exists()


def test_without_boxes_there_is_nothing_to_learn(squares, tmp_path):
    with pytest.raises(DatasetError, match="found 0 and 11; unpack the annotations"):
        run(squares._replace(train=boxes_of(*[[]] * 32)), tmp_path / "x")
    listed_out = replace(squares.val, excluded=np.ones(12, bool))
    with pytest.raises(DatasetError, match="found 28 and 0; unpack the annotations"):
        run(squares._replace(val=listed_out), tmp_path / "x")


def test_images_of_another_shape_than_annotated_are_named(squares, tmp_path):
    sizes = squares.train.sizes.copy()
    sizes[0] = (200, 300)
    outcome = run(squares._replace(train=replace(squares.train, sizes=sizes)), tmp_path / "x")
    assert outcome.unreadable == (("train-0.png", "annotation: it says 300 x 200 pixels, the image has 200 x 200"),)


# The command


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    from vggfeat.synthetic import write

    root = tmp_path_factory.mktemp("rendered")
    write("ilsvrc", root / "set", size="tiny")
    path = root / "classes.safetensors"
    save_weights(path, classifier().model, mean=(120, 120, 120))
    return root / "set", path


def words(rendered, out, *more) -> list[str]:
    small = ("--batch", 4, "--steps", 2, "--workers", 0, "--device", "cpu")
    return [str(word) for word in ("--root", rendered[0], "--weights", rendered[1], "--out", out, *small, *more)]


def test_the_command_trains_on_what_has_boxes(rendered, tmp_path, capsys):
    localise_train.main(words(rendered, tmp_path / "x", "--kind", "scr", "--layers", "fc"), standalone_mode=False)
    captured = capsys.readouterr()
    assert "note: 58 of 72 train images have boxes of their class, 82 in all" in captured.err
    assert "note: 24 of 24 val images have boxes of their class, 27 in all" in captured.err
    assert ": 2 steps, in " in captured.out
    assert "centre crops of 24 validation images, their class given, step 2: localisation error " in captured.out
    assert "vggfeat localise evaluate --root ROOT --boxes " in captured.out
    net = load_box_net(tmp_path / "x" / "weights.safetensors")
    assert (net.kind, net.backbone.facts[BOX_FACTS]["layers"], len(net.classes)) == ("scr", "fc", 6)


def test_its_summary_as_json(rendered, tmp_path, capsys):
    localise_train.main(words(rendered, tmp_path / "x", "--steps", 1, "--json", "--quiet"), standalone_mode=False)
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert 0 <= told["validation"]["mean_overlap"] <= 1
    assert captured.err == ""


@pytest.mark.long
def test_two_processes_learn_what_one_does(rendered, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    more = ("--steps", 4, "--validate-every", 2, "--log-every", 1, "--quiet")
    for out, start in ((tmp_path / "one", [sys.executable]), (tmp_path / "two", launch)):
        command_line = [*start, "-m", "vggfeat", "localise", "train", *words(rendered, out, *more)]
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=120, check=False, env=environ)
        assert done.returncode == 0, done.stderr
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for first, second in zip(one, two, strict=True):
        for name, value in first.items():
            assert second[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6))
