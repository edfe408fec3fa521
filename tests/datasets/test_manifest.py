"""Lists of images as people have them."""

import csv
import io
import re
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_files import put
from vggfeat.cli import run
from vggfeat.datasets import cells, folder, manifest
from vggfeat.datasets.manifest import ListSettings, read_manifest
from vggfeat.errors import ConfigError, DatasetError
from vggfeat.samples import Box, DataSet, Label, Task

openpyxl = pytest.importorskip("openpyxl")

PAGE = Path(__file__).parents[2] / "data" / "manifest.md"


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class TestManifest:
    def test_the_example_of_the_data_pages_holds(self, tmp_path):
        lines = re.findall(r"^    (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        data = read_manifest(write(tmp_path, "\n".join(lines)))
        assert (data.name, data.task) == ("manifest", Task.MULTI_LABEL)
        assert data.classes == ("car", "dog", "person")
        assert data.ids == ("photos/beach.jpg", "photos/street.jpg", "street/1")
        assert data.paths == ("photos/beach.jpg", "photos/street.jpg", "photos/street.jpg")
        assert data.labels.tolist() == [[-1, 1, 1], [1, -1, Label.IGNORED], [-1, -1, 1]]
        assert {name: rows.tolist() for name, rows in data.splits.items()} == {"train": [0], "test": [1, 2]}
        assert [sample.box for sample in data] == [None, None, Box(40, 10, 220.5, 300)]
        assert data.root == str(tmp_path)

    def test_one_label_everywhere_is_single_label(self, tmp_path):
        data = read_manifest(write(tmp_path, "labels,path\ncat,a.jpg\n dog ; ,b.jpg\n"))
        assert data.task == Task.SINGLE_LABEL
        assert data.labels.tolist() == [[1, -1], [-1, 1]]
        assert data.boxes is None
        assert data.splits == {}
        assert data.notes == ()

    @pytest.mark.parametrize("second", ["cat;dog", "", "?cat"])
    def test_any_other_line_makes_it_multi_label(self, tmp_path, second):
        data = read_manifest(write(tmp_path, f"path,labels\na.jpg,cat\nb.jpg,{second}\n"))
        assert data.task == Task.MULTI_LABEL
        assert bool(data.notes) == (second == "")

    def test_a_forgotten_label_is_named_by_line(self, tmp_path):
        text = "path,labels\na.jpg,cat\nb.jpg,\nc.jpg,dog\nd.jpg,\n"
        (note,) = read_manifest(write(tmp_path, text)).notes
        assert "2 lines have no label (the first is line 3)" in note

    @pytest.mark.parametrize("text", ["path\na.jpg\n", "path,labels\na.jpg,\n"])
    def test_without_labels_it_is_unlabelled(self, tmp_path, text):
        data = read_manifest(write(tmp_path, text))
        assert data.task == Task.UNLABELLED
        assert data.labels.shape == (1, 0)
        assert data.notes == ()

    def test_rows_may_be_in_several_splits_or_in_none(self, tmp_path):
        data = read_manifest(write(tmp_path, "path,split\na.jpg,train; held-out-1\nb.jpg,\nc.jpg,train;train\n"))
        assert {name: rows.tolist() for name, rows in data.splits.items()} == {"train": [0, 2], "held-out-1": [0]}

    def test_a_byte_order_mark_and_windows_line_ends_are_read(self, tmp_path):
        data = read_manifest(write(tmp_path, b"\xef\xbb\xbfpath,labels\r\na.jpg,cat\r\n\r\nb.jpg,dog"))
        assert data.ids == ("a.jpg", "b.jpg")
        assert data.classes == ("cat", "dog")

    def test_quoted_fields_hold_commas_quotes_and_line_breaks(self, tmp_path):
        data = read_manifest(write(tmp_path, 'path\n"a,b ""c"".jpg"\n"new\nline.jpg"\n'))
        assert data.paths == ('a,b "c".jpg', "new\nline.jpg")

    @pytest.mark.parametrize("box", ["1 2 3.5 4", "1;2;3.5;4", " 1 ; 2;\t3.5 4 "])
    def test_a_box_is_four_numbers(self, tmp_path, box):
        data = read_manifest(write(tmp_path, f"path,box\na.jpg,{box}\nb.jpg,\n"))
        assert data[0].box == Box(1, 2, 3.5, 4)
        assert data[1].box is None

    def test_paths_are_put_in_one_form(self, tmp_path):
        data = read_manifest(write(tmp_path, "path\n./x//a.jpg\n b.jpg\n..c.jpg\n"))
        assert data.paths == ("x/a.jpg", " b.jpg", "..c.jpg")

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("path\n/etc/passwd\n", 2),
            ("path\nhttps://example.org/a.jpg\n", 2),
            ("path\nfile:///etc/passwd\n", 2),
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
            read_manifest(path)
        assert f"{path}, line {line}:" in str(caught.value)

    def test_doubled_ids_are_named_by_both_lines(self, tmp_path):
        with pytest.raises(
            DatasetError, match=r"line 4: expected every id once, found 'a\.jpg' also in line 2; take one"
        ):
            read_manifest(write(tmp_path, "path\na.jpg\nb.jpg\n./a.jpg\n"))

    @pytest.mark.parametrize("text", ["", "path\n", "path,labels\n\n\n"])
    def test_an_empty_list_is_refused_and_a_missing_one(self, tmp_path, text):
        with pytest.raises(DatasetError, match=r"list\.csv: expected this file"):
            read_manifest(tmp_path / "list.csv")
        with pytest.raises(DatasetError, match=r"list\.csv: expected"):
            read_manifest(write(tmp_path, text))

    def test_the_columns_are_those_of_the_data_pages(self):
        text = PAGE.read_text(encoding="utf-8")
        assert set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE)) - {"column"} == set(manifest.COLUMNS)


PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/.\\"), min_size=1, max_size=8)
PATHS = PATHS.filter(str.strip)  # A line of blanks alone is no row.
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
        data = read_manifest(write(tmp_path, text.getvalue()))
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
            data = read_manifest(write(tmp_path, ",".join(["path", *columns]).encode() + b"\n" + text))
        except DatasetError:
            return
        assert isinstance(data, DataSet)
        assert not any(".." in path.split("/") or path.startswith("/") for path in data.paths)
        assert data.boxes is None or np.isfinite(data.boxes[~np.isnan(data.boxes)]).all()


class TestManifestSplits:
    def test_other_spellings_of_a_split_are_read_and_named(self, tmp_path):
        data = read_manifest(write(tmp_path, "path,split\na.jpg,TRAIN\nb.jpg,train\nc.jpg,valid\nd.jpg,Test-1\n"))
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
            read_manifest(write(tmp_path, f"path,split\n{text}"))

    @pytest.mark.parametrize("joined", ["a,b", "a|b", "b / c", "x&b", "a\uff1bb", "['b']", "['a', 'b']"])
    def test_labels_that_look_joined_are_one_class_and_a_note_says_so(self, tmp_path, joined):
        data = read_manifest(write(tmp_path, f'path,labels\n1.jpg,"{joined}"\n2.jpg,b\n3.jpg,c\n'))
        assert joined in data.classes
        assert len(data.classes) == 3
        (note,) = data.notes
        assert note == (
            f"Read as one class each: {joined!r}; several labels of an image are separated by ';', or as "
            "--label-separator says."
        )

    def test_a_comma_in_the_name_of_a_class_is_no_reason_for_a_note(self, tmp_path):
        text = 'path,labels\n1.jpg,"kit fox, Vulpes macrotis"\n2.jpg,"tench, Tinca tinca"\n'
        assert read_manifest(write(tmp_path, text)).notes == ()

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
        listed = read_manifest(write(tmp_path, text))
        put(tmp_path / "tree", *(f"{name}/1.jpg" for name in [*names, "dog"]))
        for data in (listed, folder.read(tmp_path / "tree")):
            assert sorted(data.classes) == sorted([*names, "dog"])
            assert data.notes == (f"{words}{names[0]!a} and {names[1]!a}.",)

    @pytest.mark.parametrize("names", [["1", "10", "2"], ["a1", "a01"], ["-1", "1"], ["c", "c#"], ["ann's", "bob's"]])
    def test_names_that_differ_are_no_reason_for_a_note(self, tmp_path, names):
        text = "path,labels\n" + "".join(f"{row}.jpg,{name}\n" for row, name in enumerate(names))
        assert read_manifest(write(tmp_path, text)).notes == ()

    def test_classes_that_are_called_as_kinds_of_files_are_reported(self, tmp_path):
        put(tmp_path, "train/images/1.png", "train/masks/1.png", "val/images/2.png", "val/masks/2.png")
        assert "Read as classes, though their names are those of kinds of files: images, masks;" in (
            " ".join(folder.read(tmp_path).notes)
        )

    def test_a_class_that_is_in_one_split_alone_is_reported(self, tmp_path):
        text = "path,labels,split\n1.jpg,a,train\n2.jpg,b,train\n3.jpg,a,test\n4.jpg,c,test\n5.jpg,d,\n"
        assert read_manifest(write(tmp_path, text)).notes == (
            "Classes that occur in one split only: b (train), c (test).",
        )


