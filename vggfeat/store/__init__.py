"""The feature file: one HDF5 file, and the shards from which it is made without ever losing one."""

from vggfeat.store.parts import FeatureWriter
from vggfeat.store.reader import FeatureFile, FileReport, validate
from vggfeat.store.shards import Block, Shape, Status

__all__ = [
    "Block",
    "FeatureFile",
    "FeatureWriter",
    "FileReport",
    "Shape",
    "Status",
    "validate",
]
