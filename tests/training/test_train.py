"""Whole runs against their claims: learning, stopping, resuming, several processes, images from files."""

import errno
import json
import logging
import math
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from train_runs import CLASSES, StripeFeed, figures, run_script, run_small, small_recipe, stripes
from vggfeat.errors import StoreError, TrainingError
from vggfeat.results.reading import read_runs
from vggfeat.runtime.checksums import sealed_line, unsealed_line
from vggfeat.runtime.durable import Files
from vggfeat.samples import ClassificationSet, LabelledImages
from vggfeat.training.checkpoints import Checkpoints, read_checkpoint
from vggfeat.training.objective import Classification
from vggfeat.training.recipe import Plateau, Recipe, TrainingSettings
from vggfeat.training.run_folder import read_log
from vggfeat.training.train import train
from vggfeat.weights import load_backbone


@pytest.mark.parametrize(("initialisation", "std"), [("normal", 0.1), ("he", 0.1)])
def test_the_other_initialisations_end_in_nan_as_their_notes_say(tmp_path, initialisation, std):
    recipe = small_recipe(width=1 / 16, batch=8, initialisation=initialisation, normal_std=std)
    with pytest.raises(TrainingError, match=r"step \d: loss is NaN or infinite at a learning rate of 0.01"):
        run_small(tmp_path / "run", recipe)


def test_the_default_initialisation_learns(tmp_path):
    recipe = small_recipe(width=1 / 16, batch=8, learning_rate=1e-3, max_steps=30, validate_every=30)
    outcome = run_small(tmp_path / "run", recipe, TrainingSettings(log_every=5))
    losses = [line["loss"] for line in figures(tmp_path / "run") if line["kind"] == "train"]
    assert losses[-1] < 0.3 < math.log(len(CLASSES))
    assert outcome.validation.top1_error < 0.2


# A run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    seen: list = []
    outcome = run_small(out, small_recipe(), progress=lambda *now: seen.append(now), curves=True)
    return out, outcome, seen


def test_a_run_leaves_what_it_says(whole):
    out, outcome, seen = whole
    assert {path.name for path in out.iterdir()} == {
        "checkpoints", "curves.png", "log.jsonl", "run.json", "weights.safetensors",
    }  # fmt: skip
    assert (outcome.step, outcome.resumed, outcome.weights, outcome.notes) == (10, 0, out / "weights.safetensors", ())
    assert [line["step"] for line in figures(out) if line["kind"] == "train"] == [1, 2, 4, 6, 8, 10]
    assert [line["step"] for line in figures(out) if line["kind"] == "validation"] == [4, 8, 10]
    assert seen[-1][:2] == (10, 10)
    with Image.open(out / "curves.png") as image:
        assert image.size == (1320, 540)


def test_the_weights_say_how_they_were_made(whole):
    out, outcome, _ = whole
    backbone = load_backbone(out / "weights.safetensors")
    assert (backbone.classes, backbone.mean, backbone.std) == (CLASSES, (120.0, 121.0, 122.0), (1.0, 1.0, 1.0))
    header = (out / "weights.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    metadata = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["vggfeat"])
    assert metadata["pool"] == "floor"
    assert metadata["training"]["recipe"]["batch"] == 4
    assert metadata["training"]["data"] == {"train": "stripes", "validation": "32", "classes": 4}
    assert (metadata["training"]["step"], metadata["training"]["validation_scale"]) == (10, 256)
    assert metadata["training"]["validation"]["top1_error"] == outcome.validation.top1_error
    trained = read_checkpoint(out / "checkpoints" / "step-00000010.safetensors").tensors
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, trained[f"model.{name}"])


def test_the_last_validation_is_right(whole):
    out, outcome, _ = whole
    images, targets = stripes(12, 10**6)
    scores = load_backbone(out / "weights.safetensors").model(images)["fc8"].flatten(1).numpy()
    assert outcome.validation.top1_error == pytest.approx(np.mean(scores.argmax(1) != targets.numpy()))
    assert outcome.validation.images == 12


