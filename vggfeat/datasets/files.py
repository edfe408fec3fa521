"""File-system helpers of the readers: folders, the images below one, lists and XML files, within limits."""

import math
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from vggfeat.errors import DatasetError
from vggfeat.samples import Box
from vggfeat.wording import with_bytes

UNREAD_SUFFIXES = (
    ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".heic", ".heif", ".hif", ".j2k", ".jp2", ".jxl", ".nef", ".orf", ".pef",
    ".raf", ".rw2", ".svg",
)  # fmt: skip
"""Images in formats that are not read: each fails by name, with the way out, rather than being passed over."""
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp", *UNREAD_SUFFIXES,
)  # fmt: skip
"""Files with one of these endings, in any case, count as images."""
MOST_XML_BYTES = 10**6
MOST_XML_DEPTH = 16
_FILE = "a file; an archive is to be unpacked, and a list of images is the data set `manifest`"


def no_folder(path: Path, error: OSError) -> DatasetError:
    """Return the error that says why a folder can't be read."""
    found = _FILE if isinstance(error, NotADirectoryError) else error.strerror or error
    return DatasetError(f"{path}: expected a folder that can be read, found: {found}")


def list_folder(path: Path) -> list[str]:
    """Names in a folder, sorted by code point; raises as `list_entries`."""
    return [entry.name for entry in list_entries(path)]


def list_entries(path: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted by the code points of their names.

    Raises DatasetError if it is no folder, or can't be read, or `check_locale` refuses a name.
    """
    try:
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise no_folder(path, error) from error
    check_locale(path, (entry.name for entry in found))
    return found


class Found(NamedTuple):
    """What a walk met; paths relative to its root, with forward slashes."""

    images: list[str]
    """Sorted by code point."""
    folders: list[str]
    others: list[str]
    repeated: list[str]
    unnameable: list[str]


def walk(root: Path) -> Found:
    """List what is below a folder.

    Links to folders are followed, but no folder is read twice; hidden names and __MACOSX are passed over. The kind of
    an entry comes with its name: a million files, and no stat.

    Raises DatasetError if a folder can't be read.
    """
    found = Found([], [], [], [], [])

    def look(folder: str) -> Iterator[tuple[str, bool]]:
        for entry in list_entries(root / folder):
            path = path_in(folder, entry.name)
            if is_hidden(entry.name):
                continue
            if not is_utf8(entry.name):
                found.unnameable.append(path)
            elif is_folder(entry):
                yield path, entry.is_symlink()
            else:
                (found.images if is_image(path) else found.others).append(path)

    found.folders.extend(walk_folders(root, look, found.repeated.append))
    found.images.sort()
    return found


def walk_folders(
    root: Path, look: Callable[[str], Iterable[tuple[str, bool]]], repeated: Callable[[str], None]
) -> Iterator[str]:
    """Yield the folders below a root, which is "", each once, and always those above a folder before it.

    Parameters
    ----------
    root : Path
    look : callable
        Given a folder that was yielded, returns the paths of those in it, and whether each is a link.
    repeated : callable
        Told the links to folders that are read under another name.

    Raises
    ------
    DatasetError
        If a folder can't be read.
    """
    seen: set[tuple[int, int]] = set()
    # Links wait until all real folders are read, so that a folder keeps its own name and not that of a link.
    folders, links = deque([""]), deque[str]()
    while folders or links:
        folder = (folders or links).popleft()
        try:
            status = os.stat(root / folder)
        except OSError as error:
            raise no_folder(root / folder, error) from error
        if (status.st_dev, status.st_ino) in seen:
            repeated(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder
        for path, link in look(folder):
            (links if link else folders).append(path)


def path_in(folder: str, name: str) -> str:
    """Return the path of a name in a folder, which is "" for the root."""
    return f"{folder}/{name}" if folder else name


def is_hidden(name: str) -> bool:
    """Whether a name is passed over."""
    return name.startswith(".") or name == "__MACOSX"


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder to be looked into: not a link that is called as an image is."""
    try:
        return entry.is_dir() and not (is_image(entry.name) and entry.is_symlink())
    except OSError:  # A link that leads in a circle, or to where this user may not look.
        return False


def is_image(path: str) -> bool:
    """Whether a name ends like that of an image."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def check_locale(where: Path, names: Iterable[str]) -> None:
    """Refuse names beyond ASCII where Python takes the bytes of file names for another code than UTF-8.

    Raises DatasetError if there is one; it would be stored as other letters than it has, or would not be found.
    """
    code = sys.getfilesystemencoding()
    odd = None if code == "utf-8" else next((name for name in names if not name.isascii()), None)
    if odd is not None:
        raise DatasetError(
            f"{where}: expected a locale with UTF-8 for names such as {listed([odd])}, found {code}; set PYTHONUTF8=1, "
            "or LC_ALL to a locale with UTF-8"
        )


def is_utf8(name: str) -> bool:
    """Whether a name is UTF-8 on disk; no file that we write could hold any other."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def listed(names: Sequence[str]) -> str:
    """Join the first five names for a sentence, and count the others; bytes that are not UTF-8 show as hex escapes."""
    shown = [with_bytes(name) for name in names[:5]]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown) + more


