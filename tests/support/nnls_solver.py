"""A solver in one file: non-negative least squares, exact and slow."""

import numpy as np

from svm_reference import reference
from vggfeat.svm.kernel import duality_gaps
from vggfeat.svm.solve import Solutions, Solver


class NnlsSolver(Solver):
    def solve(self, problems, report):
        x, scaling = self.x, self.settings.intercept_scaling
        coef = np.empty((*problems.costs.shape, x.shape[1]))
        intercept, gap = np.empty(problems.costs.shape), np.empty(problems.costs.shape)
        for p, g in np.ndindex(problems.costs.shape):
            bounds = 2 * problems.costs[p, g] * problems.weights[p]
            coef[p, g], intercept[p, g], _ = reference(x[problems.rows], problems.signs[p], bounds, scaling)
            each = problems.signs[[p]], bounds[None], coef[p, [g]], intercept[p, [g]]
            gap[p, g] = duality_gaps(x, problems.rows, *each, scaling)[0]
            report(1)
        return Solutions(coef, intercept, gap < 1e-6, gap)
