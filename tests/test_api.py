"""The page of the API: who reads a signature there finds every class of ours that it names."""

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
OPAQUE = {"Watch", "BootstrapSettings"}
"""Fields that nobody sets or reads: how processes watch each other, and what an interval was drawn by."""


def documented() -> dict[Any, list[str] | None]:
    """Objects on the page -> the members that it lists, None for all of them."""
    found = {}
    entry = re.compile(r"\.\. auto(?:function|class|exception):: (\S+)\n((?:   :.*\n)*)")
    for name, options in entry.findall(PAGE.read_text(encoding="utf-8")):
        module, _, last = name.rpartition(".")
        members = re.search(r":members:(.*)", options)
        listed = members.group(1).replace(",", " ").split() if members else []
        found[getattr(importlib.import_module(module), last)] = listed if listed or not members else None
    return found


def classes(kind: Any) -> Iterator[type]:
    if isinstance(kind, type) and kind.__module__.startswith("vggfeat"):
        yield kind
    for part in typing.get_args(kind):
        yield from classes(part)


def signatures(thing: Any, members: list[str] | None) -> Iterator[Any]:
    if not isinstance(thing, type):
        yield thing
        return
    yield thing.__init__
    for name in [name for name in vars(thing) if name[0] != "_"] if members is None else members:
        member = inspect.getattr_static(thing, name, None)
        if members is None and name in getattr(thing, "__annotations__", {}):
            continue
        yield getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)


def test_every_class_that_a_public_signature_names_is_on_the_page():
    page = documented()
    ours = [module for name, module in sys.modules.copy().items() if name.partition(".")[0] == "vggfeat"]
    names = {name: one for module in ours for name, one in vars(module).items() if isinstance(one, type)}
    missing = set()
    for thing, members in page.items():
        for function in filter(inspect.isfunction, signatures(thing, members)):
            for kind in typing.get_type_hints(inspect.unwrap(function), localns=names).values():
                missing |= {f"{one.__module__}.{one.__name__}" for one in classes(kind) if one not in page
                            and one.__name__ not in OPAQUE and one.__name__[0] != "_"}  # fmt: skip
    assert not missing
