"""Anybody's folders and lists, the odd ones included."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggfeat.datasets import files, folder, manifest
from vggfeat.errors import DatasetError
from vggfeat.samples import Box, DataSet, Label, Task

PAGE = Path(__file__).parents[2] / "data" / "manifest.md"


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


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

    @pytest.mark.parametrize(
        "names",
        [
            ["a.jpg", "cat/b.jpg"],
            ["a.jpg", "train/cat/b.jpg"],
            ["a.jpg", "train/b.jpg"],
            ["train/cat/a.jpg", "test/b.jpg"],
        ],
    )
    def test_images_beside_class_folders_are_refused_by_name(self, tmp_path, names):
        with pytest.raises(DatasetError, match="in class folders or none") as caught:
            folder.read(put(tmp_path, *names))
        for name in names:
            assert repr(name) in str(caught.value)

    def test_nothing_to_read_is_an_error(self, tmp_path):
        with pytest.raises(DatasetError, match="found 0 other"):
            folder.read(tmp_path)
        put(tmp_path, "cat/notes.txt")
        with pytest.raises(DatasetError, match="found 1 other"):
            folder.read(tmp_path)
        with pytest.raises(DatasetError, match="No such file"):
            folder.read(tmp_path / "nowhere")
        with pytest.raises(DatasetError, match="Not a directory"):
            folder.read(tmp_path / "cat/notes.txt")


class TestNames:
    @pytest.mark.parametrize("suffix", folder.IMAGE_SUFFIXES)
    def test_every_listed_suffix_counts_in_any_case(self, tmp_path, suffix):
        put(tmp_path, f"a{suffix}", f"b{suffix.upper()}")
        assert len(folder.read(tmp_path)) == 2

    def test_the_suffixes_are_those_promised(self):
        promised = "jpg jpeg jpe jfif png gif bmp tif tiff webp avif ppm pgm pbm pnm"
        promised += " heic heif hif jxl jp2 j2k svg dng cr2 cr3 nef arw orf rw2 raf pef"
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

    def test_a_linked_image_counts(self, tmp_path):
        put(tmp_path, "cat/a.jpg")
        (tmp_path / "cat" / "b.jpg").symlink_to("a.jpg")
        assert len(folder.read(tmp_path)) == 2

    def test_what_is_no_file_stays_in_the_list_if_it_is_called_an_image(self, tmp_path, monkeypatch):
        put(tmp_path, "cat/a.jpg")
        cat = tmp_path / "cat"
        (cat / "broken.jpg").symlink_to("nowhere")
        (cat / "self.png").symlink_to("self.png")
        (cat / "loop.gif").symlink_to("..")
        os.mkfifo(cat / "pipe.jpg")
        os.mkfifo(cat / "pipe")
        monkeypatch.chdir(cat)  # the address of a socket has room for about 100 bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.webp")
            data = folder.read(tmp_path)
        assert data.ids == tuple(
            f"cat/{name}" for name in ("a.jpg", "broken.jpg", "loop.gif", "pipe.jpg", "self.png", "socket.webp")
        )
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


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class TestManifest:
    def test_the_example_of_the_data_pages_holds(self, tmp_path):
        lines = re.findall(r"^    (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        data = manifest.read_manifest(write(tmp_path, "\n".join(lines)))
        assert (data.name, data.task) == ("manifest", Task.MULTI_LABEL)
        assert data.classes == ("car", "dog", "person")
        assert data.ids == ("photos/beach.jpg", "photos/street.jpg", "street/1")
        assert data.paths == ("photos/beach.jpg", "photos/street.jpg", "photos/street.jpg")
        assert data.labels.tolist() == [[-1, 1, 1], [1, -1, Label.IGNORED], [-1, -1, 1]]
        assert {name: rows.tolist() for name, rows in data.splits.items()} == {"train": [0], "test": [1, 2]}
        assert [sample.box for sample in data] == [None, None, Box(40, 10, 220.5, 300)]
        assert data.root == str(tmp_path)

    def test_one_label_everywhere_is_single_label(self, tmp_path):
        data = manifest.read_manifest(write(tmp_path, "labels,path\ncat,a.jpg\n dog ; ,b.jpg\n"))
        assert data.task == Task.SINGLE_LABEL
        assert data.labels.tolist() == [[1, -1], [-1, 1]]
        assert data.boxes is None
        assert data.splits == {}
        assert data.notes == ()

    @pytest.mark.parametrize("second", ["cat;dog", "", "?cat"])
    def test_any_other_line_makes_it_multi_label(self, tmp_path, second):
        data = manifest.read_manifest(write(tmp_path, f"path,labels\na.jpg,cat\nb.jpg,{second}\n"))
        assert data.task == Task.MULTI_LABEL
        assert bool(data.notes) == (second == "")

    def test_a_forgotten_label_is_named_by_line(self, tmp_path):
        text = "path,labels\na.jpg,cat\nb.jpg,\nc.jpg,dog\nd.jpg,\n"
        (note,) = manifest.read_manifest(write(tmp_path, text)).notes
        assert "2 line(s) have no label (the first is line 3)" in note

    @pytest.mark.parametrize("text", ["path\na.jpg\n", "path,labels\na.jpg,\n"])
    def test_without_labels_it_is_unlabelled(self, tmp_path, text):
        data = manifest.read_manifest(write(tmp_path, text))
        assert data.task == Task.UNLABELLED
        assert data.labels.shape == (1, 0)
        assert data.notes == ()

    def test_rows_may_be_in_several_splits_or_in_none(self, tmp_path):
        data = manifest.read_manifest(
            write(tmp_path, "path,split\na.jpg,train; held-out-1\nb.jpg,\nc.jpg,train;train\n")
        )
        assert {name: rows.tolist() for name, rows in data.splits.items()} == {"train": [0, 2], "held-out-1": [0]}

    def test_a_byte_order_mark_and_windows_line_ends_are_read(self, tmp_path):
        data = manifest.read_manifest(write(tmp_path, b"\xef\xbb\xbfpath,labels\r\na.jpg,cat\r\n\r\nb.jpg,dog"))
        assert data.ids == ("a.jpg", "b.jpg")
        assert data.classes == ("cat", "dog")

    def test_quoted_fields_hold_commas_quotes_and_line_breaks(self, tmp_path):
        data = manifest.read_manifest(write(tmp_path, 'path\n"a,b ""c"".jpg"\n"new\nline.jpg"\n'))
        assert data.paths == ('a,b "c".jpg', "new\nline.jpg")

    @pytest.mark.parametrize("box", ["1 2 3.5 4", "1;2;3.5;4", " 1 ; 2;\t3.5 4 "])
    def test_a_box_is_four_numbers(self, tmp_path, box):
        data = manifest.read_manifest(write(tmp_path, f"path,box\na.jpg,{box}\nb.jpg,\n"))
        assert data[0].box == Box(1, 2, 3.5, 4)
        assert data[1].box is None

    def test_paths_are_put_in_one_form(self, tmp_path):
        data = manifest.read_manifest(write(tmp_path, "path\n./x//a.jpg\n b.jpg\n..c.jpg\n"))
        assert data.paths == ("x/a.jpg", " b.jpg", "..c.jpg")

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("path\n/etc/passwd\n", 2),
            ("path\na.jpg\n../b.jpg\n", 3),
            ("path\na/../../b.jpg\n", 2),
            ("path\na/..\n", 2),
            ("path,id\n,x\n", 2),
            ("path\n.\n", 2),
            ("path\na\0b.jpg\n", 2),
            ('path\n"a\nb.jpg"\n/x.jpg\n', 4),
            ("path,labels\na.jpg\n", 2),
            ("path\na.jpg,b.jpg\n", 2),
            ("labels\ncat\n", 1),
            ("path,path\na.jpg,b.jpg\n", 1),
            ("path,labels\na.jpg,cat\nb.jpg,?\n", 3),
            ("path,labels\na.jpg,cat;?cat\n", 2),
            ("path,split\na.jpg,train\nb.jpg,../x\n", 3),
            ("path,split\na.jpg,.hidden\n", 2),
            ("path,split\na.jpg,train/../x\n", 2),
            ("path,box\na.jpg,1 2 3\n", 2),
            ("path,box\na.jpg,1 2 3 4 5\n", 2),
            ("path,box\na.jpg,1 2 1 4\n", 2),
            ("path,box\na.jpg,1 2 3 2\n", 2),
            ("path,box\na.jpg,1 2 nan 4\n", 2),
            ("path,box\na.jpg,1 2 3 inf\n", 2),
            ("path,box\na.jpg,a b c d\n", 2),
            ("path,box\na.jpg,1;2;3;4;\n", 2),
            (b"path\na.jpg\n\xff.jpg\n", 3),
            ('path\na.jpg\n"b.jpg\nc.jpg\n', 3),
            ('path\n"b"c.jpg\n', 2),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path, text, line):
        path = write(tmp_path, text)
        with pytest.raises(DatasetError) as caught:
            manifest.read_manifest(path)
        assert f"{path}, line {line}:" in str(caught.value)

    def test_doubled_ids_are_named_by_both_lines(self, tmp_path):
        with pytest.raises(DatasetError, match=r"line 4: expected every id once, found 'a\.jpg' also in line 2"):
            manifest.read_manifest(write(tmp_path, "path\na.jpg\nb.jpg\n./a.jpg\n"))

    @pytest.mark.parametrize("text", ["", "path\n", "path,labels\n\n\n"])
    def test_an_empty_list_is_refused(self, tmp_path, text):
        with pytest.raises(DatasetError, match=r"list\.csv: expected"):
            manifest.read_manifest(write(tmp_path, text))

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DatasetError, match=r"nowhere\.csv: expected this file"):
            manifest.read_manifest(tmp_path / "nowhere.csv")

    def test_the_columns_are_those_of_the_data_pages(self):
        text = PAGE.read_text(encoding="utf-8")
        assert set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE)) - {"column"} == set(manifest.COLUMNS)


PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/.\\"), min_size=1, max_size=8)
NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5)


@st.composite
def manifests(draw: st.DrawFn) -> list[dict[str, object]]:
    paths = draw(st.lists(PATHS, min_size=1, max_size=6, unique=True))
    low = st.integers(-99, 99)
    boxes = st.one_of(st.none(), st.tuples(low, low, st.integers(100, 999), st.integers(100, 999)))
    rows = [{"path": path, "labels": draw(st.dictionaries(NAMES, st.booleans(), max_size=3))} for path in paths]
    return [row | {"box": draw(boxes), "split": draw(st.sampled_from(["", "train", "train;val"]))} for row in rows]


class TestManifestProperties:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=manifests())
    def test_what_is_written_is_read(self, tmp_path, rows):
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["box", "split", "path", "labels"])
        for row in rows:
            labels = ";".join(name if sure else f"?{name}" for name, sure in row["labels"].items())
            box = " ".join(map(str, row["box"])) if row["box"] else ""
            writer.writerow([box, row["split"], row["path"], labels])
        data = manifest.read_manifest(write(tmp_path, text.getvalue()))
        assert data.paths == data.ids == tuple(row["path"] for row in rows)
        assert data.classes == tuple(sorted({name for row in rows for name in row["labels"]}))
        for number, row in enumerate(rows):
            known = {name: 1 if sure else 0 for name, sure in row["labels"].items()}
            assert data.labels[number].tolist() == [known.get(cls, -1) for cls in data.classes]
            assert data[number].box == row["box"]
            inside = [name for name, members in data.splits.items() if number in members]
            assert inside == [name for name in ("train", "val") if name in row["split"]]

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        text=st.binary(max_size=60), columns=st.lists(st.sampled_from(list(manifest.COLUMNS)), max_size=4, unique=True)
    )
    def test_anything_else_is_a_data_set_or_our_error(self, tmp_path, text, columns):
        try:
            data = manifest.read_manifest(write(tmp_path, ",".join(["path", *columns]).encode() + b"\n" + text))
        except DatasetError:
            return
        assert isinstance(data, DataSet)
        assert not any(".." in path.split("/") or path.startswith("/") for path in data.paths)
        assert data.boxes is None or np.isfinite(data.boxes[~np.isnan(data.boxes)]).all()


class TestManifestSplits:
    def test_other_spellings_of_a_split_are_read_and_named(self, tmp_path):
        data = manifest.read_manifest(
            write(tmp_path, "path,split\na.jpg,TRAIN\nb.jpg,train\nc.jpg,valid\nd.jpg,Test-1\n")
        )
        assert {name: rows.tolist() for name, rows in data.splits.items()} == {
            "train": [0, 1],
            "val": [2],
            "test-1": [3],
        }
        assert data.notes == ("Read as splits: TRAIN as train, valid as val, Test-1 as test-1.",)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a.jpg,train\nb.jpg,vall\n", r"line 3: expected a split train, val, test or another name, found 'vall'"),
            (
                "a.jpg,dev\nb.jpg,val\n",
                r"line 3: expected one name for the split val, found 'val', and 'dev' in line 2",
            ),
        ],
    )
    def test_a_slip_and_two_names_of_one_split_are_refused(self, tmp_path, text, words):
        with pytest.raises(DatasetError, match=words):
            manifest.read_manifest(write(tmp_path, f"path,split\n{text}"))

    @pytest.mark.parametrize("joined", ["a,b", "a|b", "b / c", "x&b", "a\uff1bb", "['b']", "['a', 'b']"])
    def test_labels_that_look_joined_are_one_class_and_a_note_says_so(self, tmp_path, joined):
        data = manifest.read_manifest(write(tmp_path, f'path,labels\n1.jpg,"{joined}"\n2.jpg,b\n3.jpg,c\n'))
        assert joined in data.classes
        assert len(data.classes) == 3
        (note,) = data.notes
        assert note == (
            f"Read as one class each: {joined!r}; several labels of an image are separated by ';', or as "
            "--label-separator says."
        )

    def test_a_comma_in_the_name_of_a_class_is_no_reason_for_a_note(self, tmp_path):
        text = 'path,labels\n1.jpg,"kit fox, Vulpes macrotis"\n2.jpg,"tench, Tinca tinca"\n'
        assert manifest.read_manifest(write(tmp_path, text)).notes == ()

    @pytest.mark.parametrize(
        "names",
        [
            ["Cat", "cat"], ["cafe\u0301", "caf\u00e9"], ["great  dane", "great dane"], ["01", "1"], ["1", "1.0"],
            ["cat", "cat\u200b"],
        ],
    )  # fmt: skip
    def test_classes_whose_names_hardly_differ_are_reported(self, tmp_path, names):
        words = "Read as different classes, though their names are nearly the same: "
        text = "path,labels\n" + "".join(f"{row}.jpg,{name}\n" for row, name in enumerate([*names, "dog"]))
        listed = manifest.read_manifest(write(tmp_path, text))
        put(tmp_path / "tree", *(f"{name}/1.jpg" for name in [*names, "dog"]))
        for data in (listed, folder.read(tmp_path / "tree")):
            assert sorted(data.classes) == sorted([*names, "dog"])
            assert data.notes == (f"{words}{names[0]!a} and {names[1]!a}.",)

    @pytest.mark.parametrize("names", [["1", "10", "2"], ["a1", "a01"], ["-1", "1"], ["c", "c#"], ["ann's", "bob's"]])
    def test_names_that_differ_are_no_reason_for_a_note(self, tmp_path, names):
        text = "path,labels\n" + "".join(f"{row}.jpg,{name}\n" for row, name in enumerate(names))
        assert manifest.read_manifest(write(tmp_path, text)).notes == ()

    def test_classes_that_are_called_as_kinds_of_files_are_reported(self, tmp_path):
        put(tmp_path, "train/images/1.png", "train/masks/1.png", "val/images/2.png", "val/masks/2.png")
        assert "Read as classes, though their names are those of kinds of files: images, masks;" in (
            " ".join(folder.read(tmp_path).notes)
        )

    def test_a_class_that_is_in_one_split_alone_is_reported(self, tmp_path):
        text = "path,labels,split\n1.jpg,a,train\n2.jpg,b,train\n3.jpg,a,test\n4.jpg,c,test\n5.jpg,d,\n"
        assert manifest.read_manifest(write(tmp_path, text)).notes == (
            "Classes that occur in one split only: b (train), c (test).",
        )


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
