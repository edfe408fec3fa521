"""`vggfeat localise`: boxes of objects, evaluated on ILSVRC's rules or drawn on images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import click

from vggfeat.cli.commands import COUNT, INTEGERS, argument, command, json_option, option
from vggfeat.cli.config import LOCALISE
from vggfeat.cli.options import DecodingOptions, JobOptions, load_net, net_files, note_all
from vggfeat.cli.output import Progress, claim_folder, show, show_results
from vggfeat.cli.signals import is_main
from vggfeat.cli.train import localise_train
from vggfeat.errors import ConfigError, StoreError
from vggfeat.results.record import write_file
from vggfeat.runtime.devices import Precision, ready_device
from vggfeat.weights import imagenet_classes
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.localisation.maps import LocaliseSettings
    from vggfeat.localisation.nets import BoxNet
    from vggfeat.samples import ClassificationSet
    from vggfeat.weights import Backbone

EVALUATION = ("results.json", "table.txt", "classes.csv", "submission.txt", "images.jsonl",
              "images.jsonl.failures.jsonl", "run.sha256")  # fmt: skip
PREDICTIONS = ("predictions.json", "predictions.csv", "run.sha256")


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """Box nets, and how their boxes are put together."""

    title: ClassVar[str] = "Boxes"
    specs: tuple[str, ...] = option("--boxes", multiple=True, required=True, metavar="FILE",
        help="A box net of `vggfeat localise train`; where several are given, their boxes are merged.")  # fmt: skip
    scales: tuple[tuple[int, ...], ...] = option(multiple=True, type=INTEGERS,
        help="Q, smallest image sides in pixels; give it once for all box nets, or once for each, in their order. [the "
        "nets' S]")  # fmt: skip
    threshold: float | None = option(type=click.FloatRange(0, 3, max_open=True),
        help="Greatest match score of boxes that are merged. [0.25]")  # fmt: skip
    average: str | None = option("--merge", type=["score", "count"],
        help="How boxes are weighted when they are merged: by their class posteriors, or equally. [score]")  # fmt: skip
    precision: Precision = option(type=get_args(Precision), default="fp32")
    device: str | None = option(help="cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]")
    batch_pixels: int | None = option(type=COUNT, help="Pixels in one batch, which bounds the memory. [2^20]")

    def load(self) -> "tuple[BoxNet, ...]":
        """Load the nets."""
        from vggfeat.localisation.nets import load_box_net

        return tuple(load_box_net(spec) for spec in self.specs)

    def settings(self, nets: "tuple[BoxNet, ...]", **more: Any) -> "LocaliseSettings":
        """Return what decides a guess."""
        from vggfeat.localisation.boxes import MergeSettings
        from vggfeat.localisation.maps import LocaliseSettings

        if len(self.scales) not in (0, 1, len(nets)):
            raise ConfigError(
                f"--scales: expected it once, or once for each of {len(nets)} box nets, found {len(self.scales)}"
            )
        each = self.scales * len(nets) if len(self.scales) == 1 else self.scales or tuple((net.scale,) for net in nets)
        merging = {"threshold": self.threshold, "average": self.average}
        if self.batch_pixels:
            more["batch_pixels"] = self.batch_pixels
        return LocaliseSettings(
            scales=each,
            merging=MergeSettings(**{name: value for name, value in merging.items() if value is not None}),  # type: ignore[arg-type]
            precision=self.precision,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class GroupOptions(JobOptions):
    """How an evaluation is cut up, resumed and repeated."""

    shard_rows: int | None = option("--group", type=click.IntRange(1, 65536),
        help="Images between two restart points. [32, on a GPU 128]")  # fmt: skip


@click.group()
def localise() -> None:
    """Train nets that answer with boxes, evaluate them by ILSVRC's localisation rules, and draw what they find.

    After Appendix A of the VGG paper.

    \b
    Examples:
      vggfeat localise train --root ILSVRC --weights D256.safetensors --scale 256 --out B256
      vggfeat localise evaluate --root ILSVRC --boxes B256/weights.safetensors --protocol gt --out B256.gt
      vggfeat localise predict --boxes B256/weights.safetensors --classifier D256.safetensors holiday/ --out drawn
    """


localise.add_command(localise_train)


@command(group=localise, config=LOCALISE.option)
def evaluate(
    *,
    root: Path = option(required=True, metavar="ROOT", help="Folder of ILSVRC-2012, or of classes with annotations."),
    layout: "Layout | None",
    annotations: Path | None = option(help="Folder of the annotated boxes, where they are not below --root."),
    classifier: str | None = option(metavar="FILE",
        help="Classification net that rates the boxes, and without --posteriors guesses the classes."),
    files: tuple[Path, ...] = option("--posteriors", multiple=True, metavar="FILE.h5",
        help="Posteriors of `vggfeat classify` by which classes are guessed; several are averaged."),
    protocol: str = option(type=["dense", "gt"], default="dense",
        help="dense: five guesses for each image, densely. gt: one box for the true class, in the centre crop."),
    out: Path = option(required=True, help="Folder for the results."),
    boxes: BoxOptions,
    decoding: DecodingOptions,
    job: GroupOptions,
    spreadsheet_safe: bool,
    as_json: bool = json_option("Print JSON instead of text."),
    quiet: bool,
) -> int:  # fmt: skip
    """Compute the localisation error on validation images, by the official rules.

    dense: box nets and the classification net see the whole image at every Q; the boxes of the five best classes
    are merged, and rated by the classification net. An image is right if one of its guesses has the true class and
    overlaps an object of it by half. gt: the box of the true class, from the centre crop alone.

    The folder receives results.json, table.txt, classes.csv, submission.txt in the official format (dense), and
    images.jsonl, a line an image, from which a run that was stopped is resumed when the same command is given again.
    Images that can't be read are listed in images.jsonl.failures.jsonl. Several GPUs or machines with a common disk:
    give the same command to torchrun; the files are the same, byte by byte.

    \b
    Examples:
      vggfeat localise evaluate --root ILSVRC --boxes B384.safetensors --protocol gt --out B384.gt
      vggfeat localise evaluate --root ILSVRC --boxes B384.safetensors --scales 352,384 \\
          --classifier D384.safetensors --posteriors D.h5 --posteriors E.h5 --out B384.dense
      vggfeat localise evaluate --root ILSVRC --boxes B256.safetensors --scales 256 \\
          --boxes B384.safetensors --scales 352,384 --classifier D384.safetensors --out both.dense

    \b
    Exit codes: 0 done, 3 done but more than --allow-failed images failed; others: vggfeat --help.
    """
    from vggfeat.classification.extract import match_classes
    from vggfeat.datasets import ilsvrc
    from vggfeat.datasets.ilsvrc_boxes import read_boxes
    from vggfeat.localisation.evaluate import LocalisationSystem, count_errors, describe_run, locate_images
    from vggfeat.localisation.submission import class_ids
    from vggfeat.results.ilsvrc import localisation_record, write_localisation
    from vggfeat.results.paper import is_official_set, paper_box_errors
    from vggfeat.runtime.distributed import open_world
    from vggfeat.store.failures import failures_path

    journal, quiet = out / "images.jsonl", quiet or not is_main()
    inputs = [*files, *net_files(classifier, *boxes.specs)]
    claim_folder(
        out, EVALUATION, "vggfeat-localisation", "vggfeat localised images", inputs=inputs, overwrite=job.overwrite
    )
    with open_world(ready_device(boxes.device), os.environ, lost=StoreError) as world:
        # All nets are loaded before the annotations, which may take minutes.
        nets = boxes.load()
        rating = _classifier(classifier) if classifier else None
        if protocol == "gt" and (boxes.threshold, boxes.average) != (None, None):
            raise ConfigError("--protocol gt: a centre crop gives one box, so leave out --threshold and --merge")
        settings = boxes.settings(nets)
        data = ilsvrc.read(root, layout)
        channels = None if rating is None else match_classes(rating, data.classes)
        labels, labels_from = _labels(files, data, protocol, rating)
        with Progress("boxes", "files", quiet=quiet) as bar:
            truth = read_boxes(root, data.val, "val", annotations=annotations, progress=bar.update)
        system = LocalisationSystem(protocol, nets, rating, channels, labels, labels_from, settings)  # type: ignore[arg-type]
        run, decode = job.settings(str(world.device), decoding.processes()), decoding.settings()
        with Progress("localise", "images", quiet=quiet) as bar:
            records = locate_images(
                data.val, system, journal, run=run, decode=decode, world=world,
                progress=bar.update_failed,
            )  # fmt: skip
    if not is_main():
        return 0
    found = count_errors(records, data.val, truth, settings.top)
    record = localisation_record(
        data,
        found,
        protocol,
        settings=describe_run(data.val, system, run, decode),
        numbering=class_ids(data.classes, root),
        paper=paper_box_errors(protocol, nets, settings.scales) if is_official_set(data) else (),
    )
    written = [
        journal,
        *([failures_path(journal)] if found.failed else []),
        *write_localisation(record, data, found, out, spreadsheet_safe=spreadsheet_safe),
    ]
    show_results(record, out, written, failed=bool(found.failed), as_json=as_json)
    return 3 if len(found.failed) > job.allow_failed else 0


@command(group=localise)
def predict(
    *,
    images: tuple[Path, ...] = argument(nargs=-1, required=True),
    classifier: str = option(required=True, metavar="FILE", help="Classification net that guesses the classes and "
        "rates the boxes."),
    out: Path = option(required=True, help="Folder for drawings and predictions."),
    top: int = option(type=click.IntRange(1, 5), default=1, help="Number of classes shown for each image."),
    boxes: BoxOptions,
    decoding: DecodingOptions,
    allow_failed: int,
    spreadsheet_safe: bool,
    as_json: bool = json_option("Print JSON instead of text."),
    quiet: bool,
) -> int:  # fmt: skip
    """Locate what is on images, and draw the boxes.

    IMAGES are files, or folders of files. The folder receives a PNG with boxes and labels for every image,
    predictions.json and predictions.csv. An image that can't be read is named, and the others go on.

    \b
    Example:
      vggfeat localise predict --boxes B384.safetensors --classifier D384.safetensors holiday/ --out holiday.boxes
    """
    from vggfeat.localisation.locate import Localiser
    from vggfeat.localisation.predict import drawing_names, image_files, predict_files
    from vggfeat.results.ilsvrc import summary_lines, write_box_predictions

    files, notes = image_files(images)
    note_all(notes)
    inputs = [*images, *files, *net_files(classifier, *boxes.specs)]
    claim_folder(out, [*PREDICTIONS, *drawing_names(files)], "vggfeat-boxes", inputs=inputs)
    nets = boxes.load()
    rating = _classifier(classifier)
    classes, words = _names(rating, nets)
    localiser = Localiser(nets, rating, classes, boxes.settings(nets, top=top), device=ready_device(boxes.device))
    found = []
    with Progress("localise", "images", quiet=quiet) as bar:
        bar.update(0, len(files))
        for one, png in predict_files(
            files, localiser, classes, words, workers=decoding.processes(), decode=decoding.settings()
        ):
            if one.drawn:
                write_file(out / one.drawn, png)
            found.append(one)
            bar.update(len(found), len(files))
    content = write_box_predictions(found, classes, words, out, spreadsheet_safe=spreadsheet_safe)
    drawn = sum(bool(one.drawn) for one in found)
    written = f"{out}: {drawn} of {len(found)} images, predictions.json, predictions.csv"
    show(as_json, content, [*summary_lines(found, classes, words), written])
    return 3 if len(found) - drawn > allow_failed else 0


@command(group=localise)
def check(
    *,
    submission: Path = argument(),
    images: int = option(type=COUNT, default=50_000, help="Number of lines expected."),
    classes: int = option(type=COUNT, default=1000, help="Number of classes; labels run from 1 to it."),
    as_json: bool,
) -> None:  # fmt: skip
    """Check a submission file against the official format.

    A line an image, in the order of file names: label xmin ymin xmax ymax, one to five times. Five zeros are no
    guess. The first line that is not so is named.

    \b
    Example:
      vggfeat localise check B384.dense/submission.txt
    """
    from vggfeat.localisation.submission import read_submission

    guesses = sum(len(line) for line in read_submission(submission, images=images, classes=classes))
    written = f"{submission}: {counted(images, 'line{s}')}, {counted(guesses, 'guess{es}')}"
    show(as_json, {"file": str(submission), "images": images, "guesses": guesses}, [written])


def _classifier(spec: str) -> "Backbone":
    from vggfeat.localisation.nets import is_box_net

    backbone = load_net(spec)
    if is_box_net(backbone):
        raise ConfigError(f"--classifier: expected a classification net, found {spec}, which answers with boxes")
    if backbone.model.last:
        raise ConfigError(f"--classifier: expected a complete net, found {spec}, which ends at {backbone.model.last}")
    return backbone


def _names(backbone: "Backbone", nets: "tuple[BoxNet, ...]") -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the classes of a net, and what people call them where they are ImageNet's."""
    outputs = backbone.model.num_classes
    other = next((net.classes for net in nets if len(net.classes) == outputs), tuple(map(str, range(outputs))))
    names = backbone.classes or other
    words = dict(imagenet_classes())
    return names, {name: words[name] for name in names if name in words}


def _labels(
    files: tuple[Path, ...], data: "ClassificationSet", protocol: str, rating: "Backbone | None"
) -> tuple[Any, str]:
    """Return the five best classes of every image by files of posteriors, and where they come from."""
    from vggfeat.classification.evaluate import fuse
    from vggfeat.classification.extract import as_dataset

    if protocol == "gt":
        if files or rating is not None:
            raise ConfigError("--protocol gt: the class is given, so leave out --classifier and --posteriors")
        return None, "given"
    if not files:
        if rating is None:
            raise ConfigError("--classifier: expected a classification net, or --posteriors, found neither")
        return None, "the classifier"
    fused, ids = fuse(list(files)), as_dataset(data).ids
    place = {name: row for row, name in enumerate(fused.ids)}
    if fused.classes != data.classes or place.keys() != set(ids):
        raise ConfigError(f"--posteriors: expected those of the images and classes of {data.val.root}, found others")
    parts = (f"{part.net} {part.mode} at {list(part.scales)} ({part.sha256})" for part in fused.parts)
    return fused.top(5)[[place[name] for name in ids]], f"posteriors of {'; '.join(parts)}"
