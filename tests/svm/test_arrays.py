"""Products that are divided among threads are those of NumPy, and leave the threads of its BLAS as they were."""

import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from vggfeat.svm.arrays import NumpyArrays, arrays_of, one_blas_thread


@pytest.fixture
def arrays():
    with threadpool_limits(3, user_api="blas"):
        found = NumpyArrays()
        with found.threads():
            yield found


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (20, 700), (3, 2000), (900, 511), (5, 768)])
def test_products_are_numpys(arrays, dtype, rows, columns):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((rows, 40)).astype(dtype), rng.standard_normal((40, columns)).astype(dtype)
    found = arrays.product(left, right)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, left @ right, rtol=1e-4 if dtype == np.float32 else 1e-12, atol=1e-4)
    np.testing.assert_array_equal(found, arrays.product(left, right))


@pytest.mark.parametrize("device", [None, "cpu"], ids=["numpy", "torch"])
@pytest.mark.parametrize("rows", [0, 1, 200])
def test_members_of_kinds_and_true_places_of_masks(rows, device):
    arrays, rng = arrays_of(device), np.random.default_rng(0)
    kinds, mask = rng.integers(3, size=rows), rng.random((rows, 7)) < 0.3
    found = arrays.members(arrays.index(kinds), 4)  # Of the last kind there is none.
    for kind, places in enumerate(found):
        np.testing.assert_array_equal(arrays.to_numpy(places), np.flatnonzero(kinds == kind))
    assert len(found) == 4
    for row, places in zip(mask, arrays.true_places(arrays.asarray(mask) > 0), strict=True):
        np.testing.assert_array_equal(arrays.to_numpy(places), np.flatnonzero(row))


@pytest.mark.parametrize("rows", [1, 256, 513, 1700])
def test_inner_products_are_those_of_every_pair(arrays, rows):
    some = np.random.default_rng(1).standard_normal((rows, 30))
    found = arrays.inner_products(some)
    np.testing.assert_allclose(found, some @ some.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found, found.T)


def test_threads_share_the_work_and_the_blas_gets_its_own_back():
    with threadpool_limits(3, user_api="blas"):
        arrays, seen = NumpyArrays(), set()
        barrier = threading.Barrier(3, timeout=20)
        with arrays.threads():
            assert blas_threads() == {1}
            arrays.map(lambda _: (seen.add(threading.get_ident()), barrier.wait()), range(3))
            large = arrays.map(lambda _: blas_threads(), range(2), size=1 << 30)
        assert len(seen) == 3
        assert large == [{3}, {3}]
        assert blas_threads() == {3}


class OneBlas:
    """A BLAS of three threads, whose number is set and set back as threadpoolctl does."""

    def __init__(self):
        self.num_threads, self.lib_controllers = 3, [self]

    @contextmanager
    def limit(self, limits):
        before, self.num_threads = self.num_threads, limits
        yield
        self.num_threads = before


def test_two_threads_of_a_program_leave_the_blas_as_it_was(monkeypatch):
    blas, within, end, seen = OneBlas(), threading.Event(), threading.Event(), []
    monkeypatch.setattr("vggfeat.svm.arrays._blas", lambda: blas)

    def first():
        with NumpyArrays().threads(), one_blas_thread():
            within.set()
            end.wait(20)

    def second():
        with one_blas_thread():  # Without turns it begins while the first lasts, and sets back what that has set.
            threads[0].join(20)
            seen.append(blas.num_threads)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert within.wait(20)
    threads[1].start()
    threads[1].join(0.1)
    end.set()
    for thread in threads:
        thread.join()
    assert seen == [1]
    assert blas.num_threads == 3


def test_overflow_is_no_warning_and_errors_reach_the_caller(arrays):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays.map(lambda _: np.float64(1e308) * np.float64(10), range(3))
    with pytest.raises(np.linalg.LinAlgError):
        arrays.map(lambda _: np.linalg.cholesky(-np.eye(2)), range(3))
