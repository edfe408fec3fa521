"""What an audit found, as text, JSON and page; names from anywhere do no harm."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from feature_files import data_set, write_file
from page_runs import HOSTILE, Parsed, make_images, make_table
from planted import digests, planted_table
from vggfeat.audit import AuditSettings, audit_table
from vggfeat.cli import run
from vggfeat.results.audit import SHOWN, audit_json, audit_page, audit_text

SETTINGS = AuditSettings(grid=(1.0,), folds=3)


@pytest.fixture(scope="module")
def hostile():
    table = make_table(single=True, failed=(20,))
    table.dataset.labels[20:] = -1
    table.dataset.labels[20:, 0] = 1
    found = audit_table(replace(table, sha256=digests(36, (0, 30), (1, 2))), SETTINGS)
    return table, audit_json(found, table, HOSTILE[0])


def test_the_json_is_json_and_counts_what_it_lists(hostile):
    _, content = hostile
    again = json.loads(json.dumps(content, allow_nan=False))
    assert again["format"] == "vggfeat-audit"
    assert [one["across_splits"] for one in again["copies"]] == [True, False]
    assert [image["splits"] for image in again["copies"][0]["images"]] == [["train"], ["test"]]
    assert again["copies"][0]["images"][1]["id"].startswith("30: ")
    assert again["problems"][0] == ("1 group of copies is in different splits: figures of a test are too good")
    assert again["suspect_labels_total"] == len(again["suspect_labels"])
    assert [one["reason"] for one in again["failed"]] != []


def test_the_verdict_comes_first_and_no_name_forges_a_line(hostile):
    _, content = hostile
    text = audit_text(content, top=3, width=100)
    lines = text.split("\n")
    assert lines[0] == f"{len(content['problems'])} kinds of problems:"
    assert lines[1].strip() == content["problems"][0]
    assert "\x1b" not in text
    assert "\nforged" not in audit_text(content | {"dataset": "x\nforged"})
    assert any(line.startswith("near duplicates from") or "compared with each other" in line for line in lines)


def test_of_a_clean_table_nothing_is_said():
    table, _ = planted_table(wrong=0, noise=0.1)
    found = audit_table(replace(table, sha256=digests(240)), AuditSettings(grid=(1.0,), near=0.9999))
    content = audit_json(found, table, "x.h5")
    assert content["problems"] == []
    assert audit_text(content).startswith("nothing was found that is wrong")


def test_the_page_shows_images_and_lets_no_name_run(hostile, tmp_path):
    table, content = hostile
    make_images(tmp_path, table.dataset)
    page = audit_page(content, tmp_path, workers=0)
    seen = Parsed(page)
    shown = [one for name in ("copies", "suspect_labels") for one in content[name][:SHOWN]]
    assert len(seen.attributes("img", "src")) >= sum(len(one["images"]) for one in shown) > 4
    assert seen.tags() & {"b", "i", "h4"} == set(), "no name became an element"
    assert HOSTILE[0] in seen.whole_text()
    assert seen.tags() >= {"ul", "details"}
    assert audit_page(content).count(b"data:image") == 0


def test_the_command_prints_a_verdict_json_and_a_page(tmp_path, capsys):
    labels = np.where(np.arange(24)[:, None] % 2 == np.arange(2), 1, -1).astype(np.int8)
    features = (
        np.abs(np.random.default_rng(0).standard_normal((24, 1, 1, 8)))
        + 2 * np.eye(8)[np.arange(24) % 2][:, None, None]
    )
    features[9] = 2 * features[2]
    ids = tuple(f"{row:02d}" for row in range(24))
    data = data_set(ids=ids, labels=labels, splits={"train": np.arange(8), "test": np.arange(8, 24)})
    write_file(tmp_path / "x.h5", features, data, contents=["a", "a", *ids[2:]])
    for name in ids:
        Image.new("RGB", (40, 30), (int(name) * 10, 90, 90)).save(tmp_path / f"{name}.jpg")
    words = ["audit", str(tmp_path / "x.h5"), "--quiet", "--near", "0.9999", "--folds", "3"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "1 pair of near duplicates is in different splits: look at it" in text
    assert "1.0000, across splits, other labels  02 (train)  09 (test)" in text
    assert "1 group of copies has different labels: one of them is wrong" in text
    out = tmp_path / "page.html"
    assert run([*words, "--json", "--out", str(out), "--root", str(tmp_path), "--workers", "0"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [image["id"] for image in content["near_duplicates"][0]["images"]] == ["02", "09"]
    assert content["training"]["svms"] == 3 * 2 * 4
    assert out.read_text().count("data:image/jpeg") >= 4
    assert run([*words, "--no-labels"]) == 2
    assert "--folds: decides nothing with --no-labels" in capsys.readouterr().err
    assert run([*words[:-2], "--no-labels", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"] is None
    assert run([*words, "--root", str(tmp_path)]) == 2
