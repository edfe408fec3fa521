"""LinearOneVsRest by scikit-learn's own tests of estimators and against LinearSVC."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from vggfeat.errors import ConfigError
from vggfeat.svm import LinearOneVsRest


@parametrize_with_checks([LinearOneVsRest()])
def test_scikit_learn_takes_it_for_an_estimator(estimator, check):
    check(estimator)


def blobs(classes, seed=0):
    return make_classification(150, 12, n_informative=8, n_classes=classes, random_state=seed)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.5}])
def test_it_equals_linear_svc(classes, class_weight):
    x, y = blobs(classes)
    weights = np.random.default_rng(0).uniform(0, 2, len(y))
    weights[::7] = 0
    if class_weight == "balanced":
        weights = None  # what these two mean together depends on the version of scikit-learn
    mine = LinearOneVsRest(C=0.5, intercept_scaling=2, class_weight=class_weight, tol=1e-13).fit(x, y, weights)
    peer = LinearSVC(C=0.5, intercept_scaling=2, class_weight=class_weight, tol=1e-10, max_iter=10**6, random_state=0)
    peer.fit(x, y, weights)
    assert mine.coef_.shape == peer.coef_.shape
    np.testing.assert_allclose(mine.coef_, peer.coef_, atol=1e-6)
    np.testing.assert_allclose(mine.decision_function(x), peer.decision_function(x), atol=1e-5)
    np.testing.assert_array_equal(mine.predict(x), peer.predict(x))
    assert (mine.gap_ <= 1e-13).all()


def test_each_class_may_have_its_c():
    x, y = blobs(3)
    names = np.array(["ant", "bee", "cat"])[y]
    each = LinearOneVsRest(C=[0.01, 1.0, 100.0]).fit(x, names)
    for k, cost in enumerate((0.01, 1.0, 100.0)):
        np.testing.assert_allclose(each.coef_[k], LinearOneVsRest(C=cost).fit(x, names).coef_[k], atol=1e-3)
    assert set(each.predict(x)) <= set(names)
    with pytest.raises(ConfigError, match="C: expected one value or 3"):
        LinearOneVsRest(C=[1.0, 2.0]).fit(x, names)


def test_giving_up_is_a_warning():
    x, y = blobs(2)
    with pytest.warns(ConvergenceWarning, match="relative duality gap of .* for 1"):
        LinearOneVsRest(tol=1e-300).fit(x, y)


def test_it_works_in_a_grid_search():
    x, y = blobs(3)
    search = GridSearchCV(clone(LinearOneVsRest()), {"C": [0.01, 1.0]}, cv=3).fit(x, y)
    assert search.best_score_ > 0.5
