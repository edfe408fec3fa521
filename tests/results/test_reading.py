"""Folders of results that are damaged in any way make a page, or an error of one line that names the file."""

import copy
import errno
import json
import random
import re
import shutil
import time
import tracemalloc

import numpy as np
import pytest

from page_runs import edited, make_run
from tests.proofs.mutants import mutate
from vggfeat.errors import StoreError
from vggfeat.results.checked_json import DEEPEST
from vggfeat.results.page import make_page
from vggfeat.results.reading import read_runs
from vggfeat.runtime.checksums import RunFiles

OTHER = {
    "format": "vggfeat-classification",
    "headline": "ilsvrc: top-1 error 25.0 %",
    "top1_error": 0.25,
    "errors": {"localisation": 0.5, "mean_overlap": 0.125, "by_guess": [1, 2]},
    "classes": [{"name": "a", "words": "cat", "top1_error": 0.5, "images": 4}, {"name": "b", "top1_error": None}],
    "confusions": [{"class": "a", "taken_for": ["b"], "images": 2}],
    "notes": ["Mind this."],
    "settings": {"scales": [256, 384]},
}
LOG = [
    {"kind": "train", "step": 1, "loss": 2.5, "lr": 0.01, "images_per_s": 12.5},
    {"kind": "note", "step": 1, "text": "a note"},
    {"kind": "validation", "step": 2, "loss": 2.0, "top1_error": 0.5, "top5_error": 0.25, "images": 9},
    {"kind": "validation", "step": 4, "loss": 1.0, "top1_error": 0.4, "top5_error": 0.15, "images": 9},
]
ODD = (None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1e-320, 1e300, -1e300, 10**400, float("inf"), float("nan"), "", "1",
       "x" * 300, "\ud800", "\x1b[31m", [], {}, [None], [[]], {"a": None}, [0.5], ["a"], [[0.5]], [1, 2, 3], [{}],
       )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    make_run(root / "multi.svm", failed=(20,), rows=24)
    make_run(root / "single.svm", single=True, rows=24)
    for name in ("multi.svm", "single.svm"):
        edited(root / name)
    (root / "other").mkdir()
    (root / "other" / "results.json").write_text(json.dumps(OTHER))
    (root / "training").mkdir()
    (root / "training" / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LOG))
    (root / "training" / "run.json").write_text(json.dumps({"recipe": {"net": "A", "scale": [256, 256]}}))
    return root


def places(value, found):
    """Every list and object in a value, with the keys in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        found.append((value, key))
        places(one, found)
    return found


def change(rng, content):
    """Change an entry of some JSON: another value, none, one too many, or one that stands elsewhere."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        around = places(content, [])
        if not around:
            return content
        # Entries far up are few, and as likely to be wrong.
        within, key = rng.choice(around[: rng.choice((10, 100, len(around)))])
        kind = rng.randrange(6)
        if kind == 0:
            del within[key]
        elif kind == 1 and isinstance(within, list):
            within[key:key] = [copy.deepcopy(within[key])] * rng.choice((1, 30))
        elif kind == 2:
            other, name = rng.choice(around)
            within[key] = copy.deepcopy(other[name])
        else:
            within[key] = copy.deepcopy(rng.choice(ODD))
    return content


def damaged(rng, name, raw):
    if rng.random() < 0.3:
        return mutate(rng, raw, raw, text=True)
    if name.endswith("l"):
        lines = [change(rng, json.loads(line)) for line in raw.splitlines()]
        return "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    return json.dumps(change(rng, json.loads(raw))).encode()


def damage_and_show(folders, tmp_path, cases):
    """Damage one file a case; return how many cases made a page and how many were refused."""
    kinds = ("multi.svm", "single.svm", "multi.svm", "single.svm", "other", "training")
    counts = {"page": 0, "refused": 0}
    for case in range(cases):
        rng = random.Random(case)
        kind = kinds[case % len(kinds)]
        folder = tmp_path / kind
        if not folder.exists():
            shutil.copytree(folders / kind, folder)
        name = rng.choice(("log.jsonl", "run.json")) if kind == "training" else "results.json"
        (folder / name).write_bytes(damaged(rng, name, (folders / kind / name).read_bytes()))
        begun = time.monotonic()
        try:
            make_page([folder])
            said = ""
        except StoreError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"case {case}, {kind}/{name}: {type(error).__name__}: {error}") from error
        counts["refused" if said else "page"] += 1
        if said:
            assert str(folder / name) in said, (case, said)
            assert re.search("expected .*found ", said), (case, said)
            assert "\n" not in said, (case, said)
        assert len(said) < 1000, (case, said)
        assert time.monotonic() - begun < 10, case
        (folder / name).write_bytes((folders / kind / name).read_bytes())
    return counts


def test_damaged_results_make_a_page_or_an_error_that_names_them(folders, tmp_path):
    counts = damage_and_show(folders, tmp_path, 200)
    assert min(counts.values()) > 20


