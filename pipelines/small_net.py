"""The small net that comes with vggfeat, trained by its own trainer on rendered images.

    vggfeat reproduce small_net                   (about an hour on two idle cores)
    vggfeat reproduce small_net --root FOLDER     (measures it on class folders of yours as well)
    vggfeat reproduce small_net --twin

Net A at an eighth of the width, below 6 MB in float16. From random weights it would take very long to find a way into
many classes at once, so it learns 20 of them first, 120 from there, and then 240, as the paper's deep nets start from a
shallow one; in the end it settles at a lower learning rate. The first 120 classes come in any colour; each of the
others has its usual tint and finish, so that the net does not learn to ignore colour. The last step measures what it
is good for: the demo's figures with the trained net and with the same net untrained.
"""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import click

from steps import TWIN_TRAINING, Options, must_run, read_results
from vggfeat.cli.progress import Progress
from vggfeat.errors import WeightsError
from vggfeat.runtime.devices import default_workers
from vggfeat.synthetic import LAYOUTS, Settings, write
from vggfeat.weights import load_backbone

MOST_BYTES = 6_000_000
"""What the package can carry."""
SCALES = "224,256"
PARTITIONS = 10
"""Seeds of the folds that a folder is tested with."""
SEED = 0
"""Of the rendered images."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A set of images and a training on it, which starts from the weights of the stage before."""

    name: str
    images: Settings
    training: str
    """Options of `vggfeat train`, as one types them."""


EVERY_STAGE = "--net A --width 0.125 --scale 256 --batch 32 --dropout 0 --precision bf16"
FEW = Settings(image_side=341, classes=20, train=400, val=400)
MANY = Settings(image_side=341, classes=120, train=200, val=1200)
ALL = Settings(image_side=341, classes=240, train=150, val=1200)
STAGES = (
    Stage(name="few", images=FEW, training=f"{EVERY_STAGE} --steps 2938 --lr 0.003 --validate-every 500"),
    Stage(name="many", images=MANY, training=f"{EVERY_STAGE} --steps 5400 --lr 0.002 --validate-every 1000"),
    Stage(name="all", images=ALL, training=f"{EVERY_STAGE} --steps 6750 --lr 0.002 --validate-every 1125"),
    Stage(name="settled", images=ALL, training=f"{EVERY_STAGE} --steps 1800 --lr 0.0003 --validate-every 600"),
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
    from vggfeat.weights import save_weights  # Loads PyTorch, for which the list of rows does not wait.

    before: Path | None = None
    for stage in STAGES:
        before = _train(stage, before, options)
    trained = load_backbone(before)
    made_by = {"pipeline": "small_net", "seed": SEED, "stages": [asdict(stage) for stage in STAGES]}
    weights = options.out / "small.safetensors"
    facts = {**trained.facts, "made_by": made_by}
    save_weights(weights, trained.model, mean=trained.mean, classes=trained.classes, dtype="float16", **facts)
    if weights.stat().st_size > MOST_BYTES:
        raise WeightsError(f"{weights}: expected at most {MOST_BYTES} bytes, found {weights.stat().st_size}")
    return weights


def _train(stage: Stage, before: Path | None, options: Options) -> Path:
    images = LAYOUTS["ilsvrc"].tiny if options.twin else stage.images
    # Stages with the same images share them.
    data, out = options.out / f"images-{images.classes}", options.out / stage.name
    with Progress("rendering", "images") as bar:
        workers = 1 if options.twin else default_workers()
        write("ilsvrc", data, seed=SEED, size=images, workers=workers, progress=bar.update)
    chosen = [*shlex.split(stage.training), *(TWIN_TRAINING if options.twin else ()), *options.more]
    if before is not None:
        chosen += ["--init-from", str(before)]
    out.mkdir(parents=True, exist_ok=True)  # --resume takes no folder that is not there.
    must_run("train", "--root", data, "--out", out, "--resume", *chosen)
    return out / "weights.safetensors"


def _measure(weights: Path, folder: Path, out: Path) -> None:
    """Test trained and untrained weights of the same net on images in class folders.

    A single partition into folds can favour either net by some points, so the mean over several is reported.
    """
    model = load_backbone(weights).model
    for name, spec in (("trained", str(weights)), ("untrained", f"random:{model.config}:0:{model.width!r}")):
        features = out / f"folder-{name}.h5"
        must_run("extract", "--dataset", "folder", "--root", folder, "--weights", spec, "--scales", SCALES,
                 "--out", features, "--allow-failed", 1000)  # fmt: skip
        found = []
        for seed in range(PARTITIONS):
            results = out / f"folder-{name}-{seed}.svm"
            must_run("svm", features, "--protocol", "k-fold", "--seed", seed, "--out", results)
            found.append(100 * read_results(results)["headline"])
        spread = f"{mean(found):.1f} % +- {stdev(found):.1f}"
        click.echo(f"{name}: mean class recall {spread} over {PARTITIONS} partitions into folds")
