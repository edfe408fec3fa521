"""Feature files become one table of descriptors: joined, normalised, fused over nets, rows matched by id."""

from vggfeat.fusion.table import (
    DescriptorTable,
    LoadedFeatures,
    class_numbers,
    load_features,
    read_descriptors,
    rows_of,
    to_table,
)

__all__ = [
    "DescriptorTable",
    "LoadedFeatures",
    "class_numbers",
    "load_features",
    "read_descriptors",
    "rows_of",
    "to_table",
]
