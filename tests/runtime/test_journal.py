"""The journal: complete groups of rows are kept, everything else is done again."""

import errno
import os
import re
from pathlib import Path

import pytest

from vggfeat.errors import StoreError
from vggfeat.runtime.durable import Files
from vggfeat.runtime.journal import Journal

ROWS = [{"row": row, "score": row / 4} for row in range(7)]
KEY = {"net": "D", "scales": (256, 384)}


def opened(path, **changes):
    given = {"form": "scores, 1", "key": KEY, "total": len(ROWS), "step": 3} | changes
    return Journal(path, **given)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.jsonl"


@pytest.mark.parametrize(("added", "kept"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (7, 7)])
def test_only_complete_groups_are_kept(path, added, kept):
    with opened(path) as journal:
        journal.add(ROWS[:added])
    with opened(path) as journal:
        assert journal.records == ROWS[:kept]
        journal.add(ROWS[kept:])
    with opened(path) as journal:
        assert journal.records == ROWS
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", [b'{"row": 4', b"no JSON\n", b'{"row": 6}\n', b"[" * 100_000 + b"\n"])
def test_lines_from_the_first_damaged_one_on_are_dropped(path, damage):
    with opened(path) as journal:
        journal.add(ROWS[:4])
    path.write_bytes(path.read_bytes() + damage + b'{"row": 5}\n{"row": 6}\n')
    with opened(path) as journal:
        assert journal.records == ROWS[:3]


def test_row_that_is_not_finite_is_refused(path):
    with opened(path) as journal, pytest.raises(ValueError, match="JSON compliant"):
        journal.add([{"row": 0, "score": float("nan")}])


def test_another_key_is_named_and_replaced_only_if_that_is_asked_for(path):
    with opened(path) as journal:
        journal.add(ROWS)
    other = {"net": "E", "scales": (256, 384)}
    with pytest.raises(StoreError, match=r"x\.jsonl: expected results of the same settings, found others of net"):
        opened(path, key=other)
    with opened(path, overwrite=True) as journal:
        assert journal.records == ROWS
    with opened(path, key=other, overwrite=True) as journal:
        assert journal.records == []


@pytest.mark.parametrize("content", [b"mine\n", b"[1]\n", b'{"format": "other", "key": {}}\n'])
def test_file_of_another_kind_stays(path, content):
    path.write_bytes(content)
    with pytest.raises(StoreError, match="found another file; move it away"):
        opened(path)
    assert path.read_bytes() == content


def test_second_writer_is_refused_and_names_the_first(path):
    with opened(path), pytest.raises(StoreError, match="expected to be its only writer, found process"):
        opened(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_group_that_the_disk_refuses_is_one_error_and_leaves_what_was_kept(path, monkeypatch, number):
    class Refusing(Files):
        def write(self, fd, data, offset):
            if offset > 200:
                raise OSError(number, os.strerror(number))
            return super().write(fd, data[:40], offset)  # a torn write

    with opened(path) as journal:
        journal.add(ROWS[:3])
        before = path.read_bytes()
    with opened(path) as journal, monkeypatch.context() as patch, pytest.raises(StoreError) as caught:  # noqa: PT012
        patch.setattr("vggfeat.runtime.journal.DISK", Refusing())
        journal.add([{**row, "reason": "x" * 300} for row in ROWS[3:6]])
    assert re.search(rf"x.jsonl: writing failed: .*{os.strerror(number)}.*what was finished is kept", str(caught.value))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_journal_that_can_not_be_read_now_is_not_begun_again(path, monkeypatch, number):
    def refuse(path):
        raise OSError(number, os.strerror(number))

    with opened(path) as journal:
        journal.add(ROWS)
    before = path.read_bytes()
    for overwrite in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", refuse)
            with pytest.raises(StoreError, match=os.strerror(number)):
                opened(path, overwrite=overwrite)
        assert path.read_bytes() == before


def test_a_name_too_long_for_the_files_next_to_it_is_refused_before_the_work(tmp_path):
    with pytest.raises(StoreError, match=r"expected a name of at most 180 bytes, .* found 245; choose a shorter"):
        opened(tmp_path / ("x" * 245))
    assert list(tmp_path.iterdir()) == []
    with opened(tmp_path / ("x" * 180)) as journal:
        journal.add(ROWS)


def failed(record, changed):
    return "failed" in record or changed


def test_groups_may_come_in_any_order_and_a_complete_journal_is_in_order(path):
    with opened(path) as journal:
        assert journal.pending == [range(3), range(3, 6), range(6, 7)]
        journal.add(ROWS[3:6])
    with opened(path) as journal:
        assert journal.pending == [range(3), range(6, 7)]
        journal.add(ROWS[6:])
        journal.add(ROWS[:3])
    in_order = path.parent / "y.jsonl"
    with opened(in_order) as journal:
        for group in journal.pending:
            journal.add([ROWS[row] for row in group])
    assert path.read_bytes() == in_order.read_bytes()


def test_a_retry_drops_the_groups_that_failed_and_happens_once(path):
    with opened(path) as journal:
        journal.add(ROWS[:3])
        journal.add([ROWS[3], {"row": 4, "failed": True}, ROWS[5]])
        journal.add([{"row": 6, "failed": True}])
    with opened(path) as journal:
        assert journal.pending == []
    with opened(path, retry=failed) as journal:
        assert journal.pending == [range(3, 6), range(6, 7)]
        journal.add([{"row": 6, "failed": True}])
    # Stopped here: what failed again is not tried a third time.
    for retry in (None, failed):
        with opened(path, retry=retry) as journal:
            assert journal.pending == [range(3, 6)]
    with opened(path, retry=failed) as journal:
        journal.add(ROWS[3:6])
    with opened(path, retry=failed) as journal:
        assert journal.pending == [range(6, 7)]
        journal.add(ROWS[6:])
    with opened(path, retry=failed) as journal:
        assert journal.pending == []
        assert journal.records == ROWS


def test_an_entry_of_the_key_may_change_where_rows_are_retried(path):
    with opened(path) as journal:
        journal.add(ROWS[:3])
    other = {**KEY, "net": "E"}
    net, scales = ({name: lambda *_: True} for name in ("net", "scales"))
    for settings in ({"retry": failed}, {"loose": net}, {"retry": failed, "loose": scales}):
        with pytest.raises(StoreError, match="found others of net"):
            opened(path, key=other, **settings)
    with opened(path, key=other, retry=failed, loose=net) as journal:
        assert len(journal.pending) == 3
        journal.add(ROWS[:3])
    with opened(path, key=other, retry=failed, loose=net) as journal:
        assert journal.records == ROWS[:3]
