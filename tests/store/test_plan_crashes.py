"""A run in shards on a disk that fails, or whose process dies, at every call: the same command goes on to the same."""

import os
from dataclasses import replace

import numpy as np
import pytest

from crash_runs import Hooked, failing, in_child, killing, reap
from feature_rows import make_block, memory_folder
from vggfeat.errors import StoreError
from vggfeat.listing import listing_of
from vggfeat.runtime.durable import DISK
from vggfeat.runtime.storage import LocalStorage
from vggfeat.samples import DataSet, Task
from vggfeat.store import planning
from vggfeat.store.layout import Shape
from vggfeat.store.plan import Plan, PlanSettings, read_plan
from vggfeat.store.planning import extend_plan, write_plan
from vggfeat.store.shard_files import write_shard
from vggfeat.store.sharded import ShardedFeatures, examine

SHAPE = Shape(scales=(256, 384), regions=("image",), channels=5)
MACHINE = {"device": "cpu"}


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(planning, "PART_SHARDS", 2)


def images(rows):
    names = tuple(f"{row:03d}.png" for row in range(rows))
    labels = np.where(np.arange(rows)[:, None] % 2 == np.arange(2), 1, -1).astype(np.int8)
    splits = {"train": np.arange(0, rows, 3)}
    return listing_of(
        DataSet(
            name="folder", task=Task.SINGLE_LABEL, classes=("a", "b"), ids=names, paths=names, labels=labels,
            splits=splits, root="/nowhere",
        )
    )  # fmt: skip


def draft(storage):
    return Plan(
        storage=storage, key={"weights_sha256": "ab" * 32}, provenance={}, shape=SHAPE,
        settings=PlanSettings(shard_rows=4), name="folder", task=Task.SINGLE_LABEL, classes=("a", "b"),
        root="/nowhere", boxes_as_stored=False,
    )  # fmt: skip


def compute(plan):
    present = plan.present()
    for shard in range(plan.shards):
        if shard not in present:
            write_shard(plan, shard, make_block(plan.rows_of(shard), SHAPE, {3: "truncated: no"}), MACHINE)


def whole(folder, files=DISK):
    """Plan, compute, plan what is new, compute that."""
    storage = LocalStorage(str(folder / "run"), files)
    plan = write_plan(draft(storage), images(21))
    compute(plan)
    if plan.rows == 21:
        plan = extend_plan(plan, images(25))
    compute(plan)


def contents(folder):
    found = (folder / "run").rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.is_file()}


@pytest.fixture(scope="module")
def unbroken():
    """What a run leaves that nothing befell, and the calls that it made."""
    with memory_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "PART_SHARDS", 2)
        names = []
        whole(folder, Hooked(lambda count, name, call, arguments: names.append(name) or call(*arguments)))
        yield contents(folder), names


def test_a_run_is_sound_and_what_it_says(unbroken):
    with memory_folder() as folder:
        whole(folder)
        with ShardedFeatures(folder / "run") as run:
            assert (len(run), run.plan.shards, len(run.plan.parts)) == (25, 7, 4)
            np.testing.assert_array_equal(run.read([24, 5, 20]), np.concatenate([
                make_block(range(row, row + 1), SHAPE).features for row in (24, 5, 20)
            ]))  # fmt: skip
            assert run.dataset.splits["train"].tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24]
            assert examine(run.plan).reasons == {"truncated": 1}
            assert examine(run.plan).root == run.root


@pytest.mark.parametrize(("torn", "step"), [(False, 5), (True, 1), pytest.param(False, 1, marks=pytest.mark.long)])
def test_whichever_call_is_the_last_the_same_command_ends_with_the_same_bytes(unbroken, torn, step):
    expected, names = unbroken
    assert len(names) > 60
    for number, name in list(enumerate(names, start=1))[::step]:
        if torn and name != "write":
            continue
        with memory_folder() as folder:
            _, code = reap(*in_child(lambda tell, at=number, to=folder: whole(to, killing(at, torn))))
            assert code == 9
            whole(folder)
            assert contents(folder) == expected, (number, name)


@pytest.mark.parametrize(
    ("kind", "step"), [("full", 3), ("broken", 7), pytest.param("full", 1, marks=pytest.mark.long)]
)
def test_whichever_call_fails_it_is_named_and_the_same_command_ends_with_the_same_bytes(unbroken, kind, step):
    expected, names = unbroken
    for number, name in list(enumerate(names, start=1))[::step]:
        with memory_folder() as folder:
            with pytest.raises(StoreError, match=f"^{folder}/run/[^\n]*: writing failed: [^\n]*$"):
                whole(folder, failing(number, kind))
            whole(folder)
            assert contents(folder) == expected, (number, name)


def test_two_that_plan_at_once_plan_the_same(tmp_path):
    plans = [replace(draft(LocalStorage(str(tmp_path / "run"))), root=root) for root in ("/nowhere", "/elsewhere")]
    first = write_plan(plans[0], images(21))
    assert write_plan(plans[1], images(21)).to_json() == first.to_json()
    with pytest.raises(StoreError, match="channels: found 5, expected 6"):
        write_plan(replace(plans[1], shape=replace(SHAPE, channels=6)), images(21))


def test_two_that_plan_otherwise_at_once_leave_a_plan_that_is_whole(tmp_path):
    plan = draft(LocalStorage(str(tmp_path / "run")))
    other = replace(plan, settings=replace(plan.settings, shard_rows=plan.settings.shard_rows + 1))

    def batches():
        """Another plans while this one is walked."""
        write_plan(other, images(21))
        yield from images(21).batches()

    with pytest.raises(StoreError, match="shard_rows: found 5, expected 4"):
        write_plan(plan, replace(images(21), batches=batches))
    planned = [name for batch in images(21).batches() for name in batch["id"].to_pylist()]
    assert list(read_plan(plan.storage).data_set().ids) == planned


def test_a_disk_without_room_for_hashes_is_named(tmp_path, monkeypatch):
    def full(self, ids):
        raise OSError(28, os.strerror(28))

    plan = write_plan(draft(LocalStorage(str(tmp_path / "finished"))), images(3))
    monkeypatch.setattr(planning.IdHashes, "add", full)
    with pytest.raises(StoreError, match="keeping hashes of ids failed: the disk is full"):
        write_plan(draft(LocalStorage(str(tmp_path / "run"))), images(3))
    with pytest.raises(StoreError, match="keeping hashes of ids failed: the disk is full"):
        extend_plan(plan, images(4))


def test_a_new_image_whose_hash_is_that_of_a_known_one_is_planned(tmp_path, monkeypatch):
    true, planned = planning._hashes_of, images(4)
    known, new = (listed["id"].to_pylist() for batch in planned.batches() for listed in (batch[:1], batch[3:]))

    def colliding(ids, salt=""):
        return true([known[0] if name == new[0] and not salt else name for name in ids], salt)

    plan = write_plan(draft(LocalStorage(str(tmp_path / "run"))), images(3))
    monkeypatch.setattr(planning, "_hashes_of", colliding)
    assert extend_plan(plan, planned).data_set().ids[3:] == tuple(new)
