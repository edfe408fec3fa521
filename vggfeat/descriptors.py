"""Features become descriptors: joined over scales and regions, L2-normalised. Plain NumPy.

N = images, S = scales, R = regions, C = channels of one feature, D = length of a descriptor.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_choice, check_unmasked
from vggfeat.errors import ConfigError

Join = Literal["mean", "max", "stack"]
"""How the scales of one region become one block; regions are always stacked."""
Normalisation = Literal["blocks", "whole", "none"]
"""blocks: L2 for each region of each net, then over the whole descriptor. whole: over the whole descriptor only, of all
nets together. The paper says that the descriptor is L2-normalised, not where (Appendix B); with one region and one net,
blocks and whole are the same."""


def join_features(
    features: NDArray[np.float32], join: Join = "mean", normalisation: Normalisation = "blocks"
) -> NDArray[np.float32]:
    """Join the features of one net into one descriptor an image (Appendix B).

    Parameters
    ----------
    features : (N, S, R, C) float32
        Spatially averaged, mirror-averaged, not normalised.
    join : "mean", "max" or "stack"
        Over scales. The paper takes the mean on VOC and stacks on Caltech.
    normalisation : "blocks", "whole" or "none"

    Returns
    -------
    (N, D) float32
        D = R * C, or R * S * C when stacked: region by region, in it scale by scale. A zero feature stays zero; NaN, as
        of an image that failed, stays NaN.

    Raises
    ------
    ConfigError
        If `join` or `normalisation` is not one of the above, or features are masked or of another shape.
    """
    check_choice("join", join, get_args(Join))
    check_choice("normalisation", normalisation, get_args(Normalisation))
    check_unmasked("features", features, error=ConfigError)
    features = np.asarray(features, dtype=np.float32)  # Of float16, lengths would be 1 to three digits only.
    if features.ndim != 4:
        raise ConfigError(f"features: expected an array (N, scales, regions, channels), found shape {features.shape}")
    count, scales, regions, channels = features.shape
    if join == "stack":
        blocks = features.transpose(0, 2, 1, 3).reshape(count, regions, scales * channels)
    else:
        blocks = mean_of_scales(features) if join == "mean" else features.max(axis=1)
    if normalisation == "blocks":
        blocks = l2_normalise(blocks)
    descriptors = blocks.reshape(count, regions * blocks.shape[2])
    return descriptors if normalisation == "none" else l2_normalise(descriptors)


def mean_of_scales(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean (N, R, C) of features (N, S, R, C) in float32; in float64 where the sum is too large for that."""
    with np.errstate(over="ignore"):
        means = features.mean(axis=1)
    over = np.isinf(means).any(axis=(1, 2))
    means[over] = features[over].mean(axis=1, dtype=np.float64)
    return means


def fuse(
    features: Sequence[NDArray[np.float32]], join: Join = "mean", normalisation: Normalisation = "blocks"
) -> NDArray[np.float32]:
    """Join the features of each of several nets, and stack what comes of it (Appendix B: D and E), in the order given.

    Parameters
    ----------
    features : sequence of (N, S_i, R_i, C_i) float32, rows aligned
        From one net on.
    join, normalisation
        As for `join_features`, but that "whole" is the whole of all nets: none of them is normalised by itself.

    Returns
    -------
    (N, sum of D_i) float32

    Raises
    ------
    ConfigError
        As `join_features`.
    """
    check_choice("normalisation", normalisation, get_args(Normalisation))
    if len(features) == 1:
        return join_features(features[0], join, normalisation)
    each: Normalisation = "blocks" if normalisation == "blocks" else "none"
    stacked = np.concatenate([join_features(one, join, each) for one in features], axis=1)
    return stacked if normalisation == "none" else l2_normalise(stacked)


def l2_normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide by the Euclidean length along the last axis, computed in float64; zero vectors stay zero, NaN is kept."""
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors, dtype=np.float64))[..., None]
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths != 0, casting="same_kind")
