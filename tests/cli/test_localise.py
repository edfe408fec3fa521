"""`vggfeat localise evaluate`, `predict` and `check` as a user meets them, on images whose errors one can count."""

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggfeat.cli import run
from vggfeat.nets.families import initialise
from vggfeat.nets.vgg import VGG
from vggfeat.runtime.checksums import sealed_line, unsealed_line
from vggfeat.weights import save_weights

CLASSES = tuple("abcdefg")
OUTPUT = importlib.import_module("vggfeat.cli.output")
MIDDLE = (57, 57, 168, 168)
"""What a window of 224 says whose numbers are 0, 0, 0.5, 0.5, in inclusive pixels."""
CORNER = (1, 1, 112, 112)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def annotate(path, name, boxes, size=(224, 224)):
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>"
        f"<ymax>{box[3]}</ymax></bndbox></object>"
        for box in boxes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{sides}{objects}</annotation>")


def write_tree(root):
    """Seven classes, two validation images each: an object in the middle in the first, in the corner in the second.

    Of class b, the second image has both. The names of the files are in the reverse order of the classes.
    """
    for k, name in enumerate(CLASSES):
        for part, number in (("train", 0), ("val", 1), ("val", 2)):
            path = root / part / name / f"ILSVRC2012_val_{2 * (6 - k) + number:08d}.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (224, 224), (30 * k, 90 * number, 100)).save(path)
            boxes = [MIDDLE] if number == 1 else [CORNER, MIDDLE] if name == "b" else [CORNER]
            annotate(root / "Annotations" / part / name / f"{path.stem}.xml", name, boxes)
    return root


def save_constant(path, outputs, values, **facts):
    """Save a net that says the same of every window."""
    model = VGG("A", outputs, width=1 / 32)
    initialise(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.layers["fc8"].weight.zero_()
        model.layers["fc8"].bias.copy_(torch.tensor(values).flatten())
    save_weights(path, model, mean=(120, 110, 100), **facts)


def box_facts(kind, **more):
    told = {"kind": kind, "frame": "window", "window": 224, "scale": 224, "classes": list(CLASSES), "layers": "all"}
    return {"localisation": told | more}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("localise")
    write_tree(root / "set")
    middle = [0.0, 0.0, 0.5, 0.5]
    save_constant(root / "scr.safetensors", 4, middle, **box_facts("scr"))
    save_constant(root / "pcr.safetensors", 28, [middle] * 7, **box_facts("pcr"))
    # Best is g, worst is a: five guesses leave out a and b.
    save_constant(root / "cls.safetensors", 7, [float(k) for k in range(7)], classes=CLASSES)
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "set")


def evaluate(files, out, *more, boxes="pcr", data=None):
    words = ["localise", "evaluate", "--root", data or files / "set", "--boxes", files / f"{boxes}.safetensors"]
    words += ["--out", out, "--workers", 0, "--device", "cpu", "--quiet", *more]
    return run([str(word) for word in words])


def dense(files, out, *more, **given):
    return evaluate(files, out, "--classifier", files / "cls.safetensors", *more, **given)


def results(out):
    return json.loads((out / "results.json").read_text())


def errors(out):
    return results(out)["errors"]


@pytest.mark.parametrize("kind", ["scr", "pcr"])
def test_the_true_class_from_the_centre_crop(files, tmp_path, capsys, kind):
    assert evaluate(files, tmp_path, "--protocol", "gt", boxes=kind) == 0
    # The first image of each class is right, and the second of b, which has two objects.
    assert errors(tmp_path)["true_class_localisation"] == pytest.approx(6 / 14)
    assert "localisation" not in errors(tmp_path)
    assert not (tmp_path / "submission.txt").exists()
    out = capsys.readouterr().out
    assert "localisation error of the true class, from the centre crop: 42.9 % on 14 of 14 images" in out
    assert "VGG paper" not in out
    assert out.endswith(f"as a page: vggfeat report {tmp_path}\n")


