"""Places in the plane and clusters, of groups that are far apart."""

import importlib.util
import sys

import numpy as np
import pytest

from vggfeat.descriptors import l2_normalise
from vggfeat.errors import ConfigError
from vggfeat.projection import CENTRAL, ProjectionSettings, chosen_rows, cluster, project

GROUPS = np.repeat([0, 1, 2], [40, 30, 20])
UMAP = pytest.param(
    "umap",
    marks=pytest.mark.skipif(not importlib.util.find_spec("umap"), reason="no umap-learn: the extra umap has it"),
)


@pytest.fixture(scope="module")
def descriptors():
    rng = np.random.default_rng(0)
    return l2_normalise((np.eye(3, 16)[GROUPS] + 0.05 * np.abs(rng.standard_normal((90, 16)))).astype(np.float32))


@pytest.mark.parametrize("method", ["tsne", "pca", UMAP])
def test_rows_of_a_group_lie_together(descriptors, method):
    settings = ProjectionSettings(method=method)
    places = project(descriptors, settings)
    assert places.shape == (90, 2)
    assert places.min() == 0
    assert places.max() == 1
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (GROUPS[apart.argmin(axis=1)] == GROUPS).all(), "the nearest row is one of the same group"
    np.testing.assert_array_equal(project(descriptors, settings), places)


def test_principal_components_are_those_of_the_covariance(descriptors):
    places = project(descriptors, ProjectionSettings(method="pca"))
    centred = descriptors - descriptors.mean(axis=0)
    vectors = np.linalg.svd(centred.astype(np.float64), full_matrices=False)[2][:2]
    wanted = centred @ vectors.T
    for axis in (0, 1):
        assert abs(np.corrcoef(places[:, axis], wanted[:, axis])[0, 1]) > 0.999


def test_clusters_are_the_groups_the_largest_first(descriptors):
    found = cluster(descriptors, ProjectionSettings(clusters=3))
    np.testing.assert_array_equal(found.number, GROUPS)
    for number, central in enumerate(found.central):
        members = np.flatnonzero(number == GROUPS)
        distance = np.linalg.norm(descriptors[members] - descriptors[members].mean(axis=0), axis=1)
        assert central == members[np.argsort(distance)][:CENTRAL].tolist()


@pytest.mark.parametrize("method", ["tsne", "pca", UMAP])
def test_few_and_equal_rows_have_places_too(method):
    settings = ProjectionSettings(method=method)
    same = np.ones((3, 4), np.float32)
    for rows in (same, same[:, :1], np.eye(3, 4, dtype=np.float32), np.arange(5, dtype=np.float32)[:, None]):
        places = project(rows, settings)
        assert places.shape == (len(rows), 2)
        assert np.isfinite(places).all()
    assert cluster(same, settings).number.tolist() == [0, 0, 0]


def test_rows_without_descriptor_are_left_out_and_of_many_some_are_drawn():
    ok = np.ones(50, bool)
    ok[7] = False
    assert chosen_rows(ok, ProjectionSettings()).tolist() == [*range(7), *range(8, 50)]
    some = chosen_rows(ok, ProjectionSettings(most=10))
    assert len(some) == 10
    assert 7 not in some
    assert (np.diff(some) > 0).all()
    assert some.tolist() != chosen_rows(ok, ProjectionSettings(most=10, seed=1)).tolist()
    with pytest.raises(ConfigError, match="expected at least 3 images with descriptors, found 2"):
        chosen_rows(np.arange(50) < 2, ProjectionSettings())


def test_without_its_library_umap_is_refused_with_what_to_install(descriptors, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"install .PATH_OF_CLONE\[umap\]"):
        project(descriptors, ProjectionSettings(method="umap"))


@pytest.mark.parametrize("wrong", [{"method": "x"}, {"clusters": 0}, {"most": 2}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        ProjectionSettings(**wrong)
