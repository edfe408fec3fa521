"""The feature file: one HDF5 file, and the shards from which it is made without ever losing one."""
