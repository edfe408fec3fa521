"""The main job from image files to a feature file: resumption, refusals, bad images."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from folder_world import FolderWorld
from image_files import draw
from vggfeat import summary
from vggfeat.datasets.catalogue import open_dataset
from vggfeat.errors import ConfigError, StoreError
from vggfeat.extract import RunSettings, extract_features, run_job
from vggfeat.forward import rerun, settings
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.rerun import IMAGES, cosines
from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.store.failures import failures_path
from vggfeat.store.reader import FeatureFile
from vggfeat.store.writer import FeatureWriter
from vggfeat.weights import load_backbone, random_backbone, save_weights

NET = "random:A:0:0.03125"
SETTINGS = ExtractionSettings(scales=(224,))
RUN = RunSettings(workers=0, shard_rows=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(10):
        draw(folder / ("cat" if number % 2 else "dog") / f"{number}.png", number, (70 + number % 3, 60))
    return folder


@pytest.fixture
def backbone():
    return random_backbone(NET)


def test_every_row_is_the_feature_of_its_own_image(root, tmp_path, backbone):
    dataset = open_dataset("folder", root)
    summary = extract_features(dataset, backbone, tmp_path / "x.h5", SETTINGS, run=RUN)
    assert (summary.total, summary.resumed, summary.failures) == (10, 0, ())
    extraction = feature_runner(random_backbone(NET), SETTINGS)
    with h5py.File(tmp_path / "x.h5") as file:  # by a reader that knows nothing of vggfeat
        for row, name in enumerate(file["ids"][:]):
            image = decode(Request(str(root / name.decode()), (None,)), DecodeSettings())
            expected = extraction.rows([image])[0].features
            scale = np.abs(expected).max()
            np.testing.assert_allclose(file["features"][row], expected, rtol=1e-4, atol=1e-5 * scale)
            assert file["sha256"][row].tobytes() == image.sha256
            assert tuple(file["sizes"][row]) == image.size
            assert bytes(file["classes"][np.argmax(file["labels"][row])]).decode() == name.decode().split("/")[0]
    assert not (tmp_path / "x.h5.parts").exists()


def test_without_settings_a_data_set_gets_the_paper_s(root, tmp_path, backbone):
    five = ExtractionSettings.for_dataset("voc2012-action")
    assert (five.scales, five.regions) == ((256, 384, 512, 640, 768), ("image", "box"))
    assert ExtractionSettings.for_dataset("voc2007", scales=64, layer="pool5", regions=None) == ExtractionSettings(
        scales=(64,), layer="pool5"
    )
    dataset = replace(open_dataset("folder", root), name="caltech101")
    for name, chosen in ("x.h5", ()), ("y.h5", [ExtractionSettings(scales=(256, 384, 512))]):
        extract_features(dataset, backbone, tmp_path / name, *chosen, run=RunSettings(device="cpu", workers=0))
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_a_program_may_go_elsewhere_and_name_its_file_by_anything(root, tmp_path, backbone, monkeypatch):
    class Named:
        def __fspath__(self):
            return str(tmp_path / "x.h5")

    monkeypatch.chdir(root.parent)
    dataset = open_dataset("folder", root.name)
    monkeypatch.chdir(tmp_path)
    assert dataset.root == str(root)
    summary = extract_features(dataset, backbone, Named(), SETTINGS, run=RUN)
    assert (summary.path, summary.failures) == (tmp_path / "x.h5", ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.h5"]


def test_the_file_says_how_it_was_made(root, tmp_path, backbone):
    extract_features(open_dataset("folder", root), backbone, tmp_path / "x.h5", SETTINGS, run=RUN)
    with FeatureFile(tmp_path / "x.h5") as file:
        told = file.provenance
    assert told["weights"] == NET
    assert told["weights_sha256"] == backbone.sha256
    assert (told["net"], told["layer"], told["scales"], told["precision"]) == ("A", "fc7", [224], "fp32")
    assert (told["interpolation"], told["machine"]["device"], told["trained"]) == ("bilinear", "cpu", False)
    assert set(told["versions"]) == {"vggfeat", "torch", "pillow", "numpy"}
    assert str(root) not in json.dumps(told)


def test_a_second_run_finds_everything_done(root, tmp_path, backbone):
    dataset = open_dataset("folder", root)
    extract_features(dataset, backbone, tmp_path / "x.h5", SETTINGS, run=RUN)
    before = (tmp_path / "x.h5").stat()
    summary = extract_features(dataset, random_backbone(NET), tmp_path / "x.h5", SETTINGS, run=RUN)
    assert summary.resumed == 10
    assert (tmp_path / "x.h5").stat().st_mtime_ns == before.st_mtime_ns


class Stop(Exception):  # noqa: N818
    pass


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(root, tmp_path, backbone):
    dataset = open_dataset("folder", root)
    extract_features(dataset, backbone, tmp_path / "whole.h5", SETTINGS, run=RUN)

    def stop(done, total, failed):
        if done >= 6:
            raise Stop

    with pytest.raises(Stop):
        extract_features(dataset, random_backbone(NET), tmp_path / "x.h5", SETTINGS, run=RUN, progress=stop)
    assert not (tmp_path / "x.h5").exists()
    seen = []
    summary = extract_features(
        dataset, random_backbone(NET), tmp_path / "x.h5", SETTINGS, run=RUN, progress=lambda *now: seen.append(now)
    )
    assert summary.resumed == 4
    assert seen[0][:2] == (4, 10)
    assert seen[-1][:2] == (10, 10)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_another_engine_is_another_world(root, tmp_path, backbone):
    dataset, folder = open_dataset("folder", root), tmp_path / "exchange"
    folder.mkdir()
    worlds = [FolderWorld(rank=rank, size=3, folder=folder) for rank in range(3)]
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(extract_features, dataset, backbone, tmp_path / "x.h5", SETTINGS, run=RUN, world=world)
            for world in worlds
        ]
        assert {run.result().total for run in runs} == {10}
    extract_features(dataset, backbone, tmp_path / "alone.h5", SETTINGS, run=RUN)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "alone.h5").read_bytes()


def test_workers_change_no_byte(root, tmp_path, backbone):
    dataset = open_dataset("folder", root)
    for workers in (0, 2):
        cache = replace(RUN, workers=workers)
        extract_features(dataset, random_backbone(NET), tmp_path / f"{workers}.h5", SETTINGS, run=cache)
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("weights", {"net": "random:A:1:0.03125"}),
        ("scales", {"settings": replace(SETTINGS, scales=(230,))}),
        ("layer", {"settings": replace(SETTINGS, layer="fc6")}),
        ("precision", {"settings": replace(SETTINGS, precision="bf16")}),
        ("interpolation", {"settings": replace(SETTINGS, interpolation="bicubic")}),
        ("batch_pixels", {"settings": replace(SETTINGS, batch_pixels=1 << 19)}),
        ("window_bytes", {"settings": replace(SETTINGS, window_bytes=1 << 20)}),
        ("allow_truncated", {"decode": DecodeSettings(allow_truncated=True)}),
        ("max_pixels", {"decode": DecodeSettings(max_pixels=10**7)}),
        ("torch", {"versions": "9.9"}),
        ("image_sizes", {"grow": True}),
        ("shard_rows", {"cache": replace(RUN, shard_rows=3)}),
        ("threads", {"threads": 1}),
    ],
)
def test_other_settings_are_refused_and_the_difference_is_named(tmp_path, monkeypatch, what, changed):
    for number in range(5):
        draw(tmp_path / "in" / "a" / f"{number}.png", number)

    def stop(done, total, failed):
        if done >= 4:
            raise Stop

    dataset = open_dataset("folder", tmp_path / "in")
    with pytest.raises(Stop):
        extract_features(dataset, random_backbone(NET), tmp_path / "x.h5", SETTINGS, run=RUN, progress=stop)
    before = {path.name: path.read_bytes() for path in (tmp_path / "x.h5.parts").iterdir()}
    if changed.get("grow"):
        draw(tmp_path / "in" / "a" / "4.png", 4, (99, 60))
    if "versions" in changed:
        monkeypatch.setattr(settings, "library_version", lambda name: changed["versions"])
    if "threads" in changed:
        monkeypatch.setattr(settings.torch, "get_num_threads", lambda: 99)
    with pytest.raises(StoreError, match=what):
        extract_features(
            dataset,
            random_backbone(changed.get("net", NET)),
            tmp_path / "x.h5",
            changed.get("settings", SETTINGS),
            run=changed.get("cache", RUN),
            decode=changed.get("decode", DecodeSettings()),
        )
    after = {path.name: path.read_bytes() for path in (tmp_path / "x.h5.parts").iterdir()}
    assert {k: v for k, v in after.items() if k != "LOCK"} == {k: v for k, v in before.items() if k != "LOCK"}


def test_what_changes_no_value_is_no_obstacle(root, tmp_path, backbone):
    model = backbone.model
    for name in ("one", "other"):
        save_weights(tmp_path / f"{name}.safetensors", model, mean=backbone.mean)
    dataset = open_dataset("folder", root)
    extract_features(dataset, load_backbone(tmp_path / "one.safetensors"), tmp_path / "x.h5", SETTINGS, run=RUN)
    renamed = load_backbone(tmp_path / "other.safetensors")
    patient = DecodeSettings(timeout=99, memory=1 << 40)
    summary = extract_features(dataset, renamed, tmp_path / "x.h5", SETTINGS, run=RUN, decode=patient)
    assert summary.resumed == 10


def test_overwrite_replaces_a_file_of_other_settings(root, tmp_path, backbone):
    dataset = open_dataset("folder", root)
    extract_features(dataset, backbone, tmp_path / "x.h5", SETTINGS, run=RUN)
    other = replace(SETTINGS, layer="fc6")
    with pytest.raises(StoreError, match="layer"):
        extract_features(dataset, random_backbone(NET), tmp_path / "x.h5", other, run=RUN)
    extract_features(dataset, random_backbone(NET), tmp_path / "x.h5", other, run=replace(RUN, overwrite=True))
    with FeatureFile(tmp_path / "x.h5") as file:
        assert file.provenance["layer"] == "fc6"


@pytest.mark.parametrize("again", [RUN, replace(RUN, overwrite=True), replace(RUN, retry_failed=True)])
def test_a_finished_file_is_compared_with_its_checksums_once(root, tmp_path, backbone, monkeypatch, again):
    dataset = open_dataset("folder", root)
    extract_features(dataset, backbone, tmp_path / "x.h5", SETTINGS, run=RUN)
    checked, check = [], FeatureFile.check
    monkeypatch.setattr(FeatureFile, "check", lambda file: checked.append(file.path) or check(file))
    found = extract_features(dataset, backbone, tmp_path / "x.h5", SETTINGS, run=again)
    assert (found.resumed, checked) == (10, [tmp_path / "x.h5"])


@pytest.fixture
def with_bad_images(tmp_path) -> Path:
    folder = tmp_path / "in" / "a"
    for number in range(6):
        draw(folder / f"{number}.png", number)
    whole = (folder / "0.png").read_bytes()
    (folder / "b-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "c-empty.jpg").write_bytes(b"")
    (folder / "d-text.jpg").write_text("no image")
    (folder / "e-wrong-suffix.jpg").write_bytes(whole)
    os.mkfifo(folder / "f-fifo.png")
    (folder / "g-loop.png").symlink_to(folder / "g-loop.png")
    (folder / "h-gone.png").symlink_to(folder / "nowhere.png")
    Image.new("RGB", (1, 9), "red").save(folder / "i-thin.png")
    Image.new("1", (1, 65000)).save(folder / "j-thread.png")
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(folder / "k-cmyk.jpg")
    Image.fromarray(np.full((40, 40), 40000, dtype=np.uint16)).save(folder / "l-deep.png")
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(folder / "m-clear.png")
    (folder / "n-folder.png").mkdir()
    (folder / "o  two spaces.png").touch()
    return tmp_path / "in"


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_stop_nothing_shift_nothing_and_are_named(with_bad_images, tmp_path, workers):
    dataset = open_dataset("folder", with_bad_images)
    summary = extract_features(
        dataset, random_backbone(NET), tmp_path / "x.h5", SETTINGS, run=replace(RUN, workers=workers)
    )
    reasons = {name.split("/")[1]: reason.partition(":")[0] for name, reason in summary.failures}
    assert reasons == {
        "b-truncated.png": "truncated",
        "c-empty.jpg": "empty",
        "d-text.jpg": "unrecognised",
        "f-fifo.png": "not-a-file",
        "g-loop.png": "link-loop",
        "h-gone.png": "missing",
        "j-thread.png": "elongated",
        "o  two spaces.png": "empty",
        **({"n-folder.png": "not-a-file"} if "a/n-folder.png" in dataset.ids else {}),
    }
    assert not any(str(tmp_path) in reason for _, reason in summary.failures)
    assert any("enlarged more than eightfold" in note for note in summary.notes)
    extraction = feature_runner(random_backbone(NET), SETTINGS)
    with FeatureFile(tmp_path / "x.h5") as file:
        for name in ("a/5.png", "a/e-wrong-suffix.jpg", "a/m-clear.png"):
            row = file.dataset.ids.index(name)
            image = decode(Request(str(with_bad_images / name), (None,)), DecodeSettings())
            expected = extraction.rows([image])[0].features
            np.testing.assert_allclose(file.read([row])[0], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        same = [file.read([file.dataset.ids.index(name)])[0] for name in ("a/0.png", "a/e-wrong-suffix.jpg")]
        np.testing.assert_allclose(*same, rtol=1e-4, atol=1e-4)


def test_only_enlarging_more_than_eightfold_is_worth_a_note(tmp_path, backbone):
    draw(tmp_path / "in" / "a" / "0.png", 0, (40, 29))  # 224 / 29 = 7.7
    draw(tmp_path / "in" / "a" / "1.png", 1, (40, 27))  # 224 / 27 = 8.3
    dataset = open_dataset("folder", tmp_path / "in")
    assert extract_features(dataset, backbone, tmp_path / "x.h5", SETTINGS, run=RUN).enlarged == 1


@pytest.mark.parametrize(
    ("regions", "expected"), [(("image",), 1), (("box",), 2), (("image", "box"), 2)], ids=["image", "box", "both"]
)
def test_a_box_is_enlarged_as_much_as_it_is_small(regions, expected, tmp_path, backbone):
    for name, size in (("0", (40, 27)), ("1", (70, 60)), ("2", (70, 60)), ("3", (70, 60)), ("4", (70, 60))):
        draw(tmp_path / "in" / "a" / f"{name}.png", int(name), size)
    dataset = open_dataset("folder", tmp_path / "in")
    # Clipped to 40 x 27, exactly wide enough, clipped to 30 x 28, clipped to 10 x 10, without an area.
    boxes = [[-9, 0, 41, 28], [0, 0, 28, 60], [40, 3, 900, 30.5], [60, 50, 90, 90], [8, 8, 8, 9]]
    with_boxes = replace(dataset, boxes=np.array(boxes, dtype=float))
    settings = replace(SETTINGS, regions=regions)
    summary = extract_features(with_boxes, backbone, tmp_path / "x.h5", settings, run=RUN)
    assert (summary.enlarged, len(summary.failures)) == (expected, int("box" in regions))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_official_boxes_turn_with_their_image(orientation, tmp_path, backbone):
    """VOC's boxes are of stored pixels: EXIF makes no difference to what is in them but the way it stands."""
    box = (150, 4, 198, 44)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 200, 3), dtype=np.uint8)
    exif, folder = Image.Exif(), tmp_path / "in" / "a"
    exif[0x0112] = orientation
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "1.png", exif=exif)
    cut = Image.fromarray(pixels).crop(box)
    cut.save(folder / "2.png", exif=exif)
    dataset = replace(
        open_dataset("folder", tmp_path / "in"), name="voc2012-action", boxes=np.array([box, (0, 0, 48, 40)], float)
    )
    settings = replace(SETTINGS, regions=("box",))
    summary = extract_features(dataset, backbone, tmp_path / "x.h5", settings, run=RUN)
    assert summary.failures == ()
    with FeatureFile(tmp_path / "x.h5") as file:
        whole, alone = file.read(np.arange(2))
    np.testing.assert_allclose(whole, alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())


