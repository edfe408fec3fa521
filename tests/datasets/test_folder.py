"""Anybody's folders and lists, the odd ones included."""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from image_files import put
from vggfeat.datasets import files, folder
from vggfeat.errors import DatasetError
from vggfeat.samples import Task

PAGE = Path(__file__).parents[2] / "data" / "manifest.md"


class TestLayouts:
    def test_first_level_folders_are_classes_and_deeper_images_belong_to_them(self, tmp_path):
        put(tmp_path, "dog/b.jpg", "cat/deep/er/a.png", "cat/z.jpg")
        data = folder.read(tmp_path)
        assert (data.name, data.task) == ("folder", Task.SINGLE_LABEL)
        assert data.classes == ("cat", "dog")
        assert data.ids == data.paths == ("cat/deep/er/a.png", "cat/z.jpg", "dog/b.jpg")
        assert data.labels.tolist() == [[1, -1], [1, -1], [-1, 1]]
        assert data.splits == {}
        assert data.notes == ()
        assert data.root == str(tmp_path)

    def test_a_flat_folder_has_no_labels(self, tmp_path):
        data = folder.read(put(tmp_path, "b.jpg", "a.jpg"))
        assert data.task == Task.UNLABELLED
        assert data.ids == ("a.jpg", "b.jpg")
        assert data.labels.shape == (2, 0)

    @pytest.mark.parametrize("splits", [["train"], ["train", "test"], ["train", "val"], ["train", "val", "test"]])
    def test_folders_named_after_splits_are_splits(self, tmp_path, splits):
        for name in splits:
            put(tmp_path, f"{name}/cat/1.jpg", f"{name}/dog/more/2.jpg")
        data = folder.read(tmp_path)
        assert data.classes == ("cat", "dog")
        assert list(data.splits) == splits
        for name in splits:
            assert [data.ids[row] for row in data.splits[name]] == [f"{name}/cat/1.jpg", f"{name}/dog/more/2.jpg"]
        assert data.labels.tolist() == [[1, -1], [-1, 1]] * len(splits)

    def test_split_folders_may_hold_images_without_classes(self, tmp_path):
        data = folder.read(put(tmp_path, "train/1.jpg", "test/2.jpg"))
        assert data.task == Task.UNLABELLED
        assert {name: rows.tolist() for name, rows in data.splits.items()} == {"train": [1], "test": [0]}

    @pytest.mark.parametrize("beside", ["cat/b.jpg", "train/cat/b.jpg", "train/b.jpg"])
    def test_images_beside_class_folders_are_refused_by_name(self, tmp_path, beside):
        put(tmp_path / "one", "a.jpg", beside)
        put(tmp_path / "two", "train/cat/a.jpg", "test/b.jpg")
        for root, names in (("one", ["a.jpg", beside]), ("two", ["train/cat/a.jpg", "test/b.jpg"])):
            with pytest.raises(DatasetError, match="in class folders or none") as caught:
                folder.read(tmp_path / root)
            assert all(repr(name) in str(caught.value) for name in names)

    def test_nothing_to_read_is_an_error(self, tmp_path):
        with pytest.raises(DatasetError, match="found 0 other"):
            folder.read(tmp_path)
        put(tmp_path, "cat/notes.txt")
        with pytest.raises(DatasetError, match="found 1 other"):
            folder.read(tmp_path)
        with pytest.raises(DatasetError, match="No such file"):
            folder.read(tmp_path / "nowhere")
        with pytest.raises(DatasetError, match="found: a file;"):
            folder.read(tmp_path / "cat/notes.txt")


