"""`vggfeat classify`: validation images and nets in, top-1 and top-5 errors out; or saved posteriors in."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vggfeat.cli.commands import INTEGERS, command, json_option, option, refuse_options
from vggfeat.cli.config import CLASSIFY
from vggfeat.cli.options import DecodingOptions, ForwardOptions, JobOptions, load_net, net_files
from vggfeat.cli.output import Progress, claim_folder, duration, rate_of, show_results
from vggfeat.cli.signals import is_main
from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.devices import ready_device
from vggfeat.runtime.output_paths import anything, check_target

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.extract import Summary
    from vggfeat.forward.posteriors import PosteriorSettings
    from vggfeat.weights import Backbone

SETTLED = (
    "layout",
    "mode",
    "softmax",
    "precision",
    "interpolation",
    "max_pixels",
    "allow_truncated",
    "retry_failed",
    "overwrite",
)
"""How posteriors are made, which for saved ones is settled."""
RESULTS = ("results.json", "table.txt", "classes.csv", "confusions.csv", "run.sha256")
MODES = {"crop": ("crop",), "dense": ("dense",), "multi-crop": ("multi-crop",), "both": ("dense", "multi-crop")}


@dataclass(frozen=True, kw_only=True)
class PosteriorOptions:
    """How posteriors are computed."""

    title: ClassVar[str] = "Posteriors"
    mode: str = option(type=list(MODES), default="dense",
        help="What is evaluated: the centre crop; the whole image, densely; 5x5 crops; or the average of the "
        "last two.")  # fmt: skip
    scales: tuple[int, ...] | None = option(type=INTEGERS,
        help="Q, smallest image sides in pixels. [the paper's for the net's S]")  # fmt: skip
    softmax: str = option(type=["after", "before"], default="after",
        help="Apply the soft-max after the spatial average of the dense class scores, or before it.")  # fmt: skip

    def settings(self, backbone: "Backbone", mode: Any, **forward: Any) -> "PosteriorSettings":
        """Return the settings of one net and mode."""
        from vggfeat.classification.extract import default_scales
        from vggfeat.forward.posteriors import PosteriorSettings

        scales = self.scales or default_scales(backbone, mode)
        return PosteriorSettings(mode=mode, scales=scales, softmax=self.softmax, **forward)  # type: ignore[arg-type]


@command(config=CLASSIFY.option)
def classify(
    *,
    weights: tuple[str, ...] = option(multiple=True, metavar="FILE|NAME|small",
        help="A net; where several are given, their posteriors are averaged."),
    root: Path | None = option(metavar="ROOT",
        help="Folder of ILSVRC-2012 in any of its layouts, of a packed copy, or of your own classes."),
    layout: "Layout | None",
    files: tuple[Path, ...] = option("--posteriors", multiple=True, metavar="FILE.h5",
        help="A file of posteriors that this command has written; no net is run for it."),
    posteriors: PosteriorOptions,
    out: Path = option(default=Path("classified"), metavar="DIR", help="Folder for posteriors and results."),
    forward: ForwardOptions,
    device: str | None,
    decoding: DecodingOptions,
    job: JobOptions,
    spreadsheet_safe: bool,
    as_json: bool = json_option("Print the results as JSON instead of the table."),
    quiet: bool,
) -> int:  # fmt: skip
    """Measure top-1 and top-5 errors on the validation images, as in Sections 3.2 and 4 of the VGG paper.

    Posteriors are averaged over mirrors or crops, then over scales, then over modes, then over nets. Those of every
    net and mode are kept in DIR, an HDF5 file each, in which every scale has its own; a run that was stopped is
    resumed when the same command is given again. With --posteriors, saved ones are fused without running a net, and
    --scales picks some of theirs. DIR also receives results.json, table.txt, classes.csv and confusions.csv.

    \b
    Examples:
      vggfeat classify --weights D.safetensors --root ILSVRC --mode both --scales 256,384,512 --out D
      vggfeat classify --posteriors D/D-0a1b2c3d-dense.h5 --posteriors E/E-4e5f6a7b-dense.h5 --out DE
      vggfeat classify --posteriors D/D-0a1b2c3d-dense.h5 --scales 384 --out D-384

    \b
    Exit codes: 0 done, 3 done but more than --allow-failed images failed; others: vggfeat --help.
    """
    if (root is None) != (not weights):
        alone = "--root" if root is not None else "--weights"
        raise ConfigError(f"{alone}: expected --weights and --root together, found it alone; give both, or neither")
    if not weights and not files:
        raise ConfigError("--weights: expected a net with --root, or --posteriors, found neither; give one of them")
    if not weights:
        refuse_options(SETTLED, "expected where a net is run, found --posteriors alone")

    from vggfeat.classification.evaluate import evaluate, fuse
    from vggfeat.results.ilsvrc import Pace, classification_record

    claim_folder(out, RESULTS, "vggfeat-classification", inputs=files, overwrite=job.overwrite)
    runs = []
    if root is not None:
        runs = _run_nets(weights, root, layout, out, files, posteriors, forward, device, decoding, job, quiet)
    if not is_main():
        return 0
    new = [one.path for one in runs]
    paces = [Pace(one.path.name, one.total - one.resumed, one.seconds, one.resumed) for one in runs]
    notes = [f"{one.path.name}: {note}" for one in runs for note in one.notes]
    fused = fuse([*files, *new], scales=posteriors.scales)
    found = evaluate(fused)
    record = classification_record(fused, found, paces=paces, notes=notes)
    written = record.write(out, spreadsheet_safe=spreadsheet_safe)
    lists = [one.failures_file for one in runs if one.failures_file is not None]
    files_written, failed = [*new, *lists, *written], any(one.failures for one in runs)
    show_results(record, out, files_written, failed=failed, as_json=as_json, runs=list(map(_run_line, runs)))
    return 3 if len(fused.failed) > job.allow_failed else 0


def _run_nets(
    weights: tuple[str, ...], root: Path, layout: "Layout | None", out: Path, files: tuple[Path, ...],
    posteriors: PosteriorOptions, forward: ForwardOptions, device: str | None, decoding: DecodingOptions,
    job: JobOptions, quiet: bool,
) -> list["Summary"]:  # fmt: skip
    """Write the posteriors of every net and mode."""
    from vggfeat.classification.extract import cache_posteriors, match_classes
    from vggfeat.datasets import ilsvrc
    from vggfeat.runtime.distributed import open_world

    # The other processes of torchrun may be here before the first has written the weights that it has just trained.
    with open_world(ready_device(device), os.environ, lost=StoreError) as world:
        data = ilsvrc.read(root, layout)
        nets: dict[str, Backbone] = {}
        # All nets are loaded and checked before the first is run, which may take hours.
        for spec in weights:
            backbone = load_net(spec)
            match_classes(backbone, data.classes)
            if backbone.sha256 in nets:
                raise ConfigError(f"--weights: expected each net once, found that of {spec} twice; leave one out")
            nets[backbone.sha256] = backbone
        runs = []
        for sha256, backbone in nets.items():
            for mode in MODES[posteriors.mode]:
                file = out / f"{backbone.model.config}-{sha256[:8]}-{mode}.h5"
                check_target(file, inputs=[*files, *net_files(*weights)], ours=anything)
                settings = posteriors.settings(backbone, mode, **forward.given(str(world.device)))
                with Progress(f"classify {file.stem}", "images", quiet=quiet or not is_main()) as bar:
                    summary = cache_posteriors(
                        data, backbone, file, settings, decode=decoding.settings(), progress=bar.update_failed,
                        run=job.settings(str(world.device), decoding.processes()), world=world,
                    )  # fmt: skip
                runs.append(summary)
        return runs


def _run_line(summary: "Summary") -> str:
    fresh = summary.total - summary.resumed
    if not fresh:
        return f"{summary.path.name}: saved by an earlier run: {summary.tally()}"
    rate = rate_of(fresh, summary.seconds)
    return f"{summary.path.name}: {summary.tally()}, in {duration(summary.seconds)}, {rate} images/s"
