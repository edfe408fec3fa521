"""Three uses from the first command to the last, as their pages say it: the paper's table, own images, a program."""

import json
import os
import re
import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from documents import DOCS, ROOT, run_notebook, run_page
from vggfeat import open_dataset
from vggfeat.cli import run
from vggfeat.datasets.catalogue import DATASETS
from vggfeat.synthetic import Settings, write
from vggfeat.weights import load_backbone, save_weights

openpyxl = pytest.importorskip("openpyxl")

COLUMNS = ["--column", "path=Photo", "--column", "labels=Diagnosis", "--column", "group=Patient ID"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with what pages name: a rendered data set, narrow nets in the place of full ones, and a lab's images.

    Of these, some are JPEGs, some transparent PNGs in folders of folders, and one of each class is tiny.
    """
    made = tmp_path_factory.mktemp("made")
    few = Settings(image_side=96, classes=20, train=20, val=20, test=20)
    write("voc2007", made / "VOCdevkit", seed=0, size=few, workers=1)
    for net in ("D", "E"):
        narrow = load_backbone(f"random:{net}:0:0.015625")
        save_weights(made / f"{net}.safetensors", narrow.model, mean=narrow.mean)
    write("folder", made / "rendered", seed=0, size=Settings(image_side=64, classes=2, per_class=8), workers=1)
    dataset = open_dataset("folder", made / "rendered")
    for name, label in zip(("cat", "dog"), dataset.labels.T, strict=True):
        for number, row in enumerate(np.flatnonzero(label == 1).tolist()):
            place = made / ("photos" if number < 6 else "new") / name / f"{number}.jpg"
            as_a_lab_has_them(Path(dataset.root, dataset.paths[row]), place, number)
    shutil.copy(made / "new" / "cat" / "6.jpg", made / "holiday.jpg")
    return made


def as_a_lab_has_them(image, place, number):
    place.parent.mkdir(parents=True, exist_ok=True)
    if number % 3 < 2:
        shutil.copy(image, place)
        return
    drawn = Image.open(image).convert("RGBA")
    drawn.putalpha(Image.radial_gradient("L").point(lambda value: 255 - value // 4).resize(drawn.size))
    if number == 2:
        drawn = drawn.resize((24, 20))
    inner = place.parent / f"series {number // 3}" / place.with_suffix(".png").name
    inner.parent.mkdir(exist_ok=True)
    drawn.save(inner)


def copied(made, folder):
    return shutil.copytree(made, folder, copy_function=os.link)


@pytest.fixture
def desk(made, tmp_path, monkeypatch):
    """The same in a folder of the test's own, which is the current one."""
    folder = copied(made, tmp_path / "desk")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _scales():
    # Five small scales in the place of the paper's, which take ten times as long.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "voc2007", replace(DATASETS["voc2007"], scales=(224, 230, 240, 250, 256)))
        yield


@pytest.fixture(scope="module")
def table_11(made, _scales, tmp_path_factory):
    """A folder in which the page on table 11 was run, each line."""
    folder = copied(made, tmp_path_factory.mktemp("table-11") / "desk")
    with chdir(folder):
        # The copy of the data set is a rendered one, which is not complete.
        run_page(DOCS / "tutorial-table-11.md", codes={"data check": 4})
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_a_researcher_reproduces_table_11(table_11):
    alone, both = results(table_11 / "voc2007-D.svm"), results(table_11 / "voc2007-DE.svm")
    assert alone["metric"]["name"] == both["metric"]["name"] == "mean average precision, 11-point"
    assert [file["provenance"]["net"] for file in both["settings"]["features"]["files"]] == ["D", "E"]
    assert 'alt="' in (table_11 / "voc2007.html").read_text(encoding="utf-8")


def images(folder):
    return sorted(path for path in folder.rglob("*.*") if path.suffix in (".jpg", ".png"))


def test_a_lab_classifies_its_own_images(desk):
    run_page(DOCS / "tutorial-own-images.md")
    measured = results(desk / "photos.svm")
    assert measured["headline"] > measured["chance"]["value"] + 0.1
    predicted = (desk / "new.csv").read_text(encoding="utf-8").splitlines()
    assert len(predicted) == 1 + len(images(desk / "new")) + 1
    run_page(DOCS / "audit.md", without="clip.parquet")
    assert all((desk / name).stat().st_size > 1000 for name in ("audit.html", "map.html", "holiday.png"))


def test_a_lab_has_a_list_of_patients(desk, capsys):
    paths = [path.relative_to(desk / "photos").as_posix() for path in images(desk / "photos")]
    patients = [number // 2 for number in range(len(paths))]
    book = openpyxl.Workbook()
    book.active.append(["Photo", "Diagnosis", "Patient ID"])
    for path, patient in zip(paths, patients, strict=True):
        book.active.append([path.replace("/", "\\"), path.split("/")[0], f"patient {patient}"])
    book.save(desk / "photos" / "patients.xlsx")
    data = ["--root", "photos/patients.xlsx", *COLUMNS]
    assert run(["data", "check", "manifest", *data]) == 0
    assert run(["extract", "--dataset", "manifest", *data, "--weights", "small", "--scales", "224",
                "--out", "patients.h5"]) == 0  # fmt: skip
    assert run(["svm", "patients.h5", "--folds", "2"]) == 0
    assert re.search(rf"resamples of {len(set(patients))} groups", capsys.readouterr().out)


def test_a_programmer_builds_a_service(desk, table_11):
    os.link(table_11 / "voc2007-D.h5", desk / "voc2007-D.h5")
    names = run_page(DOCS / "tutorial-python.md")
    assert names["features"].shape[1:3] == (5, 1)
    assert names["descriptors"].shape == (2, 64)
    assert names["made_by"]["net"] == "D"
    assert np.ptp(names["same"], axis=0).max() < 1e-6
    assert len(names["batch"]) == len(names["streamed"]) == 2
    assert [failure.name for failure in names["failures"]] == ["nowhere.jpg"]
    assert names["maps"]["pool5"].shape[:2] == (8, 8)
    assert (names["image"].grad != 0).any()
    assert len(names["frame"]) == 20
    assert len(names["accuracies"]) == 3
    assert len(names["data"].descriptors) == len(names["data"].labels) == len(names["data"].ids) == 20
    assert [sorted(answer) for answer in names["answers"]] == [["class"], ["reason"]]


def test_the_readme_runs_as_it_is_written(desk, table_11):
    # The same features under another name: extract finds that nothing is left to do.
    os.link(table_11 / "voc2007-D.h5", desk / "voc2007.h5")
    assert len(run_page(ROOT / "README.md")["descriptors"]) == 2


def test_the_lesson_on_table_11_shows_what_it_says(desk):
    names = run_notebook(DOCS / "notebooks" / "table-11.ipynb")
    assert names["depth"]["fc7"] > names["depth"]["pool1"] + 30
    assert names["averaging"]["average"] > names["averaging"]["centre"] + 30
    assert names["scales"]["mean"] >= names["scales"]["224"]
    assert all(result.headline > 0.5 for result in names["results"].values())


def test_the_lesson_on_own_images_finds_the_wrong_label(desk):
    names = run_notebook(DOCS / "notebooks" / "own-images.ipynb")
    assert names["result"].headline > 0.5
    assert names["suspects"][0].row == 0
    assert list(names["predicted"]) == list(names["names"][:2])