def read_text(path: Path, most: int) -> str:
    """Read a small text file in UTF-8, with or without a byte order mark.

    Parameters
    ----------
    path : Path
        A regular file; a pipe or a device is refused unopened.
    most : int
        Bytes that the file may have.

    Raises
    ------
    DatasetError
        If the file is missing, unreadable, too large or not UTF-8; the message names the file, and the line.
    """
    content = read_bytes(path, most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}, line {line}: expected text in UTF-8, found the byte 0x{error.object[error.start]:02x}"
        ) from error


def read_annotation(path: Path) -> ElementTree.Element:
    """Read an annotation in PASCAL VOC's XML, which ILSVRC uses too.

    Raises DatasetError if the file is missing, has more than 1 MB, more than 16 levels or a DOCTYPE (so no entity is
    ever expanded), or is not well-formed.
    """
    parser = ElementTree.XMLParser(target=_PlainTree())
    try:
        parser.feed(read_bytes(path, MOST_XML_BYTES))
        return parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DatasetError(f"{path}: expected an annotation in plain XML: {error}") from error


def object_name(item: ElementTree.Element) -> str:
    """Name of an object, for instance person; empty if it has none."""
    return (item.findtext("name") or "").strip()


def object_box(item: ElementTree.Element, where: str) -> Box:
    """Box of an object as pixel edges, from the 1-based inclusive numbers of the XML, whole or not.

    Parameters
    ----------
    item : Element
        An object; its tags may stand in any order.
    where : str
        File and object, for the message.

    Raises
    ------
    DatasetError
        If one of the four numbers is missing or not finite, or xmax < xmin, or ymax < ymin.
    """
    xmin, ymin, xmax, ymax = (_coordinate(item, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if xmax < xmin or ymax < ymin:
        raise DatasetError(
            f"{where}: expected xmin <= xmax and ymin <= ymax, "
            f"found xmin {xmin:g}, xmax {xmax:g}, ymin {ymin:g}, ymax {ymax:g}"
        )
    return Box(xmin - 1, ymin - 1, xmax, ymax)


def _coordinate(item: ElementTree.Element, tag: str, where: str) -> float:
    text = (item.findtext(f"bndbox/{tag}") or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{where}: expected a number in bndbox/{tag}, found {text[:40]!r}")
    return value


class _PlainTree(ElementTree.TreeBuilder):
    """A tree without a document type, so without entities of its own, and of bounded depth."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("expected no DOCTYPE, found one")

    def start(self, tag: Any, attrs: Any) -> ElementTree.Element:
        self._depth += 1
        if self._depth > MOST_XML_DEPTH:
            raise ValueError(f"expected at most {MOST_XML_DEPTH} levels of tags, found more")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def read_bytes(path: Path, most: int) -> bytes:
    """Read a regular file of at most so many bytes; raises DatasetError as `read_text`."""
    try:
        # Opening a pipe would wait for a writer, so the kind is asked first.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DatasetError(f"{path}: expected a regular file, found something else")
        with open(path, "rb") as file:
            # Python takes memory for as much as is asked for, however little there is.
            content = file.read(min(most, status.st_size) + 1)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: expected this file, found none; is the data set unpacked whole?") from error
    except OSError as error:
        raise DatasetError(f"{path}: can't be read: {error.strerror}") from error
    if len(content) > most:
        raise DatasetError(f"{path}: expected at most {most} bytes, found more")
    return content
