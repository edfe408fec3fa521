"""JSON objects with a checksum among their entries, for files of ours that are read again.

The checksum is that of the content, not of the bytes: the file may be indented, and has its entries in any order.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ENTRY = "checksum"
"""Name of the entry: a SHA-256, 64 hex digits."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum as its last entry; ValueError if it is no JSON."""
    return {**content, ENTRY: _digest(content)}


def unsealed(content: Any) -> dict[str, Any]:
    """Return a JSON object without its checksum, which must be right; ValueError if it is another, or none."""
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    plain = {name: value for name, value in content.items() if name != ENTRY}
    if content.get(ENTRY) != _digest(plain):
        raise ValueError("expected the content that its checksum is of, found damage")
    return plain


def short_checksum(content: Mapping[str, Any]) -> str:
    """Return the first 16 digits of the checksum that `sealed` adds: a name for what others refer to."""
    return _digest(content)[:16]


def sealed_line(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object with its checksum as a line."""
    return json.dumps(sealed(content), allow_nan=False).encode() + b"\n"


def unsealed_line(line: bytes | str) -> dict[str, Any] | None:
    """Return the object of a line, without its checksum; None if it is damaged, or cut."""
    try:
        return unsealed(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
