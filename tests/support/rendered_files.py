"""Reads what rendered trees hold, with nothing but text and XML."""

from xml.etree import ElementTree


def lines(path):
    return path.read_text(encoding="ascii").splitlines()


def objects(path):
    return ElementTree.parse(path).getroot().findall("object")


def box(item):
    return tuple(float(item.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
