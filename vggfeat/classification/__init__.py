"""ILSVRC classification (VGG paper, Sect. 3.2 and 4): posteriors of nets in files, their fusion, and the errors.

What is named here needs no PyTorch; `posteriors` and `caching` run nets and do.
"""

from vggfeat.classification.evaluating import ClassErrors, Evaluation, evaluate
from vggfeat.classification.fusing import Fused, FusedPart, fuse

__all__ = ["ClassErrors", "Evaluation", "Fused", "FusedPart", "evaluate", "fuse"]