def test_five_guesses_from_the_whole_image(files, tmp_path, capsys):
    assert dense(files, tmp_path) == 0
    found = errors(tmp_path)
    # a and b are never guessed; of the other five classes, each second image is wrong.
    assert found["localisation"] == pytest.approx((4 + 5) / 14)
    assert found["true_class_localisation"] == pytest.approx(6 / 14)
    # The first guess is g: right once.
    assert found["localisation_by_guesses"] == pytest.approx([(14 - k) / 14 for k in range(1, 6)])
    assert found["classification_by_guesses"] == pytest.approx([(14 - 2 * k) / 14 for k in range(1, 6)])
    out = capsys.readouterr().out
    assert "note: labels of submission.txt are places in the sorted list of classes" in out
    assert "top-5 localisation error: 64.3 % on 14 of 14 images" in out
    assert "classification error of the guesses, top-1 and top-5: 85.7 % and 28.6 % on all images" in out


@pytest.mark.parametrize("protocol", ["gt", "dense"])
def test_an_evaluation_is_repeated_by_its_results(files, tmp_path, protocol):
    rating = ["--classifier", files / "cls.safetensors"] if protocol == "dense" else []
    merging = ["--threshold", "0.5", "--merge", "count"] if protocol == "dense" else []
    assert evaluate(files, tmp_path / "a", "--protocol", protocol, "--scales", 240, *rating, *merging) == 0
    assert evaluate(files, tmp_path / "b", "--config", tmp_path / "a", *rating) == 0
    first, second = results(tmp_path / "a"), results(tmp_path / "b")
    assert second["settings"] == first["settings"]
    assert second["settings"]["scales"] == [[240]]
    assert second["errors"] == first["errors"]


def test_a_terminal_gets_the_worst_classes_and_the_file_all(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OUTPUT, "LONGEST_TABLE", 2)
    monkeypatch.setattr(OUTPUT, "terminal_width", lambda: 60)
    assert dense(files, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    # a and b are never guessed.
    assert [line.split()[0] for line in lines[:4]] == ["class", "a", "b", "the"]
    assert lines[3] == "the 2 classes of the highest error; table.txt has all 7"
    assert max(map(len, lines[:3])) <= 60
    assert [line[0] for line in (tmp_path / "table.txt").read_text().splitlines()[1:8]] == list(CLASSES)


def test_class_by_class(files, tmp_path):
    assert dense(files, tmp_path) == 0
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "classes.csv").read_text().splitlines())}
    assert list(rows) == list(CLASSES)
    told = {name: (row["localisation"], row["true_class"], row["classification"]) for name, row in rows.items()}
    assert told["a"] == ("1.0", "0.5", "1.0")
    assert told["b"] == ("1.0", "0.0", "1.0")
    assert told["c"] == told["g"] == ("0.5", "0.5", "0.0")
    assert [row["name"] for row in results(tmp_path)["classes"]] == list(CLASSES)


