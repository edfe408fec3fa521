"""Annotations in PASCAL VOC's XML, which ILSVRC uses too."""

from collections.abc import Iterable
from pathlib import Path

from vggfeat.synthetic.jobs import Rendered
from vggfeat.synthetic.scenes import Thing

DATABASE = "rendered by vggfeat"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, each line ended; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def write_annotation(path: Path, folder: str, filename: str, image: Rendered, objects: Iterable[str]) -> None:
    """Write the XML of one image from its objects' lines."""
    width, height = image.size
    head = [
        f"<folder>{folder}</folder>",
        f"<filename>{filename}</filename>",
        f"<source><database>{DATABASE}</database></source>",
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "<segmented>0</segmented>",
    ]
    body = [f"\t{line}" for line in (*head, *objects)]
    write_lines(path, ["<annotation>", *body, "</annotation>"])


def object_line(thing: Thing) -> str:
    """XML of an object as in the main task."""
    xmin, ymin, xmax, ymax = thing.box
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return (
        f"<object><name>{thing.name}</name><pose>Unspecified</pose><truncated>{thing.truncated:d}</truncated>"
        f"<difficult>{thing.difficult:d}</difficult><bndbox>{box}</bndbox></object>"
    )


def person_line(thing: Thing, actions: Iterable[str], ending: str) -> str:
    """XML of a person as in the action task: other tags, in another order.

    Parameters
    ----------
    thing : Thing
        The person.
    actions : iterable of str
        Actions that are published for this person, done or not; none for test images.
    ending : str
        What follows each coordinate: real files have whole numbers and decimal ones.
    """
    xmin, ymin, xmax, ymax = (f"{value}{ending}" for value in thing.box)
    marks = "".join(f"<{name}>{name in thing.actions:d}</{name}>" for name in actions)
    return (
        f"<object><name>{thing.name}</name>{f'<actions>{marks}</actions>' if marks else ''}"
        f"<bndbox><xmax>{xmax}</xmax><xmin>{xmin}</xmin><ymax>{ymax}</ymax><ymin>{ymin}</ymin></bndbox>"
        f"<difficult>0</difficult><pose>Unspecified</pose>"
        f"<point><x>{thing.point[0]}</x><y>{thing.point[1]}</y></point></object>"
    )
