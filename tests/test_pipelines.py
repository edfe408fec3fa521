"""The files in pipelines/: their promises against Tables 11 and 12, and their small twins end to end."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from vggfeat.report.writing import PAPER
from vggfeat.reproduce import reproduce

FOLDER = Path(__file__).parents[1] / "pipelines"
STEMS = sorted(path.stem for path in FOLDER.glob("*.py"))
# Together these run every data set, fusion, and both regions.
SHORT = {"voc2007_de", "voc2012_d", "voc2012_action_image_box", "caltech101_de", "caltech256_d"}


def load(stem):
    spec = importlib.util.spec_from_file_location(stem, FOLDER / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_file_for_every_row_of_the_tables():
    rows = [load(stem).ROW for stem in STEMS]
    found = {(row.dataset, row.nets, tuple(row.regions.split(","))) for row in rows}
    assert found == {(name, *key) for name, numbers in PAPER.items() for key in numbers}
    assert len(rows) == len(found) == 14


@pytest.mark.parametrize("stem", STEMS)
def test_the_promise_at_the_head_is_what_the_row_says(stem):
    module = load(stem)
    row, promise = module.ROW, module.__doc__
    number = PAPER[row.dataset][(row.nets, tuple(row.regions.split(",")))]
    assert float(number.split()[0]) == row.expected
    if "+-" in number:
        assert float(number.split()[-1]) == row.spread
    assert f"Table {row.table} of the VGG paper" in promise
    assert f"{row.expected} %." in promise
    assert f"Expected: {row.expected} +- {row.spread};" in promise
    assert row.table == (12 if row.dataset == "voc2012-action" else 11)
    assert re.search(
        rf"python pipelines/{stem}\.py --root DATA( --weights [DE]\.safetensors){{{len(row.nets)}}}\n", promise
    )
    assert f"python pipelines/{stem}.py --twin" in promise


@pytest.mark.parametrize("stem", [pytest.param(s, marks=() if s in SHORT else pytest.mark.long) for s in STEMS])
def test_the_twin_runs(stem, tmp_path, capsys):
    row = load(stem).ROW
    ours = reproduce(row, ["--twin", "--out", str(tmp_path), "--device", "cpu"])
    (folder,) = [path.parent for path in tmp_path.rglob("results.json")]
    results = json.loads((folder / "results.json").read_text())
    assert ours == pytest.approx(100 * results["headline"])
    assert 0 < ours <= 100
    assert results["dataset"]["failed"] == 0
    nets = [file["provenance"]["net"] for file in results["settings"]["features"]["files"]]
    assert tuple(nets) == row.nets
    assert results["settings"]["features"]["files"][0]["regions"] == row.regions.split(",")
    expected = {"caltech101": "stack", "caltech256": "stack"}.get(row.dataset, "mean")
    assert results["settings"]["features"]["join"] == expected
    archives = [path.name for path in folder.glob("*.tar.gz")]
    assert archives == ([f"results-{row.dataset}-test.tar.gz"] if row.dataset.startswith("voc2012") else [])
    out = capsys.readouterr().out
    assert "$ vggfeat extract" in out
    assert "not to be compared" in out


def test_missing_weights_are_asked_for(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce(load("voc2007_de").ROW, ["--out", str(tmp_path), "--weights", "one.safetensors"])
    assert ended.value.code == 2
    assert "expected one for each of D, E, found 1" in capsys.readouterr().err
