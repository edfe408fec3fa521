"""The small net that comes with vggfeat, trained by its own trainer on images that nobody photographed.

    vggfeat reproduce small_net                   (about an hour and a quarter on two idle cores)
    vggfeat reproduce small_net --root FOLDER     (measures it on class folders of yours as well)
    vggfeat reproduce small_net --twin

Net A at an eighth of the width, below 6 MB in float16. It begins with rendered scenes. From random weights it would
take very long to find a way into many classes at once, so it learns 20 of them first, 120 from there, and then 240, as
the paper's deep nets start from a shallow one, and settles at a lower learning rate. The first 120 classes come in any
colour; each of the others has its usual tint and finish, so that the net does not learn to ignore colour.

These scenes are all of one kind, and so is what they teach. So the net goes on with images that formulas make:
fractals, surfaces, leaves and bodies of parts, which have little in common with one another. It forgets some of the
scenes over them; what ships lies between the two nets and has most of both. The last step measures what it is good for:
the demo's figures with the trained net and with the same net untrained. The stages with formulas of the net in the
package ran with OMP_NUM_THREADS=1; another number of threads rounds sums in another way.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import click

from steps import TWIN_TRAINING, Options, must_run, read_results
from vggfeat.cli.output import Progress
from vggfeat.errors import WeightsError
from vggfeat.runtime.devices import default_workers
from vggfeat.synthetic import LAYOUTS, Settings, write
from vggfeat.weights import load_backbone

if TYPE_CHECKING:
    from vggfeat.weights import Backbone

MOST_BYTES = 6_000_000
"""What the package can carry."""
SCALES = "224,256"
LAYERS = ("fc7", "fc6", "pool5")
PARTITIONS = 10
"""Seeds of the folds that a folder is tested with."""
SEED = 0
"""Of the rendered images."""
SHARE = 0.75
"""How far the net that ships lies from that of the scenes, 0, to that of the formulas, 1."""
GOOD_FOR = "first looks at any images, by --layer fc6, best with pool5 stacked to it; it has seen no photograph"
"""What `vggfeat weights show` says of it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A set of images and a training on it, which starts from the weights of the stage before."""

    name: str
    layout: str
    """Of the images, a key of `LAYOUTS`."""
    images: Settings
    training: str
    """Options of `vggfeat train`, as one types them."""
    rounded: bool = False
    """Whether the next stage starts from float16, as packages carry it: it then starts from the net of a package."""


EVERY_STAGE = "--net A --width 0.125 --scale 256 --batch 32 --dropout 0 --precision bf16"
FEW = Settings(image_side=341, classes=20, train=400, val=400)
MANY = Settings(image_side=341, classes=120, train=200, val=1200)
ALL = Settings(image_side=341, classes=240, train=150, val=1200)
FORMULAS = Settings(image_side=256, classes=240, train=32, val=240)
MORE_FORMULAS = Settings(image_side=256, classes=480, train=40, val=480)


def _stage(name: str, layout: str, images: Settings, training: str, *, rounded: bool = False) -> Stage:
    return Stage(name=name, layout=layout, images=images, training=f"{EVERY_STAGE} {training}", rounded=rounded)


STAGES = (
    _stage("few", "ilsvrc", FEW, "--steps 2938 --lr 0.003 --validate-every 500"),
    _stage("many", "ilsvrc", MANY, "--steps 5400 --lr 0.002 --validate-every 1000"),
    _stage("all", "ilsvrc", ALL, "--steps 6750 --lr 0.002 --validate-every 1125"),
    _stage("settled", "ilsvrc", ALL, "--steps 1800 --lr 0.0003 --validate-every 600", rounded=True),
    _stage("formulas", "formulas", FORMULAS, "--steps 900 --lr 0.002 --validate-every 300"),
    _stage("more_formulas", "formulas", MORE_FORMULAS, "--steps 2400 --lr 0.002 --validate-every 600"),
    _stage("settled_formulas", "formulas", MORE_FORMULAS, "--steps 900 --lr 0.0004 --validate-every 300"),
)


def run(options: Options) -> None:
    """Render images, train on them, write the net in float16, and measure transfer next to the same net untrained."""
    weights = _make(options)
    small = ("--size", "tiny", "--scales", "224") if options.twin else ()
    must_run("demo", "--weights", weights, "--out", options.out / "demo", *small)
    if options.root is not None:
        _measure(weights, options.root, options.out)
    click.echo(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB; into the package: vggfeat/weights/small.safetensors")


def _make(options: Options) -> Path:
    before: Path | None = None
    for stage in STAGES:
        before = _train(stage, before, options)
        if stage.rounded:
            before = scenes = _save(load_backbone(before), before.with_name("float16.safetensors"))
    made_by = {"pipeline": "small_net", "seed": SEED, "share": SHARE, "stages": [asdict(stage) for stage in STAGES]}
    mixed = mix(load_backbone(scenes), load_backbone(before), SHARE)
    weights = _save(mixed, options.out / "small.safetensors", made_by=made_by, good_for=GOOD_FOR)
    if weights.stat().st_size > MOST_BYTES:
        raise WeightsError(f"{weights}: expected at most {MOST_BYTES} bytes, found {weights.stat().st_size}")
    return weights


def mix(first: "Backbone", last: "Backbone", share: float) -> "Backbone":
    """Return the net that lies between two, `share` of the way from the first to the last; fc8 is that of the last.

    The last must have been trained from the first. What it has forgotten comes back so (Wortsman and others, "Robust
    fine-tuning of zero-shot models", 2022).
    """
    start = first.model.state_dict()
    for name, weights in last.model.state_dict().items():  # These share memory with the net's own.
        if not name.startswith("layers.fc8"):
            weights.mul_(share).add_(start[name], alpha=1 - share)
    means = zip(first.mean, last.mean, strict=True)
    red, green, blue = ((1 - share) * one + share * other for one, other in means)
    return replace(last, mean=(red, green, blue))


def _save(net: "Backbone", to: Path, **more: Any) -> Path:
    from vggfeat.weights import save_weights  # Loads PyTorch, for which the list of rows does not wait.

    save_weights(to, net.model, mean=net.mean, classes=net.classes, dtype="float16", **net.facts, **more)
    return to


def _train(stage: Stage, before: Path | None, options: Options) -> Path:
    images = LAYOUTS[stage.layout].tiny if options.twin else stage.images
    # Stages with the same images share them.
    data, out = options.out / f"{stage.layout}-{images.classes}", options.out / stage.name
    with Progress("rendering", "images") as bar:
        workers = 1 if options.twin else default_workers()
        write(stage.layout, data, seed=SEED, size=images, workers=workers, progress=bar.update)
    chosen = [*shlex.split(stage.training), *(TWIN_TRAINING if options.twin else ()), *options.more]
    if before is not None:
        chosen += ["--init-from", str(before)]
    out.mkdir(parents=True, exist_ok=True)  # --resume takes no folder that is not there.
    must_run("train", "--root", data, "--out", out, "--resume", *chosen)
    return out / "weights.safetensors"


def _measure(weights: Path, folder: Path, out: Path) -> None:
    """Test trained and untrained weights of the same net on images in class folders, by several layers.

    A single partition into folds can favour either net by some points, so the mean over several is reported.
    """
    model = load_backbone(weights).model
    nets = {"trained": str(weights), "untrained": f"random:{model.config}:0:{model.width!r}"}
    for layer, (name, net) in product(LAYERS, nets.items()):
        features = out / f"folder-{name}-{layer}.h5"
        must_run("extract", "--dataset", "folder", "--root", folder, "--weights", net, "--scales", SCALES,
                 "--layer", layer, "--out", features, "--allow-failed", 1000)  # fmt: skip
        recall, accuracy = zip(*(_test(features, seed) for seed in range(PARTITIONS)), strict=True)
        click.echo(f"{layer} {name}: mean class recall {_spread(recall)}, accuracy {_spread(accuracy)}, "
                   f"{PARTITIONS} partitions into folds")  # fmt: skip


def _test(features: Path, seed: int) -> tuple[float, float]:
    """Return mean class recall and accuracy by one partition into folds, in per cent."""
    folder = features.with_suffix(f".{seed}.svm")
    must_run("svm", features, "--protocol", "k-fold", "--seed", seed, "--out", folder)
    results = read_results(folder)
    return 100 * results["headline"], 100 * results["secondary"]["accuracy"]["value"]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} % +- {stdev(values):.1f}"
