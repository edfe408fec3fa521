"""`vggfeat audit`, `map`, `probe` and `report`: features or folders of results in, what people look at out."""

from pathlib import Path

import click

from vggfeat.cli.commands import COUNT, INTEGERS, WORDS, argument, command, flag, json_option, option, refuse_options
from vggfeat.cli.features import GivenFile, GivenOptions
from vggfeat.cli.options import NET, WorkerOptions
from vggfeat.cli.output import Progress, make_folder, say_note, show, terminal_width
from vggfeat.errors import ConfigError
from vggfeat.runtime.devices import ready_device
from vggfeat.wording import counted


@command()
def audit(
    *,
    files: tuple[Path, ...] = argument(nargs=-1, metavar="FEATURES.h5|RUN..."),
    near: float = option(type=click.FloatRange(0, 1, min_open=True), default=0.98,
        help="Smallest cosine of near duplicates."),
    fewest: int = option(type=click.IntRange(0), default=10, help="Smallest number of images that a class "
        "should have."),
    neighbours: int = option(type=click.IntRange(1, 1000), default=5,
        help="Number of nearest images over which the distance of an outlier is averaged."),
    folds: int = option(type=click.IntRange(2), default=5,
        help="Folds of the cross-validation that finds doubtful labels; it trains 4 SVMs for each fold and class."),
    no_labels: bool = flag(help="Do not look for doubtful labels; then no SVM is trained."),
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of the folds."),
    given: GivenFile,
    top: int = option(type=COUNT, default=10, help="Entries shown of each list on the terminal."),
    out: Path | None = option(metavar="PAGE.html", help="Also write an HTML page."),
    images: Path | None = option("--root", metavar="ROOT",
        help="Folder of the images, for the page or with --descriptors: as for `extract`."),
    workers: WorkerOptions,
    as_json: bool = json_option("Print all lists as JSON."),
    quiet: bool,
) -> None:  # fmt: skip
    """Look for copies, near duplicates, wrong labels, outliers and small classes in a feature file.

    Copies have the same bytes; near duplicates a cosine from --near on. Both matter most across splits, and are listed
    first there. Labels are doubted by SVMs that did not see the image; outliers are far from their nearest images. All
    of it is for people to look at: nothing is changed.

    \b
    Examples:
      vggfeat audit photos.h5
      vggfeat audit photos.h5 --root photos --out audit.html
      vggfeat audit --descriptors clip.parquet --dataset folder --root photos
    """
    from vggfeat.audit import AuditSettings, audit_table
    from vggfeat.results.audit import audit_json, audit_page, audit_text
    from vggfeat.results.page import check_page_place, write_page

    inputs = given.inputs(files)
    if no_labels:
        refuse_options(("folds", "seed"), "decides nothing with --no-labels, where nothing is trained")
    if images is not None and out is None and given.file is None:
        raise ConfigError("--root: expected together with --out, found alone; leave it out, or give --out")
    if out is not None:
        check_page_place(out, [*inputs, *filter(None, (images,))])
        make_folder(out.parent)
    settings = AuditSettings(
        near=near, fewest=fewest, neighbours=neighbours, folds=folds, labels=not no_labels, seed=seed
    )
    table = given.read(inputs, images)
    with Progress("audit", "steps", quiet=quiet) as bar:
        found = audit_table(table, settings, progress=bar.update_stage)
    content = audit_json(found, table, str(inputs[0]))
    if out is not None:
        write_page(out, audit_page(content, images, workers=workers.processes()))
    lines = audit_text(content, top=top, width=terminal_width()).split("\n")
    show(as_json, content, lines if out is None else [*lines, str(out)])


