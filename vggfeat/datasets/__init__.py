"""Data sets: official trees and your own images become lists of samples."""

from vggfeat.datasets.catalogue import DatasetReport, check, open_dataset, resolve_root, write_splits
from vggfeat.datasets.facts import FACTS, Facts

__all__ = [
    "FACTS",
    "DatasetReport",
    "Facts",
    "check",
    "open_dataset",
    "resolve_root",
    "write_splits",
]