@pytest.mark.parametrize("classes", [2, 4, 5, 6, 20])
def test_the_top_5_error_is_measured_where_five_guesses_can_be_wrong(classes):
    objective = Classification(Recipe(), tuple(f"class {k}" for k in range(classes)))
    outputs = -torch.arange(classes, dtype=torch.float32).repeat(4, 1)  # Class 0 is best, the last is worst.
    found = objective.validation(1, objective.rate(outputs, torch.tensor([0, 1, classes - 1, -100])).tolist())
    assert (found.error, found.images) == (pytest.approx(2 / 3), 3)
    assert found.figures == {"top1_error": found.error} | ({"top5_error": pytest.approx(1 / 3)} if classes > 5 else {})
    assert list(objective.errors) == list(found.figures)


@pytest.mark.parametrize("stopped_after", [3, 4, 7, 10])
def test_a_stopped_run_goes_on_to_the_same_bits(whole, tmp_path, stopped_after):
    out, recipe, asked = tmp_path / "run", small_recipe(), []

    def progress(*_):
        asked.append(1)
        return len(asked) >= stopped_after + 1  # once before the first step

    first = run_small(out, recipe, progress=progress)
    assert (first.weights, (out / "weights.safetensors").exists()) == (None, False)
    feed = StripeFeed(recipe)
    second = run_small(out, recipe, feed=feed, resume=True)
    assert (second.resumed, second.step) == (first.step, 10)
    assert feed.asked == list(range(first.step, 10))
    assert (out / "weights.safetensors").read_bytes() == (whole[0] / "weights.safetensors").read_bytes()
    assert figures(out) == figures(whole[0])


def test_a_run_killed_between_a_validation_and_its_checkpoint_tells_of_it_once(whole, tmp_path, monkeypatch):
    out, run, save = tmp_path / "run", TrainingSettings(checkpoint_every=1, log_every=2), Checkpoints.save

    def die(self, step, tensors, about):
        if about["state"]["validation"] is not None:
            raise InterruptedError("killed")
        return save(self, step, tensors, about)

    monkeypatch.setattr(Checkpoints, "save", die)
    with pytest.raises(InterruptedError):
        run_small(out, small_recipe(), run)
    monkeypatch.undo()
    assert [line["kind"] for line in figures(out)] == ["train", "train", "train", "validation"]
    run_small(out, small_recipe(), run, resume=True)
    assert figures(out) == figures(whole[0])


def test_a_longer_run_begins_as_a_shorter_one(whole, tmp_path):
    out = tmp_path / "run"
    run_small(out, small_recipe(max_steps=6))
    outcome = run_small(out, small_recipe(max_steps=10), resume=True)
    assert outcome.resumed == 6
    assert outcome.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()
    again = run_small(out, small_recipe(max_steps=10), resume=True)
    assert (again.resumed, again.step, again.validation) == (10, 10, outcome.validation)


def test_resume_in_an_empty_folder_begins_and_says_so(tmp_path):
    out, said = tmp_path / "run", []
    with pytest.raises(TrainingError, match="expected the folder of a run to resume, found none; look at its name"):
        run_small(out, small_recipe(max_steps=1), resume=True)
    assert not out.exists()
    out.mkdir()
    outcome = run_small(out, small_recipe(max_steps=1), resume=True, say=said.append)
    assert (outcome.resumed, outcome.step) == (0, 1)
    assert said == [f"{out}: no checkpoint to resume from was found: training begins at step 0"]


def test_a_run_that_begins_again_keeps_the_log(whole, tmp_path):
    out, recipe = tmp_path / "run", small_recipe()
    logs = []
    for number in (1, 2):
        run_small(out, replace(recipe, max_steps=4), resume=number > 1)
        logs.append((out / "log.jsonl").read_bytes())
        shutil.rmtree(out / "checkpoints")
        outcome = run_small(out, replace(recipe, max_steps=1), resume=True)
        assert outcome.notes == (
            f"{out}: no checkpoint to resume from was found: training begins at step 0; the log so far is now "
            f"log.{2 * number - 1}.jsonl",
        )
        shutil.rmtree(out / "checkpoints")
    assert [(out / f"log.{n}.jsonl").read_bytes() for n in (1, 3)] == logs