class TestNames:
    @pytest.mark.parametrize("suffix", folder.IMAGE_SUFFIXES)
    def test_every_listed_suffix_counts_in_any_case(self, tmp_path, suffix):
        put(tmp_path, f"a{suffix}", f"b{suffix.upper()}")
        assert len(folder.read(tmp_path)) == 2

    def test_the_suffixes_are_those_promised(self):
        promised = "jpg jpeg jpe jfif png gif bmp tif tiff webp avif ppm pgm pbm pnm"
        promised += " heic heif hif jxl jp2 j2k svg dng cr2 cr3 nef arw orf rw2 raf pef dcm"
        assert set(folder.IMAGE_SUFFIXES) == {f".{name}" for name in promised.split()}

    def test_other_files_are_counted_and_named(self, tmp_path):
        put(tmp_path, "cat/a.jpg", "cat/labels.csv", "b.txt", *(f"cat/{number}.xml" for number in range(7)))
        assert folder.read(tmp_path).notes == (
            "Not images by their endings, and ignored: b.txt, cat/0.xml, cat/1.xml, cat/2.xml, cat/3.xml and 4 more.",
        )

    def test_folders_without_images_are_named(self, tmp_path):
        put(tmp_path, "train/cat/a.jpg", "train/dog/a.txt")
        (tmp_path / "val").mkdir()
        data = folder.read(tmp_path)
        assert data.classes == ("cat",)
        assert "Folders without images, and ignored: val, train/dog." in data.notes

    def test_hidden_names_and_macos_shadows_are_passed_over(self, tmp_path):
        put(tmp_path, "cat/a.jpg", ".hidden/b.jpg", "cat/._a.jpg", "__MACOSX/cat/a.jpg", "cat/.DS_Store")
        data = folder.read(tmp_path)
        assert data.ids == ("cat/a.jpg",)
        assert data.notes == ()

    def test_any_utf8_name_is_kept(self, tmp_path):
        names = ["a b/c d.jpg", "a b/new\nline.jpg", 'a b/\t;,".jpg', "a b/e\u0301.jpg", "\u732b/\U0001f431.png"]
        data = folder.read(put(tmp_path, *names))
        assert sorted(data.ids) == sorted(names)
        assert all((tmp_path / path).is_file() for path in data.paths)

    def test_names_that_are_not_utf8_are_left_out_and_named(self, tmp_path):
        put(tmp_path, "cat/a.jpg")
        try:
            os.mkdir(bytes(tmp_path) + b"/\xe9t\xe9")
            for path in (b"/cat/\xff.jpg", b"/\xe9t\xe9/b.jpg"):
                with open(bytes(tmp_path) + path, "wb") as file:
                    file.write(b"x")
        except OSError:
            pytest.skip("this file system allows UTF-8 only")
        data = folder.read(tmp_path)
        assert data.ids == ("cat/a.jpg",)
        (note,) = data.notes
        assert r"\xe9t\xe9, cat/\xff.jpg" in note
        assert note.encode()

    def test_order_is_that_of_code_points_whatever_the_file_system_says(self, tmp_path, monkeypatch):
        put(tmp_path, "b/B.jpg", "b/a.jpg", "a b/1.jpg", "a/10.jpg", "a/9.jpg", "\u00e4/1.jpg")
        wanted = folder.read(tmp_path)
        assert wanted.ids == ("a b/1.jpg", "a/10.jpg", "a/9.jpg", "b/B.jpg", "b/a.jpg", "\u00e4/1.jpg")
        honest = os.scandir
        monkeypatch.setattr(files.os, "scandir", lambda path: nullcontext(reversed(list(honest(path)))))
        assert folder.read(tmp_path).fingerprint() == wanted.fingerprint()

    def test_hundreds_of_levels_are_read(self, tmp_path):
        data = folder.read(put(tmp_path, "cat/" + "d/" * 600 + "a.jpg"))
        assert len(data) == 1
        assert data.classes == ("cat",)


