"""An image file becomes a small JPEG, in the worker that decodes it."""

import hashlib
import io

import numpy as np
from PIL import ExifTags, Image

from vggfeat.images.decode import DecodedImage, DecodeSettings, Request, loaded
from vggfeat.images.orientation import TURNS_BACK


def shrink(request: Request, settings: DecodeSettings, *, side: int, quality: int) -> DecodedImage:
    """Shrink an image so that its smallest side is `side`; it is never enlarged.

    What is small enough already, and an upright JPEG of RGB or grey, is kept byte for byte. Anything else is decoded
    (a JPEG at 1/2, 1/4 or 1/8 of its size where that is no less than `side`), resampled bilinearly with anti-aliasing
    and stored as a JPEG of RGB with 4:2:0 colours; in the EXIF orientation that it had, which boxes depend on.

    Returns Image: its one region is (bytes,) uint8: the JPEG file.
    Raises ImageError as `decode`.

    Parameters
    ----------
    request : Request
        Its boxes and its side are not read.
    side : int
        In pixels.
    quality : int
        1 to 95, in the scale of libjpeg.
    """
    with loaded(request._replace(boxes=(None,), side=side), settings) as found:
        height, width = found.size
        shortest = min(height, width)
        if found.ready and shortest <= side:
            data = found.data
        else:
            image = found.upright
            if shortest > side:
                sides = [(2 * edge * side + shortest) // (2 * shortest) for edge in (width, height)]
                image = image.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
            exif = Image.Exif()
            if found.orientation != 1:
                exif[ExifTags.Base.Orientation] = found.orientation
                image = image.transpose(TURNS_BACK[found.orientation])
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality, subsampling="4:2:0", exif=exif)
            data = file.getvalue()
    return DecodedImage((np.frombuffer(data, np.uint8),), found.size, hashlib.sha256(found.data).digest())