@command("map")
def map_(
    *,
    files: tuple[Path, ...] = argument(nargs=-1, metavar="FEATURES.h5|RUN..."),
    out: Path = option(default=Path("map.html"), help="File for the page."),
    images: Path | None = option("--root", metavar="ROOT",
        help="Folder of the images: what `extract --root` was given. [none: a page without images]"),
    results: Path | None = option("--run", metavar="RUN",
        help="Results folder of `svm`, whose predicted classes give the colours. [colours by label, or by cluster]"),
    method: str = option(type=["tsne", "umap", "pca"], default="tsne",
        help="umap needs the library umap-learn, the extra umap."),
    clusters: int | None = option(type=COUNT, help="Number of clusters of k-means. [the square root of half the "
        "images, at most 20]"),
    most: int = option(type=click.IntRange(3), default=5000, help="Most images on the page; of more, a random choice "
        "is drawn."),
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of all random choices."),
    given: GivenFile,
    workers: WorkerOptions,
    as_json: bool = json_option("Print places and clusters as JSON."),
) -> None:  # fmt: skip
    """Show all images of a feature file as points on one page, alike ones near each other.

    Point at one to see the image; drag over some to list their ids. The page also shows clusters (k-means) with their
    central images, which is a way into images without labels.

    \b
    Examples:
      vggfeat map photos.h5 --root photos --out map.html
      vggfeat map photos.h5 --run photos.svm --method pca
    """
    from vggfeat.projection import ProjectionSettings
    from vggfeat.results.features import map_json, map_page, map_text, predictions_of
    from vggfeat.results.page import check_page_place, write_page

    inputs = given.inputs(files)
    check_page_place(out, [*inputs, *filter(None, (images, results))])
    make_folder(out.parent)
    settings = ProjectionSettings(method=method, clusters=clusters, most=most, seed=seed)  # type: ignore[arg-type]
    predicted = None if results is None else predictions_of(results)
    content = map_json(given.read(inputs, images), str(inputs[0]), settings, predicted)
    write_page(out, map_page(content, images, workers=workers.processes()))
    show(as_json, {**content, "page": str(out)}, [*map_text(content).split("\n"), str(out)])