def test_the_log_of_another_run_is_refused(whole, tmp_path):
    for name, recipe in (("mine", small_recipe(max_steps=2)), ("other", small_recipe(max_steps=2, seed=7))):
        run_small(tmp_path / name, recipe)
    log, other = (tmp_path / name / "log.jsonl" for name in ("mine", "other"))
    checksum = json.loads((tmp_path / "mine" / "run.json").read_text())["checksum"]
    assert {line["run"] for line in read_log(log)} == {checksum[:16]}
    shutil.copy(other, log)
    with pytest.raises(TrainingError, match=rf"log.jsonl: expected lines of the run {checksum[:16]} .* put the log of"):
        run_small(tmp_path / "mine", small_recipe(max_steps=3), resume=True)
    with pytest.raises(StoreError, match=rf"log.jsonl: expected lines of the run {checksum[:16]} that run.json"):
        read_runs([tmp_path / "mine"])
    (tmp_path / "mine" / "run.json").unlink()
    log.write_bytes(log.read_bytes() + (whole[0] / "log.jsonl").read_bytes())
    with pytest.raises(StoreError, match="that its first line names, found some of"):
        read_runs([tmp_path / "mine"])


def test_a_log_of_before_that_names_no_run_is_taken_on_and_that_is_said(whole, tmp_path):
    out = tmp_path / "run"
    run_small(out, small_recipe(max_steps=4))
    lines = [{name: value for name, value in line.items() if name != "run"} for line in read_log(out / "log.jsonl")]
    (out / "log.jsonl").write_bytes(b"".join(map(sealed_line, lines)))
    assert len(read_runs([out])[0].log) == len(lines)
    (note,) = run_small(out, small_recipe(), resume=True).notes
    assert (
        note == f"{out / 'log.jsonl'}: its lines so far name no run, as those of earlier versions; they are taken "
        "to be of this one"
    )
    found = [line for line in read_log(out / "log.jsonl") if line["kind"] != "note"]
    expected = list(read_log(whole[0] / "log.jsonl"))
    assert [(line["step"], line["run"]) for line in found] == [(line["step"], line["run"]) for line in expected]
    assert run_small(out, small_recipe(), resume=True).notes == ()


