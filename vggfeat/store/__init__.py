"""The feature file: written shard by shard, verified, read and exported."""

KINDS = ("npz", "parquet", "csv", "mat", "h5ad")
"""The kinds of files that descriptors are exported to; known without numpy, so that `--help` does not wait for it."""
