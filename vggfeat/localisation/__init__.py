"""Localisation: box regression in the place of the class scores (VGG paper, Appendix A)."""
