"""Tables 8 to 10 of the VGG paper: localisation errors on ILSVRC-2012, in per cent."""

from collections.abc import Sequence
from typing import NamedTuple

from vggfeat.localisation.nets import BoxNet
from vggfeat.samples import ClassificationSet

VAL = 50_000
ENDS = ("n01440764", "n15075141")
"""The first and the last of the 1000 classes by WNID."""


class PaperRow(NamedTuple):
    """One number of the paper, or two."""

    table: int
    what: str
    val: float | None
    test: float | None
    same: bool = False
    """Whether the result was made in the same way, by nets of the same kind."""


_TABLE_8 = {("scr", "fc"): 36.4, ("pcr", "fc"): 34.3, ("pcr", "all"): 33.1}
_LAYERS = {"fc": "1st and 2nd fully connected layers", "all": "all layers"}
_TABLE_9 = {
    ((256, (256,)),): (29.5, None),
    ((384, (384,)),): (28.2, 26.7),
    ((384, (352, 384)),): (27.5, None),
    ((256, (256,)), (384, (352, 384))): (26.9, 25.3),
}
_TABLE_10 = (
    ("VGG", 26.9, 25.3),
    ("GoogLeNet", None, 26.7),
    ("OverFeat", 30.0, 29.9),
    ("Krizhevsky et al.", None, 34.2),
)


def is_official(data: ClassificationSet) -> bool:
    """Say whether the images are the validation images of ILSVRC-2012, and not a part or an imitation of them."""
    return len(data.classes) == 1000 and (data.classes[0], data.classes[-1]) == ENDS and len(data.val) == VAL


def paper_rows(protocol: str, nets: Sequence[BoxNet], scales: Sequence[Sequence[int]]) -> list[PaperRow]:
    """Return the paper's numbers to put beside a result on ILSVRC-2012."""
    if protocol == "gt":
        return [_row_8(nets, scales, kind, layers, error) for (kind, layers), error in _TABLE_8.items()]
    full = all(_is_theirs(net) and net.kind == "pcr" for net in nets)
    ours = sorted((net.scale, tuple(sorted(q))) for net, q in zip(nets, scales, strict=True))
    rows = []
    for combination, (val, test) in _TABLE_9.items():
        named = " and ".join(f"S = {s} at Q = {', '.join(map(str, q))}" for s, q in combination)
        rows.append(PaperRow(9, named, val, test, full and ours == sorted(combination)))
    return rows + [PaperRow(10, name, val, test) for name, val, test in _TABLE_10]


def _row_8(nets: Sequence[BoxNet], scales: Sequence[Sequence[int]], kind: str, layers: str, error: float) -> PaperRow:
    found = (nets[0].kind, nets[0].layers, nets[0].scale, [list(q) for q in scales])
    same = _is_theirs(nets[0]) and found == (kind, layers, 384, [[384]])
    return PaperRow(8, f"{kind.upper()}, {_LAYERS[layers]} learnt", error, None, same)


def _is_theirs(net: BoxNet) -> bool:
    return net.backbone.model.config == "D" and net.backbone.model.width == 1 and net.backbone.trained
