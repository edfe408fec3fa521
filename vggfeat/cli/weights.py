"""`vggfeat weights`: which nets there are, what a file holds, and from one format into another."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.checks import check_choice
from vggfeat.cli.commands import FLOATS, argument, command, flag, option
from vggfeat.cli.options import load_net, print_notes
from vggfeat.cli.output import Progress, make_folder, say, say_json, say_note, show
from vggfeat.errors import ConfigError
from vggfeat.runtime.output_paths import anything, check_target
from vggfeat.weights.load import convert as convert_file
from vggfeat.weights.load import examine
from vggfeat.weights.load import verify as verify_file
from vggfeat.weights.sniff import FORMATS
from vggfeat.weights.sources import PUBLISHED, find_file, nets_in, weights_folder
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.weights.load import Verification, WeightsFile
    from vggfeat.weights.sources import Published

SHOWN_CLASSES = 5


@click.group()
def weights() -> None:
    """List, fetch, show, verify and convert nets: Caffe, MatConvNet, Keras, PyTorch, timm, and vggfeat's own.

    Every format also goes into `extract` as it is.

    \b
    Example, the authors' net D from its published address to features:
      vggfeat weights fetch vgg16-caffe
      vggfeat extract --dataset voc2007 --root VOCdevkit --weights vgg16-caffe
    """


@command("list", group=weights)
def list_(*, as_json: bool) -> None:
    """List the published nets, and the files in the folder of nets (weights/, or $VGGFEAT_WEIGHTS).

    \b
    Example:
      vggfeat weights list
    """
    folder = weights_folder()
    there = {path.name: path for path in nets_in(folder)}
    paths = {name: str(path) for name, path in there.items()}
    rows = [asdict(published) | {"path": paths.get(published.file)} for published in PUBLISHED.values()]
    files = [{"path": str(path), "bytes": path.stat().st_size} for path in there.values()]
    here = f"in {folder}/: {', '.join(there) or 'nothing yet'}; in the package: small"
    content = {"published": rows, "folder": str(folder), "files": files}
    show(as_json, content, [*_listed(list(PUBLISHED.values()), there), "", here])


@command("show", group=weights)
def show_file(*, path: str = argument(metavar="FILE|NAME"), as_json: bool) -> None:
    """Show what a file holds: its net, what images it takes and who says so, and every tensor.

    \b
    Example:
      vggfeat weights show VGG_ILSVRC_16_layers.caffemodel
    """
    file = examine(find_file(path))
    show(as_json, file.describe(), _shown(file))


@command(group=weights)
def convert(
    *,
    source: str = argument(metavar="SRC"),
    target: Path = argument(metavar="DST.safetensors"),
    float16: bool = flag(help="Store float16, half the size, with 11 bits of precision."),
    overwrite: bool,
    mean: tuple[float, ...] | None = option(type=FLOATS,
        help="Mean that is subtracted from the 3 channels, in the order of --channels and the units of --range. [by "
        "format]"),
    std: tuple[float, ...] | None = option(type=FLOATS, help="Deviation by which the channels are then divided, given "
        "as --mean. [by format]"),
    channels: str | None = option(type=["rgb", "bgr"], help="Order of the colour channels. [by format]"),
    highest: str | None = option("--range", type=["1", "255"], help="Largest value of a pixel. [by format]"),
    pool_rounding: str | None = option(type=["floor", "ceil"], help="How the size of a pooling's output is rounded. "
        "[by format]"),
    as_json: bool,
) -> None:  # fmt: skip
    """Write a net from any format as safetensors: RGB, with mean, pooling and class names inside.

    How each of them was settled, and the source's SHA-256, is kept in the file; `show` prints it. Most formats don't
    say which pixels a net takes: what is assumed from the format is noted, and can be stated instead.

    \b
    Examples:
      vggfeat weights convert VGG_ILSVRC_16_layers.caffemodel weights/D.safetensors
      vggfeat weights convert places365.caffemodel P.safetensors --mean 104,113,116 --channels bgr --range 255
    """
    from vggfeat.weights.importing import Preprocessing

    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: expected a name that ends in .safetensors, by which it will be found again")
    path = find_file(source)
    real = check_target(target, inputs=[path], overwrite=overwrite, option="DST")
    make_folder(real.parent)
    dtype = "float16" if float16 else "float32"
    stated = Preprocessing(
        mean=mean, std=std, channels=channels, pool_rounding=pool_rounding,  # type: ignore[arg-type]
        range=int(highest) if highest else None,  # type: ignore[arg-type]
    )  # fmt: skip
    file = convert_file(path, real, dtype=dtype, stated=stated)
    print_notes(file.backbone)
    kind, net = FORMATS[file.format].words, file.backbone.model.config
    summary = f"{target}: net {net}, {target.stat().st_size / 1e6:.1f} MB, from {kind}"
    imported = [f"  {name}: {_words(value)}" for name, value in file.backbone.imported.items()]
    show(as_json, file.describe() | {"converted_to": str(target), "stored": dtype}, [summary, *imported])


@command(group=weights)
def fetch(
    *,
    name: str = argument(),
    out: Path | None = option(help="Folder for the file. [$VGGFEAT_WEIGHTS, weights/]"),
    as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Download a published net from the address where it was published, and check its checksum.

    A download that was stopped is resumed when the same command is given again. In weights/ the net is known by its
    name.

    \b
    Example:
      vggfeat weights fetch vgg16-caffe
    """
    from vggfeat.weights.download import fetch as download
    from vggfeat.weights.download import is_download, is_note

    check_choice("name", name, PUBLISHED)
    published, folder = PUBLISHED[name], out or weights_folder()
    check_target(folder / published.file, ours=anything)  # Its checksum says whether it is the file.
    check_target(folder / f"{published.file}.part", ours=is_download, called="part of a download")
    check_target(folder / f"{published.file}.part.json", ours=is_note, called="what is known of a download")
    make_folder(folder)
    say_note(f"{published.file}: licence: {published.licence}")
    with Progress(f"fetch {name}", "MB", quiet=quiet) as bar:
        fetched = download(
            published, folder, progress=lambda done, total: bar.update(done / 1e6, max(done, total) / 1e6)
        )
    how = f"from {fetched.address}" if fetched.address else "was there"
    known = name if folder == weights_folder() else fetched.path
    summary = f"{fetched.path}: {fetched.bytes} bytes, {published.checksum[0]} as published, {how}; to use it:"
    use = f"  vggfeat extract --dataset NAME --root ROOT --weights {known}"
    show(as_json, {"name": name} | asdict(fetched), [summary, use])


