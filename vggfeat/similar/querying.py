"""An image that is not in a feature file gets the features that it would have there: same net, same settings."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, StoreError, WeightsError
from vggfeat.extraction import Extraction, ExtractionSettings
from vggfeat.images.decoding import DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.store.reading import FeatureFile
from vggfeat.weights import Backbone, load_backbone
from vggfeat.weights.finding import weights_folder


def row_of_image(file: FeatureFile, image: Path) -> int | None:
    """Find the row whose image file has the same bytes; None if there is none.

    Raises
    ------
    StoreError
        If the image can't be read.
    """
    try:
        with image.open("rb") as content:
            digest = np.frombuffer(hashlib.file_digest(content, "sha256").digest(), np.uint8)
    except OSError as error:
        raise StoreError(f"{image}: expected an image, found: {error.strerror or error}") from None
    same = np.flatnonzero((file.sha256 == digest).all(axis=1))
    return int(same[0]) if len(same) else None


def net_of(file: FeatureFile, weights: str | None = None) -> Backbone:
    """Load the net that made a feature file.

    Parameters
    ----------
    file : FeatureFile
    weights : str, optional
        As for `vggfeat extract --weights`; by default what the file names, looked for in the weights folder, then any
        file there of the same SHA-256.

    Raises
    ------
    WeightsError
        If it is another net, or none is found.
    """
    wanted = str(file.provenance.get("weights_sha256"))
    if weights is not None:
        backbone = load_backbone(weights)
        if backbone.sha256 != wanted:
            raise WeightsError(
                f"{weights}: expected the weights that {file.path} was made with ({file.provenance.get('weights')}, "
                f"SHA-256 {wanted[:16]}...), found SHA-256 {backbone.sha256[:16]}...; cosines between features of two "
                "nets mean nothing"
            )
        return backbone
    for candidate in _candidates(file, wanted):
        try:
            backbone = load_backbone(candidate)
        except (WeightsError, ConfigError):
            continue
        if backbone.sha256 == wanted:
            return backbone
    raise WeightsError(
        f"{file.path}: expected the weights that it was made with ({file.provenance.get('weights')}, SHA-256 "
        f"{wanted[:16]}...) in {weights_folder()}/, found none of this SHA-256; give them with --weights"
    )


def _candidates(file: FeatureFile, wanted: str) -> Iterator[str]:
    yield str(file.provenance.get("weights"))
    for path in sorted(weights_folder().glob("*")):
        if path.is_file():
            with path.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() == wanted:
                    yield str(path)


def extract_query(
    file: FeatureFile, image: Path, backbone: Backbone, device: str = "cpu", *, regions: tuple[str, ...] | None = None
) -> NDArray[np.float32]:
    """Compute the features of an image as those in a file were computed.

    Parameters
    ----------
    file : FeatureFile
    image : Path
    backbone : Backbone
        Of `net_of`.
    device : str
    regions : tuple of str, optional
        Regions that will be compared; all of the file by default.

    Returns
    -------
    (1, S, R, C) float32
        NaN in regions that are not compared.

    Raises
    ------
    ConfigError
        If boxes are to be compared, which an image alone doesn't have.
    StoreError
        If the image gives no features.
    """
    wanted = file.regions if regions is None else regions
    if set(wanted) != {"image"}:
        raise ConfigError(
            f"{image}: expected an id of {file.path}, because features of {', '.join(wanted)} are compared and a "
            "image alone has no box, found an image; give --regions image, or an id"
        )
    settings = extraction_settings(file)
    if settings.precision == "tf32" and device.startswith("cpu"):
        settings = replace(settings, precision="fp32")  # What TF32 stands for, and all that a CPU has.
    extraction = Extraction(backbone, settings, device)
    decode = DecodeSettings(largest_side=max(extraction.sides), **_limits(file.provenance))
    with Decoder(1, decode) as decoder:
        (row,) = extraction.rows(decoder.stream([Request(os.path.abspath(image), (None,))]))
    if row.features is None:
        raise StoreError(f"{image}: expected an image to look for, found: {row.reason}")
    features = np.full((1, *file.shape.dims), np.nan, dtype=np.float32)
    features[0, :, file.regions.index("image")] = row.features[:, 0]
    return features


def extraction_settings(file: FeatureFile) -> ExtractionSettings:
    """Read from the provenance of a file how its features of whole images were computed.

    Raises
    ------
    StoreError
        If the file doesn't say.
    """
    try:
        told = {name: file.provenance[name] for name in ("layer", "precision", "interpolation", "batch_pixels")}
        return ExtractionSettings(scales=file.scales, regions=("image",), **told)
    except (KeyError, TypeError, ConfigError) as error:
        raise StoreError(
            f"{file.path}: expected a feature file that says how it was extracted, found one that doesn't ({error}); "
            "give the id of one of its images instead"
        ) from None


def _limits(provenance: Any) -> dict[str, Any]:
    limits = provenance.get("decode", {})
    known = ("max_pixels", "max_bytes", "allow_truncated")
    return {name: limits[name] for name in known if isinstance(limits, dict) and name in limits}
