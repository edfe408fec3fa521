"""Tables 3 to 6 and 8 to 10 of the VGG paper, and which of their rows may be put next to a result.

Those of Tables 11 and 12 are in the record of each data set (`vggfeat.datasets`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vggfeat.samples import ClassificationSet
from vggfeat.weights.sources import PUBLISHED, Published

if TYPE_CHECKING:
    from vggfeat.classification.evaluate import Fused, FusedPart
    from vggfeat.localisation.nets import BoxNet

JITTERED = "[256;512]"
LAYER = "fc7"
"""The penultimate layer, whose features Appendix B takes."""
VAL, CLASSES, OF_EACH = 50_000, 1000, 50
"""Validation images of ILSVRC-2012, its classes, and images of each."""
ENDS = ("n01440764", "n15075141")
"""The first and the last class by WNID."""
_FIRST = ("ILSVRC2012_val_00000001", "n01751748")
"""A validation image and its class, by the annotation in the official archive."""


class PaperNet(NamedTuple):
    """A net of the paper, and where it is tested."""

    net: str
    """A, A-LRN, B, C, D or E."""
    scale: str
    """S, the smallest side in training: 256, 384 or [256;512]."""
    sides: tuple[int, ...]
    """Q, smallest sides at test."""


class PaperErrors(NamedTuple):
    """A row of Tables 3 to 6: errors in per cent on the 50,000 validation images."""

    table: int
    nets: tuple[PaperNet, ...]
    mode: str
    """dense, multi-crop, or both."""
    top1: float
    top5: float

    def to_json(self) -> dict[str, Any]:
        """Return it as results.json has it."""
        about = {"table": self.table, "mode": self.mode, "nets": [net._asdict() for net in self.nets]}
        return {**about, "top1_percent": self.top1, "top5_percent": self.top5}

    def __str__(self) -> str:
        nets = ", ".join(f"{net.net} (S = {net.scale}) at Q = {', '.join(map(str, net.sides))}" for net in self.nets)
        errors = f"top-1 error {self.top1} %, top-5 error {self.top5} %"
        return f"VGG paper, Table {self.table}, {self.mode}, {nets}: {errors}"


def _rows(table: int, text: str) -> list[PaperErrors]:
    """Read lines of "net S sides top-1 top-5"."""
    rows = []
    for line in text.strip().splitlines():
        net, scale, sides, top1, top5 = line.split()
        nets = (PaperNet(net, scale, tuple(map(int, sides.split(",")))),)
        rows.append(PaperErrors(table, nets, "dense", float(top1), float(top5)))
    return rows


_D, _E = (PaperNet(net, JITTERED, (256, 384, 512)) for net in "DE")
_SUBMISSION = (
    PaperNet("D", "256", (224, 256, 288)),
    PaperNet("D", "384", (352, 384, 416)),
    _D,
    PaperNet("C", "256", (224, 256, 288)),
    PaperNet("C", "384", (352, 384, 416)),
    PaperNet("E", "256", (224, 256, 288)),
    PaperNet("E", "384", (352, 384, 416)),
)
TABLES_3_TO_6: tuple[PaperErrors, ...] = (
    *_rows(3, """
        A      256        256  29.6  10.4
        A-LRN  256        256  29.7  10.5
        B      256        256  28.7   9.9
        C      256        256  28.1   9.4
        C      384        384  28.1   9.3
        C      [256;512]  384  27.3   8.8
        D      256        256  27.0   8.8
        D      384        384  26.8   8.7
        D      [256;512]  384  25.6   8.1
        E      256        256  27.3   9.0
        E      384        384  26.9   8.7
        E      [256;512]  384  25.5   8.0
    """),
    *_rows(4, """
        B      256        224,256,288  28.2  9.6
        C      256        224,256,288  27.7  9.2
        C      384        352,384,416  27.8  9.2
        C      [256;512]  256,384,512  26.3  8.2
        D      256        224,256,288  26.6  8.6
        D      384        352,384,416  26.5  8.6
        D      [256;512]  256,384,512  24.8  7.5
        E      256        224,256,288  26.9  8.7
        E      384        352,384,416  26.7  8.6
        E      [256;512]  256,384,512  24.8  7.5
    """),
    PaperErrors(5, (_D,), "dense", 24.8, 7.5),
    PaperErrors(5, (_D,), "multi-crop", 24.6, 7.5),
    PaperErrors(5, (_D,), "both", 24.4, 7.2),
    PaperErrors(5, (_E,), "dense", 24.8, 7.5),
    PaperErrors(5, (_E,), "multi-crop", 24.6, 7.4),
    PaperErrors(5, (_E,), "both", 24.4, 7.1),
    PaperErrors(6, _SUBMISSION, "dense", 24.7, 7.5),
    PaperErrors(6, (_D, _E), "dense", 24.0, 7.1),
    PaperErrors(6, (_D, _E), "multi-crop", 23.9, 7.2),
    PaperErrors(6, (_D, _E), "both", 23.7, 6.8),
)  # fmt: skip


def authors_net(provenance: Mapping[str, Any]) -> str | None:
    """Name the net of the paper if weights hold the numbers that its authors published; None for all others.

    Others have trained nets of the same names, torchvision for instance; theirs are not the paper's.
    """
    published, net = _published(provenance), provenance.get("net")
    is_theirs = published is not None and published.authors and published.net == net
    return str(net) if is_theirs and provenance.get("trained", True) and provenance.get("width", 1) == 1 else None


def _published(provenance: Mapping[str, Any]) -> Published | None:
    imported = provenance.get("imported")
    return PUBLISHED.get(str(imported.get("published"))) if isinstance(imported, Mapping) else None


class TestedNet(NamedTuple):
    """One net of a result: what its files have in common."""

    net: str
    own: bool
    """Whether it may be the paper's: trained, of full width, and not known as a net that others have trained."""
    scale: str | None
    """S by the weights file, or as the authors published it; None where that is not known."""
    mode: str
    """crop, dense, multi-crop, both, or several of them in words."""
    sides: tuple[int, ...]
    """Q, ascending; of both modes together."""
    even: bool
    """Whether all its modes have the same Q."""

    def __str__(self) -> str:
        trained = "" if self.scale is None else f" (S = {self.scale})"
        mode = "dense & multi-crop" if self.mode == "both" else self.mode
        return f"{self.net}{trained} {mode} at Q = {', '.join(map(str, self.sides))}"