def test_the_submission_is_official_and_in_file_order(files, tmp_path, capsys):
    assert dense(files, tmp_path) == 0
    lines = (tmp_path / "submission.txt").read_text().splitlines()
    middle = " ".join(map(str, MIDDLE))
    assert lines == [" ".join(f"{number} {middle}" for number in (7, 6, 5, 4, 3))] * 14
    check = ["localise", "check", str(tmp_path / "submission.txt"), "--classes", "7"]
    assert run([*check, "--images", "14"]) == 0
    assert "14 lines, 70 guesses" in capsys.readouterr().out
    assert run([*check, "--images", "14", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guesses"] == 70
    assert run([*check, "--images", "15"]) == 4
    assert "expected 15 lines" in capsys.readouterr().err
    assert "no kit" in results(tmp_path)["numbers"]["source"]


@pytest.mark.parametrize("best", ["g", "a"])
@pytest.mark.parametrize("failed", [None, *CLASSES])
def test_the_submission_gives_the_same_errors_by_the_official_loops(files, tree, tmp_path, best, failed):
    """An image that failed is right nowhere, whichever class it has and the net likes best."""
    if failed:
        sorted((tree / "val" / failed).iterdir())[0].write_bytes(b"no image")
    liked = [float(k if best == "g" else -k) for k in range(7)]
    save_constant(tmp_path / "cls.safetensors", 7, liked, classes=CLASSES)
    words = ["--classifier", tmp_path / "cls.safetensors", "--allow-failed", 1]
    assert evaluate(files, tmp_path / "out", *words, data=tree) == 0
    placed = named = 0
    for number, line in enumerate((tmp_path / "out/submission.txt").read_text().splitlines(), start=1):
        true = 7 - (number - 1) // 2
        boxes = [MIDDLE] if number % 2 else [CORNER, MIDDLE] if true == 2 else [CORNER]
        fields = np.array(line.split(), dtype=int).reshape(-1, 5)
        placed += any(label == true and tuple(box) in boxes for label, *box in fields.tolist())
        named += true in fields[:, 0].tolist()
    found = errors(tmp_path / "out")
    assert found["localisation"] == pytest.approx(1 - placed / 14)
    assert found["classification_by_guesses"][4] == pytest.approx(1 - named / 14)


def test_the_blacklist_counts_for_classification_alone(files, tree, tmp_path):
    kit = tree / "ILSVRC2014_devkit/data"
    kit.mkdir(parents=True)
    # The second images of c to f, all of them wrong.
    (kit / "ILSVRC2014_clsloc_validation_blacklist.txt").write_text("4\n6\n8\n10\n")
    assert dense(files, tmp_path / "out", data=tree) == 0
    found = results(tmp_path / "out")
    assert (found["images"], found["counted"]) == (14, 10)
    assert found["errors"]["localisation"] == pytest.approx(5 / 10)
    assert found["errors"]["classification_by_guesses"][4] == pytest.approx(4 / 14)
    assert len((tmp_path / "out/submission.txt").read_text().splitlines()) == 14


def test_unreadable_images_are_named_and_count_as_wrong(files, tree, tmp_path, capsys):
    bad = sorted((tree / "val/g").iterdir())[0]
    bad.write_bytes(b"no image")
    assert dense(files, tmp_path / "out", data=tree) == 3
    assert f"failed: val/g/{bad.name}: unrecognised: " in capsys.readouterr().out
    assert errors(tmp_path / "out")["localisation"] == pytest.approx(10 / 14)
    assert results(tmp_path / "out")["failed"][0]["path"] == f"val/g/{bad.name}"
    assert (tmp_path / "out/submission.txt").read_text().splitlines()[0] == "0 0 0 0 0"
    assert dense(files, tmp_path / "out", "--allow-failed", 1, data=tree) == 0


def test_missing_annotations_are_one_line(files, tree, tmp_path, capsys):
    for path in (tree / "Annotations").rglob("*.xml"):
        path.unlink()
    assert dense(files, tmp_path / "out", data=tree) == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "annotations" in message


def test_images_larger_than_the_net_sees(files, tmp_path):
    """At 448 x 672, rescaled to 224 x 336, windows lie 64 pixels of the file apart and merge into one box."""
    root = tmp_path / "set"
    for part in ("train", "val"):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (672, 448)).save(root / part / name / f"{name}.PNG")
            annotate(root / "Annotations" / part / name / f"{name}.xml", name, [(177, 113, 400, 336)], (448, 672))
    assert dense(files, tmp_path / "out", "--threshold", 2.9, data=root) == 0
    # Windows at 0, 32, 64, 96: centres at 112 to 208 of 336, on average 160, that is 320 of 672; the side is 224.
    record = json.loads((tmp_path / "out/images.jsonl").read_text().splitlines()[1])
    np.testing.assert_allclose(record["boxes"][0], [320 - 112, 112, 320 + 112, 336], atol=0.05)
    assert record["windows"][0] == 4
    # The object has the same sides and lies 32 pixels to the left.
    assert errors(tmp_path / "out")["true_class_mean_overlap"] == pytest.approx((224 - 32) / (224 + 32))


def rows_with_mark(out):
    records = map(json.loads, (out / "images.jsonl").read_text().splitlines()[1:])
    return [record["row"] for record in records if "mark" in record]


RESULTS = ("images.jsonl", "results.json", "table.txt", "submission.txt", "classes.csv")


def marked(line):
    """Return a line of the journal with a mark, so that it is seen whether its row was computed again."""
    return sealed_line({**unsealed_line(line), "mark": 1})


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """A run in groups of four images."""
    out = tmp_path_factory.mktemp("whole")
    assert dense(files, out, "--group", 4) == 0
    return out


@pytest.mark.parametrize(
    ("kept", "resumed"),
    [
        # Killed while writing: a line of an unfinished group, and half a line.
        (lambda lines: [*lines[:10], lines[10][:30]], [*range(8)]),
        (lambda lines: lines[:1], []),
        # A line is missing: its group is of no use.
        (lambda lines: [*lines[:6], *lines[7:]], [*range(4), *range(8, 14)]),
        (lambda lines: lines, [*range(14)]),
    ],
)
def test_a_run_that_was_stopped_is_resumed_to_the_same_bytes(files, whole, tmp_path, kept, resumed):
    lines = (whole / "images.jsonl").read_bytes().splitlines(keepends=True)
    # What is kept is not computed again: it has a mark.
    (tmp_path / "images.jsonl").write_bytes(b"".join(kept([lines[0], *map(marked, lines[1:])])))
    assert dense(files, tmp_path, "--group", 4) == 0
    assert rows_with_mark(tmp_path) == resumed
    found = (tmp_path / "images.jsonl").read_bytes().splitlines(keepends=True)
    assert [line if b'"mark"' in line else marked(line) for line in found[1:]] == [*map(marked, lines[1:])]
    assert found[0] == lines[0]
    for name in RESULTS[1:]:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert not list(tmp_path.glob("*.lock")) + list(tmp_path.glob(".*"))


def test_failed_images_are_listed_and_tried_again_on_request(files, tree, whole, tmp_path, capsys):
    bad = sorted((tree / "val/b").iterdir())
    good = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(b"no image")
    out = tmp_path / "out"
    assert dense(files, out, "--group", 4, data=tree) == 3
    assert "failed: to try them again, give the same command with --retry-failed\n" in capsys.readouterr().out
    listed = [json.loads(line) for line in (out / "images.jsonl.failures.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"]) for line in listed] == [(path.stem, "unrecognised") for path in bad]
    for path, content in zip(bad, good, strict=True):
        path.write_bytes(content)
    assert dense(files, out, "--group", 4, data=tree) == 6
    assert "found others of image_sizes_sha256" in capsys.readouterr().err
    assert dense(files, out, "--group", 4, "--retry-failed", data=tree) == 0
    for name in RESULTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not list(out.glob("*.failures.jsonl"))