@pytest.mark.long
def test_two_thousand_damaged_results_make_a_page_or_an_error_that_names_them(folders, tmp_path):
    damage_and_show(folders, tmp_path, 2000)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("headline", "best", 'headline: expected a number from 0 to 1 or null, found "best"'),
        ("headline", float("nan"), "headline: expected a number from 0 to 1 or null, found NaN"),
        ("version", 2, "version: expected 1, found 2"),
        ("metric.key", "map", 'metric.key: expected one of ap-11-point, ap-area, recall, accuracy, found "map"'),
        ("runs.0.curve.1", [0.5], r"runs[0].curve[1]: expected a list of 6, found 1"),
        ("runs.0.C", [1], r"runs[0].C: expected a list of 6, found 1"),
        ("runs.0.grid.0", 0, r"runs[0].grid[0]: expected a number above 0, found 0"),
        ("runs", [], "runs: expected a list of at least 1, found 0"),
        ("classes.2.C", [], r"classes[2].C: expected a list of 1, found 0"),
        (
            "classes.0.values.ap-area",
            1.5,
            "classes[0].values.ap-area: expected a number from 0 to 1 or null, found 1.5",
        ),
        ("confusion", [[1]], "confusion: expected a list of 6, found 1"),
        ("dataset.failures.0", "x" * 99, f'dataset.failures[0]: expected an object, found "{"x" * 59}...'),
        ("seconds", None, "seconds: expected an object, found null"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(folders, tmp_path, place, value, said):
    shutil.copytree(folders / "multi.svm", tmp_path / "x.svm")
    content = json.loads((tmp_path / "x.svm" / "results.json").read_text())
    *way, last = (int(name) if name.isdigit() else name for name in place.split("."))
    within = content
    for name in way:
        within = within[name]
    within[last] = value
    (tmp_path / "x.svm" / "results.json").write_text(json.dumps(content))
    with pytest.raises(StoreError) as error:
        read_runs([tmp_path / "x.svm"])
    assert str(error.value) == f"{tmp_path / 'x.svm' / 'results.json'}: {said}; make it again with `vggfeat svm`"


def test_an_entry_that_is_missing_is_named(folders, tmp_path):
    shutil.copytree(folders / "single.svm", tmp_path / "x.svm")
    content = json.loads((tmp_path / "x.svm" / "results.json").read_text())
    del content["runs"][0]["plan"]["tested"]
    (tmp_path / "x.svm" / "results.json").write_text(json.dumps(content))
    with pytest.raises(
        StoreError, match=r"results\.json: runs\[0\]\.plan\.tested: expected an entry of this name, fou"
    ):
        read_runs([tmp_path / "x.svm"])


@pytest.mark.parametrize(
    "raw", ["[" * 100_000, '{"a":' * 200 + "1" + "}" * 200, '{"a": ' + "9" * 5000, "{", "[1]", "", "\xff"]
)
def test_what_is_no_json_or_too_deep_is_refused(tmp_path, raw):
    (tmp_path / "results.json").write_bytes(raw.encode("latin-1"))
    with pytest.raises(StoreError, match=r"results\.json: expected "):
        read_runs([tmp_path])


@pytest.mark.parametrize("name", ["scores_1", "labels_1", "paths_1", "boxes_1", "other"])
def test_scores_that_would_fill_the_memory_are_refused_unread(folders, tmp_path, name):
    folder = shutil.copytree(folders / "multi.svm", tmp_path / "x.svm")
    with np.load(folder / "scores.npz") as found:
        arrays = dict(found)
    kind = {"labels_1": np.int8, "paths_1": "U4"}.get(name, np.float64)
    np.savez_compressed(folder / "scores.npz", **(arrays | {name: np.zeros((4 << 20, 1), kind)}))
    assert (folder / "scores.npz").stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        if name == "other":  # What nobody asks for is not unpacked.
            read_runs([folder])
        else:
            with pytest.raises(StoreError, match=rf"scores\.npz: .*{name}|at most \d+ bytes, found"):
                read_runs([folder])
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_links_in_the_folder_of_a_run_do_not_bring_other_files_onto_the_page(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "results.json").write_text('{"format": "x"}')
    (tmp_path / "x" / "table.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match=r"table\.txt: expected a regular file, found a link"):
        read_runs([tmp_path / "x"])


def test_what_is_as_deep_as_it_may_be_is_shown(tmp_path):
    (tmp_path / "results.json").write_text('{"a":' * DEEPEST + "1" + "}" * DEEPEST)
    assert b"<dt" in make_page([tmp_path]).content


def test_numbers_too_large_for_arithmetic_are_shown(tmp_path):
    results = {"top1_error": 10**400, "errors": {"overlap": -(10**400)}, "rows": [{"n": 10**400}, {"n": 1e308}]}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    lines = [{"kind": "train", "step": 1, "lr": 1e308, "loss": 10**400}, {"kind": "train", "step": 10**400, "loss": 1}]
    lines += [
        {"kind": "train", "step": 2, "lr": 5e-324, "loss": 5e-324},
        {"kind": "validation", "step": 2, "x": 10**400},
    ]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert make_page([tmp_path / name for name in "abc"]).content


@pytest.mark.parametrize("name", ["results.json", "run.json"])
def test_what_cannot_be_read_now_is_not_to_be_made_again(folders, monkeypatch, name):
    kind = "single.svm" if name == "results.json" else "training"

    def unreadable(self, found, most, read=RunFiles.read):
        if found == name:
            raise OSError(errno.EIO, "Input/output error", str(self.folder / found))
        return read(self, found, most)

    monkeypatch.setattr(RunFiles, "read", unreadable)
    with pytest.raises(StoreError, match=rf"{re.escape(name)}: reading failed: Input/output error; fix it"):
        read_runs([folders / kind])