@command(group=weights)
def verify(*, path: str = argument(metavar="FILE|NAME"), as_json: bool) -> int:
    """Check a file: structure, finite numbers, no blank layer, known checksum; and say what errors to expect of it.

    \b
    Example:
      vggfeat weights verify vgg16-397923af.pth

    Exit code 5 if it is not sound.
    """
    verification = verify_file(find_file(path))
    show(as_json, verification.describe(), _verified(verification))
    return 5 if verification.problems else 0


@command(group=weights)
def export(
    *,
    path: str = argument(metavar="FILE|NAME"),
    target: str = option("--to", type=["torchvision", "onnx"], required=True),
    out: Path = option(required=True, help="The file to write."),
    layer: str | None = option(help="ONNX: the map that the exported net returns. [its class scores]"),
    as_is: bool = flag(help="torchvision: leave conv1_1 as it is, for your own normalisation."),
    overwrite: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a net for torchvision's classes, or as ONNX.

    ONNX takes RGB from 0 to 255, N, H and W free, with the normalisation inside. For torchvision the normalisation
    goes into conv1_1, so that its usual one is right.

    \b
    Examples:
      vggfeat weights export vgg16-caffe --to torchvision --out vgg16.pth
      vggfeat weights export D.safetensors --to onnx --layer fc7 --out vgg16-fc7.onnx
    """
    from vggfeat.cli.options import net_files
    from vggfeat.weights.export import export_onnx, export_torchvision

    if (layer and target != "onnx") or (as_is and target != "torchvision"):
        raise ConfigError(f"export to {target}: expected no {'--layer' if layer else '--as-is'}, found one")
    real = check_target(out, inputs=net_files(path), overwrite=overwrite)
    make_folder(real.parent)
    about: dict[str, Any]
    if target == "onnx":
        net = load_net(path)
        layer = layer or net.model.scores
        export_onnx(net, real, layer=layer)
        about = {"input": "images (N, 3, H, W), RGB, 0 to 255", "output": f"{layer} (N, C, h, w)"}
    else:
        about = export_torchvision(load_net(path), real, fold=not as_is)
    if as_json:
        say_json({"path": str(out)} | about)
        return
    say(f"{out}: {'; '.join(f'{name}: {_words(value)}' for name, value in about.items() if name != 'exact')}")
    if not about.get("exact", True):
        say("  its mean is not torchvision's, so maps differ slightly at the border of an image; exact with --as-is")


@command(group=weights)
def push(
    *,
    path: str = argument(metavar="FILE|NAME"),
    repository: str = argument(metavar="OWNER/NAME"),
    float16: bool = flag(help="Store float16, half the size, with 11 bits of precision."),
    licence: str | None = option(help="Licence by the Hub's name for it, for instance mit. [that of the "
        "published net]"),
    private: bool = flag(help="Make a new repository private."),
    as_json: bool,
) -> None:  # fmt: skip
    """Write a net to the Hugging Face Hub, with a model card made of what the file says of itself.

    Both go in one commit, which the command names; log in first (hf auth login). Needs the extra hub.

    \b
    Example:
      vggfeat weights push trained/best.safetensors me/vgg-flowers --licence cc-by-4.0
    """
    from vggfeat.weights.export import push as push_file

    dtype = "float16" if float16 else "float32"
    pushed = push_file(find_file(path), repository, dtype=dtype, licence=licence, private=private)
    use = f"  vggfeat extract --dataset NAME --root ROOT --weights {pushed.spec}"
    show(as_json, pushed._asdict(), [f"{pushed.spec}: to use it:", use])


def _listed(rows: "list[Published]", there: dict[str, Path]) -> Iterator[str]:
    for authors, title in ((True, "the authors' nets, in every format"), (False, "trained by others")):
        own = [row for row in rows if row.authors is authors]
        if not authors:
            yield ""
        yield f"{title}: {', '.join(dict.fromkeys(row.licence for row in own))}"
        yield f"  {'name':25}{'net':5}{'top-1':>6}{'top-5':>6}  {'file':48} here"
        for row in own:
            here = "yes" if row.file in there else "-"
            errors = f"{row.top1_error:6.1f}{row.top5_error:6.1f}"
            yield f"  {row.name:25}{row.net:5}{errors}  {row.file:48} {here}"
    yield ""
    yield "Errors: percent of ILSVRC-2012 validation, single centre crop. Get one: vggfeat weights fetch NAME"


def _shown(file: "WeightsFile") -> Iterator[str]:
    about = file.describe()
    yield f"{file.path}: {FORMATS[file.format].words}, {file.bytes} bytes"
    classes = counted(about["num_classes"], "class{es}")
    yield f"  net: {about['net']}, width {about['width']:g}, {classes}, {about['numbers']} numbers"
    yield f"  takes: RGB, 0 to 255, less {_words(about['mean'])}, over {_words(about['std'])}"
    yield f"  poolings: {'round up' if about['pool_rounding'] == 'ceil' else 'round down'}"
    more = "" if len(about["classes"]) <= SHOWN_CLASSES else ", ..."
    yield f"  classes: {', '.join(about['classes'][:SHOWN_CLASSES]) or 'without names'}{more}"
    for part in ("imported", "facts"):
        for name, value in about[part].items():
            yield f"  {part}: {name}: {_words(value)}"
    yield f"  sha256: {about['sha256']}"
    yield f"  checksum: {_known(file)}"
    for tensor in about["tensors"]:
        yield f"  {tensor['name']:16} {'x'.join(map(str, tensor['shape'])):>16} {tensor['numbers']:>11}"


def _verified(verification: "Verification") -> Iterator[str]:
    from vggfeat.nets.backbone import NOT_FINITE

    file = verification.file
    yield f"{verification.path}: {'NOT SOUND' if verification.problems else 'sound'}"
    for problem in verification.problems:
        yield f"  problem: {problem}"
    if file is None:
        return
    numbers = file.describe()["numbers"]
    finite = "" if NOT_FINITE in file.backbone.imported else ", all finite"
    yield f"  structure: net {file.backbone.model.config}, {numbers} numbers{finite}"
    yield f"  checksum: {_known(file)}"
    known = file.published
    if known:
        errors = f"top-1 error {known.top1_error:.1f} %, top-5 error {known.top5_error:.1f} %"
        yield f"  to expect: {errors} on ILSVRC-2012 validation, single centre crop ({known.errors_from})"


def _known(file: "WeightsFile") -> str:
    if file.published is None:
        return "not known: no published file has it"
    if file.format == "vggfeat":
        return f"its own; it says that it was converted from {file.published.name}"
    return f"known: {file.published.name}, published at {file.published.addresses[0]}"


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value) + ")"
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)
