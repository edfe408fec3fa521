"""The kinds of files that descriptors are exported to; known without numpy, so that `--help` does not wait for it."""

KINDS = {"npz": "write_npz", "parquet": "write_parquet", "csv": "write_csv", "mat": "write_mat"}
"""Kind -> the function of `vggfeat.store.export` that writes it."""
