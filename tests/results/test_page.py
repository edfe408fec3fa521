"""The page of results: what is on it, that nothing else is, and that no name can become more than a text."""

import base64
import hashlib
import io
import json
import re
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from page_runs import BOX, HOSTILE, SIDE, Parsed, edited, make_images, make_run, make_table
from vggfeat.cli import run
from vggfeat.errors import ConfigError, StoreError
from vggfeat.metrics import average_precision
from vggfeat.metrics.bootstrap import BootstrapSettings
from vggfeat.results import page as building
from vggfeat.results import thumbnails as images
from vggfeat.results.charts import (
    Axis,
    Curve,
    chart,
    choice,
    choices,
    cost_curves,
    learning,
    linear_axis,
    log_axis,
    overview,
    ranking,
    thinned,
)
from vggfeat.results.page import PageSettings, make_page
from vggfeat.results.reading import Scores, SvmRun, read_runs
from vggfeat.results.record import printable
from vggfeat.results.svm_page import confusion_of
from vggfeat.results.thumbnails import BUDGET, SIDES, Key, examples_of, per_list, small_copies
from vggfeat.runtime.checksums import replace_run
from vggfeat.runtime.durable import DISK

FEW = BootstrapSettings(resamples=100)
OURS = {
    "html", "head", "meta", "link", "title", "style", "body", "main", "section", "h1", "h2", "h3", "h4", "p", "div",
    "span", "strong", "code", "ul", "li", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "details",
    "summary", "nav", "a", "figure", "figcaption", "svg", "path", "text", "circle", "img", "br", "pre", "script",
}  # fmt: skip
"""Every element that our templates have."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two multi-label runs of the same samples, a single-label run, images of all, and pages of them."""
    root = tmp_path_factory.mktemp("page")
    results = {
        "good": make_run(root / "good.svm", noise=0.8, boxes=True, failed=(20,)),
        "bad": make_run(root / "bad.svm", noise=3.0, boxes=True, failed=(20,)),
        "single": make_run(root / "single.svm", single=True, noise=1.5),
    }
    make_images(root / "images", results["good"][1])
    settings = PageSettings(images=root / "images", bootstrap=FEW, workers=0)
    pages = {
        "two": make_page([root / "bad.svm", root / "good.svm"], settings),
        "single": make_page([root / "single.svm"], settings),
        "bare": make_page([root / "good.svm"], replace(settings, images=None)),
    }
    return root, results, pages


PAGES = pytest.mark.parametrize("name", ["two", "single", "bare"])


# --- one file, and nothing but texts in it


@PAGES
def test_the_page_is_whole_and_loads_nothing(made, name):
    page = Parsed(made[2][name].content)
    for tag, attrs, _ in page.elements:
        for attribute in ("src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"):
            assert re.match(r"data:|#part-\d+$", attrs.get(attribute, "data:")), (tag, attrs)
    (style,) = page.texts("style")
    assert "url(" not in style
    assert "@import" not in style


@PAGES
def test_no_name_becomes_an_element_an_attribute_or_a_script(made, name):
    content = made[2][name].content
    page = Parsed(content)
    assert page.tags() <= OURS
    assert len(page.texts("script")) == 1
    for tag, attrs, _ in page.elements:
        assert not [key for key in attrs if key.startswith("on")], (tag, attrs)
        assert set(attrs.get("style", "").split(":")[0]) <= set("--share"), attrs
    for text in HOSTILE[:3]:
        assert printable(text) in page.whole_text()
    assert "49" not in page.texts("summary")
    assert b"complain(" in content, "the names are there"
    assert b"<b onclick" not in content
    assert "\u202e" not in content.decode()
    assert b"\x1b" not in content


