"""results.json as a page needs it: read without surprises, and every entry that is shown is what it should be."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vggfeat.errors import StoreError

SVM_FORMAT, SVM_VERSION = "vggfeat-results", 1
MEASURES = ("ap-11-point", "ap-area", "recall", "accuracy")
DEEPEST = 40
"""Levels of lists and objects in each other; a page shows them all."""
_LONGEST_WHOLE = 16
"""Digits of a whole number; beyond that it becomes a float, which no arithmetic fails with."""
_LONGEST_SHOWN = 60

Check = Callable[[Any, str], None]
"""Given a value and where it stands, raises `_Wrong` if it is not what it should be."""


class _Wrong(Exception):  # noqa: N818  it becomes an error
    def __init__(self, where: str, expected: str, found: str) -> None:
        super().__init__(f"{where.lstrip('.')}: expected {expected}, found {found}")


def parse(text: str) -> Any:
    """Read JSON, whole numbers of more than 16 digits as floats.

    Raises
    ------
    ValueError
        If it is none, or nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_int=lambda digits: (int if len(digits) <= _LONGEST_WHOLE else float)(digits))
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """Read a JSON object that was in a file.

    Raises
    ------
    StoreError
        If it is none, or nested too deeply to be shown.
    """
    try:
        content = parse(text.decode("utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: expected a JSON object, found damage ({error}); make it again") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path}: expected a JSON object, found {_shown(content)}; make it again")
    if _deeper(content, DEEPEST):
        raise StoreError(f"{path}: expected at most {DEEPEST} levels in each other, found more; make it again")
    return content


def check_svm(path: Path, results: dict[str, Any]) -> None:
    """Check what a page shows of results.json of `vggfeat svm`.

    Raises
    ------
    StoreError
        For the first entry that is missing or another than it should be.
    """
    try:
        _entries(version=_is(f"{SVM_VERSION}", lambda found: found == SVM_VERSION))(results, "")
        _SVM(results, "")
        classes, runs = len(results["classes"]), len(results["runs"])
        _many(_class(runs))(results["classes"], "classes")
        _many(_run(classes))(results["runs"], "runs")
        if results["deviation"] is not None:
            _entries(values=_each(_SHARE))(results["deviation"], "deviation")
        if results["confusion"]:
            _many(_many(_COUNT, classes), classes)(results["confusion"], "confusion")
    except _Wrong as error:
        raise StoreError(f"{path}: {error}; make it again with `vggfeat svm`") from None


def _is(expected: str, holds: Callable[[Any], bool]) -> Check:
    def check(value: Any, where: str) -> None:
        if not holds(value):
            raise _Wrong(where, expected, _shown(value))

    return check


def _between(low: float, high: float, *, or_null: bool = False) -> Check:
    def holds(value: Any) -> bool:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        return (value is None and or_null) or (known and math.isfinite(value) and low <= value <= high)

    return _is(f"a number from {low:g} to {high:g}{' or null' if or_null else ''}", holds)


def _many(each: Check, length: int | None = None, *, least: int = 0) -> Check:
    """Expect a list, of so many values or at least so many."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise _Wrong(where, "a list", _shown(value))
        if len(value) < least or length not in (None, len(value)):
            raise _Wrong(where, f"a list of {f'at least {least}' if length is None else length}", f"{len(value)}")
        for place, one in enumerate(value):
            each(one, f"{where}[{place}]")

    return check


def _each(check: Check) -> Check:
    """Expect an object whose values are all alike."""

    def checked(value: Any, where: str) -> None:
        _OBJECT(value, where)
        for name, one in value.items():
            check(one, f"{where}.{_shown(name)[1:-1]}")

    return checked


def _entries(optional: tuple[str, ...] = (), **checks: Check) -> Check:
    """Expect an object with entries of these names; others are free."""

    def check(value: Any, where: str) -> None:
        _OBJECT(value, where)
        for name, one in checks.items():
            if name in value:
                one(value[name], f"{where}.{name}")
            elif name not in optional:
                raise _Wrong(f"{where}.{name}", "an entry of this name", "none")

    return check


_OBJECT = _is("an object", lambda value: isinstance(value, dict))
_TEXT = _is("a text", lambda value: isinstance(value, str))
_FLAG = _is("true or false", lambda value: isinstance(value, bool))
_COUNT = _is("a whole number from 0", lambda value: type(value) is int and value >= 0)
_SHARE = _between(0, 1 + 1e-9, or_null=True)
"""A mean of ones may be larger by rounding."""
_COST = _is("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf)
_LARGE = _between(0, 1e12)
_PAPER = _entries(
    measure=_TEXT,
    nets=_many(_TEXT),
    regions=_many(_TEXT),
    percent=_LARGE,
    deviation=_between(0, 1e12, or_null=True),
    same_nets_and_regions=_FLAG,
)
_SVM = _entries(
    metric=_entries(key=_is(f"one of {', '.join(MEASURES)}", lambda key: key in MEASURES), name=_TEXT),
    dataset=_entries(
        ("failures",), name=_TEXT, task=_TEXT, failed=_COUNT, failures=_many(_entries(id=_TEXT, reason=_TEXT))
    ),
    headline=_SHARE,
    deviation=_is("an object or null", lambda value: isinstance(value, dict | None)),
    secondary=_each(_entries(name=_TEXT, value=_SHARE)),
    chance=_entries(value=_SHARE),
    convergence=_each(_entries(problems=_COUNT, converged=_COUNT)),
    settings=_OBJECT,
    seconds=_each(_LARGE),
    notes=_many(_TEXT),
    paper=_many(_PAPER),
    protocol=_TEXT,
    description=_TEXT,
    classes=_many(_OBJECT, least=1),
    runs=_many(_OBJECT, least=1),
    confusion=_is("a list or null", lambda value: isinstance(value, list | None)),
)


def _class(runs: int) -> Check:
    counts = _many(_COUNT, runs)
    return _entries(
        name=_TEXT, values=_each(_SHARE), C=_many(_COST, runs), converged=_many(_FLAG, runs),
        train_positives=counts, test_positives=counts,
    )  # fmt: skip


def _run(classes: int) -> Check:
    shape = _entries(
        ("tested",), name=_TEXT, plan=_entries(tested=_TEXT), grid=_many(_COST, least=1), C=_many(_COST, classes),
        curve=_many(_many(_SHARE, least=1)), tested=_COUNT,
    )  # fmt: skip

    def check(value: Any, where: str) -> None:
        shape(value, where)
        width = 1 if value["curve"] and len(value["curve"][0]) == 1 else classes
        _many(_many(_SHARE, width), len(value["grid"]))(value["curve"], f"{where}.curve")

    return check


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _deeper(one, levels - 1) for one in inner)
