"""The Newton solver on arrays that claim to be on a GPU: none is left on the CPU, and the bits are those of the CPU."""

import numpy as np
import pytest

from pretended_gpu import OnGpu, PretendedGpu
from vggfeat.svm import newton
from vggfeat.svm.arrays import TorchArrays
from vggfeat.svm.settings import SvmSettings
from vggfeat.svm.solve import Split, SvmProblemSet

COSTS = [2.0**exponent for exponent in (-8, -2, 4, 9)]


def solutions(rows, length, device):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, length)).astype(np.float32)
    labels = np.where(x[:, :3] + 2 * rng.standard_normal((rows, 3)) > 0.5, 1, -1).astype(np.int8)
    held = np.arange(rows - 40, rows)
    problems = SvmProblemSet(x, SvmSettings(device=device))
    (sweep,) = problems.sweep([Split(rows=np.arange(rows - 40), labels=labels[:-40], held_out=held)], COSTS)
    model = problems.fit(np.arange(rows), labels, 1.0)
    return sweep.scores, sweep.gap, model.coef, model.intercept


@pytest.mark.parametrize(("rows", "length"), [(120, 200), (400, 60)], ids=["inner products", "rows"])
def test_no_array_of_the_solver_is_left_on_the_cpu(rows, length, monkeypatch):
    expected = solutions(rows, length, "cpu")
    monkeypatch.setattr(newton, "arrays_of", PretendedGpu)
    monkeypatch.setattr(OnGpu, "waits", 0)
    for found, one in zip(solutions(rows, length, "cuda"), expected, strict=True):
        np.testing.assert_array_equal(found, one)
    assert OnGpu.waits  # It went through them.


@pytest.mark.parametrize(("rows", "length", "most"), [(120, 200, 260), (400, 60, 320)], ids=["inner products", "rows"])
def test_masks_become_numbers_once_before_they_choose(rows, length, most, monkeypatch):
    # With masks as indices these 25 steps waited 845 and 1,252 times.
    monkeypatch.setattr(newton, "arrays_of", PretendedGpu)
    monkeypatch.setattr(OnGpu, "waits", 0)
    monkeypatch.setattr(OnGpu, "masks", 0)
    solutions(rows, length, "cuda")
    assert OnGpu.masks == 0
    assert 0 < OnGpu.waits <= most


def test_an_array_that_is_left_on_the_cpu_is_seen(monkeypatch):
    monkeypatch.setattr(newton, "arrays_of", PretendedGpu)
    monkeypatch.setattr(PretendedGpu, "zeros", TorchArrays.zeros)
    with pytest.raises(RuntimeError, match="found one on the CPU"):
        solutions(120, 200, "cuda")
