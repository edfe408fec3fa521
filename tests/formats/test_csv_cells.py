"""Cells of CSV: as they are, or such that no spreadsheet runs them."""

import csv
import io

import pytest

from vggfeat.formats.csv_cells import csv_bytes, spreadsheet_cell


def rows_of(content):
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def test_what_is_written_is_read_again():
    rows = [["=1+1", 'a "b", c', "x\ny"], ["-", "@SUM", ""]]
    assert rows_of(csv_bytes(["id", "+", "c"], rows)) == [["id", "+", "c"], *rows]
    assert rows_of(csv_bytes(["id"], [[None], [1.5]])) == [["id"], [""], ["1.5"]]


RUN = (
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-x.png",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "=",
    "-1-1",
    "\n=1",
    "\uff1d1+1",
    "\uff20SUM(A1)",
)


@pytest.mark.parametrize("text", RUN)
def test_what_a_spreadsheet_would_run_is_made_text(text):
    assert spreadsheet_cell(text) == f"'{text}"
    found = rows_of(csv_bytes([text], [[text, "plain"]], spreadsheet_safe=True))
    assert found == [[f"'{text}"], [f"'{text}", "plain"]]


@pytest.mark.parametrize("value", ["-1.5", "+2", "-1e-9", "cat", "a=b", "", None, -3, 0.5])
def test_numbers_and_other_texts_stay(value):
    assert spreadsheet_cell(value) == value