@PAGES
def test_the_only_script_is_the_one_that_the_policy_of_the_page_names(made, name):
    page = Parsed(made[2][name].content)
    (script,) = ["".join(texts) for tag, _, texts in page.elements if tag == "script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [content for content in page.attributes("meta", "content") if "default-src" in (content or "")]
    assert policy.split("; ")[0] == "default-src 'none'"
    assert f"script-src 'sha256-{digest}'" in policy.split("; ")


def test_names_of_folders_and_texts_of_other_results_are_escaped_too(tmp_path):
    folder = tmp_path / "<img src=x onerror=complain()>"
    folder.mkdir()
    results = {"format": "other", "headline": "<b>best</b>", "deep": {"<i>": ["</dl>", {"x": "<script>"}]}, "n": None}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "table.txt").write_text("</pre><script>complain()</script>\x1b[31m")
    training = tmp_path / "</title><h1>"
    (training / "x").mkdir(parents=True)
    lines = [{"kind": "note", "step": 1, "text": "<script>"}, {"kind": "train", "step": 2, "loss": 1.0}]
    lines += [{"kind": "validation", "step": 2, "<b>error": 0.5}]
    (training / "x" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (training / "x" / "unreadable.jsonl").write_text(json.dumps({"path": "<u>", "reason": "<s>"}) + "\n")
    page = Parsed(make_page([folder, training / "x"]).content)
    assert page.tags() <= OURS
    assert len(page.texts("script")) == 1
    assert "</pre><script>complain()</script>\\x1b[31m" in page.texts("pre")[0]
    assert "<b>best</b>" in page.texts("strong")
    assert {"<i>", "deep", "x"} <= set(page.texts("dt"))
    assert "<script>" in page.texts("dd")
    assert "<u>" in page.texts("td")


# --- what stands on it


def rows_of(page):
    """The first sortable table: header, then rows of texts."""
    content = page.decode()
    table = re.search(r'<table class="sortable.*?</table>', content, re.DOTALL)[0]
    parsed = Parsed(table.encode())
    header, cells = parsed.texts("th"), parsed.texts("td")
    return header, [cells[start : start + len(header)] for start in range(0, len(cells), len(header))]


def test_headline_and_classes_are_those_of_the_scores(made):
    root, _, pages = made
    with np.load(root / "good.svm" / "scores.npz") as found:
        labels, scores = found["labels_1"], found["scores_1"]
    header, rows = rows_of(pages["bare"].content)
    assert header == ["class", "train pos", "test pos", "AP, area %", "AP, 11-point %", "C"]
    assert [row[0] for row in rows] == [printable(name) for name in HOSTILE]
    own = [[100 * average_precision(labels[:, k], scores[:, k], rule) for k in range(len(HOSTILE))]
           for rule in ("area", "11-point")]  # fmt: skip
    assert [row[3] for row in rows] == [f"{value:.1f}" for value in own[0]]
    assert [row[4] for row in rows] == [f"{value:.1f}" for value in own[1]]
    assert [int(row[2]) for row in rows] == (labels == 1).sum(axis=0).tolist()
    text = Parsed(pages["bare"].content).whole_text()
    assert f"{np.mean(own[0]):.1f} %" in text
    assert "mean average precision, area" in text
    assert f"chance: {100 * made[1]['good'][0].chance:.1f} %" in text
    assert "mAP" not in text


def test_the_papers_row_stands_beside_the_same_nets(made, tmp_path):
    edited(shutil.copytree(made[0] / "good.svm", tmp_path / "x.svm"))
    file = tmp_path / "x.svm" / "results.json"
    told = {"measure": "Table 11, of it", "regions": ["image"], "deviation": None}
    rows = [
        told | {"nets": ["E"], "percent": 89.25, "same_nets_and_regions": True},
        told | {"nets": ["D", "E"], "percent": 89.75, "same_nets_and_regions": False},
    ]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"paper": rows}))
    page = Parsed(make_page([tmp_path / "x.svm"]).content)
    assert "VGG paper, the same nets and regions: 89.25 %" in page.texts("strong")
    assert "D & E" in page.texts("td")
    assert "paper" not in Parsed(made[2]["bare"].content).whole_text()


def test_what_a_run_was_made_of_is_seen_without_a_click(made, tmp_path):
    edited(shutil.copytree(made[0] / "good.svm", tmp_path / "x.svm"))
    file = tmp_path / "x.svm" / "results.json"
    results = json.loads(file.read_text())
    made_of = {"net": "A", "width": 0.125, "weights": "small", "trained": False, "layer": "fc7", "images": "rendered"}
    results["settings"]["features"]["files"] = [
        {"scales": [224, 256], "regions": ["image", "box"], "provenance": made_of}
    ]
    file.write_text(json.dumps(results))
    content = make_page([tmp_path / "x.svm"]).content.decode()
    shown = Parsed(re.sub(r"<details.*?</details>", "", content, flags=re.DOTALL).encode())
    assert dict(zip(shown.texts("dt"), shown.texts("dd"), strict=True)) == {
        "images": "36 (train 18, test 18); rendered, not photographs",
        "net": "A, width 0.125, untrained",
        "weights": "small",
        "scales": "Q = 224, 256",
        "regions": "image and box",
        "layer": "fc7",
    }
    assert shown.texts("h1") == ["manifest"]


def test_two_runs_stand_side_by_side_with_their_difference(made):
    _, results, pages = made
    (group,) = pages["two"].groups
    (found,) = group.comparisons
    first, second = results["bad"][0].headline, results["good"][0].headline
    assert found.difference.mean == pytest.approx(second - first, abs=1e-12)
    low, high = found.difference.interval
    assert low < found.difference.mean < high
    text = Parsed(pages["two"].content).whole_text()
    assert "Paired bootstrap: 100 times 18 test images were drawn with replacement (seed 0)" in text
    header, rows = rows_of(pages["two"].content)
    assert header[:5] == ["class", "test pos", "AP, area %, bad", "AP, area %, good", "good \N{MINUS SIGN} bad, points"]
    for row, mine, yours in zip(rows, *(results[name][0].class_rows() for name in ("bad", "good")), strict=True):
        change = 100 * (yours.values["ap-area"] - mine.values["ap-area"])
        assert row[4].startswith(f"{change:+.1f} [".replace("-", "\N{MINUS SIGN}"))


