"""How the SVMs are fitted, and the table of solvers. Loads nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple, get_args

from vggfeat.checks import check_choice, convert_fields
from vggfeat.errors import ConfigError

Loss = Literal["squared_hinge"]
ClassWeight = Literal["none", "balanced"]
Progress = Callable[[int, int], None]
"""Called with the number of solved problems and the number of all."""


class SolverEntry(NamedTuple):
    """One line of the table of solvers."""

    home: str
    """module:class, a `vggfeat.svm.solve.Solver`; loaded when the solver is used."""
    words: str
    """For the help of the command."""
    device: bool = False
    """Whether it reads `SvmSettings.device`."""
    jobs: bool = False
    """Whether it reads `SvmSettings.jobs`."""
    streams: bool = False
    """Whether it reads rows block by block, from the disk if they are there."""


SOLVERS = {
    "newton": SolverEntry("vggfeat.svm.newton:NewtonSolver", "all SVMs at once", device=True),
    "liblinear": SolverEntry(
        "vggfeat.svm.liblinear:LiblinearSolver", "one by one by scikit-learn, for comparison", jobs=True
    ),
    "stream": SolverEntry(
        "vggfeat.svm.stream:StreamSolver", "rows from the disk, pass by pass", jobs=True, streams=True
    ),
}
"""Name -> solver. The first is the default; `vggfeat svm --solver` offers all."""


C_GRID = tuple(2.0**power for power in range(-5, 11))
"""Values of C to choose from: 1/32 to 1024, each twice the one before. On features that tell the classes well the best
lies below 8; on weak ones (an untrained net, small images) it often lay at 64, where the grid used to end, and the four
larger values add a quarter to the time of the solver that takes all of them together."""


def check_jobs(jobs: int) -> None:
    """Check a number of jobs; ConfigError if it is neither from 1 on nor -1, one a core."""
    if jobs != -1 and jobs < 1:
        raise ConfigError(f"jobs: expected at least 1, or -1 for one a core, found {jobs}")


@dataclass(frozen=True, kw_only=True)
class SvmSettings:
    """How the SVMs are fitted, except C.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    loss: Loss = "squared_hinge"
    """The only one so far; LIBLINEAR's default. The paper does not say."""
    intercept_scaling: float = 1.0
    """The constant that is appended to every descriptor; the intercept is penalised through it, less with larger
    values. LIBLINEAR's default. The paper does not say whether there was an intercept."""
    class_weight: ClassWeight = "none"
    """balanced: positives and negatives of a class weigh the same in sum, n / 2. The paper does not say."""
    tolerance: float = 1e-6
    """Solvers newton and stream: the relative duality gap at which a problem is solved. On features as the paper's,
    average precisions are then within 0.001 of those at the optimum, and their mean over 20 classes within 0.0001; at
    1e-4 that is 0.004 and 0.0005, and the time four fifths."""
    liblinear_tolerance: float = 1e-4
    """Solver liblinear: its own stopping rule, scikit-learn's `tol`, with its default."""
    max_iterations: int = 1000
    """Solvers newton and stream: steps for one value of C after which a problem is given up; a dozen is usual. Solver
    liblinear: passes over the data; scikit-learn's default."""
    seed: int = 0
    """Solver liblinear: order in which it visits the rows; it changes results within the tolerance only."""
    jobs: int = -1
    """Solver liblinear: worker processes; solver stream: threads; -1 = one a core. It never changes results."""
    solver: str = "newton"
    """A name in `SOLVERS`. newton: all problems at once, with matrix products. liblinear: one by one, scikit-learn's
    `LinearSVC`, for comparison. stream: all problems at once, on rows that need not be in memory."""
    device: str | None = None
    """Solver newton: None = NumPy, on the CPU; otherwise a device of PyTorch, as "cuda"."""

    def __post_init__(self) -> None:
        convert_fields(self)
        check_choice("loss", self.loss, get_args(Loss))
        check_choice("class_weight", self.class_weight, get_args(ClassWeight))
        check_choice("solver", self.solver, tuple(SOLVERS))
        for name in ("intercept_scaling", "tolerance", "liblinear_tolerance", "max_iterations"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(f"{name}: expected a number above 0, found {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed: expected 0 to 2147483647, found {self.seed}")
        check_jobs(self.jobs)
        if self.device is not None and not SOLVERS[self.solver].device:
            raise ConfigError(f"device: expected none with the solver {self.solver}, found {self.device!r}")
