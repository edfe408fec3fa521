"""Trees, tar sets and Parquet files become listings, wherever they are, without being held; bad ones are named."""

import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from vggfeat.datasets import folder
from vggfeat.datasets.manifest import ListSettings
from vggfeat.datasets.streamed import folders, list_images
from vggfeat.errors import ConfigError, DatasetError, StoreError
from vggfeat.listing import complete_batch, listing_of
from vggfeat.runtime.storage import MissingFileError, open_storage
from vggfeat.samples import Task

fsspec = pytest.importorskip("fsspec")


def rows(listing):
    return [row for batch in listing.batches() for row in batch.to_pylist()]


def tar(path, members, **named):
    """Write a tar by Python's library: name -> bytes, or a prepared TarInfo."""
    with tarfile.open(path, "w", **named) as file:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def table(path, columns, **named):
    path.parent.mkdir(exist_ok=True, parents=True)
    parquet.write_table(pa.table(columns), path, **named)
    return path


class TestFolders:
    @pytest.mark.parametrize(
        "names",
        [
            ["dog/b.jpg", "cat/deep/er/a.png", "cat/z.jpg"],
            ["b.jpg", "a.jpg"],
            ["train/cat/1.jpg", "train/dog/more/2.jpg", "val/cat/1.jpg", "val/dog/2.jpg"],
            ["images/cat/1.jpg", "images/dog/2.jpg", "images/cat-2/1.jpg", "images/.hidden/3.jpg", "__MACOSX/4.jpg"],
            ["train/1.jpg", "test/2.jpg", "notes.txt"],
        ],
    )
    @pytest.mark.parametrize("place", ["local", "memory"])
    def test_a_tree_is_read_as_the_folder_that_it_is(self, tmp_path, names, place, request):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        root = str(tmp_path)
        if place == "memory":
            root = f"memory://{request.node.name}"
            fsspec.filesystem("memory").put(f"{tmp_path}/", f"{root}/", recursive=True)
        known, found = listing_of(folder.read(tmp_path)), list_images("folder", root)
        assert (found.task, found.classes, sorted(found.splits)) == (known.task, known.classes, sorted(known.splits))
        for row, other in zip(rows(found), rows(known), strict=True):
            assert {name: row[name] for name in ("id", "file", "size", "labels", "splits")} == {
                name: other[name] for name in ("id", "file", "size", "labels", "splits")
            }
        assert set(found.notes) >= {note for note in known.notes if "Not images" in note}

    @pytest.mark.parametrize("most", [2, 1 << 20], ids=["sorted on the disk", "in memory"])
    def test_odd_entries_of_this_machine_are_told_as_of_a_folder_in_memory(self, tmp_path, most, monkeypatch):
        root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
        names = ["train/cat/1.jpg", "train/cat/deep/2.jpg", "train/dog/1.png", "train/cat.d/1.jpg", "train/owl/1.JPG",
                 "val/cat/3.jpg",
                 "val/dog-2/1.jpg", "val/dog/x.txt", "val/owl/.h.jpg", "val/empty/none.txt"]  # fmt: skip
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(name.encode())
        elsewhere.mkdir()
        (elsewhere / "a.jpg").write_bytes(b"12")
        links = {
            "val/link": root / "train/owl",
            "val/cat/out": elsewhere,
            "val/cat/loop": root,
            "val/cat/lost.jpg": "no",
        }
        for name, target in links.items():
            (root / name).symlink_to(target)
        Path(os.fsdecode(os.fsencode(root) + b"/val/cat/\xff.jpg")).touch()
        monkeypatch.setattr(folders, "MOST_NAMES", most)
        known, found = listing_of(folder.read(root)), list_images("folder", str(root))
        assert found.notes == known.notes
        assert len(found.notes) == 5
        same = ("id", "file", "size", "labels", "splits")
        assert [[row[name] for name in same] for row in rows(found)] == [
            [row[name] for name in same] for row in rows(known)
        ]

    def test_images_next_to_class_folders_and_no_images_are_refused_by_name(self, tmp_path):
        root = f"memory://{tmp_path.name}"
        with pytest.raises(DatasetError, match=rf"^{root}: expected images \(.*found 0 other"):
            list_images("folder", root)
        store = open_storage(root)
        store.write_new("a.jpg", b"x")
        store.write_new("cat/b.jpg", b"x")
        with pytest.raises(DatasetError, match=r"in class folders or none, found 'a\.jpg' next to 'cat/b.jpg'"):
            list_images("folder", root)

    def test_memory_does_not_grow_with_the_rows(self, monkeypatch):
        from vggfeat.runtime.storage import Entry

        def peak(count):
            class Store:
                root = "memory://many"

                def entries(self):
                    for number in range(count):
                        yield Entry(f"class-{number * 50 // count:02d}/{number:09d}.jpg", number)

            monkeypatch.setattr(folders, "open_storage", lambda *_: Store())
            tracemalloc.start()
            try:
                found = list_images("folder", "memory://many")
                assert sum(batch.num_rows for batch in found.batches()) == count
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        assert peak(40_000) < 1.1 * peak(16_000)