def test_images_that_have_changed_are_computed_again_with_a_retry(files, tree, tmp_path):
    out, changed = tmp_path / "out", sorted((tree / "val/e").iterdir())[0]
    assert dense(files, out, "--group", 4, data=tree) == 0
    head, *lines = (out / "images.jsonl").read_bytes().splitlines(keepends=True)
    (out / "images.jsonl").write_bytes(b"".join([head, *map(marked, lines)]))
    Image.new("RGB", (448, 448)).save(changed)
    assert dense(files, out, "--group", 4, "--retry-failed", data=tree) == 0
    # Images 8 to 11 are a group.
    assert rows_with_mark(out) == [*range(8), 12, 13]


def test_images_that_were_too_large_are_computed_with_a_higher_limit(files, tree, tmp_path, capsys):
    out, large = tmp_path / "out", sorted((tree / "val/e").iterdir())[0]
    Image.new("RGB", (448, 448)).save(large)
    assert dense(files, out, "--group", 4, "--max-pixels", 60_000, data=tree) == 3
    head, *lines = (out / "images.jsonl").read_bytes().splitlines(keepends=True)
    (out / "images.jsonl").write_bytes(b"".join([head, *map(marked, lines)]))
    retry = ("--retry-failed", "--max-pixels")
    assert dense(files, out, "--group", 4, *retry, 50_500, data=tree) == 6  # a lower one would refuse other images
    assert "found others of decode" in capsys.readouterr().err
    assert dense(files, out, "--group", 4, "--max-pixels", 300_000, data=tree) == 6
    assert dense(files, out, "--group", 4, *retry, 300_000, data=tree) == 0
    assert rows_with_mark(out) == [*range(8), 12, 13]
    assert dense(files, out, "--group", 4, "--max-pixels", 300_000, data=tree) == 0


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_the_same_files(files, whole, tmp_path, processes):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = ["--root", files / "set", "--boxes", files / "pcr.safetensors", "--classifier", files / "cls.safetensors"]
    words += ["--out", tmp_path, "--workers", 0, "--device", "cpu", "--quiet", "--group", 4]
    command = [*launch, "-m", "vggfeat", "localise", "evaluate", *map(str, words)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-5 localisation error") == 1
    for name in RESULTS:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_results_of_other_settings_are_not_mixed(files, tmp_path, capsys):
    assert dense(files, tmp_path) == 0
    assert dense(files, tmp_path, "--scales", 256) == 6
    message = capsys.readouterr().err
    assert "found others of scales; choose another --out, or give --overwrite" in message
    assert results(tmp_path)["settings"]["scales"] == [[224]]
    assert dense(files, tmp_path, "--scales", 256, "--overwrite") == 0
    assert results(tmp_path)["settings"]["scales"] == [[256]]
    # A renamed file of the same weights is the same net.
    other = tmp_path / "renamed.safetensors"
    other.write_bytes((files / "cls.safetensors").read_bytes())
    assert evaluate(files, tmp_path, "--classifier", other, "--scales", 256) == 0


def test_a_foreign_file_is_left_alone(files, tmp_path, capsys):
    (tmp_path / "images.jsonl").write_text("mine\n")
    assert dense(files, tmp_path) == 6
    assert "images.jsonl: expected a new file, found one there" in capsys.readouterr().err
    assert (tmp_path / "images.jsonl").read_text() == "mine\n"


def test_two_box_nets_and_their_scales(files, tmp_path):
    both = ["--boxes", files / "scr.safetensors"]
    assert dense(files, tmp_path / "same", *both, "--scales", "224,256") == 0
    assert results(tmp_path / "same")["settings"]["scales"] == [[224, 256], [224, 256]]
    assert dense(files, tmp_path / "each", *both, "--scales", 224, "--scales", 256, "--threshold", 2.9) == 0
    assert results(tmp_path / "each")["settings"]["scales"] == [[224], [256]]
    record = json.loads((tmp_path / "each/images.jsonl").read_text().splitlines()[1])
    assert set(record["windows"]) == {1 + 4}


def test_labels_of_another_system(files, tmp_path):
    posteriors = tmp_path / "p.h5"
    turned = tmp_path / "turned.safetensors"
    save_constant(turned, 7, [float(-k) for k in range(7)], classes=CLASSES)
    words = ["classify", "--weights", turned, "--root", files / "set", "--mode", "crop", "--scales", 224]
    words += ["--out", tmp_path / "classified", "--device", "cpu", "--workers", 0, "--quiet"]
    assert run([str(word) for word in words]) == 0
    (posteriors,) = (tmp_path / "classified").glob("*.h5")
    assert dense(files, tmp_path / "both", "--posteriors", posteriors) == 0
    # Now a to e are guessed, of which b has no wrong image.
    assert errors(tmp_path / "both")["localisation"] == pytest.approx((4 + 4) / 14)
    assert evaluate(files, tmp_path / "alone", "--posteriors", posteriors) == 0
    assert errors(tmp_path / "alone")["localisation"] == pytest.approx((4 + 4) / 14)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ([], 2, "--classifier: expected a classification net, or --posteriors"),
        (["--classifier", "pcr"], 2, "expected a classification net, found"),
        (["--classifier", "cls", "--boxes", "cls"], 5, "answers with boxes"),
        (["--classifier", "cls", "--scales", "224", "--scales", "256"], 2, "--scales: expected it once"),
        (["--protocol", "gt", "--classifier", "cls"], 2, "leave out --classifier"),
        (["--protocol", "gt", "--threshold", "0.1"], 2, "leave out --threshold and --merge"),
        (["--protocol", "gt", "--merge", "score"], 2, "leave out --threshold and --merge"),
        (["--protocol", "gt", "--boxes", "scr"], 2, "one box net for the centre crop, found 2"),
        (["--protocol", "gt", "--scales", "224,256"], 2, "expected one, for the centre crop"),
        (["--classifier", "cls", "--annotations", "nowhere"], 4, "nowhere"),
    ],
)
def test_what_does_not_go_together_is_one_line(files, tmp_path, capsys, more, code, words):
    names = {name: str(files / f"{name}.safetensors") for name in ("cls", "pcr", "scr")}
    assert evaluate(files, tmp_path, *(names.get(word, word) for word in more)) == code
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_other_classes_are_named(files, tmp_path, capsys):
    save_constant(tmp_path / "pcr.safetensors", 8, [[0.0] * 4] * 2, **box_facts("pcr", classes=["a", "x"]))
    save_constant(tmp_path / "cls.safetensors", 2, [0.0, 1.0], classes=("a", "x"))
    boxes = ["--boxes", tmp_path / "pcr.safetensors"]
    assert dense(files, tmp_path / "out", *boxes) == 2
    assert "without 'b'" in capsys.readouterr().err
    assert evaluate(files, tmp_path / "out", "--classifier", tmp_path / "cls.safetensors") == 2
    assert "expected the 7 classes of the data, found 2" in capsys.readouterr().err


