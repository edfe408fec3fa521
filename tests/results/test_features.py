"""The map of a table: its JSON, its page, and the page in a real browser."""

import json

import numpy as np
import pytest

from browsing import browser, chromium
from page_runs import HOSTILE, Parsed, make_images, make_run, make_table
from vggfeat.audit import AuditSettings, audit_table
from vggfeat.cli import run
from vggfeat.errors import ConfigError
from vggfeat.projection import ProjectionSettings
from vggfeat.results.audit import audit_json, audit_page
from vggfeat.results.features import map_json, map_page, map_text, predictions_of, script_json
from vggfeat.results.record import printable
from vggfeat.samples import Label

SETTINGS = ProjectionSettings(method="pca", clusters=3)
BROWSER = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("map")
    table = make_table(single=True, failed=(20,), boxes=True)
    make_images(root / "images", table.dataset)
    content = map_json(table, HOSTILE[0], SETTINGS)
    (root / "map.html").write_bytes(map_page(content, root / "images", workers=0))
    found = audit_table(table, AuditSettings(grid=(1.0,), folds=3, near=0.9))
    page = audit_page(audit_json(found, table, HOSTILE[0]), root / "images", workers=0)
    (root / "audit.html").write_bytes(page)
    return root, table, content


def test_the_json_has_a_point_for_every_image_with_a_descriptor(made):
    _, table, content = made
    again = json.loads(json.dumps(content, allow_nan=False))
    assert [one["id"] for one in again["points"]] == [name for row, name in enumerate(table.dataset.ids) if row != 20]
    assert [one["group"] for one in again["points"]][:3] == list(HOSTILE[:3])
    assert again["coloured_by"] == "class"
    assert sum(one["size"] for one in again["clusters"]) == 35
    known = {one["id"]: one["cluster"] for one in again["points"]}
    for number, one in enumerate(again["clusters"]):
        assert {known[name] for name in one["central"]} == {number}
    assert map_text(content).splitlines()[-1] == "35 of 36 images of manifest, PCA"
    assert "\nforged" not in map_text(content | {"dataset": "x\nforged"})


def test_without_labels_clusters_have_the_colours():
    table = make_table()
    table.dataset.labels[:] = Label.NEGATIVE
    content = map_json(table, "x.h5", SETTINGS)
    assert content["coloured_by"] == "cluster"
    assert {one["group"] for one in content["points"]} == {"cluster 1", "cluster 2", "cluster 3"}


def test_predictions_of_a_run_have_the_colours(tmp_path):
    make_run(tmp_path / "x.svm", single=True)
    predicted = predictions_of(tmp_path / "x.svm")
    table = make_table(single=True)
    assert predicted.keys() == set(table.dataset.ids[18:])
    content = map_json(table, "x.h5", SETTINGS, predicted)
    groups = [one["group"] for one in content["points"]]
    assert groups[:18] == ["not known"] * 18
    scores = np.load(tmp_path / "x.svm" / "scores.npz")["scores_1"]
    assert groups[18:] == [HOSTILE[k] for k in scores.argmax(axis=1)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="expected a folder of `vggfeat svm`"):
        predictions_of(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"--run: expected a run that tested images of x.h5, found .* such as 'a'"):
        map_json(table, "x.h5", SETTINGS, {"a": HOSTILE[0]})


def test_data_in_the_page_can_not_end_its_element():
    text = str(script_json(["</script><!--", "&amp;", "\u2028"]))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == ["</script><!--", "&amp;", "\u2028"]


def test_the_page_holds_all_and_no_name_becomes_an_element(made):
    root, _, content = made
    page = Parsed((root / "map.html").read_bytes())
    assert page.tags() & {"b", "i", "h4"} == set()
    data = json.loads(next(text for text in page.texts("script") if text.startswith("{")))
    assert data["groups"] == sorted(printable(name) for name in HOSTILE[:3])
    assert len(data["points"]) == len(content["points"])
    assert all(point[5].startswith("data:image/jpeg") for point in data["points"])
    assert "data:image" not in map_page(content).decode()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(chromium(), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def mouse(tab, kind, x, y, **more):
    tab.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


@BROWSER
@pytest.mark.parametrize("width", [390, 1280])
def test_pointing_shows_an_image_and_dragging_selects(made, tab, width):
    root, _, content = made
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(root / "map.html", width=width)
    tab.ask("document.querySelector('canvas').scrollIntoView()")
    box = tab.ask("document.querySelector('canvas').getBoundingClientRect().toJSON()")
    first = content["points"][0]
    side = box["width"] - 2 - 24  # without the border and the margins of the drawing
    x, y = (box[name] + 1 + 12 + first[name] * side for name in ("x", "y"))
    mouse(tab, "mouseMoved", x, y)
    shown = tab.ask(
        "[document.querySelector('.map figure').hidden, document.querySelector('.map img').src.slice(0, 15)]"
    )
    assert shown == [False, "data:image/jpeg"]
    caption = tab.ask("document.querySelector('.map figure div').textContent")
    assert printable(first["id"]) in caption
    assert printable(first["group"]) in caption
    button = {"button": "left", "buttons": 1}
    mouse(tab, "mousePressed", x - 3, y - 3, clickCount=1, **button)
    mouse(tab, "mouseMoved", x + 3, y + 3, **button)
    mouse(tab, "mouseReleased", x + 3, y + 3, clickCount=1, button="left")
    chosen = tab.ask("document.querySelector('textarea').value").split("\n")
    assert printable(first["id"]) in chosen
    assert tab.ask("Number(document.querySelector('output').textContent)") == len(chosen) < 36
    assert tab.complaints == []
    assert [address for address in tab.requests if not address.startswith("data:")] == [
        (root / "map.html").resolve().as_uri()
    ]


@BROWSER
@pytest.mark.parametrize("name", ["map", "audit"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_open_without_a_complaint_and_fit_the_window(made, tab, name, width):
    root = made[0]
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(root / f"{name}.html", width=width)
    assert tab.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.complaints == []
    assert len([address for address in tab.requests if not address.startswith("data:")]) == 1
    assert tab.ask("[...document.querySelectorAll('li img')].length") > 3


def test_the_command_writes_a_page(tmp_path, monkeypatch, capsys):
    from feature_files import write_file

    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "x.h5", failed=("d",))
    assert run(["map", "x.h5", "--clusters", "2"]) == 0
    said = capsys.readouterr().out
    assert "3 of 4 images of manifest, t-SNE" in said
    assert run(["map", "x.h5", "--method", "pca", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 3
    assert (tmp_path / "map.html").is_file()
