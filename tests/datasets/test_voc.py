"""VOC's lists, labels and boxes, on imitations of the official tree written line by line."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggfeat.datasets import voc
from vggfeat.errors import ConfigError, DatasetError
from vggfeat.samples import Box, Label, Task

# What the images show: classes that are not named are absent (-1).
TRAIN = {"000012": {"car": 1}, "000005": {"chair": 1, "sofa": 0}}
VAL = {"000007": {"car": 0}}
TEST = {"000001": {"person": 1, "dog": 1}, "000002": {"train": 1}}

XML_2_PEOPLE = """<annotation><folder>VOC2012</folder><filename>../../../etc/passwd</filename>
<object><name>person</name><actions><jumping>1</jumping></actions>
 <bndbox><xmax>200</xmax><xmin>101</xmin><ymax>80.5</ymax><ymin>1</ymin></bndbox></object>
<object><bndbox><ymin>2.25</ymin><xmin>1</xmin><ymax>10</ymax><xmax>1</xmax></bndbox><name>person</name></object>
</annotation>"""


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def make_main(tree: Path, **sets: dict[str, dict[str, int]]) -> Path:
    """Write ImageSets/Main; labels are right-aligned to two columns, as in the official files."""
    folder = tree / "ImageSets" / "Main"
    for name, images in sets.items():
        put(folder / f"{name}.txt", "".join(f"{image}\n" for image in images))
        for cls in voc.CLASSES:
            lines = [f"{image} {found.get(cls, -1):2d}\n" for image, found in images.items()]
            put(folder / f"{cls}_{name}.txt", "".join(lines))
    return tree


def person(xmin: object = 1, ymin: object = 1, xmax: object = 50, ymax: object = 60, name: str = "person") -> str:
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def make_actions(tree: Path, **sets: dict[str, list[dict[str, int]]]) -> Path:
    """Write ImageSets/Action and annotations; one dictionary of labels per person, -1 if not named."""
    folder = tree / "ImageSets" / "Action"
    for name, images in sets.items():
        put(folder / f"{name}.txt", "".join(f"{image}\n" for image in images))
        for action in voc.ACTIONS:
            lines = [
                f"{image}  {index}  {found.get(action, -1):2d}\n"
                for image, people in images.items()
                for index, found in enumerate(people, start=1)
            ]
            put(folder / f"{action}_{name}.txt", "".join(lines))
        for image, people in images.items():
            put(tree / "Annotations" / f"{image}.xml", f"<annotation>{person() * len(people)}</annotation>")
    return tree


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return make_main(tmp_path / "VOCdevkit" / "VOC2007", train=TRAIN, val=VAL, test=TEST)


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    return make_actions(
        tmp_path / "VOCdevkit" / "VOC2012",
        train={"2011_000002": [{"jumping": 1, "running": 1}, {}], "2010_000001": [{"phoning": 1}]},
        val={"2010_000009": [{"walking": 1}]},
    )


def action_file(tree: Path, name: str) -> Path:
    return tree / "ImageSets" / "Action" / f"{name}.txt"


def label_of(data: object, name: str, cls: str) -> int:
    return int(data.labels[data.ids.index(name), data.classes.index(cls)])


class TestMain:
    @pytest.mark.parametrize("start", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
    def test_rows_follow_the_lists_from_any_of_three_roots(self, tmp_path, main, start):
        data = voc.read(tmp_path / start, 2007)
        assert (data.name, data.task) == ("voc2007", Task.MULTI_LABEL)
        assert data.ids == ("000012", "000005", "000007", "000001", "000002")
        assert data.paths[1] == "JPEGImages/000005.jpg"
        assert {name: rows.tolist() for name, rows in data.splits.items()} == {
            "train": [0, 1],
            "val": [2],
            "test": [3, 4],
        }
        assert Path(data.root) == main
        assert data.notes == ()

    def test_labels_are_those_of_the_class_files(self, main):
        data = voc.read(main, 2007)
        assert label_of(data, "000005", "chair") == Label.POSITIVE
        assert label_of(data, "000005", "sofa") == Label.IGNORED
        assert label_of(data, "000007", "car") == Label.IGNORED
        assert label_of(data, "000002", "train") == Label.POSITIVE
        assert label_of(data, "000001", "train") == Label.NEGATIVE
        assert (data.labels == Label.POSITIVE).sum() == 5
        assert (data.labels == Label.IGNORED).sum() == 2
        assert (data.labels == Label.NEGATIVE).sum() == 5 * 20 - 7

    def test_the_classes_are_the_twenty_of_the_kit_in_alphabetical_order(self):
        assert len(voc.CLASSES) == len(set(voc.CLASSES)) == 20
        assert list(voc.CLASSES) == sorted(voc.CLASSES)

    def test_any_white_space_and_line_end_separates(self, main):
        put(main / "ImageSets/Main/car_train.txt", "\ufeff000012 \t  1\r\n\r\n  000005 -1  ")
        put(main / "ImageSets/Main/train.txt", "000012\r\n000005\r\n")
        data = voc.read(main, 2007)
        assert label_of(data, "000012", "car") == Label.POSITIVE
        assert label_of(data, "000005", "car") == Label.NEGATIVE

    def test_the_image_folder_and_other_files_beside_the_lists_are_not_read(self, main):
        put(main / "JPEGImages/000999.jpg", "of another task")
        put(main / "ImageSets/Main/trainval.txt", "../x\n")
        put(main / "ImageSets/Main/car_trainval.txt", "nonsense")
        assert voc.read(main, 2007).ids == ("000012", "000005", "000007", "000001", "000002")

    @pytest.mark.parametrize(("year", "archive"), [(2007, "VOCtest_06-Nov-2007.tar"), (2012, "VOC2012test.tar")])
    def test_without_a_test_list_a_note_names_the_archive(self, tmp_path, year, archive):
        make_main(tmp_path / f"VOC{year}", train=TRAIN, val=VAL)
        data = voc.read(tmp_path, year)
        assert sorted(data.splits) == ["train", "val"]
        assert len(data) == 3
        (note,) = data.notes
        assert archive in note

    def test_test_labels_of_2012_are_withheld_whatever_files_say(self, tmp_path):
        tree = make_main(tmp_path / "VOC2012", train=TRAIN, val=VAL, test=TEST)
        data = voc.read(tmp_path, 2012)
        assert (data.labels[data.splits["test"]] == Label.WITHHELD).all()
        assert not (data.labels[data.splits["train"]] == Label.WITHHELD).any()
        for path in (tree / "ImageSets/Main").glob("*_test.txt"):
            path.unlink()
        assert voc.read(tmp_path, 2012).fingerprint() == data.fingerprint()

    @pytest.mark.parametrize(
        ("name", "text", "line", "found"),
        [
            ("train", "000012\n../x\n", 2, "../x"),
            ("train", "000012\n\n000012\n", 3, "000012"),
            ("train", "000012 1\n000005 1\n", 1, "2"),
            ("val", "000007\n000012\n", 2, "train.txt, line 1"),
            ("car_train", "000012  1\n000005 2\n", 2, "'2'"),
            ("car_train", "000012 +1\n000005 -1\n", 1, "'+1'"),
            ("car_train", "000012  1\n000005\n", 2, "1"),
            ("car_train", "000012  1\n000005 -1 0\n", 2, "3"),
            ("car_train", "000012  1\n000012 -1\n", 2, "000012"),
            ("car_train", "000012  1\n000007 -1\n", 2, "000007"),
            ("car_test", "000001 -1\n000002/x -1\n", 2, "000002/x"),
        ],
    )
    def test_a_wrong_line_is_named(self, main, name, text, line, found):
        path = put(main / f"ImageSets/Main/{name}.txt", text)
        with pytest.raises(DatasetError) as caught:
            voc.read(main, 2007)
        assert f"{path}, line {line}:" in str(caught.value)
        assert found in str(caught.value).split("found")[1]

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("dog_train", b"000012 -1\n", "expected a line for 000005"),
            *[(name, None, "expected this file") for name in ("train", "val", "cow_val", "cow_test")],
            *[(name, b"\n", "expected image ids, found none") for name in ("train", "test")],
            ("train", b"000012\n\xff\xd8\n", "line 2: .*0xff"),
            ("val", 64 * 2**20 + 1, "expected at most 67108864 bytes"),
            ("val", os.mkfifo, "expected a regular file"),
        ],
    )
    def test_a_file_that_is_not_there_or_is_no_list_is_named(self, main, name, content, words):
        path = main / f"ImageSets/Main/{name}.txt"
        path.unlink()
        if isinstance(content, int):
            path.touch()
            os.truncate(path, content)
        elif callable(content):
            content(path)  # refused at once, and not waited for
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(DatasetError, match=rf"{path}.*{words}"):
            voc.read(main, 2007)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_list_that_may_not_be_read_is_named(self, main):
        path = main / "ImageSets/Main/val.txt"
        path.chmod(0)
        with pytest.raises(DatasetError, match=r"val\.txt: can't be read"):
            voc.read(main, 2007)

    def test_a_missing_tree_says_what_to_unpack(self, tmp_path):
        with pytest.raises(DatasetError, match=r"VOCdevkit/VOC2007.*VOCtrainval_06-Nov-2007\.tar"):
            voc.read(tmp_path, 2007)

    def test_other_years_and_folders_of_other_years_are_refused(self, main):
        with pytest.raises(DatasetError, match="expected VOC2012, found the folder of VOC2007"):
            voc.read(main, 2012)
        with pytest.raises(ConfigError, match="2010"):
            voc.read(main, 2010)

    def test_a_renamed_folder_is_taken_at_its_word(self, main):
        moved = main.rename(main.parent.parent / "my-copy")
        assert len(voc.read(moved, 2007)) == 5


class TestActions:
    def test_rows_are_people_in_the_order_of_list_and_object(self, tmp_path, actions):
        data = voc.read_actions(tmp_path)
        assert data.name == "voc2012-action"
        assert data.classes == voc.ACTIONS
        assert data.ids == ("2011_000002/1", "2011_000002/2", "2010_000001/1", "2010_000009/1")
        assert data.paths[0] == data.paths[1] == "JPEGImages/2011_000002.jpg"
        assert data.splits["train"].tolist() == [0, 1, 2]
        assert data.splits["val"].tolist() == [3]
        assert label_of(data, "2011_000002/1", "jumping") == label_of(data, "2011_000002/1", "running") == 1
        assert (data.labels == 1).sum() == 4
        assert (data.labels[1] == -1).all()
        assert "VOC2012test.tar" in data.notes[0]

    def test_object_numbers_ascend_whatever_the_order_of_lines(self, actions):
        put(actions / "Annotations/2010_000009.xml", f"<annotation>{person() * 10}</annotation>")
        for action in voc.ACTIONS:
            lines = "".join(f"2010_000009 {index} -1\n" for index in (10, 9, 1, 2))
            put(action_file(actions, f"{action}_val"), lines)
        assert voc.read_actions(actions).ids[3:] == tuple(f"2010_000009/{index}" for index in (1, 2, 9, 10))

    def test_other_is_no_class_and_its_file_is_not_read(self, actions):
        assert len(voc.ACTIONS) == 10
        assert "other" not in voc.ACTIONS
        put(action_file(actions, "other_train"), "../x 0 7\n")
        assert len(voc.read_actions(actions)) == 4

    def test_people_that_the_jumping_file_lacks_are_unlisted_there_only(self, actions):
        # jumping was added later, so its file starts after the people of 2010
        put(action_file(actions, "jumping_train"), "2011_000002 1 1\n2011_000002 2 -1\n")
        data = voc.read_actions(actions)
        assert data.ids == ("2011_000002/1", "2011_000002/2", "2010_000001/1", "2010_000009/1")
        assert label_of(data, "2010_000001/1", "jumping") == Label.UNLISTED
        assert label_of(data, "2010_000001/1", "phoning") == Label.POSITIVE
        assert (data.labels == Label.UNLISTED).sum() == 1

    def test_boxes_become_edges_whatever_the_order_of_tags(self, actions):
        put(actions / "Annotations/2011_000002.xml", XML_2_PEOPLE)
        data = voc.read_actions(actions)
        assert data[0].box == Box(100, 0, 200, 80.5)
        assert data[1].box == Box(0, 1.25, 1, 10)  # one pixel wide: xmin = xmax
        assert data[0].path == "JPEGImages/2011_000002.jpg"  # and not <filename>

    def test_object_numbers_count_all_objects_of_the_annotation(self, actions):
        for action in voc.ACTIONS:
            put(action_file(actions, f"{action}_val"), "2010_000009 2 -1\n")
        put(
            actions / "Annotations/2010_000009.xml",
            f"<annotation>{person(name='dog')}{person(7, 8, 9, 10)}{person()}</annotation>",
        )
        data = voc.read_actions(actions)
        assert data.ids[-1] == "2010_000009/2"
        assert data[3].box == Box(6, 7, 9, 10)

    @pytest.mark.parametrize("column", ["", " 1", "  -1"])
    def test_test_labels_are_withheld_with_or_without_a_column(self, actions, column):
        make_actions(actions, test={"2010_000100": [{}, {}]})
        for action in voc.ACTIONS:
            put(action_file(actions, f"{action}_test"), f"2010_000100 1{column}\n2010_000100 2{column}\n")
        put(action_file(actions, "jumping_test"), f"2010_000100 2{column}\n")
        data = voc.read_actions(actions)
        assert data.notes == ()
        rows = data.splits["test"]
        assert [data.ids[row] for row in rows] == ["2010_000100/1", "2010_000100/2"]
        assert (data.labels[rows, 1:] == Label.WITHHELD).all()
        assert data.labels[rows, 0].tolist() == [Label.UNLISTED, Label.WITHHELD]

    def test_without_test_class_files_the_people_are_those_of_the_annotations(self, actions):
        put(action_file(actions, "test"), "2011_000200\n")
        people = person(5, 6, 7, 8) + person(name="horse") + person(1, 2, 3, 4)
        put(actions / "Annotations/2011_000200.xml", f"<annotation>{people}</annotation>")
        data = voc.read_actions(actions)
        assert data.ids[-2:] == ("2011_000200/1", "2011_000200/3")
        assert data[5].box == Box(0, 1, 3, 4)
        assert (data.labels[data.splits["test"]] == Label.WITHHELD).all()

    @pytest.mark.parametrize(
        ("name", "text", "line"),
        [
            ("phoning_train", "2011_000002 1 -1\n2011_000002 2\n", 2),
            ("phoning_train", "2011_000002 0 -1\n", 1),
            ("phoning_train", "2011_000002 01 -1\n", 1),
            ("phoning_train", f"2011_000002 {'9' * 5000} -1\n", 1),
            ("phoning_train", "2011_000002 1 -1\n2011_000002 1 1\n", 2),
            ("phoning_train", "2010_000009 1 -1\n", 1),
            ("phoning_train", "../../x 1 -1\n", 1),
            ("phoning_train", "2011_000002 1 ?\n", 1),
        ],
    )
    def test_a_wrong_line_is_named(self, actions, name, text, line):
        path = put(action_file(actions, name), text)
        with pytest.raises(DatasetError) as caught:
            voc.read_actions(actions)
        assert f"{path}, line {line}:" in str(caught.value)
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("name", ["jumping_train", "walking_val"])
    def test_a_missing_class_file_is_named(self, actions, name):
        action_file(actions, name).unlink()
        with pytest.raises(DatasetError, match=name):
            voc.read_actions(actions)

    @pytest.mark.parametrize(
        ("people", "message"),
        [
            (person(), "object 2: expected it, .* found 1 object"),
            (person() + person(name="dog"), "object 2: expected a person, found 'dog'"),
            (person() + person(xmin=20, xmax=19), "object 2: .*xmin 20, xmax 19"),
            (person(ymin=2.5, ymax=2.25) + person(), "object 1: .*ymin 2.5, ymax 2.25"),
            (person(xmin="nan") + person(), "object 1: .*bndbox/xmin, found 'nan'"),
            (person(ymax="1e999") + person(), "object 1: .*bndbox/ymax"),
            (person(xmax="") + person(), "object 1: .*bndbox/xmax, found ''"),
            ("<object><name>person</name></object>" + person(), "object 1: .*bndbox/xmin"),
        ],
    )
    def test_a_wrong_object_is_named(self, actions, people, message):
        path = put(actions / "Annotations/2011_000002.xml", f"<annotation>{people}</annotation>")
        with pytest.raises(DatasetError, match=message) as caught:
            voc.read_actions(actions)
        assert str(path) in str(caught.value)

    def test_an_unlisted_object_may_be_wrong(self, actions):
        people = person() * 2 + person(xmin="nonsense")
        put(actions / "Annotations/2011_000002.xml", f"<annotation>{people}</annotation>")
        assert len(voc.read_actions(actions)) == 4

    @pytest.mark.parametrize(
        ("people", "words"), [(person(), "expected a listed person"), (None, "expected this file")]
    )
    def test_an_image_without_people_or_annotation_is_named(self, actions, people, words):
        put(action_file(actions, "val"), "2010_000009\n2010_000010\n")
        if people is not None:
            put(actions / "Annotations/2010_000010.xml", f"<annotation>{people}</annotation>")
        with pytest.raises(DatasetError, match=rf"2010_000010\.xml: {words}"):
            voc.read_actions(actions)


DEEP = person() + "<a>" * 15 + "</a>" * 15
FULL = f"<annotation>{person()}</annotation>".ljust(10**6, "\n")


class TestHostileXml:
    @staticmethod
    def read(actions: Path, text: str | bytes) -> object:
        path = actions / "Annotations/2010_000009.xml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return voc.read_actions(actions)[3].box

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("<!DOCTYPE annotation><annotation/>", "expected no DOCTYPE"),  # so no entity is expanded
            ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "expected no DOCTYPE"),
            ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "no DOCTYPE"),
            (
                '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
                '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation>&c;</annotation>',
                "expected no DOCTYPE",
            ),
            (f"<annotation>{DEEP}</annotation>", None),
            (f"<annotation>{DEEP.replace('<a></a>', '<a><a></a></a>')}</annotation>", "at most 16 levels"),
            ("<a>" * 300_000, "at most 16 levels"),
            (FULL, None),
            (f"{FULL}\n", "at most 1000000 bytes"),
            (b"", "expected an annotation in plain XML"),
            (b"\xff\xd8\xff\xe0 an image", "expected an annotation in plain XML"),
            (b"<annotation>", "expected an annotation in plain XML"),
            (b"<annotation>&unknown;</annotation>", "expected an annotation in plain XML"),
            (b'<?xml version="1.0" encoding="no-such-code"?><annotation/>', "expected an annotation in plain XML"),
            (b'<?xml version="1.0" encoding="utf-7"?><annotation/>', "expected an annotation in plain XML"),
            (b"<annotation>\x00</annotation>", "expected an annotation in plain XML"),
        ],
    )
    def test_what_is_too_large_too_deep_or_no_plain_xml_is_refused(self, actions, text, words):
        if words is None:
            assert self.read(actions, text) == Box(0, 0, 50, 60)
        else:
            with pytest.raises(DatasetError, match=rf"2010_000009\.xml: .*{words}"):
                self.read(actions, text)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_damage_never_ends_in_another_error(self, actions, data):
        content = bytearray(f"<annotation>{person()}</annotation>".encode())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=4))
            if not content:
                break
        try:
            box = self.read(actions, bytes(content))
        except DatasetError:
            return
        assert np.isfinite(box).all()
