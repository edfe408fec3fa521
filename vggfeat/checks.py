"""Checks of settings and arguments, each with its error in one line."""

import dataclasses
import sys
from collections.abc import Iterable
from numbers import Integral
from types import NoneType
from typing import Any, get_args, get_origin

from vggfeat.errors import ConfigError, FitError, VggfeatError


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check that a setting is one of a few values.

    ConfigError if it is another; the message names the setting, what is allowed, and what was found.
    """
    choices = [str(choice) for choice in allowed]
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Return a whole number of any kind as int; a fraction, a truth value or a text is none.

    Raises
    ------
    ConfigError
        If it is something else, or below `least`.
    """
    known = isinstance(value, Integral) and not isinstance(value, bool)
    if known and (least is None or int(value) >= least):
        return int(value)
    raise ConfigError(f"{name}: expected a whole number{'' if least is None else f' from {least}'}, found {value!r}")


def as_tuple(values: Any) -> tuple[Any, ...]:
    """Return a list of settings as a tuple; a single value, such as a text, becomes a list of one."""
    if getattr(values, "ndim", None) == 0:  # an array of one number, which can't be iterated
        values = values.item()
    return (values,) if isinstance(values, str | bytes) or not isinstance(values, Iterable) else tuple(values)


def convert_fields(settings: Any) -> None:
    """Convert the fields of a frozen dataclass to int and tuples where their types say so (`whole_number`, `as_tuple`).

    Raises
    ------
    ConfigError
        As `whole_number`.
    """
    for field in dataclasses.fields(settings):
        object.__setattr__(settings, field.name, _converted(field.name, getattr(settings, field.name), field.type))


def _converted(name: str, value: Any, kind: Any) -> Any:
    if kind is int:
        return whole_number(name, value)
    if get_origin(kind) is tuple:
        return tuple(_converted(name, one, get_args(kind)[0]) for one in as_tuple(value))
    if NoneType in get_args(kind) and value is not None:
        return _converted(name, value, get_args(kind)[0])
    return value


def check_given(name: str, value: object, kind: type, words: str) -> None:
    """Check that an argument is an object of a class, and no path or name that it could be made from.

    Raises
    ------
    ConfigError
        If it is something else; `words` say what is expected, and who makes it.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name}: expected {words}, found {type(value).__name__}; pass that object")


def check_unmasked(what: str, *arrays: Any, error: type[VggfeatError] = FitError) -> None:
    """Check that no array of NumPy hides values under a mask: they would be taken for numbers.

    Raises
    ------
    FitError, or another `error`
        If one does.
    """
    masked = sys.modules.get("numpy.ma")  # where it is not loaded, nobody has such an array
    for array in arrays:
        if masked is not None and isinstance(array, masked.MaskedArray) and array.mask.any():
            hidden = int(array.mask.sum())
            raise error(f"{what}: expected every value, found {hidden} masked; fill them, or leave their rows out")