class TestLinks:
    def test_a_loop_ends_and_is_named(self, tmp_path):
        put(tmp_path, "cat/a.jpg")
        (tmp_path / "cat" / "loop").symlink_to("..")
        (tmp_path / "cat" / "self").symlink_to(".")
        data = folder.read(tmp_path)
        assert data.ids == ("cat/a.jpg",)
        assert data.notes == ("Links to folders that are read under another name, and ignored: cat/loop, cat/self.",)

    def test_links_that_lead_in_a_circle_are_no_folders(self, tmp_path):
        put(tmp_path, "cat/a.jpg", "dog/a.jpg")
        (tmp_path / "one").symlink_to("two")
        (tmp_path / "two").symlink_to("one")
        (tmp_path / "cat" / "self.jpg").symlink_to("self.jpg")
        data = folder.read(tmp_path)
        assert data.ids == ("cat/a.jpg", "cat/self.jpg", "dog/a.jpg"), "what is named as an image fails by name"

    def test_a_folder_keeps_its_own_name_and_not_that_of_a_link(self, tmp_path):
        put(tmp_path, "dog/a.jpg")
        (tmp_path / "alias").symlink_to("dog")
        data = folder.read(tmp_path)
        assert data.ids == ("dog/a.jpg",)
        assert "alias" in data.notes[0]

    def test_a_folder_elsewhere_is_read_once(self, tmp_path):
        put(tmp_path / "outside", "1.jpg", "deep/2.jpg")
        put(tmp_path / "root", "cat/a.jpg")
        (tmp_path / "root" / "dog").symlink_to("../outside")
        (tmp_path / "root" / "fox").symlink_to("../outside")
        data = folder.read(tmp_path / "root")
        assert data.ids == ("cat/a.jpg", "dog/1.jpg", "dog/deep/2.jpg")
        assert "fox" in data.notes[0]

    def test_a_link_and_what_is_no_file_stay_in_the_list_if_they_are_called_images(self, tmp_path, monkeypatch):
        put(tmp_path, "cat/a.jpg")
        cat = tmp_path / "cat"
        (cat / "broken.jpg").symlink_to("nowhere")
        (cat / "linked.jpg").symlink_to("a.jpg")
        (cat / "self.png").symlink_to("self.png")
        (cat / "loop.gif").symlink_to("..")
        os.mkfifo(cat / "pipe.jpg")
        os.mkfifo(cat / "pipe")
        monkeypatch.chdir(cat)  # the address of a socket has room for about 100 bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.webp")
            data = folder.read(tmp_path)
        names = ("a.jpg", "broken.jpg", "linked.jpg", "loop.gif", "pipe.jpg", "self.png", "socket.webp")
        assert data.ids == tuple(f"cat/{name}" for name in names)
        assert data.notes == ("Not images by their endings, and ignored: cat/pipe.",)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_folder_that_may_not_be_read_is_an_error(self, tmp_path):
        put(tmp_path, "cat/a.jpg", "dog/b.jpg")
        (tmp_path / "dog").chmod(0)
        try:
            with pytest.raises(DatasetError, match="dog"):
                folder.read(tmp_path)
        finally:
            (tmp_path / "dog").chmod(0o700)


@pytest.mark.parametrize(("encoding", "code"), [("1", 0), ("0", 4)], ids=["utf-8", "another"])
@pytest.mark.parametrize("name", ["folder", "manifest"])
def test_names_beyond_ascii_are_right_or_refused_whatever_the_locale(tmp_path, name, encoding, code):
    """Under a locale of another code the bytes of é would be stored as other letters, or not be found."""
    put(tmp_path, "caf\u00e9/1.jpg")
    (tmp_path / "manifest.csv").write_bytes("path\ncaf\u00e9/1.jpg\n".encode())
    plain = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": encoding}
    words = [sys.executable, "-m", "vggfeat", "data", "check", name, "--root", str(tmp_path), "--json"]
    done = subprocess.run(words, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    report = json.loads(done.stdout)
    if code:
        assert "expected a locale with UTF-8 for names such as caf" in report["problem"]
        assert "set PYTHONUTF8=1" in report["problem"]
    elif name == "folder":
        assert "caf\u00e9" in {count["what"] for count in report["counts"]}


def test_every_file_name_that_is_read_goes_through_that_check():
    """`os.listdir` and `os.scandir` are called in one place of the readers."""
    readers = Path(folder.__file__).parent.glob("*.py")
    calls = {path.name: len(re.findall(r"os\.(listdir|scandir|walk)\(", path.read_text())) for path in readers}
    assert {name: count for name, count in calls.items() if count} == {"catalogue.py": 1, "files.py": 1}


def test_a_file_in_the_place_of_the_folder_is_called_so(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK\3\4")
    found = "found: a file; an archive is to be unpacked, and a list of images is the data set `manifest`$"
    with pytest.raises(DatasetError, match=rf"photos\.zip: expected a folder that can be read, {found}"):
        folder.read(tmp_path / "photos.zip")
    with pytest.raises(DatasetError, match=r"gone: expected a folder that can be read, found: No such file"):
        folder.read(tmp_path / "gone")
