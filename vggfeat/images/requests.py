"""What is asked of the decoders for the rows of a data set."""

from collections.abc import Iterable, Iterator, Sequence

from vggfeat.images.decode import Request
from vggfeat.samples import DataSet, LabelledImages


def row_requests(
    dataset: DataSet, rows: Iterable[int], regions: Sequence[str], images: DataSet | LabelledImages | None = None
) -> Iterator[Request]:
    """Say for each row which file is to be decoded, and which parts of it.

    Parameters
    ----------
    dataset : DataSet
        With a box in every row if one is asked for.
    rows : iterable of int
    regions : sequence of "image" or "box"
    images : DataSet or LabelledImages, optional
        Says where the image of a row is; by default the data set itself.
    """
    images = dataset if images is None else images
    for row in rows:
        box = dataset[row].box
        boxes = tuple(box if region == "box" else None for region in regions)
        file, span = images.place(row)
        yield Request(file, boxes, span, stored=dataset.boxes_as_stored)
