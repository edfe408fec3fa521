"""NumPy or PyTorch: what a solver needs of them beyond what they have in common, and products with rows of a table.

SciPy is loaded when something is solved: who only reads descriptors does not wait for it.

N = rows of the table, n = rows that are meant, D = length of a descriptor, P = problems.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError
from vggfeat.runtime.system import ForkSafeLock

# Of rows that are multiplied, in float64, at a time.
_ROW_BYTES = 1 << 24

Array = Any
"""numpy.ndarray or torch.Tensor, float64 unless said."""
Rows = NDArray[np.int64]
"""Row numbers (n,)."""
T = TypeVar("T")
_LEAST_COLUMNS = 256
"""Of a product that one thread computes; for fewer, starting it costs more than it saves."""
_AT_ONCE_BYTES = 1 << 30
# The number of threads of a BLAS belongs to the whole process: of two that set it and set it back, the last to end
# would leave what the first has set.
_BLAS_THREADS = ForkSafeLock(long=True)


class NumpyArrays:
    """Arrays of NumPy, in the memory of the CPU.

    Within `threads`, products are divided among threads that wait asleep. Those of a BLAS wait by running in a circle,
    and where other programs use the cores as well they keep each other from what they wait for: a product then takes
    the processor for several times as long, and by the clock up to twenty times.
    """

    xp: Any = np

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._count = 1
        self._blas: Any = None

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Compute with as many threads as the BLAS would take, each with one thread of it."""
        with _BLAS_THREADS.held():
            self._blas = _blas()
            count = max((library.num_threads for library in self._blas.lib_controllers), default=1)
            with self._blas.limit(limits=1), ThreadPoolExecutor(count, "vggfeat-svm") as pool:
                self._pool, self._count = pool, count
                try:
                    yield
                finally:
                    self._pool, self._count = None, 1

    def product(self, left: Array, right: Array) -> Array:
        """Return the matrix product of (a, b) and (b, c); equal for equal numbers of threads."""
        columns = right.shape[1]
        parts = min(self._count, columns // _LEAST_COLUMNS)
        if parts < 2:
            return left @ right
        product = np.empty((len(left), columns), dtype=np.result_type(left, right))
        ends = [columns * part // parts for part in range(parts + 1)]

        def multiply(part: int) -> None:
            own = slice(ends[part], ends[part + 1])
            np.matmul(left, right[:, own], out=product[:, own])

        self.map(multiply, range(parts))
        return product

    def inner_products(self, rows: Array) -> Array:
        """Return (n, n) inner products of n rows; each pair is computed once."""
        parts = min(2 * self._count, len(rows) // _LEAST_COLUMNS)
        if parts < 2:
            return rows @ rows.T
        product = np.empty((len(rows), len(rows)), dtype=rows.dtype)
        ends = [len(rows) * part // parts for part in range(parts + 1)]
        blocks = [slice(*pair) for pair in pairwise(ends)]

        def multiply(pair: tuple[slice, slice]) -> None:
            first, second = pair
            # NumPy takes half the time for a matrix with its own transpose.
            product[first, second] = rows[first] @ rows[second].T
            if first != second:
                product[second, first] = product[first, second].T

        self.map(multiply, [(first, second) for place, first in enumerate(blocks) for second in blocks[place:]])
        return product

    def map(self, function: Callable[[T], Any], items: Iterable[T], size: int = 0) -> list[Any]:
        """Call a function for each item, some at once unless they take too much memory; its arithmetic may overflow.

        `size` is the memory that each takes, in bytes.
        """
        if self._pool is None:
            return [function(item) for item in items]
        if size * self._count > _AT_ONCE_BYTES:  # So large that threads of the BLAS seldom wait.
            with self._blas.limit(limits=self._count):
                return [function(item) for item in items]

        def quietly(item: T) -> Any:
            with np.errstate(all="ignore"):  # A thread does not know what its starter ignores.
                return function(item)

        return list(self._pool.map(quietly, items))

    def asarray(self, array: NDArray[Any]) -> Array:
        """Return numbers as an array of this kind, float64."""
        return np.asarray(array, dtype=np.float64)

    def index(self, array: NDArray[np.int64]) -> Array:
        """Return row numbers as an array of this kind."""
        return array

    def members(self, kinds: Array, count: int = 2) -> list[Array]:
        """Return for each kind, from 0 (False) to count - 1, the ascending places where kinds (P,) is that."""
        return [np.flatnonzero(kinds == kind) for kind in range(count)]

    def true_places(self, mask: Array) -> list[Array]:
        """Return for each row of a mask (P, n) the ascending places that are True."""
        return [np.flatnonzero(row) for row in mask]

    def to_numpy(self, array: Array) -> NDArray[Any]:
        """Return a NumPy array."""
        return array

    def zeros(self, *shape: int) -> Array:
        """Return float64 zeros."""
        return np.zeros(shape)

    def free_bytes(self) -> int | None:
        """Return how much memory can still be had, in bytes; None where the system doesn't say."""
        return free_memory()

    def solve_positive(self, matrix: Array, right: Array) -> Array | None:
        """Solve a positive definite system (k, k) of one right side (k,); None if by its numbers it isn't one."""
        from scipy.linalg import solve_triangular

        try:
            factor = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return None
        half = solve_triangular(factor, right, lower=True, check_finite=False)
        return solve_triangular(factor, half, lower=True, trans=1, check_finite=False)


@cache
def _blas() -> Any:
    """Return the handle on the threads of the BLAS of NumPy and SciPy; finding them takes milliseconds."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the BLAS to one thread, for who divides the work among threads, or wants equal bits on any machine."""
    with _BLAS_THREADS.held(), _blas().limit(limits=1):
        yield


class TorchArrays:
    """Arrays of PyTorch, on one of its devices.

    Raises
    ------
    ConfigError
        If there is no such device, or it doesn't compute in float64.
    """

    def __init__(self, device: str) -> None:
        import torch

        self.xp: Any = torch
        try:
            # Some devices have no float64, and one has no numbers at all.
            probe = torch.zeros(1, dtype=torch.float64, device=device)
            probe.item()
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"device: expected one that PyTorch can use in float64, found {device!r}: {reason}"
            ) from error
        self._device = probe.device

    def threads(self) -> contextlib.AbstractContextManager[Any]:
        """Leave the threads to PyTorch, and put off a default device of the caller's program: `asarray` moves to it."""
        return self._device if self.xp.get_default_device().type != "cpu" else contextlib.nullcontext()

    def product(self, left: Array, right: Array) -> Array:
        """Return the matrix product of (a, b) and (b, c)."""
        return left @ right

    def inner_products(self, rows: Array) -> Array:
        """Return (n, n) inner products of n rows."""
        return rows @ rows.T

    def map(self, function: Callable[[T], Any], items: Iterable[T], size: int = 0) -> list[Any]:
        """Call a function for each item, one after the other."""
        return [function(item) for item in items]

    def asarray(self, array: NDArray[Any]) -> Array:
        """Return numbers as an array of this kind, float64."""
        return self.xp.tensor(np.ascontiguousarray(array), device=self._device).to(self.xp.float64)

    def index(self, array: NDArray[np.int64]) -> Array:
        """Return row numbers as an array of this kind."""
        return self.xp.tensor(array, device=self._device)

    # How many a mask selects, only the device knows: wherever a mask is an index, the processor waits until the device
    # has computed all before it. With the next two it waits once a mask, or twice, and takes numbers as indices.

    def members(self, kinds: Array, count: int = 2) -> list[Array]:
        """Return for each kind, from 0 (False) to count - 1, the ascending places where kinds (P,) is that."""
        sizes = self.xp.stack([(kinds == kind).sum() for kind in range(count)])
        order = self.xp.argsort(kinds.to(self.xp.int8), stable=True)
        return list(order.split(self.to_numpy(sizes).tolist()))

    def true_places(self, mask: Array) -> list[Array]:
        """Return for each row of a mask (P, n) the ascending places that are True."""
        sizes = self.to_numpy(mask.sum(-1)).tolist()
        return list(self.xp.nonzero(mask)[:, 1].split(sizes))

    def to_numpy(self, array: Array) -> NDArray[Any]:
        """Return a NumPy array."""
        return array.cpu().numpy()

    def zeros(self, *shape: int) -> Array:
        """Return float64 zeros."""
        return self.xp.zeros(shape, dtype=self.xp.float64, device=self._device)

    def free_bytes(self) -> int | None:
        """Return how much memory can still be had on the device, in bytes; None where it doesn't say."""
        if self._device.type == "cuda":
            unused: int = self.xp.cuda.mem_get_info(self._device)[0]
            held = self.xp.cuda.memory_reserved(self._device) - self.xp.cuda.memory_allocated(self._device)
            return unused + held
        return free_memory() if self._device.type == "cpu" else None

    def solve_positive(self, matrix: Array, right: Array) -> Array | None:
        """Solve a positive definite system (k, k) of one right side (k,); None if by its numbers it isn't one."""
        factor, failed = self.xp.linalg.cholesky_ex(matrix)
        return None if failed.item() else self.xp.cholesky_solve(right[:, None], factor)[:, 0]


Arrays = NumpyArrays | TorchArrays
NUMPY = NumpyArrays()


def check_device(device: str | None) -> None:
    """Check that the Newton solver can use a device, as `SvmSettings.device`; ConfigError if not."""
    arrays_of(device)


def arrays_of(device: str | None) -> Arrays:
    """Return NumPy's for None, otherwise PyTorch's on that device."""
    return NumpyArrays() if device is None else TorchArrays(device)


def times(
    x: NDArray[np.floating], rows: Rows, coef: NDArray[np.float64], arrays: Arrays = NUMPY
) -> NDArray[np.float64]:
    """Multiply some rows of x (N, D) by the transpose of coef (P, D), in float64; (n, P)."""
    product, right = np.empty((len(rows), len(coef))), arrays.asarray(coef).T
    for part in _slices(x, rows):
        product[part] = arrays.to_numpy(arrays.product(arrays.asarray(x[rows[part]]), right))
    return product


def combine(
    beta: NDArray[np.float64], x: NDArray[np.floating], rows: Rows, arrays: Arrays = NUMPY
) -> NDArray[np.float64]:
    """Multiply beta (P, n) by some rows of x (N, D), in float64; (P, D)."""
    product, left = arrays.zeros(len(beta), x.shape[1]), arrays.asarray(beta)
    for part in _slices(x, rows):
        product += arrays.product(left[:, part], arrays.asarray(x[rows[part]]))
    return arrays.to_numpy(product)


def free_memory(system: Path = Path("/")) -> int | None:
    """Return how much memory this process can still have, swap included, in bytes; None where Linux doesn't say.

    It is what the machine has, or what the limit of the process's control group (a container, a batch job) leaves.
    """
    try:
        lines = (system / "proc/meminfo").read_text().splitlines()
        sizes = {name: 1024 * int(words.split()[0]) for name, _, words in (line.partition(":") for line in lines)}
        free = sizes["MemAvailable"] + sizes["SwapFree"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = system / "sys/fs/cgroup"
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        free = min(free, limit - used + (int(cached[1]) if cached else 0))
    return free


def _slices(x: NDArray[np.floating], rows: Rows) -> Iterator[slice]:
    step = max(1, _ROW_BYTES // (8 * x.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
