"""LinearOneVsRest by scikit-learn's own tests of estimators and against LinearSVC."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from vggfeat.errors import ConfigError
from vggfeat.svm import LinearOneVsRest, LinearOneVsRestCV


@parametrize_with_checks([LinearOneVsRest(), LinearOneVsRestCV(Cs=(0.1, 1.0), cv=2)])
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


def indicators(seed=0):
    x, y = blobs(4, seed)
    return x, np.stack([y == 0, y < 2, y != 3], axis=1).astype(int)


def test_each_column_of_an_indicator_matrix_is_a_problem_of_its_own():
    x, y = indicators()
    model = LinearOneVsRest(C=[0.1, 1.0, 10.0], tol=1e-12).fit(x, y)
    for k, cost in enumerate((0.1, 1.0, 10.0)):
        alone = LinearOneVsRest(C=cost, tol=1e-12).fit(x, y[:, k])
        np.testing.assert_allclose(model.decision_function(x)[:, k], alone.decision_function(x), atol=1e-5)
        np.testing.assert_array_equal(model.predict(x)[:, k], alone.predict(x))
    two = LinearOneVsRest().fit(x, y[:, :2])
    assert two.decision_function(x).shape == two.predict(x).shape == (150, 2)


def test_labels_of_several_kinds_at_once_are_refused():
    x, y = blobs(4)
    with pytest.raises(ValueError, match="multiclass-multioutput"):
        LinearOneVsRest().fit(x, np.stack([y, y], axis=1))


@pytest.mark.parametrize("classes", [2, 4])
def test_one_c_for_all_labels_is_that_of_a_grid_search(classes):
    x, y = blobs(classes)
    costs = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
    mine = LinearOneVsRestCV(costs, cv=3, tol=1e-10).fit(x, y)
    peer = GridSearchCV(LinearSVC(max_iter=10**6, tol=1e-8), {"C": costs}, cv=3).fit(x, y)
    assert peer.best_params_["C"] == mine.C_
    np.testing.assert_allclose(mine.cv_scores_.mean(axis=1), peer.cv_results_["mean_test_score"], atol=0.01)
    np.testing.assert_array_equal(mine.predict(x), LinearOneVsRest(C=mine.C_).fit(x, y).predict(x))


def test_each_column_gets_the_c_of_its_best_average_precision():
    x, y = indicators()
    costs, folds = [1e-4, 1e-2, 1.0, 100.0], KFold(4)
    model = LinearOneVsRestCV(costs, cv=folds).fit(x, y)
    assert model.cv_scores_.shape == (4, 4, 3)
    for k in range(3):
        found = np.zeros((4, 4))
        for g, cost in enumerate(costs):
            for f, (train, test) in enumerate(folds.split(x)):
                alone = LinearOneVsRest(C=cost).fit(x[train], y[train, k])
                found[g, f] = average_precision_score(y[test, k], alone.decision_function(x[test]))
        np.testing.assert_allclose(model.cv_scores_[:, :, k], found, atol=0.01)
        assert model.C_[k] == costs[model.cv_scores_[:, :, k].mean(axis=1).argmax()]


def test_of_equal_means_the_smallest_c_is_taken(monkeypatch):
    # 0.3 + 0.2 + 0.1 is 0.6, and 0.1 + 0.2 + 0.3 a bit more.
    folds = iter([[0.3, 0.1], [0.2, 0.2], [0.1, 0.3]])
    monkeypatch.setattr(LinearOneVsRestCV, "_accuracy", lambda self, scores, signs: np.array(next(folds)))
    x, y = make_classification(30, random_state=0)
    assert LinearOneVsRestCV([0.5, 2.0], cv=3).fit(x, y).C_ == 0.5


def test_a_column_that_no_test_row_is_positive_of_takes_the_c_of_the_others():
    x, y = indicators()
    folds = [(np.arange(0, 70), np.arange(70, len(x))), (np.arange(10, len(x)), np.arange(10))]
    y[:10, 2] = y[70:, 2] = 0
    model = LinearOneVsRestCV([1e-4, 1e-2, 1.0], cv=folds).fit(x, y)
    assert np.isnan(model.cv_scores_[:, :, 2]).all()
    best = model.cv_scores_[:, :, :2].mean(axis=(1, 2)).argmax()
    assert model.C_[2] == [1e-4, 1e-2, 1.0][best]


def test_a_fold_of_positives_alone_does_not_count_as_a_perfect_one():
    x, y = indicators()
    folds = [(np.arange(10, len(x)), np.arange(10)), (np.arange(0, 50), np.arange(50, len(x)))]
    y[:10, 2] = 1
    model = LinearOneVsRestCV([1e-4, 1e-2, 1.0], cv=folds).fit(x, y)
    assert np.isnan(model.cv_scores_[:, 0, 2]).all()
    assert model.C_[2] == [1e-4, 1e-2, 1.0][model.cv_scores_[:, 1, 2].argmax()]


def test_folds_that_tell_nothing_are_refused():
    x, y = make_classification(30, random_state=0)
    used_up = iter([(np.arange(20), np.arange(20, 30))])
    LinearOneVsRestCV(cv=list(used_up)).fit(x, y)
    for folds, found in [(used_up, "expected folds"), ([(np.arange(30), np.arange(0))], "expected test rows")]:
        with pytest.raises(ValueError, match=f"cv: {found}.* found none"):
            LinearOneVsRestCV(cv=folds).fit(x, y)
