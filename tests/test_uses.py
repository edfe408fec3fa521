"""Three uses from the first command to the last, as their pages say it: the paper's table, own images, a program.

Own images are real ones where Debian's tuxpaint-stamps-default is installed: cliparts and photographs, many of them
transparent, some tiny, in folders of folders. Elsewhere they are rendered.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from documents import DOCS, ROOT, run_notebook, run_page
from vggfeat import open_dataset
from vggfeat.cli import run
from vggfeat.datasets.catalogue import DATASETS
from vggfeat.synthetic import Settings, write
from vggfeat.weights import load_backbone, save_weights

openpyxl = pytest.importorskip("openpyxl")

STAMPS = Path("/usr/share/tuxpaint/stamps")
COLUMNS = ["--column", "path=Photo", "--column", "labels=Diagnosis", "--column", "group=Patient ID"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the pages name: rendered data sets and images, and narrow nets in the place of full ones."""
    desk = tmp_path_factory.mktemp("desk")
    few = Settings(image_side=96, classes=20, train=20, val=20, test=20)
    write("voc2007", desk / "VOCdevkit", seed=0, size=few, workers=1)
    for net in ("D", "E"):
        made = load_backbone(f"random:{net}:0:0.015625")
        save_weights(desk / f"{net}.safetensors", made.model, mean=made.mean)
    write("folder", desk / "rendered", seed=0, size=Settings(image_side=64, classes=2, per_class=12), workers=1)
    dataset = open_dataset("folder", desk / "rendered")
    for name, label in zip(("cat", "dog"), dataset.labels.T, strict=True):
        for number, row in enumerate(np.flatnonzero(label == 1).tolist()):
            place = desk / ("photos" if number < 8 else "new") / name / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Path(dataset.root, dataset.paths[row]).rename(place)
    (desk / "holiday.jpg").write_bytes((desk / "new" / "cat" / "8.jpg").read_bytes())
    return desk


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    """A folder with real images, in the package's own folders: 9 of each of three classes, and 3 that are new."""
    desk = tmp_path_factory.mktemp("stamps")
    for name in ("animals", "food", "vehicles"):
        found = sorted((STAMPS / name).rglob("*.png"))
        for number, row in enumerate(np.linspace(0, len(found) - 1, 12).astype(int)):
            place = desk / ("new" if number % 4 == 3 else "photos") / found[row].relative_to(STAMPS)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(found[row].read_bytes())
    (desk / "holiday.jpg").write_bytes(next((desk / "new" / "animals").rglob("*.png")).read_bytes())
    return desk


@pytest.fixture
def lab(request, monkeypatch):
    """The folder with the images of a lab, which is the current one."""
    folder = request.getfixturevalue("stamps" if STAMPS.is_dir() else "desk")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def there(desk, monkeypatch):
    monkeypatch.chdir(desk)
    # Five small scales in the place of the paper's, which take ten times as long.
    small = replace(DATASETS["voc2007"], scales=(224, 230, 240, 250, 256))
    monkeypatch.setitem(DATASETS, "voc2007", small)


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_a_researcher_reproduces_table_11(desk):
    # The copy of the data set is a rendered one, which is not complete.
    run_page(DOCS / "tutorial-table-11.md", codes={"data check": 4})
    alone, both = results(desk / "voc2007-D.svm"), results(desk / "voc2007-DE.svm")
    assert alone["metric"]["name"] == both["metric"]["name"] == "mean average precision, 11-point"
    assert [file["provenance"]["net"] for file in both["settings"]["features"]["files"]] == ["D", "E"]
    assert 'alt="' in (desk / "voc2007.html").read_text(encoding="utf-8")


def images(folder):
    return sorted(path for path in folder.rglob("*.*") if path.suffix in (".jpg", ".png"))


def test_a_lab_classifies_its_own_images(lab, capsys):
    run_page(DOCS / "tutorial-own-images.md")
    measured = results(lab / "photos.svm")
    assert measured["headline"] > measured["chance"]["value"] + 0.1
    predicted = (lab / "new.csv").read_text(encoding="utf-8").splitlines()
    assert len(predicted) == 1 + len(images(lab / "new")) + 1
    run_page(DOCS / "audit.md", without="clip.parquet")
    assert all((lab / name).stat().st_size > 1000 for name in ("audit.html", "map.html", "holiday.png"))


def test_a_lab_has_a_list_of_patients(lab, capsys):
    paths = [path.relative_to(lab / "photos").as_posix() for path in images(lab / "photos")]
    patients = [number // 2 for number in range(len(paths))]
    if lab.name.startswith("stamps"):
        patients = [str(Path(path).parent) for path in paths]  # those of a folder, such as animals/birds
    book = openpyxl.Workbook()
    book.active.append(["Photo", "Diagnosis", "Patient ID"])
    for path, patient in zip(paths, patients, strict=True):
        book.active.append([path.replace("/", "\\"), path.split("/")[0], f"patient {patient}"])
    book.save(lab / "photos" / "patients.xlsx")
    data = ["--root", "photos/patients.xlsx", *COLUMNS]
    assert run(["data", "check", "manifest", *data]) == 0
    assert run(["extract", "--dataset", "manifest", *data, "--weights", "small", "--scales", "224",
                "--out", "patients.h5"]) == 0  # fmt: skip
    assert run(["svm", "patients.h5", "--folds", "2"]) == 0
    assert re.search(rf"resamples of {len(set(patients))} groups", capsys.readouterr().out)


def test_a_programmer_builds_a_service(desk):
    if not (desk / "voc2007-D.h5").exists():
        assert run(["extract", "--dataset", "voc2007", "--root", "VOCdevkit", "--weights", "D.safetensors",
                    "--out", "voc2007-D.h5"]) == 0  # fmt: skip
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


def test_the_readme_runs_as_it_is_written(desk):
    if (desk / "voc2007-D.h5").exists():
        # The same features under another name: extract finds that nothing is left to do.
        shutil.copy(desk / "voc2007-D.h5", desk / "voc2007.h5")
    assert len(run_page(ROOT / "README.md")["descriptors"]) == 2


def test_the_lesson_on_table_11_shows_what_it_says():
    names = run_notebook(DOCS / "notebooks" / "table-11.ipynb")
    assert names["depth"]["fc7"] > names["depth"]["pool1"] + 30
    assert names["averaging"]["average"] > names["averaging"]["centre"] + 30
    assert names["scales"]["mean"] >= names["scales"]["224"]
    assert all(result.headline > 0.5 for result in names["results"].values())


def test_the_lesson_on_own_images_finds_the_wrong_label():
    names = run_notebook(DOCS / "notebooks" / "own-images.ipynb")
    assert names["result"].headline > 0.5
    assert names["suspects"][0].row == 0
    assert list(names["predicted"]) == list(names["names"][:2])
