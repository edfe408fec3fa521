"""Files that others may have written, opened with care."""