@command()
def probe(
    *,
    files: tuple[Path, ...] = argument(nargs=-1, metavar="FEATURES.h5|RUN..."),
    given: GivenOptions,
    probes: tuple[str, ...] = option(type=WORDS, default="svm,knn,logistic", help="Classifiers to compare."),
    shots: tuple[int, ...] = option(type=INTEGERS, default="1,2,4,8,16",
        help="Numbers of training images of each class; all of them is always measured as well."),
    repeats: int = option(type=COUNT, default=5, help="Random draws for each number of training images."),
    folds: int | None = option(type=click.IntRange(2), help="Folds of a cross-validation. [5]"),
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of draws and folds."),
    as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Measure nearest neighbours and logistic regression beside the SVM, on all training images and on few.

    Splits and measure are those of `svm`. The number of neighbours, or C, is chosen on the rows that the protocol holds
    out for it. With few images of each class the spread is over the draws.

    \b
    Examples:
      vggfeat probe voc2007.h5
      vggfeat probe --descriptors clip.parquet --dataset voc2007 --root VOCdevkit --probes knn --shots 1,10
    """
    from vggfeat.protocols.probes import ProbeSettings, run_probes
    from vggfeat.protocols.rules import ProtocolSettings, plan_protocol
    from vggfeat.results.features import probes_json, probes_text

    inputs = given.inputs(files)
    protocol = ProtocolSettings(folds=folds, seed=seed)
    settings = ProbeSettings(probes=probes, shots=shots, repeats=repeats, protocol=protocol)
    table = given.read(inputs, given.data_root)
    for note in plan_protocol(table.dataset, protocol)[-1].notes:
        say_note(note)
    with Progress("probe", "measurements", quiet=quiet) as bar:
        measure, values = run_probes(table, settings, progress=bar.update_stage)
    many = [str(number) for number in settings.shots if number not in {value.shots for value in values}]
    if many:
        say_note(f"no class has so many images to train on, so that there is nothing to measure: {', '.join(many)}")
    content = probes_json(measure, values, table.dataset.name)
    show(as_json, content, probes_text(content, width=terminal_width()).split("\n"))


@command()
def report(
    *,
    runs: tuple[Path, ...] = argument(nargs=-1, required=True, metavar="RUN..."),
    out: Path = option(default=Path("report.html"), help="File for the page."),
    images: Path | None = option("--root", metavar="ROOT",
        help="Folder of the images: what `extract --root` was given. [none: a page without images]"),
    explain: bool = flag(help="With --root: draw where the scores of the worst mistakes come from; this runs the net."),
    weights: tuple[str, ...] = option(multiple=True, metavar=NET,
        help="With --explain: the nets of the features. [found by SHA-256 in weights/]"),
    device: str | None = option(help="With --explain: cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]"),
    resamples: int = option(type=click.IntRange(100, 100000), default=1000,
        help="Resamples of the paired bootstrap between runs."),
    seed: int = option(type=click.IntRange(0), default=0, help="Seed of the bootstrap."),
    workers: WorkerOptions,
    as_json: bool = json_option("Print headlines and differences as JSON."),
    quiet: bool,
) -> None:  # fmt: skip
    """Show the results in folders of `svm`, `train` and others as one page, a file that can be opened and mailed.

    It holds the headline by its rule next to the paper's number, a table of classes that sorts, curves, confusions,
    the images that explain each class, failures, settings and times; nothing is loaded from elsewhere. Runs of the
    same classes stand side by side, with their differences and what other test images could change (a paired
    bootstrap).

    \b
    Examples:
      vggfeat report voc2007.svm --root VOCdevkit
      vggfeat report photos.svm --root photos --explain
      vggfeat report D.svm E.svm DE.svm --root VOCdevkit --out voc2007.html
      vggfeat report nets/A-256 nets/A-384
    """
    from vggfeat.metrics.bootstrap import BootstrapSettings
    from vggfeat.results.page import PageSettings, check_page_place, make_page, page_json, write_page
    from vggfeat.results.predictions import ExplainSettings

    if not explain and (weights or device):
        raise ConfigError("--weights, --device: expected with --explain, found without; leave them out, or give it")
    settings = PageSettings(
        images=images,
        bootstrap=BootstrapSettings(resamples=resamples, seed=seed),
        workers=workers.processes(),
        explain=ExplainSettings(weights=weights, device=ready_device(device)) if explain else None,
    )
    check_page_place(out, runs)
    make_folder(out.parent)
    with Progress("report", "parts", quiet=quiet) as bar:
        page = make_page(runs, settings, progress=bar.update_stage)
    write_page(out, page.content)
    found, lines = page_json(page), []
    for group in found["groups"]:
        lines += [f"{run['name']}: {group['measure']} {_value(run)} {run['tested']}" for run in group["runs"]]
        lines += [f"{one['second']} - {one['first']}: {_difference(one)}" for one in group["differences"]]
    if page.missing:
        missing = counted(page.missing, "image{s} {are} missing, damaged or outside")
        lines.append(f"note: {missing} {images}; the page says which")
    lines.append(f"{out}: {len(page.content) / 1e6:.1f} MB, {counted(page.images, 'image{s}')}")
    show(as_json, {"page": str(out), **found}, lines)


def _value(run: dict) -> str:
    if run["headline"] is None:
        return "- %"
    deviation = "" if run["deviation"] is None else f" +- {100 * run['deviation']:.1f}"
    return f"{100 * run['headline']:.1f} %{deviation}"


def _difference(one: dict) -> str:
    if "reason" in one:
        return f"not compared: {one['reason']}"
    low, high = (100 * end for end in one["interval"])
    return (
        f"{100 * one['mean']:+.1f} points, {100 * one['level']:g} % interval {low:+.1f} to {high:+.1f} "
        f"({one['resamples']} resamples of {counted(one['images'], 'test image{s}')})"
    )
