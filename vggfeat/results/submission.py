"""The archives that the VOC evaluation server takes."""

import gzip
import io
import tarfile

from vggfeat.datasets.catalogue import DATASETS
from vggfeat.errors import FitError
from vggfeat.protocols.results import Submission
from vggfeat.samples import DataSet


def server_archive(dataset: DataSet, submission: Submission) -> bytes:
    """Make the archive that the VOC evaluation server takes: a text file per class under results/, gzipped tar.

    A line is "<image id> <confidence>", for actions "<image id> <object index> <confidence>"; only rows that the
    class's own list contains are written (VOC2012 development kit). Equal results give equal bytes.

    Raises
    ------
    FitError
        If there is no server for the data set.
    """
    record = DATASETS.get(dataset.name)
    if record is None or record.server_file is None:
        known = ", ".join(name for name, record in DATASETS.items() if record.server_file)
        raise FitError(f"{dataset.name}: expected one of {known}, which the server takes")
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for k, name in enumerate(dataset.classes):
            listed = submission.listed[:, k]
            pairs = zip(submission.rows[listed].tolist(), submission.scores[listed, k].tolist(), strict=True)
            # The id of a person is image/object.
            lines = (f"{dataset.ids[row].replace('/', ' ')} {score:.12f}\n" for row, score in pairs)
            text = "".join(lines).encode()
            entry = tarfile.TarInfo(record.server_file.format(name=name))
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return packed.getvalue()
