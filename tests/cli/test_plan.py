"""`plan`, `extract --plan`, `inspect RUN`, `merge`, and the commands that take a run where they take a feature file."""

import errno
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from vggfeat import FeatureDataset, load_features
from vggfeat.cli import run
from vggfeat.cli.extract import EngineOptions
from vggfeat.engines import ENGINES, EngineEntry
from vggfeat.engines.engine import ShardTask
from vggfeat.errors import ConfigError
from vggfeat.runtime import durable
from vggfeat.runtime.storage import open_storage
from vggfeat.store.plan import read_plan
from vggfeat.store.reader import FeatureFile
from vggfeat.weights import random_backbone, save_weights

QUIET = ("--device", "cpu", "--workers", "0", "--quiet")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(16):
        cls, split = ("cat", "dog")[number % 2], ("train", "test")[number // 8]
        path = folder / "photos" / split / cls / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (60, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    net = random_backbone("random:A:0:0.03125")
    save_weights(folder / "net.safetensors", net.model, mean=net.mean, std=net.std)
    return folder


@pytest.fixture
def net(inputs):
    return str(inputs / "net.safetensors")


def plan(inputs, out, *more):
    where = ["--root", str(inputs / "photos"), "--weights", str(inputs / "net.safetensors"), "--out", str(out)]
    words = ["plan", "--dataset", "folder", *where, "--scales", "224,240", "--shard-rows", "3", "--quiet", *more]
    return run(words)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert plan(inputs, out) == 0
    assert run(["extract", "--plan", str(out), "--weights", str(inputs / "net.safetensors"), *QUIET]) == 0
    return out


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_a_run_is_planned_shared_shown_and_merged(inputs, net, tmp_path, capsys):
    out = tmp_path / "run"
    assert plan(inputs, out, "--json") == 0
    assert told(capsys) == {"run": str(out), "images": 16, "shards": 6, "new": 16}
    assert run(["extract", "--plan", str(out), "--take", "2/4", "--weights", net, *QUIET, "--json"]) == 0
    found = told(capsys)
    assert (found["share"], found["shards"], found["computed"], found["images"]) == ("2/4", 2, 2, 4)
    assert run(["inspect", str(out), "--json"]) == 0
    found = told(capsys)
    assert (found["done"], found["finished"], found["root"]) == (4, 2, None)
    assert found["missing_shards"] == [f"features/000/part-00000{shard}.parquet" for shard in (0, 2, 3, 4)]
    assert run(["merge", str(out), "--out", str(tmp_path / "m.h5"), "--quiet"]) == 6
    assert "expected all 6 shards, found 4 missing" in capsys.readouterr().err
    assert run(["svm", str(out)]) == 6
    assert f"finish the run: vggfeat extract --plan {out}" in capsys.readouterr().err
    assert run(["extract", "--plan", str(out), "--weights", net, *QUIET]) == 0
    assert capsys.readouterr().out == f"{out}: 4 of 6 shards computed, 2 done before\n"
    assert run(["inspect", str(out)]) == 0
    assert "sound: every checksum fits" in capsys.readouterr().out
    assert run(["merge", str(out), "--out", str(tmp_path / "m.h5"), "--quiet"]) == 0
    one = ["extract", "--dataset", "folder", "--root", str(inputs / "photos"), "--weights", net, "--scales", "224,240",
           "--shard-rows", "3", "--out", str(tmp_path / "one.h5"), *QUIET]  # fmt: skip
    assert run(one) == 0
    assert (tmp_path / "m.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


def test_what_is_finished_needs_no_net(finished, capsys):
    assert run(["extract", "--plan", str(finished), *QUIET]) == 0
    assert "0 of 6 shards computed, 6 done before" in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    ["svm", "--json"], ["export", "--to", "npz", "--json"], ["probe", "--json"],
    ["similar", "--query", "train/cat/0.png", "--json"],
])  # fmt: skip
def test_commands_say_of_a_run_what_they_say_of_its_file(words, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["merge", str(finished), "--out", "run.h5", "--quiet"]) == 0
    capsys.readouterr()
    found = []
    for name in ("run.h5", str(finished)):
        command, *options = words
        out = [] if command in ("similar", "probe") else ["--out", f"out-{len(found)}"]
        assert run([command, name, *options, *out]) == 0, capsys.readouterr().err
        found.append(capsys.readouterr().out.replace("out-1", "out-0").replace(str(finished), "run.h5"))
    values = [json.loads(text) for text in found]
    for one in values:
        for key in ("seconds", "timings", "settings", "times"):
            one.pop(key, None)
    assert values[0].keys() == values[1].keys()
    assert values[0].get("nearest") == values[1].get("nearest")
    if words[0] == "export":
        with np.load("out-0") as one, np.load("out-1") as other:
            assert all((one[name] == other[name]).all() for name in one.files)


def test_a_run_and_its_images_are_found_by_their_address_on_this_machine(inputs, net, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    out, photos = f"file://{tmp_path}/run", f"file://{inputs}/photos"
    words = ["--dataset", "folder", "--root", photos, "--weights", net, "--scales", "224", "--quiet"]
    assert run(["plan", *words, "--out", out]) == 0
    assert run(["extract", "--plan", out, "--weights", net, "--root", photos, *QUIET]) == 0
    assert run(["extract", *words, "--device", "cpu", "--workers", "0", "--out", f"file://{tmp_path}/x.h5"]) == 0
    for features in (out, f"file://{tmp_path}/x.h5"):
        assert run(["inspect", features]) == 0
        assert run(["export", features, "--to", "npz", "--out", f"file://{tmp_path}/x.npz", "--overwrite"]) == 0
        assert run(["svm", features, "--out", f"file://{tmp_path}/x.svm", "--quiet"]) == 0
        assert len(load_features(features).ids) == len(FeatureDataset(features)) == 16
    assert run(["data", "check", "folder", "--root", photos]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "run", "x.h5", "x.npz", "x.svm"]
    assert not list((tmp_path / "here").iterdir())


def test_the_command_that_is_named_as_the_next_one_works(inputs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run of today"
    assert plan(inputs, out) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: vggfeat "))
    assert words[:3] == ["extract", "--plan", str(out)]
    assert run([*words, *QUIET]) == 0
    assert run(["plan", "--extend", str(out), "--quiet"]) == 0  # which is not told where the net is
    assert capsys.readouterr().out.endswith("--weights FOLDER/net.safetensors\n")
    monkeypatch.chdir(inputs)  # where the net is, by the name that it had
    where = ["--root", "photos", "--weights", "net.safetensors", "--out", str(tmp_path / "other")]
    assert run(["plan", "--dataset", "folder", *where, "--scales", "224", "--quiet"]) == 0
    assert capsys.readouterr().out.endswith(f"next: vggfeat extract --plan {tmp_path / 'other'}\n")


def test_a_plan_says_how_many_images_it_has_found_so_far(inputs, tmp_path, capsys):
    words = [
        "--root",
        str(inputs / "photos"),
        "--weights",
        str(inputs / "net.safetensors"),
        "--out",
        str(tmp_path / "run"),
    ]
    assert run(["plan", "--dataset", "folder", *words, "--scales", "224"]) == 0
    assert "plan folder: 16 images" in capsys.readouterr().err


def test_the_settings_of_a_run_are_taken_by_config(inputs, finished, net, tmp_path):
    words = ["--root", str(inputs / "photos"), "--weights", net, "--out", str(tmp_path / "again.h5")]
    assert run(["extract", "--config", str(finished), *words, *QUIET]) == 0
    with FeatureFile(tmp_path / "again.h5") as file:
        assert file.scales == (224, 240)


def test_what_the_plan_has_decided_is_not_asked_again(finished, net, capsys):
    for option in (["--scales", "256"], ["--dataset", "folder"], ["--precision", "bf16"], ["--out", "x.h5"],
                   ["--max-pixels", "9"], ["--layer", "fc6"]):  # fmt: skip
        assert run(["extract", "--plan", str(finished), "--weights", net, *option, *QUIET]) == 2
        assert f"{option[0]}: the plan has decided it; leave it out" in capsys.readouterr().err

    for option, said in (("--extend", "a run is extended by `vggfeat plan --extend RUN`"),
                         ("--overwrite", "finished shards of a run stay as they are")):  # fmt: skip
        assert run(["extract", "--plan", str(finished), "--weights", net, option, *QUIET]) == 2
        assert f"{option}: {said}; leave it out" in capsys.readouterr().err


def test_shards_that_are_computed_again_are_not_counted_as_done_before_as_well(inputs, net, tmp_path, capsys):
    photos, out = tmp_path / "photos", str(tmp_path / "run")
    photos.mkdir()
    for number in range(6):
        (photos / f"{number}.png").write_bytes((inputs / "photos" / "train" / "cat" / "0.png").read_bytes())
    (photos / "4.png").write_bytes(b"")
    words = ["--root", str(photos), "--weights", net, "--quiet"]
    assert run(["plan", "--dataset", "folder", *words, "--scales", "224", "--shard-rows", "2", "--out", out]) == 0
    compute = ["extract", "--plan", out, "--weights", net, *QUIET]
    assert run(compute) == 3
    capsys.readouterr()
    assert run([*compute, "--retry-failed"]) == 3
    assert "1 of 3 shards computed again, 2 done before, 1 image failed (1 empty)" in capsys.readouterr().out
    assert run([*compute, "--retry-failed", "--json"]) == 3
    found = told(capsys)
    assert (found["shards"], found["computed"], found["before"]) == (3, 1, 2)
    (tmp_path / "run" / "features" / "000" / "part-000000.parquet").unlink()
    assert run([*compute, "--retry-failed"]) == 3
    assert "2 of 3 shards computed (1 of them again), 1 done before" in capsys.readouterr().out


def test_shards_of_another_plan_do_not_count_as_finished_where_one_is_planned_anew(
    inputs, finished, tmp_path, capsys
):  # fmt: skip
    run_folder = tmp_path / "run"
    shutil.copytree(finished, run_folder)
    (run_folder / "plan.json").unlink()
    assert plan(inputs, run_folder, "--interpolation", "bicubic") == 6
    said = capsys.readouterr().err
    assert "expected no shards but those of this plan, found others that an earlier run has left" in said
    assert "part-000000.parquet: expected plan " in said
    assert not (run_folder / "plan.json").exists()
    assert plan(inputs, run_folder) == 0
    assert run(["inspect", str(run_folder)]) == 0  # the shards of the same plan are as good as before


@pytest.mark.parametrize(("words", "message"), [
    (["extract", "--quiet"], "--dataset NAME, or --plan RUN: expected one of them, found none"),
    (["extract", "--dataset", "folder", "--take", "1/2"], "--take: expected --plan RUN with it"),
    (["extract", "--plan", "none"], "plan.json: expected a plan, found none; make one: vggfeat plan --out"),
    (["extract", "--plan", "none", "--take", "3/2"], "expected a number from 1 to a count, such as 17/1000"),
    (["extract", "--dataset", "folder", "--attempts", "2"], "--attempts: expected --plan RUN with it"),
    (["extract", "--dataset", "folder", "--allow-private"], "--allow-private: expected --plan RUN with it"),
    (["extract", "--plan", "a.h5"], "a.h5: expected the folder of a run that `vggfeat plan` has made, found a file"),
    (["merge", "a.h5", "--out", "x.h5"], "a.h5: expected the folder of a run"),
    (["inspect", "."], "expected a feature file, or the folder of a run, found a folder without plan.json"),
    (["plan", "--dataset", "none", "--out", "https://127.0.0.1:9/run"], "expected an object store to write to"),
    (["plan", "--dataset", "folder"], "--dataset and --out: expected both, or --extend RUN"),
    (["plan", "--extend", "none"], "plan.json: expected a plan, found none"),
    (["plan", "--extend", "none", "--shard-rows", "5"], "--shard-rows: the plan that is extended has decided it"),
    (["inspect", "none"], "none: expected a feature file, found none (No such file or directory)"),
    (["merge", "none", "--out", "x.h5"], "plan.json: expected a plan, found none"),
])  # fmt: skip
def test_bad_words_are_named(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.h5").write_bytes(b"no run")
    assert run(words) in (2, 6)
    assert message in capsys.readouterr().err


def test_images_that_have_come_are_planned_behind(inputs, net, tmp_path, capsys):
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(3):
        Image.new("RGB", (60, 60), (number, 0, 0)).save(root / f"{number}.png")
    run_folder = tmp_path / "run"
    words = ["--weights", net, "--scales", "224", "--shard-rows", "2", "--out", str(run_folder), "--quiet"]
    assert run(["plan", "--dataset", "folder", "--root", str(root), *words]) == 0
    assert run(["extract", "--plan", str(run_folder), "--weights", net, *QUIET]) == 0
    Image.new("RGB", (60, 60)).save(root / "0-new.png")
    capsys.readouterr()
    assert run(["plan", "--extend", str(run_folder), "--json", "--quiet"]) == 0
    assert told(capsys) == {"run": str(run_folder), "images": 4, "shards": 3, "new": 1}
    assert run(["extract", "--plan", str(run_folder), "--weights", net, *QUIET]) == 0
    assert "1 of 3 shards computed, 2 done before" in capsys.readouterr().out
    assert run(["plan", "--extend", str(run_folder), "--json", "--quiet"]) == 0
    assert told(capsys)["new"] == 0


def test_a_list_is_extended_as_it_was_told_to_be_read(net, tmp_path, capsys):
    photos = tmp_path / "list.csv"
    photos.write_bytes("Photo,Notiz,Art\n0.png,schön,a|b\n1.png,,b\n".encode("latin-1"))
    out = str(tmp_path / "run")
    told_of_it = ["--column", "path=Photo", "--column", "labels=Art", "--label-separator", "|", "--encoding", "latin-1"]
    words = ["--weights", net, "--scales", "224", "--out", out, "--quiet"]
    assert run(["plan", "--dataset", "manifest", "--root", str(photos), *told_of_it, *words]) == 0
    with photos.open("ab") as file:
        file.write("2.png,größer,c\n".encode("latin-1"))
    capsys.readouterr()
    for given, planned in (
        (["--column", "path=Notiz"], "labels=Art, path=Photo, as the list was planned, found path=Notiz"),
        (["--encoding", "cp1252"], "latin-1, as the list was planned, found cp1252"),
        (["--one-hot", "a,b"], "none, as the list was planned, found a,b"),
        (["--layout", "classes"], "none, as the list was planned, found classes"),
    ):
        assert run(["plan", "--extend", out, *given]) == 2
        assert f"{given[0]}: expected {planned}; leave it out" in capsys.readouterr().err
    for again in ([], told_of_it):
        assert run(["plan", "--extend", out, *again, "--json", "--quiet"]) == 0
        assert told(capsys)["new"] == (not again)
    plan = read_plan(open_storage(out))
    assert (plan.classes, plan.data_set().columns["Notiz"]) == (("a", "b", "c"), ("schön", "", "größer"))


@pytest.mark.parametrize("words", [
    ["extract", "--plan", "RUN"],
    ["extract", "--plan", "RUN", "--retry-failed"],
    ["extract", "--plan", "RUN", "--engine", "ray"],
    ["plan", "--extend", "RUN"],
    ["plan", "--dataset", "folder", "--root", "photos", "--out", "other"],
    ["merge", "FINISHED", "--out", "small.h5"],
    ["svm", "FINISHED"],
])  # fmt: skip
def test_a_disk_that_takes_nothing_is_named_before_the_work(words, inputs, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan(inputs, tmp_path / "run") == 0

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    def never(*_, **__):
        raise AssertionError("the work was begun")

    monkeypatch.setattr(durable.Files, "create", refuse)
    for work in ("weights.load_backbone", "engines.engine.find_net", "store.sharded.merge",
                 "datasets.catalogue.open_dataset", "protocols.rules.run_protocol"):  # fmt: skip
        monkeypatch.setattr(f"vggfeat.{work}", never)
    capsys.readouterr()
    runs = {"RUN": tmp_path / "run", "FINISHED": finished}
    assert run([str(runs.get(word, word)) for word in words]) == 6
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("vggfeat: ")
    assert "Read-only file system" in last


def test_processes_of_torchrun_take_their_shares(inputs, net, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert plan(inputs, out) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in (("1", 3), ("0", 3)):
        monkeypatch.setenv("RANK", rank)
        capsys.readouterr()
        assert run(["extract", "--plan", str(out), "--weights", net, *QUIET]) == 0
        assert f"share {int(rank) + 1}/2, {count} of {count} shards computed" in capsys.readouterr().out
    assert run(["extract", "--plan", str(out), "--take", "1/2", *QUIET]) == 2
    monkeypatch.setenv("RANK", "x")
    assert run(["extract", "--plan", str(out), *QUIET]) == 2


class Backwards:
    """An engine of one's own: the last shard first."""

    def compute(self, task, shards, progress=None):
        yield from task.open().compute(sorted(shards, reverse=True), progress)


def test_another_engine_is_one_class_and_one_line_of_the_table(inputs, finished, net, tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "backwards", EngineEntry("the last shard first", Backwards))
    assert plan(inputs, tmp_path / "run") == 0
    task = ShardTask(run=str(tmp_path / "run"), weights=net, device="cpu", workers=0)
    results = EngineOptions(engine="backwards").chosen_engine().compute(task, range(6))
    assert [result.shard for result in results] == [5, 4, 3, 2, 1, 0]
    for path in (finished / "features").rglob("*.parquet"):
        assert (tmp_path / "run" / path.relative_to(finished)).read_bytes() == path.read_bytes()
    with pytest.raises(ConfigError, match="--cores: expected --engine ray with it, found the engine backwards; leave"):
        EngineOptions(engine="backwards", cores=2).chosen_engine()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--engine backwards: expected it or torchrun, found both"):
        EngineOptions(engine="backwards").chosen_engine()


def test_a_faster_precision_is_compared_with_float32(inputs, net, tmp_path, capsys):
    assert plan(inputs, tmp_path / "run", "--precision", "bf16", "--store", "mean", "--dtype", "float16") == 0
    assert run(["extract", "--plan", str(tmp_path / "run"), "--weights", net, *QUIET]) == 0
    assert "computed again in float32, the least cosine of 3 images is 0.99" in capsys.readouterr().err


def test_damage_has_its_exit_code(inputs, net, tmp_path, capsys):
    out = tmp_path / "run"
    assert plan(inputs, out) == 0
    assert run(["extract", "--plan", str(out), "--weights", net, *QUIET]) == 0
    path = out / "features" / "000" / "part-000003.parquet"
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    capsys.readouterr()
    assert run(["inspect", str(out)]) == 6
    said = capsys.readouterr().out
    assert f"problem: {path}: expected bytes that fit their SHA-256, found damage" in said
    path.unlink()
    assert run(["extract", "--plan", str(out), "--weights", net, *QUIET]) == 0
    assert run(["inspect", str(out)]) == 0
    capsys.readouterr()
    (part,) = (out / "plan").iterdir()
    part.unlink()
    assert run(["inspect", str(out)]) == 6
    assert f"problem: {part}: expected a part of the plan, found none; bring it back" in capsys.readouterr().out


def test_a_feature_file_says_where_it_came_from_alike(finished, tmp_path):
    assert run(["merge", str(finished), "--out", str(tmp_path / "m.h5"), "--quiet"]) == 0
    with FeatureFile(tmp_path / "m.h5") as file:
        assert file.provenance["weights"].endswith("net.safetensors")
        assert file.provenance["sides"] == [224, 240]
