"""How names, counts and objects are put into words: for messages, notes and the interactive prompt."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST = 60
"""Characters of a value that `short_repr` shows."""
_ONE = {
    "s": "", "es": "", "v": "s", "are": "is", "have": "has", "were": "was", "do": "does", "they": "it", "them": "it",
}  # fmt: skip
_MANY = {"s": "s", "es": "es", "v": ""} | {word: word for word in ("are", "have", "were", "do", "they", "them")}


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


def counted(count: int, words: str) -> str:
    """Say how many there are of something: "1 image has failed" or "2 images have failed" of "image{s} {have} failed".

    In the words, {s} and {es} stand for the ending of a noun, {v} for that of a verb, and {are}, {have}, {were}, {do},
    {they} and {them} for themselves; there are no names of others, which may have braces.
    """
    return f"{count} {words.format_map(_ONE if count == 1 else _MANY)}"


def install_extra(extra: str) -> str:
    """Return the command that installs an extra, as `docs/install.md` gives it: vggfeat comes from a clone."""
    return f"pip install 'PATH_OF_CLONE[{extra}]'"


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
