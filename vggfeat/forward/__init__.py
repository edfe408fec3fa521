"""Runs of a net over many images: what features, class posteriors and maps share."""
