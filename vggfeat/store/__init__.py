"""The feature file: one HDF5 file, and the shards from which it is made without ever losing one."""

from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.reader import FeatureFile, FileReport, validate
from vggfeat.store.writer import FeatureWriter

__all__ = [
    "Block",
    "FeatureFile",
    "FeatureWriter",
    "FileReport",
    "Shape",
    "Status",
    "validate",
]