# What other programs write.


ROWS = [("path", "labels", "age"), ("a.jpg", "cat", "4"), ("b.jpg", "K\u00e4fer", "")]
TEXT = "\r\n".join(",".join(row) for row in ROWS)


def is_right(data):
    assert (data.ids, data.classes, data.task) == (("a.jpg", "b.jpg"), ("K\u00e4fer", "cat"), Task.SINGLE_LABEL)
    assert data.labels.tolist() == [[-1, 1], [1, -1]]
    assert data.columns == {"age": ("4", "")}
    assert data.notes[-1] == "Kept in the feature file as text: age."


@pytest.mark.parametrize("text", [
    " \r\npath;label\r\n\r\n  \r\na;x\r\n\t\r\nb;y\r\n ;\r\n;\r\n",
    "\n\t \npath,label\na,x\n \n\nb,y\n \n",
    "\n\npath\tlabel\n \na\tx\n\nb\ty\n\t\n",
])  # fmt: skip
def test_lines_without_content_are_passed_over_wherever_they_stand(tmp_path, text):
    found = read_manifest(write(tmp_path, text))
    assert (found.paths, found.classes) == (("a", "b"), ("x", "y"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["", "\r\n", "\n\n", "\n,,\r\n , ,\n"], ids=repr)
def test_csv_of_any_program(tmp_path, separator, encoding, end):
    text = f"{TEXT}{end}".replace(",", separator)
    is_right(read_manifest(write(tmp_path, text.encode(encoding))))
    is_right(read_manifest(write(tmp_path, f"sep={separator}\r\n{text}".encode(encoding))))
    is_right(read_manifest(write(tmp_path, f"\n\r\n{text}".encode(encoding))))


def test_latin_1_is_read_when_told_and_the_refusal_says_how(tmp_path):
    path = write(tmp_path, TEXT.encode("cp1252"))
    with pytest.raises(DatasetError, match=r"list\.csv, line 3: .* found the byte 0xe4; .* --encoding cp1252"):
        read_manifest(path)
    for encoding in ("cp1252", "latin-1"):
        is_right(read_manifest(path, ListSettings(encoding=encoding)))
    with pytest.raises(ConfigError, match=r"--encoding: expected utf-8, cp1252, .* found 'klingon'"):
        read_manifest(path, ListSettings(encoding="klingon"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_refused_with_the_option_that_reads_it(tmp_path, encoding):
    path = write(tmp_path, TEXT.encode(encoding))
    with pytest.raises(DatasetError, match=f"found zero bytes; give --encoding {encoding}"):
        read_manifest(path)
    is_right(read_manifest(path, ListSettings(encoding=encoding)))


@pytest.mark.parametrize(("start", "said"), [(b"PK\3\4", "workbook"), (b"\x1f\x8b", "gzip"), (b"PAR1", "Parquet")])
def test_what_is_no_text_is_not_blamed_on_its_encoding(tmp_path, start, said):
    with pytest.raises(DatasetError, match=f"expected text, found .*{said}"):
        read_manifest(write(tmp_path, start + b"\xe4"))


@pytest.mark.parametrize(
    "text", [TEXT, TEXT.replace("\r\n", "\n"), TEXT.replace("\r\n", "\r"), f"sep=;\n{TEXT.replace(',', ';')}"]
)
def test_a_large_list_is_read_like_a_small_one(tmp_path, monkeypatch, text):
    """By pyarrow, which knows neither lines nor stray quotes; what is odd goes the other way."""
    monkeypatch.setattr(cells, "_LARGE", 1)
    strict = []
    honest = cells._read_strictly
    monkeypatch.setattr(cells, "_read_strictly", lambda *words: strict.append(words) or honest(*words))
    is_right(read_manifest(write(tmp_path, text)))
    assert not strict
    lines = text.split("\n") if "\n" in text else text.split("\r")
    with pytest.raises(DatasetError, match=rf"line {len(lines) + 1}: expected a path"):
        read_manifest(write(tmp_path, f"{text}\n../c.jpg{text[-1]}c{text[-1]}"))
    for rows in ("\n\nc.jpg,cat,1", '\n"c.jpg",cat,1'):
        data = read_manifest(write(tmp_path, text + rows.replace(",", text[-1])))
        assert data.ids[2:] == ("c.jpg",)
    with pytest.raises(DatasetError, match=rf"line {len(lines) + 1}: expected 3 fields, found 1"):
        read_manifest(write(tmp_path, f"{text}\nc.jpg"))


def test_an_excel_workbook(tmp_path):
    book = openpyxl.Workbook()
    for row in [ROWS[0], (), ("a.jpg", "cat", 4), ("b.jpg", "K\u00e4fer", None), (None, " ")]:
        book.active.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "list.xlsx")
    is_right(read_manifest(tmp_path / "list.xlsx"))
    book["empty"].append(["path"])
    book["empty"].append([1.5])
    book.save(tmp_path / "list.xlsx")
    with pytest.raises(DatasetError, match="one sheet with content, found Sheet, empty; say which with --sheet"):
        read_manifest(tmp_path / "list.xlsx")
    is_right(read_manifest(tmp_path / "list.xlsx", ListSettings(sheet="Sheet")))
    assert read_manifest(tmp_path / "list.xlsx", ListSettings(sheet="empty")).ids == ("1.5",)
    with pytest.raises(ConfigError, match=r"--sheet: expected one of Sheet, empty .* found 'x'"):
        read_manifest(tmp_path / "list.xlsx", ListSettings(sheet="x"))
    book["Sheet"].append(["../x.jpg"])
    book.save(tmp_path / "list.xlsx")
    with pytest.raises(DatasetError, match="line 6: expected a path below"):
        read_manifest(tmp_path / "list.xlsx", ListSettings(sheet="Sheet"))


def test_formulas_that_nobody_has_computed_are_refused(tmp_path):
    """Such a cell has no value in the file; as openpyxl and others write it."""
    book = openpyxl.Workbook()
    for row in [("path", "label"), ("a.jpg", '="c"&"at"'), ("b.jpg", "dog")]:
        book.active.append(row)
    path = tmp_path / "list.xlsm"
    book.save(path)
    with pytest.raises(DatasetError, match=r"line 2: expected a value, found the formula B2 of the sheet Sheet"):
        read_manifest(path)
    for value, task in (("cat", Task.SINGLE_LABEL), ("", Task.MULTI_LABEL)):  # as Excel and LibreOffice save them
        rewrite(path, "xl/worksheets/sheet1.xml", rb'<c r="B2"><f>([^<]*)</f>.*?</c>', value)
        data = read_manifest(path)
        assert (data.paths, data.task) == (("a.jpg", "b.jpg"), task)


def rewrite(path: Path, part: str, pattern: bytes, value: str) -> None:
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    computed = rb'<c r="B2" t="str"><f>\1</f><v>%s</v></c>' % value.encode()
    parts[part], changed = re.subn(pattern.replace(rb'B2"', rb'B2"(?: t="str")?'), computed, parts[part])
    assert changed == 1
    with zipfile.ZipFile(path, "w") as book:
        for name, content in parts.items():
            book.writestr(name, content)


def test_a_table_of_more_rows_and_cells_than_is_sensible_is_refused_at_once(tmp_path, monkeypatch):
    book = openpyxl.Workbook()
    book.active.append(["path"])
    book.active.cell(20, 3).value = "x"
    book.save(tmp_path / "list.xlsx")
    monkeypatch.setattr(cells, "_MOST_CELLS", 5)
    pq.write_table(pa.table({"path": ["a.jpg"] * 6}), tmp_path / "list.parquet")
    with pytest.raises(DatasetError, match="expected at most 5 cells, found 6 rows"):
        read_manifest(tmp_path / "list.parquet")
    for rows, most in ((99, 5), (19, 99)):
        monkeypatch.setattr(cells, "_MOST_CELLS", most)
        monkeypatch.setattr(cells, "_MOST_ROWS", rows)
        with pytest.raises(DatasetError, match=f"at most {rows} rows and {most} cells in a sheet, found more in Sheet"):
            read_manifest(tmp_path / "list.xlsx")


def test_a_value_is_one_text_in_a_workbook_and_in_parquet(tmp_path):
    values = {
        "whole": [1.0, 12345678901.0, None],
        "part": [0.1, -2.5, 1e-7],
        "truth": [True, False, None],
        "day": [datetime(2020, 1, 2), datetime(2020, 1, 2, 3, 4, 5), None],
        "number": [1, 2, None],
    }
    paths = ["a.jpg", "b.jpg", "c.jpg"]
    pq.write_table(pa.table({"path": paths, **values}), tmp_path / "list.parquet")
    book = openpyxl.Workbook()
    for row in [["path", *values], *map(list, zip(paths, *values.values(), strict=True))]:
        book.active.append(row)
    book.save(tmp_path / "list.xlsx")
    expected = {
        "whole": ("1", "12345678901", ""),
        "part": ("0.1", "-2.5", "1e-07"),
        "truth": ("True", "False", ""),
        "day": ("2020-01-02", "2020-01-02T03:04:05", ""),
        "number": ("1", "2", ""),
    }
    for ending in ("xlsx", "parquet"):
        assert read_manifest(tmp_path / f"list.{ending}").columns == expected
    short = {"path": paths, "part": pa.array([0.1, float("nan"), None], pa.float32())}
    pq.write_table(pa.table(short | {"nan": [1.5, float("nan"), 2.0]}), tmp_path / "list.parquet")
    assert read_manifest(tmp_path / "list.parquet").columns == {"part": ("0.1", "", ""), "nan": ("1.5", "", "2")}


def test_parquet(tmp_path):
    table = {name: list(column) for name, *column in zip(*ROWS, strict=True)}
    columns = {
        "path": table["path"],
        "labels": pa.array(table["labels"]).dictionary_encode(),
        "age": pa.array([4, None]),
    }
    pq.write_table(pa.table(columns | {"raw": [b"x", b"y"], "values": [[1.0], [2.0]]}), tmp_path / "list.parquet")
    data = read_manifest(tmp_path / "list.parquet")
    is_right(data)
    assert data.notes[0] == "Columns of lists or bytes, and ignored: raw, values."


@pytest.mark.parametrize("name", ["labels", "Split", "box", "image"])
def test_lists_and_bytes_in_a_column_that_is_known_are_refused(tmp_path, name):
    """They were passed over with a note, and hours later the features had no labels."""
    values = {"labels": [["a", "b"], ["c"]], "Split": [["train"], ["test"]], "box": [[1.0, 2, 3, 4]] * 2}
    table = {"path" if name != "image" else "text": ["a.jpg", "b.jpg"], name: values.get(name, [b"x", b"y"])}
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    with pytest.raises(DatasetError, match=rf"expected text or numbers in the column '{name}', found lists or bytes"):
        read_manifest(tmp_path / "list.parquet")


def test_a_column_of_lists_is_no_matter_where_another_is_taken(tmp_path):
    table = {"path": ["a.jpg", "b.jpg"], "labels": [["x"], ["y"]], "label": ["x", "y"], "more": [[1], [2]]}
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    assert read_manifest(tmp_path / "list.parquet").classes == ("x", "y")
    with pytest.raises(DatasetError, match="expected text or numbers in the column 'more', found lists or bytes"):
        read_manifest(tmp_path / "list.parquet", ListSettings(columns={"group": "more"}))


@pytest.mark.parametrize("name", ["list.xlsx", "list.parquet", "list.ods"])
def test_what_is_not_what_it_is_called_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4 no such thing")
    with pytest.raises(DatasetError, match=rf"{name}: expected .* found"):
        read_manifest(tmp_path / name)
    with pytest.raises((ConfigError, DatasetError), match="expected"):
        read_manifest(tmp_path / name, ListSettings(encoding="latin-1"))


TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial-own-images.md"
TOLD = [
    {},
    {},
    {"columns": {"path": "Photo", "labels": "Diagnosis", "group": "Patient ID"}},
    {"label_separator": "|"},
    {"one_hot": ("cat", "dog", "indoors")},
]


def test_the_examples_of_the_tutorial_hold(tmp_path):
    section = TUTORIAL.read_text(encoding="utf-8").split("## A list of images")[1].split("\n## ")[0]
    examples = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    data = [
        read_manifest(write(tmp_path, text), ListSettings(**told)) for text, told in zip(examples, TOLD, strict=True)
    ]
    assert {one.paths for one in data} == {("cat/1.jpg", "dog/1.jpg")}
    single, several = ("cat", "dog"), ("cat", "dog", "indoors")
    assert [one.classes for one in data] == [single, single, ("healthy", "ill"), several, several]
    assert [one.groups for one in data] == [None, ("patient 1", "patient 2"), ("7", "8"), None, None]
    assert (data[1].columns, list(data[1].splits)) == ({"Age": ("4", "11")}, ["train", "test"])
    assert data[3].labels.tolist() == data[4].labels.tolist() == [[1, -1, 1], [-1, 1, -1]]


# Which column is what.


@pytest.mark.parametrize("head", ["file,label", "File Name,Class", " IMAGE , labels", "file_path,kind"])
def test_columns_are_known_by_usual_headings_or_told(tmp_path, head):
    told = {"path": "file_path", "labels": "kind"} if head == "file_path,kind" else {}
    data = read_manifest(write(tmp_path, f"{head}\na.jpg,cat\nb.jpg,dog\n"), ListSettings(columns=told))
    assert (data.paths, data.classes) == (("a.jpg", "b.jpg"), ("cat", "dog"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "file,path\na,b\n",
            r"line 1: .* found 'file' and 'path'; say which with --column path=file or --column path=",
        ),
        ("path,label,label\na,b,c\n", r"found 'label' and 'label'; rename one"),
        (
            "path,label,class\na,b,c\n",
            r"found 'label' and 'class'; say which with --column labels=label or --column la",
        ),
        ("photo,label\na,b\n", r"line 1: expected a heading path, file, filename or image, .* --column path=HEADING"),
        (
            "Datei;Klasse\na;12,5\n",
            r"line 1: expected a heading path, .* found 'Datei, Klasse'; say which column has the paths with --column",
        ),
        ("path,label\na,cat;dog\n", r"line 2: .* found one class or several; .* --label-separator none or --label-sep"),
        ("path,label;file\na,b;c\n", r"found 2 columns with commas and 2 columns with semicolons.* sep=, or sep=;"),
        ("path,age,age\na,1,2\n", r"line 1: expected every heading once, found 'age' twice"),
        ("path,group\na,x\nb, \n", r"line 3: expected a group in every line, found none"),
        ("path,label\na,#N/A\n", r"line 2: expected a value, found #N/A, the result of a formula that failed"),
        ("path,group\na,x\nb, #REF! \n", r"line 3: expected a value, found #REF!"),
        ("path\nC:\\data\\a.jpg\n", r"line 2: expected a path below the folder of the list"),
        ("path\n..\\a.jpg\n", r"line 2: expected a path below the folder of the list"),
    ],
)
def test_what_may_be_two_things_is_refused_with_the_way_out(tmp_path, text, words):
    with pytest.raises(DatasetError, match=words):
        read_manifest(write(tmp_path, text))


@pytest.mark.parametrize(
    ("separator", "classes"), [("none", ("a;b|c",)), (";", ("a", "b|c")), ("|", ("a;b", "c")), (",", ("a;b|c",))]
)
def test_labels_are_parted_where_it_is_said(tmp_path, separator, classes):
    told = ListSettings(label_separator=separator)
    assert read_manifest(write(tmp_path, "path,label\n1.jpg,a;b|c\n"), told).classes == classes


def test_columns_of_0_and_1_are_classes_when_told(tmp_path):
    path = write(tmp_path, "path,cat,dog,fox,label\na.jpg,1,True,0,x\nb.jpg,0.0,FALSE,0,y\n")
    told = ListSettings(one_hot=("dog", " cat", "fox"))
    data = read_manifest(path, told)
    assert (data.classes, data.task) == (("cat", "dog", "fox"), Task.MULTI_LABEL)
    assert data.labels.tolist() == [[1, 1, -1], [-1, -1, -1]]
    assert data.columns == {"label": ("x", "y")}
    assert (
        "Columns of 0 and 1: cat, dog, fox; if they are classes, give --one-hot cat,dog,fox."
        in read_manifest(path).notes
    )
    with pytest.raises(DatasetError, match="line 3: expected 0 or 1, True or False in the column 'cat', found 'maybe'"):
        read_manifest(write(tmp_path, "path,cat\na.jpg,1\nb.jpg,maybe\n"), ListSettings(one_hot=("cat",)))


@pytest.mark.parametrize(
    "told", [{"columns": {"label": "x"}}, {"label_separator": "/"}, {"one_hot": ("a",), "columns": {"labels": "b"}}]
)
def test_settings_that_say_nothing_are_refused(told):
    with pytest.raises(ConfigError, match="expected"):
        ListSettings(**told)


def test_a_heading_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path, "path,kind\na.jpg,b\n")
    for told in (ListSettings(columns={"labels": "Kind"}), ListSettings(one_hot=("Kind",))):
        with pytest.raises(ConfigError, match=r"expected one of the headings path, kind .* found 'Kind' 0 times"):
            read_manifest(path, told)


