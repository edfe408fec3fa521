"""The pages in a real browser: nothing complains, nothing is loaded, tables sort, images show, nothing overflows."""

import json

import pytest

from browsing import browser, chromium
from page_runs import HOSTILE, make_images, make_run, make_table
from vggfeat.metrics.bootstrap import BootstrapSettings
from vggfeat.results.features import similar_page
from vggfeat.results.page import PageSettings, make_page
from vggfeat.results.record import printable

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine: apt-get install chromium, as .ci/run does where it may"
)
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    _, dataset = make_run(root / "good.svm", noise=0.8, boxes=True, failed=(20,))
    make_run(root / "bad.svm", noise=3.0, boxes=True)
    make_run(root / "single.svm", single=True, noise=1.5)
    make_images(root / "images", dataset)
    training = root / "training-of-a-net-with-a-name-that-is-longer-than-a-phone-is-wide"
    training.mkdir()
    lines = [{"kind": "train", "step": step, "loss": 5 / step, "lr": 0.01, "images_per_s": 9.5} for step in (50, 100)]
    lines += [{"kind": "validation", "step": 100, "top1_error": 0.25, "top5_error": 0.125}]
    (training / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    settings = PageSettings(images=root / "images", bootstrap=BootstrapSettings(resamples=100), workers=0)
    found = {
        "runs": make_page([root / "bad.svm", root / "good.svm", training], settings),
        "single": make_page([root / "single.svm"], settings),
    }
    contents = {name: page.content for name, page in found.items()} | {"similar": similar(dataset, root / "images")}
    for name, content in contents.items():
        (root / f"{name}.html").write_bytes(content)
    return root


def similar(dataset, root):
    table = make_table()
    nearest = [
        {"rank": rank, "id": dataset.ids[rank], "path": path, "cosine": 0.5, "classes": list(HOSTILE), "box": None}
        for rank, path in enumerate(table.dataset.paths[1:5], start=1)
    ]
    content = {"query": HOSTILE[1], "rows": 9, "file": HOSTILE[0], "join": "mean", "normalisation": "blocks",
               "regions": ["image"], "failed": 0, "nearest": nearest}  # fmt: skip
    return similar_page(content, "manifest", (table.dataset.paths[0], None), root, root, workers=0)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(chromium(), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


NAMES = pytest.mark.parametrize("name", ["runs", "single", "similar"])
WIDTHS = pytest.mark.parametrize("width", [PHONE, DESK])


@NAMES
@WIDTHS
def test_it_opens_without_a_complaint_and_shows_its_images(pages, tab, name, width):
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(pages / f"{name}.html", width=width)
    tab.ask("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    sizes = tab.ask(
        "Promise.all([...document.images].map((one) => one.decode()"
        ".then(() => [one.naturalWidth, one.getBoundingClientRect().width])))"
    )
    assert len(sizes) >= (5 if name == "similar" else 20)
    assert all(natural > 0 and shown > 20 for natural, shown in sizes)
    assert tab.complaints == [], "an error, a warning, or a name that ran as a script"
    loaded = [address for address in tab.requests if not address.startswith("data:")]
    assert loaded == [(pages / f"{name}.html").resolve().as_uri()]


OVERFLOWING = """
[...document.querySelectorAll("body *")].filter((one) => {
  if (one.parentElement.closest(".scroll, svg, pre")) return false;
  const box = one.getBoundingClientRect();
  return box.width > 0 && (box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5);
}).map((one) => one.outerHTML.slice(0, 120))
"""


@NAMES
@WIDTHS
def test_no_element_is_wider_than_the_window(pages, tab, name, width):
    tab.open(pages / f"{name}.html", width=width)
    tab.ask("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.ask("innerWidth") == width
    assert tab.ask(OVERFLOWING) == []


def test_no_number_of_a_table_is_cut_off_on_a_phone_and_a_desk_is_used(pages, tab):
    hidden = (
        "[...document.querySelectorAll('.scroll')].filter((one) => !one.querySelector('.matrix') && "
        "one.scrollWidth > one.clientWidth).length"
    )
    for name in ("runs", "single"):
        tab.open(pages / f"{name}.html", width=PHONE)
        tab.ask("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert tab.ask(hidden) == 0
        tab.open(pages / f"{name}.html", width=DESK)
        assert tab.ask("document.querySelector('table.sortable').getBoundingClientRect().width") > 0.9 * DESK


def test_the_list_of_contents_leads_to_each_part(pages, tab):
    tab.open(pages / "runs.html", width=DESK)
    links = tab.ask("[...document.querySelectorAll('nav a')].map((one) => [one.hash, one.textContent])")
    heads = tab.ask("[...document.querySelectorAll('h1')].map((one) => ['#' + one.id, one.textContent])")
    assert [place for place, _ in links] == [place for place, _ in heads]
    assert [text.split(":")[0] for _, text in links] == [text.split(":")[0] for _, text in heads]
    tab.open(pages / "single.html", width=DESK)
    assert tab.ask("document.querySelectorAll('nav').length") == 0, "one part needs none"


def column(tab, number):
    return tab.ask(
        f"[...document.querySelector('table.sortable').tBodies[0].rows].map((row) => row.cells[{number}].textContent)"
    )


def aria(tab, number):
    return tab.ask(f"document.querySelector('table.sortable').tHead.rows[0].cells[{number}].getAttribute('aria-sort')")


@WIDTHS
def test_a_click_on_a_heading_sorts_and_another_turns_round(pages, tab, width):
    tab.open(pages / "runs.html", width=width)
    assert column(tab, 0) == [printable(name) for name in HOSTILE], "the order of the data set"
    before = column(tab, 2)
    descending = sorted(map(float, before), reverse=True)
    assert [float(text) for text in before] != descending
    tab.click("table.sortable th:nth-child(3) button")
    assert [float(text) for text in column(tab, 2)] == descending
    assert aria(tab, 2) == "descending"
    tab.click("table.sortable th:nth-child(3) button")
    assert [float(text) for text in column(tab, 2)] == descending[::-1]
    tab.click("table.sortable th:nth-child(1) button")
    assert (aria(tab, 0), aria(tab, 2)) == ("ascending", None)
    assert column(tab, 0) == tab.ask(f"{json.dumps([*map(printable, HOSTILE)])}.sort((a, b) => a.localeCompare(b))")
    assert sorted(column(tab, 0)) == sorted(printable(name) for name in HOSTILE), "no row is lost"
    # What belongs together stays together.
    tab.open(pages / "runs.html", width=width)
    rows = set(zip(column(tab, 0), column(tab, 2), column(tab, 4), strict=True))
    tab.click("table.sortable th:nth-child(5) button")
    assert set(zip(column(tab, 0), column(tab, 2), column(tab, 4), strict=True)) == rows


def test_cells_without_a_value_stay_last_whichever_way_round(tab, tmp_path):
    rows = [{"name": name, "top1_error": error} for name, error in (("a", None), ("b", 0.5), ("c", 0.25))]
    (tmp_path / "results.json").write_text(json.dumps({"classes": rows}))
    (tmp_path / "x.html").write_bytes(make_page([tmp_path]).content)
    tab.open(tmp_path / "x.html", width=DESK)
    for order in (["b", "c", "a"], ["c", "b", "a"]):
        tab.click("table.sortable th:nth-child(2) button")
        assert column(tab, 0) == order


def test_light_and_dark_have_grounds_and_texts_that_differ(pages, tab):
    found = {}
    for dark in (False, True):
        tab.open(pages / "runs.html", width=DESK, dark=dark)
        found[dark] = [
            sum(map(int, tab.ask(f"getComputedStyle(document.body).{what}").strip("rgb()").split(", ")))
            for what in ("backgroundColor", "color")
        ]
    assert found[False][0] > 700 > 150 > found[False][1]
    assert found[True][0] < 150 < 600 < found[True][1]


def test_without_scripts_everything_is_there(pages, tab):
    tab.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(pages / "runs.html", width=PHONE)
        root = tab.send("DOM.getDocument")["root"]["nodeId"]
        rows = tab.send("DOM.querySelectorAll", nodeId=root, selector="table.sortable tbody tr")["nodeIds"]
        images = tab.send("DOM.querySelectorAll", nodeId=root, selector="img")["nodeIds"]
        buttons = tab.send("DOM.querySelectorAll", nodeId=root, selector="button")["nodeIds"]
    finally:
        tab.send("Emulation.setScriptExecutionDisabled", value=False)
    assert len(rows) == len(HOSTILE)
    assert len(images) > 20
    assert buttons == [], "nothing to press that would do nothing"
