"""The networks of the paper, what a net offers to the rest of the package, and pure functions on images."""
