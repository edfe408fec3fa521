"""An image file becomes RGB pixels, or one named reason why not; side by side in processes that may die."""

from vggfeat.images.decoding import MEANINGS, REASONS, DecodedImage, DecodeSettings, Request, decode, region_of
from vggfeat.images.pool import Decoder

__all__ = [
    "MEANINGS",
    "REASONS",
    "DecodeSettings",
    "DecodedImage",
    "Decoder",
    "Request",
    "decode",
    "region_of",
]
