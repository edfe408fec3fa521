"""What a person sees of long work, on a terminal and in a log."""

import sys

import pytest

from vggfeat.cli import output
from vggfeat.cli.output import Progress, duration, line, rate_of


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_line_gives_rate_and_time_left():
    assert line("extract", "images", 50, 100, 10, 20.0, "1 failed") == (
        "extract: 50 of 100 images, 1 failed, 2.0 images/s, 25s left"
    )


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(capsys):
    clock = Clock()
    with Progress("extract", "images", clock=clock) as bar:
        for second in range(100):
            clock.now = second
            bar.update(second + 1, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [text.split()[1] for text in lines] == ["31", "61", "91", "100"]
    assert "9s left" in lines[2]


def test_resumed_work_does_not_flatter_the_rate(capsys):
    clock = Clock()
    with Progress("extract", "images", clock=clock) as bar:
        bar.update(900, 1000)
        clock.now = 50.0
        bar.update(1000, 1000)
    assert "2.0 images/s" in capsys.readouterr().err


def test_each_stage_has_a_rate_of_its_own(capsys):
    clock = Clock()
    with Progress("svm", "problems", clock=clock) as bar:
        for done in range(1, 42):
            clock.now += 1
            bar.update(done, 41, "choosing")
        for done in range(1, 5):
            clock.now += 10
            bar.update(done, 4, "training")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "svm: 30 of 41 problems, choosing, 1.0 problems/s, 11s left"
    assert lines[-1] == "svm: 4 of 4 problems, training, 0.1 problems/s"
    assert len(lines) == 3


def test_what_is_done_at_once_has_no_rate():
    assert line("svm", "problems", 20, 20, 20, 0.0, "training") == "svm: 20 of 20 problems, training"
    assert line("svm", "problems", 20, 20, 20, 0.0, "") == "svm: 20 of 20 problems"


def test_quiet_says_nothing(capsys):
    with Progress("extract", "images", quiet=True) as bar:
        bar.update(1, 1)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(output.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("extract", "images") as bar:
        bar.update(0, 4)
        bar.update(4, 4, "1 failed")
    shown = capsys.readouterr().err
    assert "extract" in shown
    assert "4/4" in shown


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (190, "3m10s"), (18120, "5h02m")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (0.5, "0.05"), (25, "2.5"), (12345, "1234")])
def test_rates(count, text):
    assert rate_of(count, 10) == text


def test_work_that_stands_still_is_given_no_time_left(capsys):
    clock = Clock()
    with Progress("extract", "images", clock=clock) as bar:
        for second in range(0, 200, 5):
            clock.now = second
            bar.update(min(second, 90) + 1, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2] == "extract: 91 of 100 images, 1.0 images/s, 9s left"
    assert lines[-1] == "extract: 91 of 100 images, no progress for 1m45s, 0.46 images/s"


def test_a_stage_that_counts_in_its_note_does_not_stand_still(capsys):
    clock = Clock()
    with Progress("train A", "steps", clock=clock) as bar:
        for second in range(100):
            clock.now = second
            bar.update(0, 10, f"mean pixel: {second} of 100 images")
    assert "no progress" not in capsys.readouterr().err


def test_the_bar_foretells_what_the_line_does(monkeypatch):
    class Bar:
        def __init__(self):
            self.start = self.stop = lambda: None
            self.add_task = lambda *_, **__: 0

        def update(self, task, **fields):
            self.fields = fields

    clock = Clock()
    monkeypatch.setattr(output, "_rich_bar", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("extract", "images", clock=clock) as shown:
        shown.update(10, 100)
        clock.now = 20.0
        shown.update(50, 100, "1 failed")
        assert shown.bar.fields["rate"] == "1 failed, 2.0 images/s, 25s left"
