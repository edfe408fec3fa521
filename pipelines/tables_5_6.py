"""Tables 5 and 6 of the VGG paper: dense and multi-crop evaluation, and fusion of nets, on ILSVRC-2012 validation.

    vggfeat reproduce ilsvrc_table5_d_both --root ILSVRC                        (nets of Tables 3 and 4 in --out)
    vggfeat reproduce ilsvrc_table6_de_both --root ILSVRC --weights D.safetensors --weights E.safetensors
    vggfeat reproduce ilsvrc_table6_submission --twin

Expected: top-1 and top-5 error of the row, in per cent, plus or minus 0.5.
"""

from dataclasses import dataclass
from pathlib import Path

from ilsvrc import (
    SPREAD,
    TWIN_IMAGES,
    TWIN_SIDES,
    WEIGHTS,
    check_net,
    fuse_posteriors,
    net_name,
    render_twin,
    report_errors,
    save_posteriors,
)
from steps import Options
from vggfeat.cli.output import make_folder
from vggfeat.cli.signals import is_main
from vggfeat.errors import ConfigError

TWIN_WIDTH = 1 / 32


@dataclass(frozen=True)
class Net:
    """A net of the paper, and where it is tested."""

    net: str
    """A, A-LRN, B, C, D or E."""
    scale: str
    """S, the smallest image side in training: 256, 384, or 256:512 for another one each time (Sect. 3.1)."""
    sides: tuple[int, ...]
    """Q, smallest image sides at test; over several, posteriors are averaged."""

    @property
    def name(self) -> str:
        """What the pipeline that trains it, and its folder, are called."""
        return net_name(self.net, self.scale)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of Table 5 or 6."""

    name: str
    table: int
    nets: tuple[Net, ...]
    """Their posteriors are averaged."""
    mode: str
    """dense, multi-crop, or both, averaged."""
    top1: float
    top5: float

    @property
    def promise(self) -> str:
        """What a faithful run is expected to give."""
        nets = " & ".join(net.net for net in self.nets)
        errors = f"{self.top1} % and {self.top5} %"
        return f"Table {self.table}, {nets}, {self.mode}, top-1 and top-5 error +- {SPREAD}: {errors}"


D = Net("D", "256:512", (256, 384, 512))
E = Net("E", "256:512", (256, 384, 512))
SUBMISSION = (
    Net("D", "256", (224, 256, 288)),
    Net("D", "384", (352, 384, 416)),
    D,
    Net("C", "256", (224, 256, 288)),
    Net("C", "384", (352, 384, 416)),
    Net("E", "256", (224, 256, 288)),
    Net("E", "384", (352, 384, 416)),
)
ROWS = (
    Row(name="ilsvrc_table5_d_dense", table=5, nets=(D,), mode="dense", top1=24.8, top5=7.5),
    Row(name="ilsvrc_table5_d_multi_crop", table=5, nets=(D,), mode="multi-crop", top1=24.6, top5=7.5),
    Row(name="ilsvrc_table5_d_both", table=5, nets=(D,), mode="both", top1=24.4, top5=7.2),
    Row(name="ilsvrc_table5_e_dense", table=5, nets=(E,), mode="dense", top1=24.8, top5=7.5),
    Row(name="ilsvrc_table5_e_multi_crop", table=5, nets=(E,), mode="multi-crop", top1=24.6, top5=7.4),
    Row(name="ilsvrc_table5_e_both", table=5, nets=(E,), mode="both", top1=24.4, top5=7.1),
    Row(name="ilsvrc_table6_submission", table=6, nets=SUBMISSION, mode="dense", top1=24.7, top5=7.5),
    Row(name="ilsvrc_table6_de_dense", table=6, nets=(D, E), mode="dense", top1=24.0, top5=7.1),
    Row(name="ilsvrc_table6_de_multi_crop", table=6, nets=(D, E), mode="multi-crop", top1=23.9, top5=7.2),
    Row(name="ilsvrc_table6_de_both", table=6, nets=(D, E), mode="both", top1=23.7, top5=6.8),
)


def run(row: Row, options: Options) -> None:
    """Classify with every net, fuse, and compare with the paper."""
    if len(options.weights) not in (0, len(row.nets)):
        nets = ", ".join(f"{net.net} ({net.scale})" for net in row.nets)
        raise ConfigError(f"--weights: expected one for each of {nets}, or none, found {len(options.weights)}")
    options.data("ilsvrc")  # refused before the weights are loaded
    if options.twin:
        render_twin(options)
    weights = [_weights_of(net, number, options) for number, net in enumerate(row.nets)]
    files = [
        file
        for net, path in zip(row.nets, weights, strict=True)
        for file in save_posteriors(net.name, path, row.mode, TWIN_SIDES if options.twin else net.sides, options)
    ]
    if is_main():
        report_errors(fuse_posteriors(files, None, options.out / row.name), row.table, row.top1, row.top5)


def _weights_of(net: Net, number: int, options: Options) -> Path:
    path = options.out / net.name / WEIGHTS
    if options.weights:
        path = Path(options.weights[number])
    elif options.twin:
        _make_twin(net, path)
    elif not path.is_file():
        raise ConfigError(
            f"{path}: expected the weights of net {net.net}, found none; run {net.name} first, or give the weights "
            "with --weights"
        )
    check_net(path, net.net)
    return path


def _make_twin(net: Net, path: Path) -> None:
    """Make a narrow net with random weights, which claims to be trained at its S."""
    # Late, since the list of rows does not wait for PyTorch.
    import torch

    from vggfeat.nets.families import initialise
    from vggfeat.nets.vgg import VGG
    from vggfeat.weights import save_weights

    model = VGG(net.net, TWIN_IMAGES.classes, width=TWIN_WIDTH)
    initialise(model, torch.Generator().manual_seed(sum(map(ord, net.scale))))
    lowest, _, highest = net.scale.partition(":")
    make_folder(path.parent)
    save_weights(
        path, model, mean=(124, 117, 104), training={"recipe": {"scale": [int(lowest), int(highest or lowest)]}}
    )
