"""Small copies of images: only those below the folder that was given, whatever a file says of where they are."""

import base64
import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from page_runs import Parsed, edited, make_images, make_run
from vggfeat.errors import ConfigError
from vggfeat.results.features import similar_page
from vggfeat.results.page import PageSettings, make_page
from vggfeat.results.thumbnails import OUTSIDE, Key, find_root, image_below, small_copies

SECRET = (255, 0, 255)


@pytest.fixture
def place(tmp_path):
    """A root with one image of its own, links that lead out of it, and a secret image next to it."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 20), (10, 120, 10)).save(root / "sub" / "own.png")
    (tmp_path / "out").mkdir()
    Image.new("RGB", (40, 20), SECRET).save(tmp_path / "out" / "secret.png")
    Image.new("RGB", (40, 20), SECRET).save(tmp_path / "rootsecret.png")
    (root / "link.png").symlink_to(tmp_path / "out" / "secret.png")
    (root / "relative.png").symlink_to("../out/secret.png")
    (root / "folder").symlink_to(tmp_path / "out")
    (root / "own-link.png").symlink_to("sub/own.png")
    return tmp_path


def ways_out(place):
    return [
        "../out/secret.png", "sub/../../out/secret.png", "../rootsecret.png", str(place / "out" / "secret.png"),
        f"sub/{place}/../../out/secret.png", "link.png", "relative.png", "folder/secret.png", "./folder/../link.png",
        str(place / "root" / "folder" / "secret.png"), "..", ".", "", "/dev/zero", "/dev/stdin", "/etc/passwd", "a\0b",
    ]  # fmt: skip


def shows_secret(page):
    colours = []
    for source in Parsed(page).attributes("img", "src"):
        image = Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))).convert("RGB")
        colours.append(image.getpixel((image.width // 2, image.height // 2)))
    return any(np.abs(np.subtract(colour, SECRET)).max() < 30 for colour in colours)


def test_no_path_of_a_file_leads_out_of_the_root(place):
    root = place / "root"
    ways = [way for way in ways_out(place) if not way.startswith("sub//")]
    found = small_copies(root, [Key(way, None) for way in ways], workers=0)
    said = {key.path: answer for key, answer in found.items() if not answer.startswith("data:")}
    assert len(said) == len(found), "none is shown"
    lost = f"sub/{place}/../../out/secret.png"  # It stays below the root, where there is no such folder.
    assert {way for way, answer in said.items() if answer != OUTSIDE} <= {lost}


def test_links_that_stay_below_the_root_are_followed(place):
    keys = [Key("sub/own.png", None), Key("own-link.png", None), Key(str(place / "root" / "sub" / "own.png"), None)]
    assert all(answer.startswith("data:") for answer in small_copies(place / "root", keys, workers=0).values())
    (place / "alias").symlink_to(place / "root")
    assert image_below(place / "alias", "sub/own.png") == os.path.realpath(place / "root" / "sub" / "own.png")


def test_images_outside_are_not_what_the_root_is_known_by(place):
    for way in ways_out(place):
        with pytest.raises(ConfigError, match=r"found none of 1 in it.*or, where that holds links to other folders"):
            find_root(place / "root", "manifest", [way])


def test_a_data_set_that_a_link_leads_to_is_outside(place):
    (place / "other" / "p").mkdir(parents=True)
    Image.new("RGB", (40, 20), SECRET).save(place / "other" / "p" / "a.png")
    (place / "other" / "list.csv").write_text("path,labels\np/a.png,cat\n")
    (place / "root" / "manifest.csv").symlink_to(place / "other" / "list.csv")
    (place / "root" / "p").symlink_to(place / "other" / "p")
    with pytest.raises(ConfigError, match="the folder that they lead to"):
        find_root(place / "root", "manifest", ["p/a.png"])


def test_no_image_from_outside_gets_onto_the_page_of_runs(place):
    folder = place / "x.svm"
    _, dataset = make_run(folder, rows=36)
    make_images(place / "root", dataset)
    with np.load(folder / "scores.npz") as found:
        arrays = dict(found)
    ways = [way for way in ways_out(place) if "\0" not in way]
    paths = arrays["paths_1"].tolist()
    arrays["paths_1"] = np.array([*paths[:1], *(ways * 2)[: len(paths) - 1]])
    np.savez(edited(folder) / "scores.npz", **arrays)
    page = make_page([folder], PageSettings(images=place / "root", workers=0))
    assert page.images <= 1
    assert page.missing > 5
    assert f"no image: {OUTSIDE}" in Parsed(page.content).texts("span")
    assert not shows_secret(page.content)


def test_no_image_from_outside_gets_onto_the_page_of_neighbours(place):
    ways = ["sub/own.png", *ways_out(place)]
    nearest = [
        {"rank": n, "id": str(n), "path": way, "cosine": 0.5, "classes": ["cat"], "box": None}
        for n, way in enumerate(ways, start=1)
    ]
    content = {"query": "q", "rows": 9, "file": "x.h5", "join": "mean", "normalisation": "blocks", "regions": ["image"],
               "failed": 0, "nearest": nearest}  # fmt: skip
    for way in ways_out(place):
        page = similar_page(content, "manifest", (way, None), place / "q", place / "root", workers=0)
        assert len(Parsed(page).attributes("img", "src")) == 1
        assert not shows_secret(page)
    shutil.copy(place / "out" / "secret.png", place / "asked.png")
    page = similar_page(content, "manifest", None, place / "asked.png", place / "root", workers=0)
    assert shows_secret(page), "the user's own"
