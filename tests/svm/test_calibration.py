"""Probabilities are those of scikit-learn's calibration by sigmoids, fitted on scores of samples not trained on."""

import json

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import PredefinedSplit

from vggfeat.errors import FitError
from vggfeat.svm import LinearOneVsRest, SvmProblemSet
from vggfeat.svm.calibration import Calibration, calibrate


def test_it_is_what_scikit_learn_makes_of_the_scores_of_folds():
    rng = np.random.default_rng(0)
    numbers, fold = np.arange(90) % 3, np.arange(90) // 3 % 3
    x = np.eye(3)[numbers] + 0.8 * rng.standard_normal((90, 3))
    model = CalibratedClassifierCV(LinearOneVsRest(C=0.5), ensemble=False, cv=PredefinedSplit(fold)).fit(x, numbers)
    labels = np.where(np.eye(3)[numbers] == 1, 1, -1).astype(np.int8)
    problems, scores = SvmProblemSet(x), np.zeros((90, 3))
    for part in range(3):
        fitted = problems.fit(np.flatnonzero(fold != part), labels[fold != part], 0.5)
        scores[fold == part] = fitted.scores(x[fold == part])
    new = problems.fit(np.arange(90), labels, 0.5).scores(x)
    found = calibrate(scores, labels).probabilities(new, single=True)
    np.testing.assert_allclose(found, model.predict_proba(x), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_by_hand():
    sigmoids = Calibration(slope=np.array([-1.0, -2.0]), offset=np.array([0.0, 1.0]), samples=np.array([9, 9]))
    scores = np.array([[0.0, 0.5], [np.log(3), 0.5], [-np.inf, -np.inf]])
    several = sigmoids.probabilities(scores, single=False)
    np.testing.assert_allclose(several, [[0.5, 0.5], [0.75, 0.5], [np.nan, np.nan]])
    one = sigmoids.probabilities(scores, single=True)
    np.testing.assert_allclose(one, [[0.5, 0.5], [0.6, 0.4], [np.nan, np.nan]])
    far = sigmoids.probabilities(np.array([[-1e6, -1e6]]), single=True)
    np.testing.assert_array_equal(far, [[0.5, 0.5]])


def test_samples_that_count_for_nothing_are_left_out():
    rng = np.random.default_rng(1)
    labels = np.where(rng.random((40, 2)) < 0.5, 1, -1).astype(np.int8)
    scores = labels + rng.standard_normal((40, 2))
    plain = calibrate(scores, labels)
    more = calibrate(
        np.concatenate([scores, [[7.0, -7.0], [-np.inf, -np.inf]]]),
        np.concatenate([labels, [[0, 0], [1, 1]]]).astype(np.int8),
    )
    np.testing.assert_array_equal(more.slope, plain.slope)
    assert plain.samples.tolist() == more.samples.tolist() == [40, 40]
    assert (plain.slope < 0).all()


def test_a_class_that_was_never_tested_has_no_probability():
    labels = np.array([[1, -1, 1], [-1, -1, 0], [1, -1, 1]], np.int8)
    found = calibrate(np.zeros((3, 3)), labels)
    assert np.isnan(found.slope).tolist() == [False, True, True]
    again = Calibration.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.slope, found.slope)
    np.testing.assert_array_equal(again.offset, found.offset)
    assert np.isnan(again.probabilities(np.zeros((1, 3)), single=False)).tolist() == [[False, True, True]]


def test_shapes_and_files_are_checked():
    with pytest.raises(FitError, match=r"of one shape, found \(3, 1\) and \(3, 2\)"):
        calibrate(np.zeros((3, 1)), np.zeros((3, 2), np.int8))
    with pytest.raises(ValueError, match="expected sigmoid, found 'isotonic'"):
        Calibration.from_json({"method": "isotonic"})
    whole = calibrate(np.zeros((3, 2)), np.array([[1, -1], [-1, 1], [1, 1]], np.int8)).to_json()
    for name in ("slope", "offset", "samples"):
        for other in (whole[name][:1], 1.0):
            with pytest.raises(ValueError, match="expected a slope, an offset and a number for each class"):
                Calibration.from_json(whole | {name: other})
