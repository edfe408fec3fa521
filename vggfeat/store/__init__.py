"""The feature file: one HDF5 file, and the shards from which it is made without ever losing one."""

from vggfeat.store.parts import Parts
from vggfeat.store.reading import FeatureFile, FileReport, validate
from vggfeat.store.shards import Block, Shape, Status

__all__ = [
    "Block",
    "FeatureFile",
    "FileReport",
    "Parts",
    "Shape",
    "Status",
    "validate",
]
