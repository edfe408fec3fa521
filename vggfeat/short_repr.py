"""How objects that hold long lists and large arrays are shown: by the sizes of what they hold, in one line."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

_LONGEST = 60


def short_repr(self: Any) -> str:
    """Show a dataclass or a named tuple; it is assigned to `__repr__` in the body of the class.

    Arrays are shown by shape and dtype, long lists by their length, mappings by their keys.
    """
    names = getattr(self, "_fields", None) or [field.name for field in fields(self)]
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
