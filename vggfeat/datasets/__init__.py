"""Data sets: official trees and your own images become lists of samples."""

from vggfeat.datasets.facts import FACTS, Facts
from vggfeat.datasets.front import DatasetReport, check, open_dataset, resolve_root, write_splits

__all__ = [
    "FACTS",
    "DatasetReport",
    "Facts",
    "check",
    "open_dataset",
    "resolve_root",
    "write_splits",
]