def tested_nets(fused: "Fused") -> list[TestedNet]:
    """Return the nets behind fused posteriors, in the order of their first files."""
    groups: dict[str, list[FusedPart]] = {}
    for part in fused.parts:
        groups.setdefault(part.sha256, []).append(part)
    return [_tested_net(parts) for parts in groups.values()]


def _tested_net(parts: "Sequence[FusedPart]") -> TestedNet:
    provenance, published = parts[0].provenance, _published(parts[0].provenance)
    sides: dict[str, set[int]] = {}
    for part in parts:
        sides.setdefault(part.mode, set()).update(part.scales)
    trained = provenance.get("trained_scale")
    scale = None if trained is None else str(trained[0]) if trained[0] == trained[1] else "[{};{}]".format(*trained)
    own = bool(provenance.get("trained", True)) and provenance.get("width", 1) == 1
    return TestedNet(
        net=parts[0].net,
        own=own and (published is None or published.authors),
        scale=JITTERED if published is not None and published.authors else scale,
        mode="both" if sides.keys() == {"dense", "multi-crop"} else " & ".join(sides),
        sides=tuple(sorted(set().union(*sides.values()))),
        even=len({frozenset(found) for found in sides.values()}) == 1,
    )


def is_official_fusion(fused: "Fused") -> bool:
    """Say whether posteriors are of the 50,000 validation images of ILSVRC-2012, by number, names and classes."""
    counts = np.bincount(fused.targets, minlength=len(fused.classes))
    if len(fused.ids) != VAL or len(fused.classes) != CLASSES or (counts != OF_EACH).any():
        return False
    if set(fused.ids) != {f"ILSVRC2012_val_{number:08d}" for number in range(1, VAL + 1)}:
        return False
    return fused.classes[fused.targets[fused.ids.index(_FIRST[0])]] == _FIRST[1]


def paper_errors(fused: "Fused") -> list[PaperErrors]:
    """Return the paper's rows with the same nets, mode and scales; none where images or nets are others.

    Where a weights file doesn't say at which S its net was trained, the rows of every S are returned.
    """
    nets = sorted(tested_nets(fused), key=lambda net: (net.net, net.sides))
    if not is_official_fusion(fused) or not all(net.own and net.even for net in nets):
        return []
    return [row for row in TABLES_3_TO_6 if _fits(row, nets)]


def _fits(row: PaperErrors, nets: Sequence[TestedNet]) -> bool:
    theirs = sorted(row.nets, key=lambda net: (net.net, net.sides))
    return len(nets) == len(theirs) and all(
        (ours.net, ours.sides, ours.mode) == (net.net, net.sides, row.mode) and ours.scale in (None, net.scale)
        for ours, net in zip(nets, theirs, strict=True)
    )


class PaperBoxError(NamedTuple):
    """A row of Tables 8 to 10: localisation errors in per cent."""

    table: int
    what: str
    val: float | None
    test: float | None
    same: bool = False
    """Whether the result was made in the same way, by nets of the same kind."""

    def __str__(self) -> str:
        errors = ", ".join(f"{error} % on {part}" for part, error in (("val", self.val), ("test", self.test)) if error)
        mark = "  <- in the same way" if self.same else ""
        return f"VGG paper, Table {self.table}: {self.what}: {errors}{mark}"


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


def is_official_set(data: ClassificationSet) -> bool:
    """Say whether the images are the validation images of ILSVRC-2012, and not a part or an imitation of them."""
    return len(data.classes) == CLASSES and (data.classes[0], data.classes[-1]) == ENDS and len(data.val) == VAL


def paper_box_errors(protocol: str, nets: Sequence["BoxNet"], scales: Sequence[Sequence[int]]) -> list[PaperBoxError]:
    """Return the paper's localisation errors to put next to a result on ILSVRC-2012."""
    if protocol == "gt":
        found = (nets[0].kind, nets[0].layers, nets[0].scale, [list(sides) for sides in scales])
        return [
            PaperBoxError(
                8,
                f"{kind.upper()}, {_LAYERS[layers]} learnt",
                error,
                None,
                same=_is_theirs(nets[0]) and found == (kind, layers, 384, [[384]]),
            )
            for (kind, layers), error in _TABLE_8.items()
        ]
    full = all(_is_theirs(net) and net.kind == "pcr" for net in nets)
    ours = sorted((net.scale, tuple(sorted(q))) for net, q in zip(nets, scales, strict=True))
    rows = []
    for combination, (val, test) in _TABLE_9.items():
        named = " and ".join(f"S = {s} at Q = {', '.join(map(str, q))}" for s, q in combination)
        rows.append(PaperBoxError(9, named, val, test, full and ours == sorted(combination)))
    return rows + [PaperBoxError(10, name, val, test) for name, val, test in _TABLE_10]


def _is_theirs(net: "BoxNet") -> bool:
    return net.backbone.model.config == "D" and net.backbone.model.width == 1 and net.backbone.trained
