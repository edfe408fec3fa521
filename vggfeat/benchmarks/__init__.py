"""Measurements of speed, with what they have to be compared with measured in the same run."""