class TestTars:
    def test_a_set_of_webdataset_has_its_samples_and_labels(self, tmp_path):
        webdataset = pytest.importorskip("webdataset")
        with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=3, verbose=0) as writer:
            for number in range(8):
                writer.write({"__key__": f"{number:04d}", "jpg": bytes([number]) * (600 + number), "cls": number % 3})
        found = list_images("tar", str(tmp_path))
        assert (found.name, found.task, found.classes, found.splits) == ("tar", Task.SINGLE_LABEL, ("0", "1", "2"), ("train",))  # fmt: skip  # noqa: E501
        all_rows = rows(found)
        assert [row["id"] for row in all_rows] == [f"train-{n // 3:06d}.tar/{n:04d}" for n in range(8)]
        assert [row["labels"] for row in all_rows] == [[number % 3] for number in range(8)]
        for number, row in enumerate(all_rows):
            data = (tmp_path / row["file"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
            assert data == bytes([number]) * (600 + number)
            assert row["size"] == len(data)
            assert row["splits"] == ["train"]
        assert rows(found) == all_rows

    def test_labels_of_json_folders_in_names_and_several_images_of_a_sample(self, tmp_path):
        tar(tmp_path / "set.tar", {
            "./a/1.json": json.dumps({"label": ["red", "big"], "group": 7}).encode(), "./a/1.png": b"one",
            "a/2.left.jpg": b"left", "a/2.right.jpg": b"right", "a/2.cls": b"red\n", "a/2.txt": b"a caption",
            "a/.hidden.jpg": b"", "é" * 150 + ".jpg": b"long",
        })  # fmt: skip
        found = list_images("tar", str(tmp_path / "set.tar"))
        assert found.task == Task.MULTI_LABEL
        assert found.classes == ("big", "red")
        assert [(row["id"], row["labels"], row["group"]) for row in rows(found)] == [
            ("set.tar/a/1", [0, 1], "7"), ("set.tar/a/2.left.jpg", [1], None), ("set.tar/a/2.right.jpg", [1], None),
            ("set.tar/" + "é" * 150, [], None),
        ]  # fmt: skip
        assert found.notes == ("Parts of samples that are neither images nor labels, and ignored: txt.",)

    def test_numbers_of_classes_are_in_their_order(self, tmp_path):
        tar(tmp_path / "set.tar", {f"{n}.{end}": data for n in (10, 9, 2) for end, data in (("jpg", b"x"), ("cls", b"%d" % n))})  # fmt: skip  # noqa: E501
        found = list_images("tar", str(tmp_path))
        assert found.classes == ("2", "9", "10")
        assert [row["labels"] for row in rows(found)] == [[2], [1], [0]]

    def test_tars_are_named_by_patterns_in_their_order(self, tmp_path):
        for name in ("b-08", "b-09", "b-10", "a-09"):
            tar(tmp_path / f"{name}.tar", {"1.jpg": name.encode()})
        found = list_images("tar", f"{tmp_path}/{{b,a}}-{{09..09}}.tar")
        assert [row["file"] for row in rows(found)] == ["b-09.tar", "a-09.tar"]
        assert [row["file"] for row in rows(list_images("tar", f"{tmp_path}/b-{{08..10}}.tar"))] == ["b-08.tar", "b-09.tar", "b-10.tar"]  # fmt: skip  # noqa: E501
        with pytest.raises(MissingFileError, match=r"b-11\.tar: expected a file, found none"):
            list_images("tar", f"{tmp_path}/b-{{10..11}}.tar")
        with pytest.raises(DatasetError, match="expected a range of 1 to"):
            list_images("tar", f"{tmp_path}/b-{{10..01}}.tar")

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda path: path.write_bytes(b""), "expected images in the tar, found none; leave it out"),
            (lambda path: tar(path, {}), "expected images in the tar, found none; leave it out"),
            (lambda path: tar(path, {"1.txt": b"x"}), "expected images in the tar, found none"),
            (lambda path: path.write_bytes(b"x" * 2000), "expected a whole tar file, found: "),
            (lambda path: path.write_bytes(tar(path, {"1.jpg": b"x" * 5000}).read_bytes()[:3000]), "expected a whole tar file, found: unexpected end of data"),  # noqa: E501
            (lambda path: path.write_bytes(_damaged(tar(path, {f"{n}.jpg": b"x" * 700 for n in range(3)}))), "expected a whole tar file, found: no header at byte 1536; copy it again"),  # noqa: E501
            (lambda path: tar(path, {"/etc/1.jpg": b"x"}), "member '/etc/1.jpg': expected a name below the folder of the tar"),  # noqa: E501
            (lambda path: tar(path, {"a/../../1.jpg": b"x"}), "expected a name below the folder of the tar"),
            (lambda path: tar(path, {"1.jpg": _link(tarfile.SYMTYPE)}), "member '1.jpg': expected files alone, found a symbolic link; write the tar again with --dereference"),  # noqa: E501
            (lambda path: tar(path, {"1.jpg": _link(tarfile.LNKTYPE)}), "found a hard link; write the tar again with --hard-dereference"),  # noqa: E501
            (lambda path: tar(path, {"1.jpg": _link(tarfile.FIFOTYPE)}), "found a device or pipe"),
            (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(600)), "expected a tar that is not packed, found gzip"),
            (lambda path: tar(path, {"1.jpg": b"x", "1.cls": b""}), "member '1.cls': expected the number or the name of a class, found ''"),  # noqa: E501
            (lambda path: tar(path, {"1.jpg": b"x", "1.json": b"{"}), "member '1.json': expected JSON, found: "),
            (lambda path: tar(path, {"1.jpg": b"x", "1.json": b'{"label": [1.5]}'}), "expected numbers or names of classes in 'label', found"),  # noqa: E501
            (lambda path: tar(path, {"1.jpg": b"x", "2.jpg": b"x", "1.png": b"y", "1.jpg ": b""} | {"a/1.jpg": b"x"}) and tar(path, {"1.jpg": b"x", "2.jpg": b"y", "./1.jpg": b"z"}), "found its name twice"),  # noqa: E501
            (lambda path: tar(path, {"1.jpg": b"x", "1.JPG": b"y"}), "member '1.JPG': expected every file of a sample once, next to each other, found its name twice"),  # noqa: E501
            (lambda path: tar(path, {"1.jpg": b"x", "1.cls": b"0", "./1.cls": b"1"}), "member '1.cls': expected every file of a sample once"),  # noqa: E501
        ],
    )  # fmt: skip
    def test_a_bad_tar_is_named_with_what_to_do(self, tmp_path, make, said):
        make(tmp_path / "bad.tar")
        with pytest.raises(DatasetError) as caught:
            list_images("tar", str(tmp_path))
        assert str(caught.value).startswith(f"{tmp_path}/bad.tar")
        assert said in str(caught.value)