def test_backslashes_part_folders_unless_a_file_is_called_so(tmp_path):
    put(tmp_path, "odd\\name.jpg")
    data = read_manifest(write(tmp_path, "path\ncat\\a.jpg\nodd\\name.jpg\n"))
    assert data.paths == ("cat/a.jpg", "odd\\name.jpg")
    assert data.notes == ("Read with / for \\: 1 path, the first is cat\\a.jpg.",)


def test_groups_are_kept_and_those_that_splits_part_are_named(tmp_path):
    text = "path,group,split\n1.jpg,p1,train\n2.jpg,p2,train\n3.jpg,p1,test\n4.jpg,p2,test-1\n"
    data = read_manifest(write(tmp_path, text))
    assert data.groups == ("p1", "p2", "p1", "p2")
    assert data.notes == ("Groups that lie in more than one split: p1 (train, test); figures may be too good.",)
    text = "path,Patient ID\n1.jpg,p1\n"
    data = read_manifest(write(tmp_path, text))
    assert data.groups is None
    assert data.notes[-1] == "If training and test must not share a Patient ID, give --column group='Patient ID'."
    assert read_manifest(write(tmp_path, text), ListSettings(columns={"group": "Patient ID"})).groups == ("p1",)
    (note,) = read_manifest(write(tmp_path, "path,group\n1.jpg,p 1\n2.jpg,P1\n3.jpg,P1\n")).notes
    assert note == "Read as different groups, though their names are nearly the same: 'p 1' and 'P1'."


def test_further_columns_get_names_that_a_file_can_hold(tmp_path):
    data = read_manifest(write(tmp_path, 'path,"Age\n(years)",site/ward,,\na.jpg,4,x,y,\n'))
    assert data.columns == {"Age (years)": ("4",), "site_ward": ("x",)}
    assert data.notes[0] == "Columns without a heading, and ignored: number 4."


def test_options_reach_the_list(tmp_path, capsys):
    path = write(tmp_path, "Photo;Kind;Case\na.jpg;cat|dog;1\n".encode("utf-16"))
    put(tmp_path, "a.jpg")
    words = f"data check manifest --all --root {path} --column path=Photo --column labels=Kind".split()
    assert run([*words, "--label-separator", "|", "--column", "group=Case"]) == 0
    assert re.search(r"all +classes +2 ", capsys.readouterr().out)
    assert run([*words, "--column", "labels=Case"]) == 2
    assert "--column: expected each column once, found path=Photo, labels=Kind, labels=Case" in capsys.readouterr().err
    assert run(["data", "check", "folder", "--root", str(tmp_path), "--column", "path=Photo"]) == 2
    assert "expected them for the data set manifest alone" in capsys.readouterr().err
