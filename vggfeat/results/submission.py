"""The archives that the VOC evaluation server takes."""

import gzip
import io
import tarfile

from vggfeat.errors import FitError
from vggfeat.protocols.results import Submission
from vggfeat.samples import DataSet

SERVER_FILES = {
    "voc2012": "results/VOC2012/Main/comp2_cls_test_{name}.txt",
    "voc2012-action": "results/VOC2012/Action/comp10_action_test_{name}.txt",
}
"""comp2 and comp10: trained on other data as well, as ImageNet weights are (VOC2012 development kit)."""


def server_archive(dataset: DataSet, submission: Submission) -> bytes:
    """Make the archive that the VOC evaluation server takes: a text file per class under results/, gzipped tar.

    A line is "<image id> <confidence>", for actions "<image id> <object index> <confidence>"; only rows that the
    class's own list contains are written (VOC2012 development kit). Equal results give equal bytes.

    Raises
    ------
    FitError
        If there is no server for the data set.
    """
    if dataset.name not in SERVER_FILES:
        raise FitError(f"{dataset.name}: expected one of {', '.join(SERVER_FILES)}, which the server takes")
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
            entry = tarfile.TarInfo(SERVER_FILES[dataset.name].format(name=name))
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return packed.getvalue()