def test_runs_that_cant_be_compared_say_why(made, tmp_path):
    make_run(tmp_path / "short.svm", rows=30)
    shutil.copytree(made[0] / "good.svm", tmp_path / "bare.svm")
    (tmp_path / "bare.svm" / "scores.npz").unlink()
    page = make_page([made[0] / "good.svm", tmp_path / "short.svm", tmp_path / "bare.svm"], PageSettings(bootstrap=FEW))
    reasons = [found.reason for found in page.groups[0].comparisons]
    missing = "the scores of one of them are missing (scores.npz)"
    assert reasons == ["they were tested on other samples", missing, missing]
    assert reasons[0] in Parsed(page.content).whole_text()


def test_rows_are_matched_by_their_ids(made, tmp_path):
    edited(shutil.copytree(made[0] / "good.svm", tmp_path / "turned.svm"))
    with np.load(tmp_path / "turned.svm" / "scores.npz") as found:
        arrays = {name: values[::-1] if name.endswith("_1") else values for name, values in found.items()}
    np.savez(tmp_path / "turned.svm" / "scores.npz", **arrays)
    page = make_page([made[0] / "good.svm", tmp_path / "turned.svm"], PageSettings(bootstrap=FEW))
    (found,) = page.groups[0].comparisons
    assert (found.difference.mean, found.difference.interval) == (0, (0, 0))
    assert "within what other test images could give" in Parsed(page.content).whole_text()


def test_runs_of_other_classes_stand_apart(made):
    root, _, _ = made
    page = make_page([root / "good.svm", root / "single.svm"], PageSettings(bootstrap=FEW))
    assert [len(group.runs) for group in page.groups] == [1, 1]


def test_a_class_without_a_value_comes_last(made, tmp_path):
    edited(shutil.copytree(made[0] / "good.svm", tmp_path / "x.svm"))
    file = tmp_path / "x.svm" / "results.json"
    results = json.loads(file.read_text())
    results["classes"][0]["values"] = dict.fromkeys(results["classes"][0]["values"])
    file.write_text(json.dumps(results))
    (group,) = make_page([tmp_path / "x.svm"]).groups
    assert (group.classes[-1].name, group.classes[-1].values) == (HOSTILE[0], ("\N{EN DASH}",))


def test_failed_images_are_named_with_their_reasons(made):
    page = Parsed(made[2]["bare"].content)
    assert "Failed images: 1" in page.texts("summary")
    cells = page.texts("td")
    at = cells.index("truncated: it ends <early>")
    assert cells[at - 1] == "20: <b onclick='complain()'>&amp;"


def test_a_feature_file_hands_its_reasons_on(tmp_path):
    from feature_rows import FAILED, finish
    from vggfeat.table import read_descriptors

    table = read_descriptors(finish(tmp_path / "x.h5"))
    assert table.reasons == FAILED


def test_confusion_counts_are_shares_of_the_true_class(made):
    _, results, pages = made
    counts = results["single"][0].confusion
    found = confusion_of(pages["single"].groups[0].runs[0])
    np.testing.assert_allclose(found.rows, counts / counts.sum(axis=1, keepdims=True))
    assert found.mistakes == counts.sum() - np.trace(counts) > 0
    assert found.tested == counts.sum()
    text = Parsed(pages["single"].content).whole_text()
    assert f"{found.mistakes} of {counts.sum()} images were given to another class" in text
    best = max((counts[i, j], -i, -j) for i in range(3) for j in range(3) if i != j)
    pair = found.pairs[0]
    assert (pair.count, pair.true, pair.predicted) == (best[0], HOSTILE[-best[1]], HOSTILE[-best[2]])
    assert confusion_of(pages["two"].groups[0].runs[0]) is None


def test_with_many_classes_only_the_pairs_are_shown():
    counts = np.diag(np.full(40, 5))
    counts[3, 7] = 2
    results = {"classes": [{"name": f"{k}"} for k in range(40)], "confusion": counts.tolist()}
    found = confusion_of(SvmRun(name="x", results=results, tests=()))
    assert found.rows == ()
    assert [(pair.true, pair.predicted, pair.count, pair.share) for pair in found.pairs] == [("3", "7", 2, 2 / 7)]


def test_equal_folders_give_equal_pages(made):
    root, _, pages = made
    assert make_page([root / "good.svm"], PageSettings(bootstrap=FEW)).content == pages["bare"].content


