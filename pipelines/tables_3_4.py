"""Tables 3 and 4 of the VGG paper: nets trained by the recipe of Sect. 3.1, tested densely on ILSVRC-2012 validation.

    vggfeat reproduce ilsvrc_a_256 --root ILSVRC
    vggfeat reproduce ilsvrc_d_256 --root ILSVRC                  (starts from net A in the same --out)
    torchrun --nproc-per-node 4 -m vggfeat reproduce ilsvrc_d_384 --root ILSVRC
    vggfeat reproduce ilsvrc_d_384 --root ILSVRC --weights FILE   (trains nothing: measures this net)
    vggfeat reproduce ilsvrc_e_256_512 --twin

The nets form a chain (Sect. 3.1): A and A-LRN start from random weights, B to E at S = 256 from A, S = 384 from
S = 256 of the same net, and S in [256;512] from S = 384.

Expected: top-1 and top-5 error of the row, in per cent, plus or minus 0.5. The centre crops that training reports are
expected up to 3.5 points higher.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ilsvrc import (
    SPREAD,
    TWIN_SIDES,
    WEIGHTS,
    check_net,
    fuse_posteriors,
    net_name,
    render_twin,
    report_errors,
    save_posteriors,
)
from steps import TWIN_TRAINING, Options, must_run
from vggfeat.cli.signals import is_main
from vggfeat.errors import ConfigError


class Errors(NamedTuple):
    """Errors on the 50,000 validation images, by dense evaluation of whole images."""

    sides: tuple[int, ...]
    """Q, smallest image sides at test; over several, posteriors are averaged."""
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trained net of the paper."""

    net: str
    """A, A-LRN, B, C, D or E."""
    scale: str
    """S, the smallest image side in training: 256, 384, or 256:512 for another one each time."""
    single: Errors
    """Table 3."""
    multi: Errors | None
    """Table 4; None for A and A-LRN, which do not occur there."""

    @property
    def name(self) -> str:
        """What the pipeline and the folder of the net are called."""
        return net_name(self.net, self.scale)

    @property
    def promise(self) -> str:
        """What a faithful run is expected to give."""
        tables = ((3, self.single), (4, self.multi))
        found = (f"Table {table}: {errors.top1} % and {errors.top5} %" for table, errors in tables if errors)
        return f"net {self.net}, S = {self.scale}, top-1 and top-5 error +- {SPREAD}: {'; '.join(found)}"


# net, S, then Q, top-1 and top-5 error of Table 3, then those of Table 4
ROWS = tuple(
    Row(net=net, scale=scale, single=Errors(*single), multi=Errors(*multi) if multi else None)
    for net, scale, single, multi in (
        ("A", "256", ((256,), 29.6, 10.4), None),
        ("A-LRN", "256", ((256,), 29.7, 10.5), None),
        ("B", "256", ((256,), 28.7, 9.9), ((224, 256, 288), 28.2, 9.6)),
        ("C", "256", ((256,), 28.1, 9.4), ((224, 256, 288), 27.7, 9.2)),
        ("C", "384", ((384,), 28.1, 9.3), ((352, 384, 416), 27.8, 9.2)),
        ("C", "256:512", ((384,), 27.3, 8.8), ((256, 384, 512), 26.3, 8.2)),
        ("D", "256", ((256,), 27.0, 8.8), ((224, 256, 288), 26.6, 8.6)),
        ("D", "384", ((384,), 26.8, 8.7), ((352, 384, 416), 26.5, 8.6)),
        ("D", "256:512", ((384,), 25.6, 8.1), ((256, 384, 512), 24.8, 7.5)),
        ("E", "256", ((256,), 27.3, 9.0), ((224, 256, 288), 26.9, 8.7)),
        ("E", "384", ((384,), 26.9, 8.7), ((352, 384, 416), 26.7, 8.6)),
        ("E", "256:512", ((384,), 25.5, 8.0), ((256, 384, 512), 24.8, 7.5)),
    )
)


def starts_from(net: str, scale: str) -> tuple[str, str] | None:
    """Return net and scale of the weights that training starts from; None for random ones (Sect. 3.1)."""
    if scale == "256":
        return None if net in ("A", "A-LRN") else ("A", "256")
    return net, {"384": "256", "256:512": "384"}[scale]


def run(row: Row, options: Options) -> None:
    """Train one net of the chain unless its weights were given, and show its errors next to the paper's."""
    if len(options.weights) > 1:
        raise ConfigError(f"--weights: expected at most one, of net {row.net}, found {len(options.weights)}")
    options.data("ilsvrc")  # refused before the weights are loaded
    if options.weights:
        check_net(options.weights[0], row.net)
    if options.twin:
        render_twin(options)
    weights = Path(options.weights[0]) if options.weights else _train(row.net, row.scale, options)
    tables = {3: row.single} | ({} if row.multi is None else {4: row.multi})
    sides = {
        table: TWIN_SIDES[: len(errors.sides)] if options.twin else errors.sides for table, errors in tables.items()
    }
    # One run of the net over the scales of both tables; each table is read off the saved posteriors.
    files = save_posteriors(row.name, weights, "dense", max(sides.values(), key=len), options)
    if not is_main():
        return
    for table, errors in tables.items():
        results = fuse_posteriors(files, sides[table], files[0].parent / f"table-{table}")
        report_errors(results, table, errors.top1, errors.top5)


def _train(net: str, scale: str, options: Options) -> Path:
    """Train one net and return its weights; a twin trains what comes before it in the chain as well."""
    folder, before = options.out / net_name(net, scale), starts_from(net, scale)
    chosen = ["--net", net, "--scale", scale, "--out", folder, "--resume", *options.more]
    if options.device:
        chosen += ["--device", options.device]
    if options.twin:
        chosen += TWIN_TRAINING
    if before is not None and "--init-from" not in options.more:
        chosen += ["--init-from", _weights_before(before, options)]
    folder.mkdir(parents=True, exist_ok=True)  # --resume takes no folder that is not there.
    must_run("train", "--root", options.data("ilsvrc"), *chosen)
    return folder / WEIGHTS


def _weights_before(before: tuple[str, str], options: Options) -> Path:
    weights = options.out / net_name(*before) / WEIGHTS
    if options.twin and not weights.is_file():
        return _train(*before, options)
    if not weights.is_file():
        raise ConfigError(
            f"{weights}: expected the net to start from, found none; run {net_name(*before)} first, or give the "
            "weights with --init-from"
        )
    return weights
