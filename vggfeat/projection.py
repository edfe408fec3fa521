"""Descriptors in the plane, and in clusters: for people to look at, not to compute with.

n = rows, D = length of a descriptor, k = clusters.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_choice, convert_fields
from vggfeat.errors import ConfigError
from vggfeat.wording import install_extra

Method = Literal["tsne", "umap", "pca"]
METHODS: dict[str, str] = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
"""What people call them."""
PERPLEXITY = 30.0
"""Of t-SNE, scikit-learn's default; less where there are few rows."""
COMPONENTS = 50
"""Principal components that t-SNE and UMAP are given: van der Maaten and Hinton (2008) take 30, scikit-learn advises
50."""
CENTRAL = 5
"""Rows of a cluster that are named, the nearest to its centre."""


@dataclass(frozen=True, kw_only=True)
class ProjectionSettings:
    """How rows get a place in the plane.

    Raises ConfigError if a value is not allowed.
    """

    method: Method = "tsne"
    """tsne: neighbours stay neighbours, distances between groups mean little. umap: the same, by the library
    umap-learn. pca: the two directions that the rows differ most in."""
    clusters: int | None = None
    """k of k-means; None for the square root of half the rows, at most 20."""
    most: int = 5000
    """Rows; of more, this many are drawn. t-SNE takes half a minute or so for them."""
    seed: int = 0

    def __post_init__(self) -> None:
        convert_fields(self)
        check_choice("method", self.method, get_args(Method))
        if self.clusters is not None and self.clusters < 1:
            raise ConfigError(f"clusters: expected at least 1, found {self.clusters}")
        if self.most < 3:
            raise ConfigError(f"most: expected at least 3, found {self.most}")


class Clusters(NamedTuple):
    """Groups of rows, the largest first."""

    number: NDArray[np.int64]
    """(n,) of each row, 0 to k - 1."""
    central: list[list[int]]
    """For each cluster its rows nearest to the centre, at most `CENTRAL`."""


def chosen_rows(ok: NDArray[np.bool_], settings: ProjectionSettings) -> NDArray[np.int64]:
    """Return the rows that have a descriptor, ascending; where there are more than `most`, a random part.

    Raises ConfigError if there are fewer than 3.
    """
    rows = np.flatnonzero(ok)
    if len(rows) < 3:
        raise ConfigError(f"map: expected at least 3 images with descriptors, found {len(rows)}")
    if len(rows) > settings.most:
        rows = np.sort(np.random.default_rng(settings.seed).choice(rows, settings.most, replace=False))
    return rows


def project(descriptors: NDArray[np.float32], settings: ProjectionSettings) -> NDArray[np.float64]:
    """Give rows (n, D) places (n, 2): both from 0, the larger extent to 1.

    Raises ConfigError if the method's library is not installed.
    """
    from sklearn.decomposition import PCA

    if (descriptors == descriptors[0]).all():
        return np.zeros((len(descriptors), 2))
    size = min(COMPONENTS if settings.method != "pca" else 2, *descriptors.shape)
    reduced = PCA(size, svd_solver="randomized", random_state=settings.seed).fit_transform(descriptors)
    if settings.method == "tsne":
        places = _tsne(reduced, settings.seed)
    elif settings.method == "umap":
        places = _umap(reduced, settings.seed)
    else:
        places = np.pad(reduced, [(0, 0), (0, 2 - size)])
    places = places.astype(np.float64) - places.min(axis=0)
    return places / max(float(places.max()), np.finfo(float).tiny)


def _tsne(values: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    return TSNE(
        perplexity=perplexity, init="pca" if values.shape[1] > 1 else "random", random_state=seed
    ).fit_transform(values)


def _umap(values: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    try:
        with warnings.catch_warnings():
            # It warns that its parametric form, which is not used here, misses TensorFlow.
            warnings.simplefilter("ignore", ImportWarning)
            from umap import UMAP
    except ImportError:
        raise ConfigError(
            f"method: expected the library umap-learn for umap, found none; {install_extra('umap')}, or take tsne"
        ) from None
    start = "spectral" if len(values) > 3 else "random"  # Of three rows it has too few eigenvectors.
    neighbours = min(15, len(values) - 1)
    return UMAP(random_state=seed, n_jobs=1, n_neighbors=neighbours, init=start).fit_transform(values)


def cluster(descriptors: NDArray[np.float32], settings: ProjectionSettings) -> Clusters:
    """Group rows (n, D) by k-means."""
    from sklearn.cluster import KMeans

    count = settings.clusters or min(20, max(2, round(np.sqrt(len(descriptors) / 2))))
    count = min(count, len(np.unique(descriptors, axis=0)))
    found = KMeans(count, n_init=4, random_state=settings.seed).fit(descriptors)
    order = np.argsort(-np.bincount(found.labels_, minlength=count), kind="stable")
    number = np.argsort(order)[found.labels_]
    distance = np.linalg.norm(descriptors - found.cluster_centers_[found.labels_], axis=1)
    central = []
    for one in range(count):
        members = np.flatnonzero(number == one)
        central.append(members[np.argsort(distance[members], kind="stable")][:CENTRAL].tolist())
    return Clusters(number.astype(np.int64), central)
