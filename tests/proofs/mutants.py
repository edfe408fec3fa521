"""Samples as trees of files in memory, and ways to damage them: bytes, words of a text, and the tree itself."""

import os
import random
import re
from pathlib import Path

Tree = dict[str, bytes]
"""Path below the sample's folder -> content."""

INTEGERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
WORDS = ("", "0", "-1", "1", "2", "1e999", "NaN", "-inf", "9" * 400, "0x10", "1_0", "\u0661", "..", "/etc/passwd", "\0",
         "a\nb", "\ufeff", "\u202e", "x" * 5000, "'", '"', "<", "&lol;", "<!DOCTYPE a>", "]]>", "?", ";", ",",
         "[" * 5000, "null", "true", "[]", "{}", "Infinity", "1" + "0" * 5000)  # fmt: skip
MOST_BYTES = 1 << 21
"""Of a damaged file; repeated words repeat each other."""
_TOKEN = re.compile(r"[A-Za-z0-9_.+-]+|\s+|.", re.DOTALL)


def damage(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Change bytes, without knowing what they mean."""
    data, at = bytearray(content), rng.randrange(len(content) + 1)
    length, kind = rng.choice((1, 2, 4, 8, 64, 1000)), rng.randrange(8)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == 2:
        size = rng.choice((1, 2, 4, 8))
        data[at : at + size] = (rng.choice(INTEGERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))
    elif kind == 3:
        del data[at : at + length]
    elif kind == 4:
        data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
    elif kind == 5:
        data[at:at] = rng.randbytes(length)
    elif kind == 6:
        del data[at:]
    elif other:
        start = rng.randrange(len(other))
        data[at : at + length] = other[start : start + length]
    return bytes(data)


def reword(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Change words or lines of a text."""
    text = content.decode("utf-8", "replace")
    if rng.random() < 0.3:
        lines = text.splitlines(keepends=True) or [""]
        at, to = rng.randrange(len(lines)), rng.randrange(len(lines) + 1)
        kind = rng.randrange(3)
        taken = lines[at] if kind == 0 else lines.pop(at)
        if kind < 2:
            lines[to:to] = [taken] * min(rng.choice((1, 1, 2, 300)), 1 + MOST_BYTES // (len(taken) + 1))
        return "".join(lines).encode()
    tokens = _TOKEN.findall(text) or [""]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, kind = rng.randrange(len(tokens)), rng.randrange(4)
        if kind == 0:
            tokens[at] = ""
        elif kind == 1:
            tokens[at] = rng.choice(tokens)
        elif kind == 2:
            tokens[at] += rng.choice(WORDS)
        else:
            tokens[at] = rng.choice(WORDS)
    return "".join(tokens).encode("utf-8", "surrogatepass")


def mutate(rng: random.Random, content: bytes, other: bytes, *, text: bool) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = (reword if text and rng.random() < 0.7 else damage)(rng, content, other)[:MOST_BYTES]
    return content


def hurt_tree(rng: random.Random, root: Path, names: list[str]) -> None:
    """Do to one name of a tree on the disk what careless hands and hostile archives do."""
    path, kind = root / rng.choice(names), rng.randrange(9)
    if rng.random() < 0.2 and path.parent != root:
        path = path.parent
    if not os.path.lexists(path):
        return
    if kind < 6:
        path.rename(hidden := root.with_name(f"{root.name}-gone-{rng.randrange(10**9)}"))
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.symlink_to(root)
    elif kind == 4:
        (path.mkdir if hidden.is_file() else path.touch)()
    elif kind >= 6:
        odd = rng.choice(
            (b"\xff\xfe.jpg", b"a\nb.jpg", b"..jpg", b"x" * 240 + b".jpg", b".jpg", b"\xe2\x80\xae.jpg", b"-n")
        )
        target = os.path.join(os.fsencode(path.parent), odd)
        if not os.path.lexists(target):
            os.rename(os.fsencode(path), target)


def write(root: Path, tree: Tree) -> None:
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def remove(root: Path) -> None:
    """Remove what `hurt_tree` may have left, which shutil.rmtree stumbles over."""
    for place in [root, *root.parent.glob(f"{root.name}-gone-*")]:
        if not os.path.isdir(place) or place.is_symlink():
            if os.path.lexists(place):
                place.unlink()
            continue
        if not place.exists():
            continue
        for folder, inner, files in os.walk(os.fsencode(place), topdown=False):
            for name in files:
                os.unlink(os.path.join(folder, name))
            for name in inner:
                path = os.path.join(folder, name)
                (os.unlink if os.path.islink(path) else os.rmdir)(path)
        os.rmdir(place)


def read(root: Path) -> Tree:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