def test_boxes_must_be_there_when_they_are_asked_for(root, tmp_path, backbone):
    settings = replace(SETTINGS, regions=("image", "box"))
    with pytest.raises(ConfigError, match="expected a box"):
        extract_features(open_dataset("folder", root), backbone, tmp_path / "x.h5", settings, run=RUN)
    assert not (tmp_path / "x.h5").exists()


def kill_runs(root: Path, out: Path, kills: int) -> dict:
    command = [
        sys.executable,
        str(Path(__file__).parent / "support" / "kill_runs.py"),
        str(kills),
        "0",
        "--",
        "extract",
    ]
    command += ["--dataset", "folder", "--root", str(root), "--weights", NET, "--scales", "224"]
    command += ["--workers", "1", "--shard-rows", "3", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check_kills(report: dict, kills: int) -> None:
    assert report["killed"] == kills
    assert (report["first"], report["last"]) == (0, 0)
    assert report["lost_shards"] == 0
    assert report["equal"]
    assert report["left"] == ["whole.h5", "x.h5"]


def test_kills_at_random_moments_lose_nothing(root, tmp_path):
    check_kills(kill_runs(root, tmp_path / "x.h5", 4), 4)


@pytest.mark.long
def test_two_hundred_kills_at_random_moments_lose_nothing(root, tmp_path):
    check_kills(kill_runs(root, tmp_path / "x.h5", 200), 200)


# Shards launched before the rows of the one before are fetched, as on a GPU.


@pytest.fixture
def ahead(monkeypatch):
    monkeypatch.setattr("vggfeat.forward.shards.shards_ahead", lambda device: 1)


def test_launching_ahead_changes_no_byte(root, tmp_path, ahead, monkeypatch):
    dataset = open_dataset("folder", root)
    events, seen = [], []
    launch, commit = BatchRunner.launch, FeatureWriter.append
    monkeypatch.setattr(BatchRunner, "launch", lambda *given: events.append("launch") or launch(*given))
    monkeypatch.setattr(FeatureWriter, "append", lambda *given: events.append("commit") or commit(*given))
    extract_features(
        dataset, random_backbone(NET), tmp_path / "x.h5", SETTINGS, run=RUN, progress=lambda *now: seen.append(now)
    )
    assert events == ["launch", *["launch", "commit"] * 2, "commit"]
    monkeypatch.undo()
    extract_features(dataset, random_backbone(NET), tmp_path / "whole.h5", SETTINGS, run=RUN)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    done = [now[0] for now in seen]
    assert done == sorted(done)
    assert done[-1] == 10


def test_a_disk_that_fails_when_more_is_launched_ends_the_run_and_keeps_what_was_written(
    root, tmp_path, ahead, monkeypatch
):
    dataset = open_dataset("folder", root)
    commit = FeatureWriter.append

    def fail(parts, shard, block):
        if shard == 1:
            raise StoreError("the disk is full")
        commit(parts, shard, block)

    monkeypatch.setattr(FeatureWriter, "append", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        extract_features(dataset, random_backbone(NET), tmp_path / "x.h5", SETTINGS, run=RUN)
    assert [path.name for path in (tmp_path / "x.h5.parts").glob("s*.h5")] == ["s00000.h5"]
    assert not (tmp_path / "x.h5").exists()


# The precision contract


def compared(out):
    with FeatureFile(out) as file:
        return file.provenance.get("float32_cosine")


def test_a_faster_precision_is_compared_with_float32_and_the_file_says_so(root, tmp_path):
    dataset, out = open_dataset("folder", root), tmp_path / "x.h5"
    settings = replace(SETTINGS, precision="bf16")
    done = extract_features(dataset, random_backbone(NET), out, settings, run=RUN)
    found = compared(out)
    assert found["images"] == IMAGES
    rows = [0, 3, 6, 9]
    extract_features(dataset, random_backbone(NET), tmp_path / "exact.h5", SETTINGS, run=RUN)
    with FeatureFile(out) as half, FeatureFile(tmp_path / "exact.h5") as exact:
        # Alone in a batch, an image gets other last bits.
        assert found["least"] == pytest.approx(cosines(half.features[rows], exact.features[rows]).min(), abs=1e-6)
    assert 0.999 < found["least"] < 1
    assert done.notes[-1].endswith(f"the least cosine of a vector of 4 images is {found['least']:.6f}")
    assert extract_features(dataset, random_backbone(NET), out, settings, run=RUN).notes == done.notes
    assert compared(tmp_path / "exact.h5") is None


def test_a_net_that_does_not_stand_half_precision_is_named(root, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "LEAST_COSINE", 1.1)
    settings = replace(SETTINGS, precision="bf16")
    done = extract_features(open_dataset("folder", root), random_backbone(NET), tmp_path / "x.h5", settings, run=RUN)
    assert done.notes[-1].endswith("below 1.1: with this net take --precision fp32")


def test_where_every_image_fails_nothing_is_compared(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    settings = replace(SETTINGS, precision="bf16")
    done = extract_features(
        open_dataset("folder", tmp_path / "in"), random_backbone(NET), tmp_path / "x.h5", settings, run=RUN
    )
    assert compared(tmp_path / "x.h5") == {"least": None, "images": 0}
    assert done.notes[-1].endswith("so nothing is known of the difference")


def test_no_memory_for_a_second_net_costs_the_comparison_alone(root, tmp_path, monkeypatch):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(rerun, "cosine_to_float32", refuse)
    settings = replace(SETTINGS, precision="bf16")
    done = extract_features(open_dataset("folder", root), random_backbone(NET), tmp_path / "x.h5", settings, run=RUN)
    assert done.failures == ()
    assert compared(tmp_path / "x.h5") == {"least": None, "images": 0}


def test_a_file_that_can_not_be_replaced_keeps_its_list_of_failures(tmp_path, monkeypatch):
    draw(tmp_path / "in" / "a.png", 1)
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    out, net = tmp_path / "x.h5", random_backbone(NET)
    extract_features(open_dataset("folder", tmp_path / "in"), net, out, SETTINGS, run=RUN)
    told = failures_path(out).read_text()
    assert '"reason": "unrecognised"' in told
    draw(tmp_path / "in" / "b.png", 2)
    monkeypatch.setattr(FeatureWriter, "finish", lambda *_, **__: (_ for _ in ()).throw(StoreError("the disk is full")))
    other, cache = replace(SETTINGS, scales=(240,)), replace(RUN, overwrite=True)
    with pytest.raises(StoreError, match="full"):
        extract_features(open_dataset("folder", tmp_path / "in"), net, out, other, run=cache)
    assert failures_path(out).read_text() == told
    monkeypatch.undo()
    extract_features(open_dataset("folder", tmp_path / "in"), net, out, other, run=cache)
    assert not failures_path(out).exists()


def test_failed_images_are_tried_again_with_a_larger_limit_on_pixels_and_no_smaller_one(tmp_path, backbone):
    for number in range(5):
        draw(tmp_path / "in" / "a" / f"{number}.png", number, (90, 90) if number == 3 else (70, 60))
    dataset, out, again = open_dataset("folder", tmp_path / "in"), tmp_path / "x.h5", replace(RUN, retry_failed=True)
    first = extract_features(dataset, backbone, out, SETTINGS, run=RUN, decode=DecodeSettings(max_pixels=5000))
    assert len(first.failures) == 1
    assert "raise --max-pixels" in first.failures[0][1]
    with pytest.raises(StoreError, match="max_pixels"):
        extract_features(dataset, backbone, out, SETTINGS, run=again, decode=DecodeSettings(max_pixels=4000))
    with pytest.raises(StoreError, match="max_pixels"):
        extract_features(dataset, backbone, out, SETTINGS, run=RUN, decode=DecodeSettings(max_pixels=9000))
    mended = extract_features(dataset, backbone, out, SETTINGS, run=again, decode=DecodeSettings(max_pixels=9000))
    assert mended.failures == ()
    whole = tmp_path / "whole.h5"
    extract_features(dataset, backbone, whole, SETTINGS, run=RUN, decode=DecodeSettings(max_pixels=9000))
    assert out.read_bytes() == whole.read_bytes()


def test_a_name_that_leaves_no_room_for_the_list_of_failures_is_refused_before_the_work(tmp_path):
    def nothing(_):
        raise AssertionError("work")

    job = type("Job", (), {"__getattr__": nothing})()
    with pytest.raises(StoreError, match="expected a name of at most 180 bytes"):
        run_job(job, tmp_path / f"{'x' * 242}.h5", run=RunSettings(), decode=DecodeSettings())
    assert list(tmp_path.iterdir()) == []


def test_a_summary_comes_back_from_json_as_it_was(tmp_path):
    path = tmp_path / "x.h5"
    for failures in ((), (("a\udc80", "empty"), ("b", "damaged"))):
        one = summary.Summary(
            path=path, total=9, resumed=2, failures=failures, seconds=1.5, halvings=1, enlarged=3, notes=("n",),
            failures_file=failures_path(path) if failures else None,
        )  # fmt: skip
        assert summary.Summary.from_json(json.loads(json.dumps(one.to_json()))) == one