def test_json_is_what_the_file_holds(files, tmp_path, capsys):
    assert dense(files, tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == results(tmp_path)


# --- predict


def predict(files, out, *images):
    words = ["localise", "predict", "--boxes", files / "pcr.safetensors", "--classifier", files / "cls.safetensors"]
    return run([str(word) for word in (*words, "--device", "cpu", "--quiet", "--out", out, *images)])


def test_boxes_are_drawn_and_told(files, tmp_path, capsys):
    images = tmp_path / "holiday"
    images.mkdir()
    Image.new("RGB", (448, 448), "white").save(images / "big.png")
    Image.new("L", (224, 224)).save(images / "grey.jpg")
    (images / "notes.txt").write_text("no image by its name")
    assert predict(files, tmp_path / "out", images, "--top", 2) == 0
    assert f"{tmp_path / 'out'}: 2 of 2 images" in capsys.readouterr().out
    told = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert [Path(one["path"]).name for one in told] == ["big.png", "grey.jpg"]
    assert [guess["class"] for guess in told[0]["guesses"]] == ["g", "f"]
    np.testing.assert_allclose(told[0]["guesses"][0]["box"], [112, 112, 336, 336], atol=0.05)
    # Soft-max of 0 to 6.
    assert told[0]["guesses"][0]["posterior"] == pytest.approx(np.exp(6) / np.exp(range(7)).sum(), abs=1e-5)
    with Image.open(tmp_path / "out" / told[0]["drawn"]) as drawn:
        assert drawn.size == (448, 448)
        assert len(drawn.convert("RGB").getcolors(1 << 20)) > 3
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").read_text().splitlines()))
    assert [(Path(row["path"]).name, row["class"]) for row in rows] == [
        (name, k) for name in ("big.png", "grey.jpg") for k in "gf"
    ]


def test_bad_images_are_named_and_the_others_go_on(files, tmp_path, capsys):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (224, 224)).save(good)
    bad.write_bytes(b"GIF8 or not")
    assert predict(files, tmp_path / "out", bad, tmp_path / "none.png", good) == 3
    captured = capsys.readouterr()
    assert f"failed: {bad}: " in captured.out
    assert f"failed: {tmp_path / 'none.png'}: missing" in captured.out
    assert "1 of 3 images" in captured.out
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["good.png.boxes.png"]
    told = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert [bool(one["failed"]) for one in told] == [True, True, False]
    assert predict(files, tmp_path / "out", "--allow-failed", 2, bad, tmp_path / "none.png", good) == 0


def test_images_of_one_name_do_not_overwrite_each_other(files, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (224, 224)).save(tmp_path / folder / "x.png")
    assert predict(files, tmp_path / "out", tmp_path / "a", tmp_path / "b") == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"x.png.boxes.png", "x.png-2.boxes.png"}


def test_an_empty_folder_is_refused(files, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (224, 224)).save(tmp_path / "x.png")
    assert predict(files, tmp_path / "out", tmp_path / "empty") == 2
    assert f"images: expected files, or folders of some, found none in {tmp_path}/empty;" in capsys.readouterr().err
    # One of several is told of, and the others are looked at.
    assert predict(files, tmp_path / "out", tmp_path / "empty", tmp_path / "x.png") == 0
    assert f"note: Folders without images, and ignored: {tmp_path}/empty." in capsys.readouterr().err