def test_a_page_of_257_classes_is_no_giant(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(514)[:, None] % 257 == np.arange(257), 1, -1).astype(np.int8)
    table = make_table(single=True)
    dataset = replace(
        table.dataset,
        classes=tuple(f"{k:03}.class" for k in range(257)),
        ids=tuple(f"{row:06}" for row in range(514)),
        paths=tuple(f"{row:06}.jpg" for row in range(514)),
        labels=labels,
        splits={"train": np.arange(257), "test": np.arange(257, 514)},
    )
    values = (rng.standard_normal((514, 60)) + labels @ rng.standard_normal((257, 60))).astype(np.float32)
    table = replace(table, dataset=dataset, descriptors=values, ok=np.ones(514, bool))
    from vggfeat.protocols.rules import ProtocolSettings, run_protocol
    from vggfeat.results.svm import write_results

    result = run_protocol(table, ProtocolSettings(grid=(1.0,)))
    write_results(result, dataset, tmp_path / "x", plots=False)
    page = make_page([tmp_path / "x"])
    assert len(page.content) < 1_500_000
    assert 3 * 257 * per_list(3 * 257) <= BUDGET
    assert Parsed(page.content).tags() <= OURS


# --- images


def test_each_list_holds_what_its_name_says():
    #               0    1    2    3    4    5     6
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, -np.inf]
    labels = [1, -1, 0, 1, -1, 1, 1]
    test = scored(np.array(scores)[:, None], np.array(labels)[:, None])
    found = examples_of([test], 0, ["a"], single=False, most=2)
    assert [(one.id, one.rank, one.verdict) for one in found.highest] == [("0", 1, "right"), ("1", 2, "wrong")]
    assert {one.verdict for one in found.alarms} == {"wrong"}
    assert {one.verdict for one in found.missed} == {"missed"}
    assert [(one.id, one.rank) for one in found.alarms] == [("4", 5)], "1 is among the highest"
    assert [(one.id, one.rank) for one in found.missed] == [("5", 6), ("3", 4)], "the failed one is no miss"


def test_where_every_positive_ranks_first_nothing_is_wrong_or_missed():
    scores, labels = np.array([4.0, 3, 2, 1, -np.inf]), np.array([1, 1, 0, -1, 1])
    found = examples_of([scored(scores[:, None], labels[:, None])], 0, ["a"], single=False, most=9)
    assert [one.verdict for one in found.highest] == ["right", "right", "ignored", "other"]
    assert (found.alarms, found.missed) == ((), ())


def test_with_one_class_an_image_mistakes_are_those_of_the_prediction():
    scores = np.array([[3, 1, 0], [2, 4, 0], [1, 0, 5], [6, 5, 4], [-np.inf] * 3], float)
    targets = [0, 0, 2, 1, 0]
    labels = np.where(np.arange(3) == np.array(targets)[:, None], 1, -1)
    found = examples_of([scored(scores, labels)], 0, ["a", "b", "c"], single=True, most=5)
    assert [(one.id, one.said) for one in found.highest] == [("3", "b"), ("0", ""), ("1", "b"), ("2", "c")]
    assert [one.verdict for one in found.highest] == ["wrong", "right", "missed", "other"]
    assert (found.alarms, found.missed) == ((), ()), "all of them are among the highest"
    found = examples_of([scored(scores, labels)], 1, ["a", "b", "c"], single=True, most=1)
    assert [(one.id, one.verdict, one.said) for one in found.highest] == [("3", "missed", "a")]
    found = examples_of([scored(scores, labels)], 0, ["a", "b", "c"], single=True, most=1)
    assert [(one.id, one.said) for one in found.missed] == [("1", "b")], "is a, taken for b"


def test_images_of_all_tests_take_turns_and_none_is_shown_twice():
    first, second = (
        replace(
            scored(np.array([[4.0], [3], [2], [1]]), np.array([[-1], [1], [-1], [1]])),
            ids=tuple(names),
            paths=tuple(names),
        )
        for names in ("abcd", "aefg")
    )
    found = examples_of([first, second], 0, ["x"], single=False, most=3)
    assert [(one.id, one.rank) for one in found.highest] == [("a", 1), ("b", 2), ("e", 2)], "a is in both"
    assert [one.id for one in found.alarms] == ["c", "f"]
    assert [one.id for one in found.missed] == ["d", "g"]


def scored(scores, labels):
    names = tuple(map(str, range(len(scores))))
    return Scores(ids=names, paths=names, boxes=None, labels=labels.astype(np.int8), scores=scores)


def opened(address):
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))))


