"""The errors that vggfeat raises on purpose, one class per kind of cause.

Every message is one line and says what was expected, what was found, where, and what to do. The command line
prints the message alone and ends with the exit code of its class; anything else that escapes is a defect. Also here:
how counts, names and objects are put into words.
"""

import dataclasses
import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from types import NoneType
from typing import Any, get_args, get_origin


class VggfeatError(Exception):
    """Base of all errors that a user can cause and mend.

    Parameters
    ----------
    message : str
        One line: where, what was expected, what was found, what to do.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class ConfigError(VggfeatError):
    """A setting that is not allowed, or two that do not go together."""

    exit_code = 2


def quoted(text: object, limit: int = 80) -> str:
    """Return text that others wrote as it can be shown in a message: in quotes, cut, without control characters."""
    if text is None:
        return "none"
    if not isinstance(text, str):
        return f"a {type(text).__name__}"  # whose own text may be of any length
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}..."


def with_bytes(text: str) -> str:
    r"""Return text in which a byte that is no UTF-8, for which Python has a character of its own, is shown as \xff."""
    return re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)


def named(name: object) -> str:
    """Return a name that others gave, as it can begin a message: as it is if it is a plain word, else `quoted`."""
    return name if isinstance(name, str) and re.fullmatch(r"[\w./:-]{1,80}", name) else quoted(name)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Join the first of some names for a sentence, and count the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


_ONE = {
    "s": "", "es": "", "v": "s", "are": "is", "have": "has", "were": "was", "do": "does", "they": "it", "them": "it",
}  # fmt: skip
_MANY = {"s": "s", "es": "es", "v": ""} | {word: word for word in ("are", "have", "were", "do", "they", "them")}


def counted(count: int, words: str) -> str:
    """Say how many there are of something: "1 image has failed" or "2 images have failed" of "image{s} {have} failed".

    In the words, {s} and {es} stand for the ending of a noun, {v} for that of a verb, and {are}, {have}, {were}, {do},
    {they} and {them} for themselves; there are no names of others, which may have braces.
    """
    return f"{count} {words.format_map(_ONE if count == 1 else _MANY)}"


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check that a setting is one of a few values.

    ConfigError if it is another; the message names the setting, what is allowed, and what was found.
    """
    choices = [str(choice) for choice in allowed]
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def whole(name: str, value: Any, least: int | None = None) -> int:
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


def several(values: Any) -> tuple[Any, ...]:
    """Return a list of settings as a tuple; a single one, such as a text, whose letters are none, is a list of one."""
    return (values,) if isinstance(values, str | bytes) or not isinstance(values, Iterable) else tuple(values)


def keep_kinds(settings: Any) -> None:
    """Bring the fields of a frozen dataclass to int and tuples where their types say so, as `whole` and `several` do.

    Raises
    ------
    ConfigError
        As `whole`.
    """
    for field in dataclasses.fields(settings):
        object.__setattr__(settings, field.name, _kept(field.name, getattr(settings, field.name), field.type))


def _kept(name: str, value: Any, kind: Any) -> Any:
    if kind is int:
        return whole(name, value)
    if get_origin(kind) is tuple:
        return tuple(_kept(name, one, get_args(kind)[0]) for one in several(value))
    if NoneType in get_args(kind) and value is not None:
        return _kept(name, value, get_args(kind)[0])
    return value


def check_given(name: str, value: object, kind: type, words: str) -> None:
    """Check that an argument is an object of a class, and no path or name that it could be made from.

    Raises
    ------
    ConfigError
        If it is something else; `words` say what is expected, and who makes it.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name}: expected {words}, found {type(value).__name__}; give that")


class DatasetError(VggfeatError):
    """A data set that is missing, incomplete or not in its official layout."""

    exit_code = 4


class WeightsError(VggfeatError):
    """A weights file that is missing, damaged or of another network."""

    exit_code = 5


class StoreError(VggfeatError):
    """A file or folder that can't be written; a feature file, or its parts, that can't be read or continued."""

    exit_code = 6


class FitError(VggfeatError):
    """An SVM stage that can't be carried out on these features and labels."""

    exit_code = 7


def check_unmasked(what: str, *arrays: Any, error: type[VggfeatError] = FitError) -> None:
    """Check that no array of NumPy hides values under a mask: they would be taken for numbers.

    Raises
    ------
    FitError, or another `error`
        If one does.
    """
    for array in arrays:
        if hasattr(array, "filled") and array.mask.any():
            hidden = int(array.mask.sum())
            raise error(f"{what}: expected every value, found {hidden} masked; fill them, or leave their rows out")


class TrainingError(VggfeatError):
    """A training run that can't be started, continued, or carried on."""

    exit_code = 8


class ResourceError(VggfeatError):
    """Processes, open files or memory that the system does not give; no fault of an image or a file."""

    exit_code = 9


class ImageError(VggfeatError):
    """An image that gives no pixels.

    Parameters
    ----------
    reason : str
        One word of `vggfeat.images.decode.REASONS`, for counting.
    message : str
        What was found, in one line.
    """

    exit_code = 3

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, str(self))


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error of a library means that memory, of the machine or of a GPU, has run out."""
    # PyTorch has a class for some of these only; cuBLAS, cuDNN and oneDNN report the rest as text, and a library that
    # does not fit can't be imported.
    text = str(error).lower()
    signs = ("out of memory", "allocate memory", "alloc_failed", "bad_alloc", "memory object", "failed to map segment")
    told = isinstance(error, RuntimeError | ImportError) and any(sign in text for sign in signs)
    return told or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def out_of_resources(error: BaseException) -> bool:
    """Say whether an error means that the system gives no more memory, threads or open files."""
    threads = isinstance(error, RuntimeError) and "start new thread" in str(error)
    files = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    return threads or files or out_of_memory(error)


_LONGEST = 60


def short_repr(self: Any) -> str:
    """Show a dataclass or a named tuple; it is assigned to `__repr__` in the body of the class.

    Arrays are shown by shape and dtype, long lists by their length, mappings by their keys.
    """
    names = getattr(self, "_fields", None) or [field.name for field in dataclasses.fields(self)]
    return f"{type(self).__name__}({', '.join(f'{name}={_brief(getattr(self, name))}' for name in names)})"


def _brief(value: Any) -> str:
    if hasattr(value, "dtype") and value.ndim:
        return f"<{tuple(value.shape)} {value.dtype}>"
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value))
        return f"<{keys if len(keys) <= _LONGEST and keys.isprintable() else f'{len(value)} entries'}>"
    text = repr(value)
    if len(text) <= _LONGEST:
        return text
    if isinstance(value, str):
        return f"{text[:_LONGEST]}..."
    return f"<{len(value)} of them>" if isinstance(value, list | tuple) else f"<{type(value).__name__}>"
