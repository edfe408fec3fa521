"""results.json as a page needs it: read without surprises, and every entry that is shown is what it should be."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

from vggfeat.errors import StoreError
from vggfeat.metrics.bootstrap import Measure
from vggfeat.runtime.checksums import ENTRY, unsealed

SVM_FORMAT, SVM_VERSION = "vggfeat-results", 1
MEASURES = get_args(Measure)
DEEPEST = 40
"""Levels of lists and objects in each other; a page shows them all."""
_LONGEST_WHOLE = 16
"""Digits of a whole number; beyond that it becomes a float, which no arithmetic fails with."""
_LONGEST_SHOWN = 60


def parse(text: str) -> Any:
    """Read JSON, whole numbers of more than 16 digits as floats.

    Raises ValueError if it is none, or nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_int=lambda digits: (int if len(digits) <= _LONGEST_WHOLE else float)(digits))
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """Read a JSON object that was in a file.

    Raises StoreError if it is none, or nested too deeply to be shown.
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


def parse_settings(path: Path, text: bytes) -> dict[str, Any]:
    """Read the settings of a run that were in a file, without their checksum, which those of before have not.

    Raises StoreError if they are no JSON object, or another than their checksum is of.
    """
    content = parse_object(path, text)
    try:
        return unsealed(content) if ENTRY in content else content
    except ValueError as error:
        raise StoreError(
            f"{path}: expected settings that fit their checksum, found others ({error}); remove it"
        ) from None


def check_svm(path: Path, results: dict[str, Any]) -> None:
    """Check what a page shows of results.json of `vggfeat svm`.

    Raises StoreError for the first entry that is missing or another than it should be.
    """
    try:
        _check(results, {"version": _Kind(f"{SVM_VERSION}", lambda found: found == SVM_VERSION)}, "")
        _check(results, _RESULTS, "")
        classes, runs = len(results["classes"]), len(results["runs"])
        _check(results["classes"], _Many(_class_of(runs)), "classes")
        _check(results["runs"], _Many(_run_of(classes)), "runs")
        for number, run in enumerate(results["runs"]):
            width = 1 if run["curve"] and len(run["curve"][0]) == 1 else classes
            _check(run["curve"], _Many(_Many(_SHARE, width), len(run["grid"])), f"runs[{number}].curve")
        if results["deviation"] is not None:
            _check(results["deviation"], {"values": {_ANY: _SHARE}}, "deviation")
        for name, form in (("interval", _INTERVAL), ("learning_curve", _Many(_SHARE_ROW))):
            if results.get(name) is not None:
                _check(results[name], form, name)
        if results["confusion"]:
            _check(results["confusion"], _Many(_Many(_COUNT, classes), classes), "confusion")
    except _Wrong as error:
        raise StoreError(f"{path}: {error}; make it again with `vggfeat svm`") from None


class _Wrong(Exception):  # noqa: N818  it becomes an error
    def __init__(self, where: str, expected: str, found: Any) -> None:
        super().__init__(f"{where.lstrip('.')}: expected {expected}, found {found}")


class _Kind(NamedTuple):
    """A value by itself."""

    expected: str
    holds: Callable[[Any], bool]


class _Many(NamedTuple):
    """A list, of so many values or at least so many."""

    each: "_Form"
    length: int | None = None
    least: int = 0


_Form = _Kind | _Many | dict[str, Any]
"""What a value should be. An object is a dict of the forms of its entries: of a name, of a name that may be missing
(with a ? at its end), or of all that there are (`_ANY`); further entries are free."""
_ANY = "*"


def _check(value: Any, form: _Form, where: str) -> None:
    """Raise `_Wrong` for the first value that is not of its form."""
    if isinstance(form, _Kind):
        if not form.holds(value):
            raise _Wrong(where, form.expected, _shown(value))
    elif isinstance(form, _Many):
        _check_list(value, form, where)
    else:
        _check(value, _OBJECT, where)
        for name, inner in form.items():
            known = name.removesuffix("?")
            if name == _ANY:
                for key, one in value.items():
                    _check(one, inner, f"{where}.{_shown(key)[1:-1]}")
            elif known in value:
                _check(value[known], inner, f"{where}.{known}")
            elif known == name:
                raise _Wrong(f"{where}.{name}", "an entry of this name", "none")


def _check_list(value: Any, form: _Many, where: str) -> None:
    if not isinstance(value, list):
        raise _Wrong(where, "a list", _shown(value))
    if len(value) < form.least or form.length not in (None, len(value)):
        count = f"at least {form.least}" if form.length is None else form.length
        raise _Wrong(where, f"a list of {count}", len(value))
    for place, one in enumerate(value):
        _check(one, form.each, f"{where}[{place}]")


def _number(low: float, high: float, *, or_null: bool = False) -> _Kind:
    def holds(value: Any) -> bool:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        return (value is None and or_null) or (known and math.isfinite(value) and low <= value <= high)

    return _Kind(f"a number from {low:g} to {high:g}{' or null' if or_null else ''}", holds)


_OBJECT = _Kind("an object", lambda value: isinstance(value, dict))
_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_COUNT = _Kind("a whole number from 0", lambda value: type(value) is int and value >= 0)
_SHARE = _number(0, 1 + 1e-9, or_null=True)
"""A mean of ones may be larger by rounding."""
_COST = _Kind("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf)
_LARGE = _number(0, 1e12)
_PAPER: _Form = {
    "measure": _TEXT, "nets": _Many(_TEXT), "regions": _Many(_TEXT), "percent": _LARGE,
    "deviation": _number(0, 1e12, or_null=True), "same_nets_and_regions": _FLAG,
}  # fmt: skip
_INTERVAL: _Form = {"low": _SHARE, "high": _SHARE, "level": _SHARE}
_SHARE_ROW: _Form = {"samples": _number(1, 1e12), "mean": _SHARE, "low": _SHARE, "high": _SHARE}
_FILE: _Form = {
    "scales?": _Many(_COUNT), "regions?": _Many(_TEXT),
    "provenance?": {
        "net?": _TEXT, "width?": _LARGE, "weights?": _TEXT, "trained?": _FLAG, "layer?": _TEXT, "images?": _TEXT,
    },
}  # fmt: skip
_RESULTS: _Form = {
    "metric": {"key": _Kind(f"one of {', '.join(MEASURES)}", lambda key: key in MEASURES), "name": _TEXT},
    "dataset": {
        "name": _TEXT, "task": _TEXT, "samples?": _COUNT, "splits?": {_ANY: _COUNT}, "failed": _COUNT,
        "failures?": _Many({"id": _TEXT, "reason": _TEXT}),
    },
    "headline": _SHARE,
    "deviation": _Kind("an object or null", lambda value: isinstance(value, dict | None)),
    "secondary": {_ANY: {"name": _TEXT, "value": _SHARE}},
    "chance": {"value": _SHARE},
    "convergence": {_ANY: {"problems": _COUNT, "converged": _COUNT}},
    "settings": {"features?": {"files?": _Many(_FILE)}}, "seconds": {_ANY: _LARGE},
    "notes": _Many(_TEXT), "paper": _Many(_PAPER),
    "protocol": _TEXT, "description": _TEXT,
    "classes": _Many(_OBJECT, least=1), "runs": _Many(_OBJECT, least=1),
    "confusion": _Kind("a list or null", lambda value: isinstance(value, list | None)),
}  # fmt: skip


def _class_of(runs: int) -> _Form:
    counts = _Many(_COUNT, runs)
    return {
        "name": _TEXT, "values": {_ANY: _SHARE}, "C": _Many(_COST, runs), "converged": _Many(_FLAG, runs),
        "train_positives": counts, "test_positives": counts,
    }  # fmt: skip


def _run_of(classes: int) -> _Form:
    return {
        "name": _TEXT, "plan": {"tested": _TEXT}, "grid": _Many(_COST, least=1), "C": _Many(_COST, classes),
        "curve": _Many(_Many(_SHARE, least=1)), "tested?": _COUNT,
    }  # fmt: skip


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _deeper(one, levels - 1) for one in inner)