def _link(kind):
    info = tarfile.TarInfo("1.jpg")
    info.type, info.linkname = kind, "2.jpg"
    return info


def _damaged(path):
    data = bytearray(path.read_bytes())
    data[1536:1600] = b"\xff" * 64  # in the second header
    return data


class TestTables:
    def test_images_of_hugging_face_have_their_names_of_classes_and_splits(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        kinds = datasets.Features({
            "image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"]),
            "caption": datasets.Value("string"),
        })  # fmt: skip
        images = [{"bytes": bytes([number]) * 50, "path": None} for number in range(5)]
        content = {"image": images, "label": [0, 1, 0, -1, 1], "caption": ["a", None, "c", "d", "e"]}
        for split in ("train", "validation"):
            (tmp_path / "data").mkdir(exist_ok=True)
            datasets.Dataset.from_dict(content, features=kinds).to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))  # fmt: skip  # noqa: E501
        found = list_images("parquet", str(tmp_path))
        assert found.classes == ("cat", "dog")
        assert found.splits == ("train", "val")
        all_rows = rows(found)
        assert [row["labels"] for row in all_rows] == [[1], [0], [1], [], [0]] * 2
        assert [row["column_caption"] for row in all_rows[:3]] == ["a", "", "c"]
        assert all_rows[6] | {"id": ""} == all_rows[6] | {
            "id": "", "file": "data/validation-00000-of-00001.parquet#image=1", "size": None, "splits": ["val"],
        }  # fmt: skip
        assert found.notes[-1] == "Kept in the feature file as text: caption."

    def test_lists_say_where_images_are_and_what_they_show(self, tmp_path):
        table(tmp_path / "list.parquet", {
            "URL": ["https://a.b/1.jpg?key=1", "2.jpg", "s3://bucket/3.jpg"], "id": ["x", "y", "z"],
            "labels": ["red;?big", "", "big"], "split": ["train", "VALID", "test;mini"], "group": [1, 2, 2],
            "box": [[1, 2, 3, 4.5], None, None], "weight": [1.5, 2, None],
        })  # fmt: skip
        found = list_images("parquet", str(tmp_path / "list.parquet"))
        one, two, three = rows(found)
        assert one == {
            "id": "x", "file": "https://a.b/1.jpg?key=1", "offset": None, "length": None, "size": None, "etag": "",
            "labels": [1], "ignored": [0], "box": [1, 2, 3, 4.5], "group": "1", "splits": ["train"],
            "column_weight": "1.5",
        }  # fmt: skip
        assert (two["file"], two["splits"], two["labels"], two["box"]) == ("2.jpg", ["val"], [], None)
        assert (three["splits"], three["group"], three["column_weight"]) == (["test", "mini"], "2", "")
        assert found.root == str(tmp_path)

    def test_a_run_that_is_kept_among_the_lists_is_none_of_them(self, tmp_path):
        table(tmp_path / "plan" / "part-1.parquet", {"path": ["1.jpg"]})
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "plan.json").write_text("{}")
        table(tmp_path / "run" / "plan" / "part-000000-1f0c9a3e.parquet", {"path": ["2.jpg"]})
        table(tmp_path / "run" / "features" / "000" / "part-000000.parquet", {"path": ["3.jpg"]})
        table(tmp_path / "run" / "more.parquet", {"path": ["4.jpg"]})
        assert [row["file"] for row in rows(list_images("parquet", str(tmp_path)))] == ["1.jpg", "4.jpg"]

    def test_columns_can_be_told(self, tmp_path):
        table(tmp_path / "a.parquet", {"there": ["1.jpg"], "image": ["caption"], "what": [[3, 1]]})
        told = ListSettings(columns={"path": "there", "labels": "what"})
        (row,) = rows(found := list_images("parquet", str(tmp_path), listing=told))
        assert (row["file"], row["labels"], found.classes) == ("1.jpg", [0, 1], ("1", "3"))

    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            ({"a": [1]}, "expected one column of images, called image, url, path or the like, found a; say which with"),
            ({"image": ["1.jpg"], "url": ["x"]}, "expected one column of images, .*, found image, url; say which"),
            ({"path": ["1.jpg", None]}, "row 2: expected a path or an address in the column 'path', found None"),
            ({"path": ["../1.jpg"]}, "row 1: expected a path below the folder of the list"),
            ({"path": ["/etc/passwd"]}, "row 1: expected a path below the folder of the list"),
            ({"url": ["file:///etc/passwd"]}, "row 1: expected an address of http, .*, found file://"),
            ({"url": ["zip://a.png::https://a.b/c.zip"]}, "row 1: expected an address of http"),
            ({"path": ["1.jpg"], "label": [1.5]}, "row 1: expected numbers or names of classes, found 1.5"),
            ({"path": ["1.jpg"], "label": ["a;b"]}, "row 1: expected one way to read 'a;b'"),
            (
                {"path": ["1.jpg"], "label": ["a"], "class": ["b"]},
                "expected one column of the labels, found 'label' and",
            ),
            ({"path": ["1.jpg"], "split": ["trian"]}, "row 1: expected a split train, val, test or another name"),
            ({"path": ["1.jpg"], "box": [[3.0, 1, 2, 4]]}, "row 1: expected a box as 'left top right bottom'"),
            ({"path": pa.array([], pa.string())}, "expected rows in the Parquet files, found none"),
        ],
    )
    def test_a_bad_table_is_named_with_what_to_do(self, tmp_path, columns, said):
        table(tmp_path / "bad.parquet", columns)
        with pytest.raises(DatasetError, match=f"^{tmp_path}.*{said}"):
            list_images("parquet", str(tmp_path))

    def test_files_that_are_none_are_cut_off_or_differ_are_named(self, tmp_path):
        whole = table(tmp_path / "a.parquet", {"path": ["1.jpg"], "label": ["x"]})
        (tmp_path / "b.parquet").write_bytes(whole.read_bytes()[:-20])
        with pytest.raises(DatasetError, match=r"b\.parquet: expected a whole Parquet file, found: .*; copy it again"):
            list_images("parquet", str(tmp_path))
        table(tmp_path / "b.parquet", {"path": ["2.jpg"]})
        with pytest.raises(
            DatasetError, match=r"b\.parquet: expected the columns of .*a\.parquet, path, label, found path"
        ):
            list_images("parquet", str(tmp_path))
        with pytest.raises(DatasetError, match=r"expected files that end with \.parquet, found none"):
            list_images("parquet", str(tmp_path / "none"))

    def test_memory_does_not_grow_with_the_rows(self, tmp_path):
        def peak(count):
            numbers = [f"{number:09d}" for number in range(count)]
            table(
                tmp_path / f"{count}.parquet",
                {"path": numbers, "label": ["a", "b"] * (count // 2)},
                row_group_size=4096,
            )
            before = pa.total_allocated_bytes()
            tracemalloc.start()
            try:
                found = list_images("parquet", str(tmp_path / f"{count}.parquet"))
                assert sum(batch.num_rows for batch in found.batches()) == count
                assert pa.total_allocated_bytes() - before < 20e6
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        assert peak(24_000) < 1.1 * peak(12_000)


def test_options_that_go_with_other_kinds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected one of folder, tar, parquet, found 'zip'"):
        list_images("zip", str(tmp_path))
    with pytest.raises(ConfigError, match="layout: expected it for the data set folder alone"):
        list_images("tar", str(tmp_path), layout="classes")
    with pytest.raises(ConfigError, match="expected them for lists alone"):
        list_images("tar", str(tmp_path), listing=ListSettings(columns={"path": "x"}))
    with pytest.raises(StoreError):
        list_images("tar", str(tmp_path / "a.tar"))


def test_a_batch_of_a_list_in_which_nothing_is_new_is_empty():
    found = complete_batch(
        pa.record_batch({"id": pa.array([], pa.string()), "file": pa.array([], pa.string())}), "list"
    )
    assert len(found) == 0