def test_small_copies_are_small_and_have_their_box(made, tmp_path):
    root, results, _ = made
    path = results["good"][1].paths[0]
    plain, boxed, gone = Key(path, None), Key(path, BOX), Key("gone.jpg", None)
    (root / "images" / "broken.jpg").write_bytes(b"no image")
    broken = Key("broken.jpg", None)
    found = small_copies(root / "images", [plain, boxed, gone, broken, plain], workers=1)
    assert list(found) == [plain, boxed, gone, broken]
    assert (found[gone], found[broken]) == ("missing", "unrecognised")
    for key in (plain, boxed):
        copy = opened(found[key])
        assert copy.format == "JPEG"
        assert copy.size == (SIDES[0], SIDES[0] * SIDE[1] // SIDE[0])
    share = SIDES[0] / SIDE[0]
    left, top, right, bottom = (round(edge * share) for edge in BOX)
    pixels = np.asarray(opened(found[boxed])).astype(int)
    across, down = (left + right) // 2, (top + bottom) // 2
    for x, y in ((left, down), (right - 1, down), (across, top), (across, bottom - 1)):
        near = pixels[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)
        assert (near[:, 0] + near[:, 1] - 2 * near[:, 2]).max() > 120, "yellow"
    inside = pixels[down - 3 : down + 3, across - 3 : across + 3]
    np.testing.assert_allclose(inside, np.broadcast_to(np.asarray(opened(found[plain]))[down, across], inside.shape),
                               atol=12)  # fmt: skip


@pytest.mark.parametrize(("dataset", "place"), [("voc2012-action", (80, 30)), ("manifest", (20, 10))])
def test_official_boxes_are_drawn_where_the_turned_image_has_them(tmp_path, dataset, place):
    """An image that EXIF turns by 180 degrees: the box around (20, 10) of its stored pixels is around (80, 30)."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (100, 40), "black").save(tmp_path / "a.png", exif=exif)
    key = Key("a.png", (15.0, 6.0, 25.0, 14.0))
    pixels = np.asarray(opened(small_copies(tmp_path, [key], dataset=dataset, workers=0)[key])).astype(int)
    rows, columns = np.nonzero(pixels[..., 0] > 100)
    assert abs(columns.mean() - place[0]) < 2
    assert abs(rows.mean() - place[1]) < 2


@pytest.mark.parametrize("box", [(0, 0, 200, 100), (199, 99, 200, 100), (-5, -5, 500, 500), (10, 10, 10, 10)])
def test_boxes_at_the_edge_do_no_harm(made, box):
    root, results, _ = made
    key = Key(results["good"][1].paths[0], tuple(map(float, box)))
    assert small_copies(root / "images", [key], workers=0)[key].startswith("data:image/jpeg;base64,")


def test_every_image_of_the_page_opens(made):
    page = Parsed(made[2]["two"].content)
    sources = page.attributes("img", "src")
    assert len(sources) > 20
    for source in set(sources):
        opened(source).load()
    names = page.attributes("img", "alt")
    assert all(name.endswith(": <b onclick='complain()'>&amp;") for name in names)
    assert not Parsed(made[2]["bare"].content).attributes("img", "src")


def test_images_that_are_gone_are_said_to_be(made, tmp_path):
    root, results, _ = made
    shutil.copytree(root / "images", tmp_path / "p")
    dataset = results["good"][1]
    with np.load(root / "good.svm" / "scores.npz") as found:
        best = dataset.paths[18 + int(found["scores_1"][:, 0].argmax())]
    (tmp_path / "p" / best).unlink()
    page = make_page([root / "good.svm"], PageSettings(images=tmp_path / "p", workers=0))
    assert page.missing >= 1
    assert "no image: missing" in Parsed(page.content).texts("span")


def test_a_root_without_the_images_is_refused(made, tmp_path):
    with pytest.raises(ConfigError, match=r"--root .*: expected the images of manifest there, found none of 18"):
        make_page([made[0] / "good.svm"], PageSettings(images=tmp_path))


def test_the_root_may_be_the_one_that_extract_was_given(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("path,labels\np/a.png,cat\n")
    for given in (tmp_path, tmp_path / "list.csv"):
        root = images.find_root(given, "manifest", ["p/a.png"])
        assert (root / "p" / "a.png").is_file()


def test_no_page_has_more_images_than_its_budget_and_the_worst_classes_come_first(made, monkeypatch):
    root, _, _ = made
    monkeypatch.setattr(building, "BUDGET", 5)
    page = make_page([root / "good.svm"], PageSettings(images=root / "images", workers=0))
    assert 1 <= page.images <= 5
    (group,) = page.groups
    values = [float(part.values[0]) for part in group.classes]
    assert values == sorted(values)
    shown = Parsed(page.content)
    worst = [one.id for kind in ("highest", "alarms", "missed") for one in getattr(group.classes[0].examples[0], kind)]
    assert shown.attributes("img", "alt")[:5] == worst[:5]


# --- training


def training_folder(folder, losses):
    folder.mkdir()
    lines = [{"kind": "train", "step": 50 * n, "loss": loss, "top1_error": 0.5, "lr": 0.01, "images_per_s": 80.0}
             for n, loss in enumerate(losses, start=1)]  # fmt: skip
    lines += [{"kind": "validation", "step": 100, "top1_error": 0.25, "top5_error": 0.125, "images": 9}]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"kind": "tr')
    (folder / "run.json").write_text(json.dumps({"recipe": {"net": "A", "batch": 256}}))
    return folder


def test_a_training_folder_gives_curves_and_figures(tmp_path):
    folders = [training_folder(tmp_path / name, losses) for name, losses in (("a", [3, 2, 1]), ("b", [4, 3, 2]))]
    page = Parsed(make_page(folders).content)
    text = page.whole_text()
    for figure in ("25.0 %", "12.5 %", "150 steps."):
        assert figure in text
    assert {"256", "A"} <= set(page.texts("dd"))
    assert "lowest" not in text, "of one validation"
    with (folders[0] / "log.jsonl").open("a") as log:
        log.write(f"\n{json.dumps({'kind': 'validation', 'step': 150, 'top1_error': 0.375, 'top5_error': 0.125})}")
    one = Parsed(make_page(folders[:1]).content)
    assert "lowest: 25.0 % at step 100" in one.texts("p")
    assert one.texts("title") == ["Training: a", *one.texts("title")[1:]]
    titles = ["loss over steps", "error over steps", "learning rate over steps", "images per second over steps"]
    assert one.texts("figcaption") == titles
    together = ["loss over steps", "top-1 error over steps", "top-5 error over steps"]
    assert page.texts("figcaption") == [*together, *titles, *titles]


# --- other commands


def test_results_of_other_commands_give_figures_tables_and_the_rest(tmp_path):
    results = {
        "format": "vggfeat-classification",
        "headline": "ilsvrc: top-1 error 25.0 %",
        "top1_error": 0.25,
        "errors": {"localisation": 0.5, "mean_overlap": 0.125, "by_guess": [1, 2]},
        "classes": [{"name": "a", "top1_error": 0.5, "images": 4}, {"name": "b", "top1_error": None, "images": 0}],
        "confusions": [{"class": "a", "taken_for": ["b"], "images": 2}],
        "notes": ["Mind this."],
        "settings": {"scales": [256, 384]},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "table.txt").write_text("is not needed next to tables")
    page = Parsed(make_page([tmp_path]).content)
    assert page.texts("strong") == ["ilsvrc: top-1 error 25.0 %"]
    figures = [("25.0 %", "top-1 error"), ("50.0 %", "localisation error"), ("0.125", "mean overlap")]
    values = ["".join(texts) for tag, attrs, texts in page.elements if attrs.get("class") == "value"]
    assert values == [value for value, _ in figures]
    assert [name for _, name in figures] == [text for text in page.texts("p") if text in dict(map(reversed, figures))]
    assert page.texts("th") == ["name", "top-1 error %", "images", "class", "taken for", "images"]
    assert page.texts("td") == ["a", "50.0", "4", "b", "\N{EN DASH}", "0", "a", "b", "2"]
    assert page.attributes("td", "data-value")[:6] == [None, "0.5", "4.0", None, "", "0.0"]
    assert page.texts("title")[0] == "ilsvrc: top-1 error 25.0 %"
    assert "Mind this." in page.texts("p")
    assert "256, 384" in page.texts("dd")
    assert not page.texts("pre")


def test_several_results_of_other_commands_stand_side_by_side_and_classes_have_their_words(tmp_path):
    for name, error in (("x", 0.5), ("y", None)):
        (tmp_path / name).mkdir()
        results = {
            "top1_error": error,
            "top5_error": 0.25,
            "classes": [{"name": "n01", "words": "cat & dog"}],
            "confusions": [{"class": "n01", "taken_for": "n02"}],
        }
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    header, rows = rows_of(make_page([tmp_path / "x", tmp_path / "y"]).content)
    assert header == ["run", "top-1 error", "top-5 error"]
    assert rows == [["x", "50.0 %", "25.0 %"], ["y", "\N{EN DASH}", "25.0 %"]]
    page = Parsed(make_page([tmp_path / "x"]).content)
    assert page.texts("td") == ["n01", "cat & dog", "n01 (cat & dog)", "n02"]
    assert "Side by side" not in page.whole_text()


# --- charts


def drawn_points(drawn, line):
    """The points of a path as shares of the width and height between the axes."""
    found = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", line.path), float).reshape(-1, 2)
    found = np.array(line.points, float) if line.points else found
    across = (found[:, 0] - drawn.left) / (drawn.right - drawn.left)
    return np.stack([across, (drawn.bottom - found[:, 1]) / (drawn.bottom - drawn.top)], axis=1)


def test_curves_worked_out_by_hand():
    # A negative, then both positives: precision 1/2 at recall 1/2, and 2/3 at recall 1, the best of both recalls.
    scores, labels = np.array([[3.0], [2], [1]]), np.array([[-1], [1], [1]])
    told = {"name": "test", "grid": [1, 10, 100], "curve": [[0.2, 0.1], [0.6, 0.2], [0.4, 0.3]], "C": [10, 100]}
    results = {"classes": [{"name": "a"}], "metric": {"name": "mean average precision, area"}, "runs": [told]}
    own = SvmRun(name="x", results=results, tests=(scored(scores, labels),))
    drawn = ranking([own], 0)
    np.testing.assert_allclose(drawn_points(drawn, drawn.lines[0]), [[0.5, 0.5], [1, 2 / 3]], atol=1e-3)
    drawn = overview([own])
    (mean,) = (drawn_points(drawn, line) for line in drawn.lines if line.name == "mean")
    np.testing.assert_allclose(mean, np.stack([np.linspace(0, 1, 101), np.full(101, 2 / 3)], axis=1), atol=1e-3)
    drawn = choice([own], 0)
    curve, mark = (drawn_points(drawn, line) for line in drawn.lines)
    assert [tick.label for tick in drawn.y_ticks] == ["20", "30", "40", "50", "60"]
    np.testing.assert_allclose(curve, [[0, 0], [0.5, 1], [1, 0.5]], atol=1e-3)
    np.testing.assert_allclose(mark, [[0.5, 1]], atol=1e-3)


def test_curves_over_c_name_their_classes():
    told = {"name": "test", "grid": [1, 10], "curve": [[0.2, 0.1, 0.5], [0.6, 0.2, 0.4]], "C": [10, 10, 1]}
    results = {"metric": {"name": "mean average precision, area"}, "runs": [told]}
    results["classes"] = [{"name": name} for name in ("cat", "dog", "emu")]
    lines = cost_curves(results)
    assert [(line.name, line.hint) for line in lines] == [
        ("", "cat"), ("highest: emu", ""), ("lowest: dog", ""), ("mean over classes", "")
    ]  # fmt: skip
    np.testing.assert_allclose(lines[-1].y, [80 / 3, 40])
    drawn = choices(results)
    assert [line.hint for line in drawn.lines] == [line.hint for line in lines]
    several = cost_curves(results | {"runs": [told | {"name": f"fold {k}"} for k in (1, 2)]})
    assert [line.name for line in several if line.name] == ["highest: emu", "lowest: dog", "fold 1", "fold 2"]


def test_the_interval_and_the_learning_curve_are_on_the_page_and_checked(made, tmp_path):
    file = edited(shutil.copytree(made[0] / "good.svm", tmp_path / "x.svm")) / "results.json"
    results = json.loads(file.read_text())
    results["interval"] = {"low": 0.25, "high": 0.5, "level": 0.95}
    results["learning_curve"] = [
        {"samples": 10, "mean": 0.2, "low": 0.1, "high": 0.3},
        {"samples": 20.4, "mean": 0.4, "low": 0.4, "high": 0.5},
    ]
    drawn = learning(results)
    assert [tick.label for tick in drawn.x_ticks] == ["10", "20"]
    low, high, mean = (drawn_points(drawn, line) for line in drawn.lines)
    ends = [float(tick.label) for tick in drawn.y_ticks]
    for points, values in ((low, [10, 40]), (high, [30, 50]), (mean, [20, 40])):
        np.testing.assert_allclose(points[:, 1], (np.array(values) - ends[0]) / (ends[-1] - ends[0]), atol=1e-3)
    file.write_text(json.dumps(results))
    shown = make_page([tmp_path / "x.svm"]).content.decode()
    assert "95 % interval: 25.0 to 50.0 %" in shown
    assert drawn.title in shown
    results["learning_curve"][0]["mean"] = "<b>"
    file.write_text(json.dumps(results))
    with pytest.raises(StoreError, match=r"learning_curve\[0\].mean: expected a number from 0 to 1 or null"):
        make_page([tmp_path / "x.svm"])


def test_points_lie_where_the_axes_say():
    axis = Axis(label="", low=0, high=10, ticks=(0, 5, 10))
    drawn = chart("", axis, axis, [Curve(name="", x=[0, 0, 5, 10, 0], y=[0, 10, np.nan, 10, 0], style="c0")])
    ends = {"l": drawn.left, "r": drawn.right, "b": drawn.bottom, "t": drawn.top}
    assert drawn.lines[0].path == "M{l:g} {b:g}L{l:g} {t:g}M{r:g} {t:g}L{l:g} {b:g}".format(**ends), "a gap at NaN"
    assert float(drawn.x_ticks[1].at) == (drawn.left + drawn.right) / 2
    alone = chart("", axis, axis, [Curve(name="", x=[0, 5, 10], y=[0, np.nan, 10], style="c0")]).lines[0]
    assert (alone.path, len(alone.points)) == ("", 2), (
        "a value without a neighbour is a point, for a path shows nothing"
    )
    log = Axis(label="", low=0.1, high=1000, ticks=(1,), logarithmic=True)
    np.testing.assert_allclose(log.share([0.1, 10, 1000]), [0, 0.5, 1])


def test_axes_hold_their_values_and_end_at_round_numbers():
    axis = linear_axis("", [0.3, 7.2])
    assert axis.ticks == (0.0, 2.0, 4.0, 6.0, 8.0)
    assert linear_axis("", [np.nan]).ticks[0] == 0
    assert linear_axis("", [5.0]).low <= 5 <= linear_axis("", [5.0]).high
    assert log_axis("", [0.03125, 1024]).ticks == (0.1, 1.0, 10.0, 100.0, 1000.0)
    for values in ([0.001], [0.0003], [0.2, 0.5], []):
        axis = log_axis("", values)
        assert len(axis.ticks) == 2
        assert all(axis.low <= value <= axis.high for value in values)
    assert thinned(1000, 3).tolist() == [0, 500, 999]
    assert thinned(2).tolist() == [0, 1]


# --- what is refused, and the command


@pytest.mark.parametrize("content", [b"no zip", b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
def test_damaged_scores_are_an_error_of_one_line(made, tmp_path, content):
    edited(shutil.copytree(made[0] / "good.svm", tmp_path / "x.svm"))
    (tmp_path / "x.svm" / "scores.npz").write_bytes(content)
    with pytest.raises(StoreError, match=r"scores\.npz: expected the scores that results\.json is about, found others"):
        read_runs([tmp_path / "x.svm"])


def test_scores_that_dont_fit_are_refused(made, tmp_path):
    edited(shutil.copytree(made[0] / "good.svm", tmp_path / "x.svm"))
    with np.load(tmp_path / "x.svm" / "scores.npz") as found:
        arrays = dict(found)
    changes = [
        {"scores_1": np.full_like(arrays["scores_1"], np.nan)},
        {"labels_1": arrays["labels_1"][:5]},
        {"ids_1": arrays["ids_1"][:5]},
        {name: arrays[name][:, :2] for name in ("scores_1", "labels_1")},
        {"ids_1": np.array([None] * 18, dtype=object)},
    ]
    for change in changes:
        np.savez(tmp_path / "x.svm" / "scores.npz", **(arrays | change))
        with pytest.raises(StoreError):
            read_runs([tmp_path / "x.svm"])


def test_images_of_folders_that_name_none_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--root: expected a folder of `vggfeat svm` .*, found none"):
        make_page([training_folder(tmp_path / "a", [1])], PageSettings(images=tmp_path))


def test_folders_without_results_or_given_twice_are_refused(made, tmp_path, capsys):
    assert run(["report", str(tmp_path)]) == 6
    assert (
        "expected the folder of a run, with results.json or log.jsonl in it, found neither" in capsys.readouterr().err
    )
    assert run(["report", str(tmp_path / "none")]) == 6
    capsys.readouterr()
    assert run(["report", str(made[0] / "good.svm" / "results.json")]) == 6
    assert "in it, found a file; give the folder that `vggfeat svm --out`" in capsys.readouterr().err
    replace_run(DISK, tmp_path, {"predictions.json": b"{}"}, last="predictions.json")  # as of svm --apply
    assert run(["report", str(tmp_path)]) == 6
    err = capsys.readouterr().err
    assert "with results.json or log.jsonl in it, found neither" in err
    assert "was stopped" not in err
    good = str(made[0] / "good.svm")
    assert run(["report", good, good, "--out", str(tmp_path / "x.html")]) == 2
    assert not (tmp_path / "x.html").exists()


def test_folders_of_one_name_are_told_apart(made, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(made[0] / "good.svm", tmp_path / place / "x.svm")
    names = [found.name for found in read_runs([tmp_path / "a" / "x.svm", tmp_path / "b" / "x.svm"])]
    assert names == ["a/x", "b/x"]


def test_folders_of_vggfeat_before_it_kept_paths_make_a_page_without_images(made, tmp_path):
    edited(shutil.copytree(made[0] / "good.svm", tmp_path / "x.svm"))
    with np.load(tmp_path / "x.svm" / "scores.npz") as found:
        arrays = {name: values for name, values in found.items() if not name.startswith(("paths", "boxes"))}
    np.savez(tmp_path / "x.svm" / "scores.npz", **arrays)
    assert make_page([tmp_path / "x.svm"]).images == 0
    with pytest.raises(ConfigError, match="expected runs that know the paths of their images"):
        make_page([tmp_path / "x.svm"], PageSettings(images=made[0] / "images"))


def test_the_command_writes_the_page_and_says_what_it_found(made, tmp_path, capsys):
    root = made[0]
    words = ["report", str(root / "bad.svm"), str(root / "good.svm"), "--quiet", "--workers", "0", "--resamples", "100"]
    words += ["--root", str(root / "images"), "--out", str(tmp_path / "new" / "page.html")]
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "new" / "page.html").read_bytes() == made[2]["two"].content
    assert re.search(
        r"^good - bad: [+-]\d+\.\d points, 95 % interval .* \(100 resamples of 18 test images\)$", shown, re.M
    )
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["page", "groups", "images", "missing_images", "bytes"]
    (difference,) = told["groups"][0]["differences"]
    runs = [{"name": name, "headline": made[1][name][0].headline, "deviation": None, "tested": "on test"}
            for name in ("bad", "good")]  # fmt: skip
    assert told["groups"][0]["runs"] == runs
    assert list(difference) == ["first", "second", "mean", "interval", "level", "resamples", "seed", "images"]
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "page.html"]
    (tmp_path / "new" / "page.html").chmod(0o600)
    assert run(words) == 0
    assert stat.S_IMODE((tmp_path / "new" / "page.html").stat().st_mode) == 0o600, "as it was"