@pytest.mark.parametrize("name", ["run.json", "log.jsonl", "unreadable.jsonl"])
def test_what_can_not_be_read_now_stops_a_run_and_changes_nothing(whole, tmp_path, monkeypatch, name):
    out, recipe = tmp_path / "run", small_recipe()
    run_small(out, replace(recipe, max_steps=6), feed=StripeFeed(recipe, unreadable=(("b.jpg", "empty"),)))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    read = Path.read_text

    def refuse(path, *arguments, **options):
        if path.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return read(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        with pytest.raises(StoreError, match=f"{name}: reading failed: Input/output error"):
            run_small(out, replace(recipe, max_steps=6), resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert run_small(out, recipe, resume=True).weights.read_bytes() == whole[1].weights.read_bytes()


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(whole, tmp_path):
    out, said = tmp_path / "run", []
    run_small(out, small_recipe(max_steps=9))
    newest = max((out / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    outcome = run_small(out, small_recipe(), resume=True, say=said.append)
    assert newest.name == "step-00000009.safetensors"
    assert outcome.resumed == 8
    assert said == list(outcome.notes)
    assert "found a damaged file" in said[0]
    assert figures(out) == figures(whole[0])
    assert outcome.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("recipe", "images", "field"),
    [
        (small_recipe(batch=8), 32, r"recipe.batch: expected 8, found 4"),
        (small_recipe(seed=3), 32, r"recipe.seed: expected 3, found 0"),
        (small_recipe(), 33, r"data.validation: expected 33, found 32"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, recipe, images, field):
    out = tmp_path / "run"
    run_small(out, small_recipe(max_steps=1))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(TrainingError, match=field):
            run_small(out, recipe, feed=StripeFeed(recipe, images=images), resume=True)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        (out / "run.json").unlink(missing_ok=True)  # The checkpoint says the same.
        before.pop(out / "run.json", None)


def test_a_folder_in_use_is_refused(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("text")
    with pytest.raises(TrainingError, match=r"expected an empty folder, found thesis.tex; --resume"):
        run_small(out, small_recipe())
    with pytest.raises(TrainingError, match="expected a run to go on with, found other files"):
        run_small(out, small_recipe(), resume=True)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_two_processes_can_not_write_to_one_folder(tmp_path):
    refused = []

    def second(*_):
        if not refused:
            with pytest.raises(TrainingError, match=f"found process {os.getpid()}; wait for it"):
                run_small(tmp_path / "run", small_recipe(), resume=True)
            refused.append(1)
        return False

    assert run_small(tmp_path / "run", small_recipe(max_steps=2), progress=second).step == 2
    assert refused


@pytest.mark.parametrize("bad_step", [4, 9])
def test_nan_stops_the_run_and_is_not_saved(tmp_path, bad_step):
    class Broken(StripeFeed):
        def _training(self, step):
            for batch in super()._training(step):
                if batch.step == bad_step:
                    batch.images[1, 0, 100] = math.nan
                yield batch

    out, recipe = tmp_path / "run", small_recipe()
    with pytest.raises(TrainingError, match=f"step {bad_step + 1}: loss is NaN or infinite at a learning rate of 0.01"):
        run_small(out, recipe, feed=Broken(recipe))
    paths = sorted((out / "checkpoints").iterdir())
    assert max(paths).name == f"step-{bad_step // 3 * 3 if bad_step > 4 else 4:08d}.safetensors"
    for path in paths:
        assert all(tensor.isfinite().all() for tensor in read_checkpoint(path).tensors.values())
    assert not (out / "weights.safetensors").exists()


def test_the_learning_rate_drops_and_the_run_ends_when_validation_is_stuck(tmp_path):
    # A gain of 2 is out of reach, so every validation after the first brings nothing.
    recipe = small_recipe(validate_every=1, patience=1, drops=2, least_gain=2, max_steps=100)
    outcome = run_small(tmp_path / "run", recipe, TrainingSettings(log_every=1))
    rates = [line["lr"] for line in figures(tmp_path / "run") if line["kind"] == "train"]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])
    assert (outcome.step, outcome.learning_rate) == (4, pytest.approx(1e-4))
    (note,) = outcome.notes
    assert note.startswith("training ended at step 4 of at most 100: validation has not improved 1 time in a row")
    assert note in [line["text"] for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "note"]


@pytest.mark.parametrize(("patience", "drops", "every"), [(1, 2, 1), (2, 1, 2), (5, 0, 1)])
def test_the_end_that_is_foreseen_is_the_end(tmp_path, patience, drops, every):
    recipe = small_recipe(validate_every=every, patience=patience, drops=drops, least_gain=2, max_steps=100)
    seen: list = []
    outcome = run_small(tmp_path / "run", recipe, progress=lambda *now: seen.append(now))
    assert {total for _, total, _ in seen} == {outcome.step} == {(1 + patience * (1 + drops)) * every}
    assert all(note.endswith("to step 100 while validation improves") for *_, note in seen)
    shorter = replace(recipe, max_steps=3)
    run_small(tmp_path / "shorter", shorter, progress=lambda *now: seen.append(now))
    assert seen[-1][1:] == (3, seen[-1][2])
    assert "improves" not in seen[-1][2]


def test_an_improvement_puts_the_end_off():
    recipe = small_recipe(patience=3, drops=1)
    plateau, left = Plateau(), []
    for accuracy in (0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6):
        left.append(plateau.validations_left(recipe))
        plateau = plateau.after(accuracy, recipe)
    # 6 without a gain after the first; each gain gives back those since the last drop.
    assert left == [7, 6, 5, 4, 6, 5, 4, 3, 3, 2, 1]
    assert plateau.ended(recipe)


def test_what_validations_have_shown_survives_a_stop(tmp_path):
    recipe = small_recipe(validate_every=1, patience=2, drops=1, least_gain=2, max_steps=100)
    run = TrainingSettings(log_every=1)
    run_small(tmp_path / "whole", recipe, run)
    run_small(tmp_path / "run", recipe, run, progress=lambda done, *_: done >= 2)
    outcome = run_small(tmp_path / "run", recipe, run, resume=True)
    assert (outcome.resumed, outcome.step) == (2, 5)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_the_validation_at_the_end_of_a_shorter_run_drops_no_learning_rate(tmp_path):
    recipe = small_recipe(validate_every=2, patience=1, drops=3, least_gain=2, max_steps=6)
    whole = run_small(tmp_path / "whole", recipe)
    run_small(tmp_path / "run", replace(recipe, max_steps=3))
    outcome = run_small(tmp_path / "run", recipe, resume=True)
    assert outcome.learning_rate == pytest.approx(1e-4)
    assert outcome.weights.read_bytes() == whole.weights.read_bytes()


def test_unreadable_images_are_listed(tmp_path):
    recipe, out = small_recipe(max_steps=1), tmp_path / "run"
    run_small(out, recipe, feed=StripeFeed(recipe, unreadable=(("b.jpg", "empty: 0 bytes"),)))
    recipe = replace(recipe, max_steps=2)
    found = (("a.jpg", "damaged: cut"), ("b.jpg", "empty: 0 bytes"))
    outcome = run_small(out, recipe, feed=StripeFeed(recipe, unreadable=found[:1]), resume=True)
    assert outcome.unreadable == found
    lines = [unsealed_line(line) for line in (out / "unreadable.jsonl").read_text().splitlines()]
    assert lines == [{"path": path, "reason": reason} for path, reason in found]


def test_a_full_disk_is_one_line_and_leaves_a_run_to_go_on_with(whole, tmp_path):
    class Full(Files):
        full = False

        def write(self, fd, data, offset):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(fd, data, offset)

    files, out = Full(), tmp_path / "run"
    with pytest.raises(StoreError, match=r"writing the log failed: the disk is full.*--resume"):
        run_small(out, small_recipe(), files=files, progress=lambda *_: setattr(files, "full", True))
    files.full = False
    outcome = run_small(out, small_recipe(), files=files, resume=True)
    assert outcome.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_log_that_the_disk_refuses_is_one_error_and_no_torn_line(whole, tmp_path, number):
    class Torn(Files):
        step, torn = 0, False

        def write(self, fd, data, offset):
            if self.torn:
                raise OSError(number, os.strerror(number))
            self.torn = self.step >= 5 and data[:8] == b'{"kind":'
            return super().write(fd, data[: len(data) // 2] if self.torn else data, offset)

    files, out = Torn(), tmp_path / "run"
    with pytest.raises(StoreError, match=rf"log.jsonl: writing the log failed: .*{os.strerror(number)}.*--resume"):
        run_small(out, small_recipe(), files=files, progress=lambda step, *_: setattr(files, "step", step))
    assert (out / "log.jsonl").read_bytes().endswith(b"}\n")
    outcome = run_small(out, small_recipe(), resume=True)
    assert outcome.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()
    assert figures(out) == figures(whole[0])


def test_stop_breaks_a_validation_off_and_it_is_done_again(whole, tmp_path):
    out = tmp_path / "run"
    first = run_small(out, small_recipe(), progress=lambda done, total, note: "validating" in note)
    assert (first.step, first.validation) == (4, None)
    second = run_small(out, small_recipe(), resume=True)
    assert second.weights.read_bytes() == (whole[0] / "weights.safetensors").read_bytes()
    assert figures(out) == figures(whole[0])


def test_stop_before_the_first_step_leaves_a_run_to_begin(tmp_path):
    outcome = run_small(tmp_path / "run", small_recipe(), progress=lambda *_: True)
    assert (outcome.step, outcome.weights) == (0, None)
    assert run_small(tmp_path / "run", small_recipe(max_steps=1), resume=True).step == 1


def test_validation_images_of_which_none_can_be_read_stop_the_run(tmp_path):
    class Broken(StripeFeed):
        @contextmanager
        def validation(self):
            with super().validation() as batches:
                yield (batch._replace(targets=torch.full_like(batch.targets, -100)) for batch in batches)

    recipe = small_recipe()
    with pytest.raises(TrainingError, match="step 4: expected validation images, found none that can be read"):
        run_small(tmp_path / "run", recipe, feed=Broken(recipe))


def test_the_rest_of_a_run_is_logged_once_and_with_its_rate(tmp_path):
    out, recipe, ticks = tmp_path / "run", small_recipe(max_steps=3, validate_every=2), count()
    run, clock = TrainingSettings(log_every=50, checkpoint_every=1), ticks.__next__
    for resume in (False, True, True):
        run_small(out, recipe, run, resume=resume, clock=clock)
    lines = [line for line in read_log(out / "log.jsonl") if line["kind"] == "train"]
    assert [(line["step"], line["images_per_s"] > 0) for line in lines] == [(1, True), (3, True)]


def test_validations_and_checkpoints_do_not_slow_the_rate_down(tmp_path):
    # Time passes in validations, in checkpoints and, a second each, in steps.
    now = [0.0]

    class Slow(StripeFeed):
        def _training(self, step):
            for batch in super()._training(step):
                now[0] += 1
                yield batch

        @contextmanager
        def validation(self):
            now[0] += 1000
            with super().validation() as batches:
                yield batches

    class SlowFiles(Files):
        def create(self, path):
            now[0] += 100
            return super().create(path)

    recipe = small_recipe(max_steps=6, validate_every=2)
    run = TrainingSettings(log_every=5, checkpoint_every=1)
    run_small(tmp_path / "run", recipe, run, feed=Slow(recipe), files=SlowFiles(), clock=lambda: now[0])
    rates = [line["images_per_s"] for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "train"]
    assert rates == [recipe.batch] * 3


def test_figures_go_to_the_handlers_of_logging(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vggfeat.training")
    out = tmp_path / "run"
    run_small(out, small_recipe(max_steps=2, validate_every=2))
    passed = {(record.kind, record.step): record.figures for record in caplog.records if hasattr(record, "figures")}
    lines = {(line["kind"], line["step"]): line for line in read_log(out / "log.jsonl")}
    assert {("train", 2), ("validation", 2)} <= set(lines) == set(passed)
    for key, found in passed.items():
        assert found == pytest.approx({name: lines[key][name] for name in found}, rel=1e-5)
    assert {"loss", "lr"} <= set(passed["train", 2])


def test_figures_go_to_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    scalars: list = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            scalars.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            scalars.append((name, step))

        def close(self):
            scalars.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    out = tmp_path / "run"
    run_small(out, small_recipe(max_steps=2, validate_every=2))
    assert (scalars[0], scalars[-1]) == ((out / "tensorboard", 1), "closed")
    assert {("train/loss", 2), ("train/lr", 2), ("validation/top1_error", 2)} <= set(scalars)
    # What a step of `purge_step` or later had is hidden, and a run that goes on writes nothing of step 2 again.
    scalars.clear()
    run_small(out, small_recipe(max_steps=3, validate_every=2), resume=True)
    assert scalars[0] == (out / "tensorboard", 3)
    assert {step for _, step in scalars[1:-1]} == {3}


# Processes


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    report = run_script("world", tmp_path, 2)
    assert report["codes"] == [0, 0, 0]
    one, two = report["logs"]
    for kind, key in (("train", "loss"), ("validation", "top1_error")):
        curves = [[line[key] for line in log if line["kind"] == kind] for log in (one, two)]
        # Rounding flips a ReLU now and then, after which runs drift apart; at first they are equal.
        assert curves[0] == pytest.approx(curves[1], rel=1e-3)
        assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-5)
    stopped = report["stopped"]
    assert (stopped["codes"], stopped["step"]) == ([0] * 4, 3)
    assert stopped["weights"][0] == stopped["weights"][1]
    assert report["micro_batches"] == [2, 2]
    others = report["others"]
    assert (others["codes"], others["begun"]) == ([TrainingError.exit_code] * 2, False)
    assert set(others["said"]) == {
        "process 1: data.validation: expected 32, found 33; give all processes the same command and the same images"
    }
    assert report["lost"]["codes"] == [TrainingError.exit_code, -signal.SIGKILL]
    assert report["lost"]["seconds"] < 20
    paused = report["paused"]
    assert (paused["codes"], paused["weights"][0]) == ([0, 0], paused["weights"][1])
    # On a busy machine without how long it was silent, which tests/runtime/test_rendezvous.py claims.
    assert paused["said"][0].startswith("note: waiting for process 1 of 2")
    # The store of the first process, and Gloo of both: nobody from another machine reaches them.
    assert paused["listening"] == ["0100007F"]


# From files


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> ClassificationSet:
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(14):
        side = (260, 300) if number % 2 else (280, 256)
        pixels = rng.integers(0, 256, (*side, 3), dtype=np.uint8) // (1 + number % 2)
        Image.fromarray(pixels).save(root / f"{number}.jpg")
    (root / "3.jpg").write_bytes(b"no image")

    def listed(numbers):
        paths, targets = tuple(f"{n}.jpg" for n in numbers), np.array([n % 2 for n in numbers])
        return LabelledImages(root=root, paths=paths, targets=targets, classes=("even", "odd"))

    return ClassificationSet(
        train=listed(range(9)), val=listed(range(9, 14)), classes=("even", "odd"), words={}, layout="a list"
    )


def test_images_become_a_net_and_resumption_changes_no_bit(images, tmp_path):
    recipe = small_recipe(max_steps=4, validate_every=3, scale=(256, 288))
    run = TrainingSettings(workers=0, checkpoint_every=1, log_every=1)
    whole = train(recipe, images, tmp_path / "whole", run=run)
    ((path, reason),) = whole.unreadable
    assert (path, str(images.train.root) in reason) == ("3.jpg", False)
    assert reason.startswith("unrecognised: expected an image of the formats")
    assert whole.validation.images == 5
    asked: list = []

    def progress(*_):
        asked.append(1)
        return len(asked) > 11  # 9 while the mean pixel is measured, one before the first step

    first = train(recipe, images, tmp_path / "run", run=run, progress=progress)
    assert 0 < first.step < 4
    second = train(recipe, images, tmp_path / "run", run=run, resume=True)
    assert second.weights.read_bytes() == whole.weights.read_bytes()
    mean = load_backbone(whole.weights).mean
    assert mean[0] == pytest.approx(mean[1], abs=2)


def test_a_class_of_which_no_image_can_be_read_is_named_at_the_end_of_an_epoch(images, tmp_path):
    some = np.array([0, 2, 3])  # The only odd one is no image.
    few = replace(images.train, paths=tuple(images.train.paths[n] for n in some), targets=images.train.targets[some])
    recipe, said = small_recipe(max_steps=3, validate_every=1, batch=3), []
    run = TrainingSettings(workers=0)
    outcome = train(recipe, replace(images, train=few), tmp_path / "run", run=run, say=said.append)
    assert list(outcome.notes) == said == ["no image that can be read is left of odd (training)"]
    assert said[0] in [line.get("text") for line in read_log(tmp_path / "run" / "log.jsonl")]


def test_a_class_whose_images_are_mended_is_not_called_lost_when_the_run_goes_on(images, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for path in images.train.paths:
        (root / path).write_bytes((images.train.root / path).read_bytes())
    some = np.array([0, 2, 3])
    few = replace(
        images.train, root=root, paths=tuple(images.train.paths[n] for n in some), targets=images.train.targets[some]
    )
    data, run = replace(images, train=few), TrainingSettings(workers=0)
    lost = train(small_recipe(max_steps=1, batch=3), data, tmp_path / "run", run=run).notes
    assert lost == ("no image that can be read is left of odd (training)",)
    (root / "3.jpg").write_bytes((root / "2.jpg").read_bytes())
    outcome = train(small_recipe(max_steps=2, batch=3), data, tmp_path / "run", run=run, resume=True)
    assert outcome.notes == ()
    assert [path for path, _ in outcome.unreadable] == ["3.jpg"], "the first step did without it"
