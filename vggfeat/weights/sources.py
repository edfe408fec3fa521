"""Where nets come from: the files that were published, those in a folder, and those on the Hugging Face Hub.

Of each published file: where it lies, how to know it, what to expect of it. The same facts for people: data/weights.md.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vggfeat.errors import ConfigError, VggfeatError, WeightsError
from vggfeat.wording import install_extra, quoted

BUNDLED = "small"
"""The name of the net that comes with the package."""
HUB = "hf://"
"""How the name of a file on the Hugging Face Hub begins: hf://OWNER/NAME[/FILE][@REVISION]."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".caffemodel", ".mat", ".h5", ".hdf5", ".keras")
"""Of what counts as a net in the folder of nets, and on the Hub. What a file is, its content says."""
_HUB_SPEC = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@(.+))?", re.IGNORECASE)
_USUAL_FILE = "model.safetensors"
"""The name of the weights in most repositories of the Hub."""
_CACHED = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/(.+)")
"""Where the library of the Hub keeps a file."""
_HUB_REASONS = {
    "RepositoryNotFoundError": "no model of that name that may be read",
    "GatedRepoError": "a model that may be read only by those who asked its owner",
    "RevisionNotFoundError": "no revision of that name",
    "RemoteEntryNotFoundError": "no file of that name",
    "LocalEntryNotFoundError": "no connection, and no such file in the cache",
}
"""By the errors of its library."""

Kind = Literal["sha256", "sha1", "md5"]

AUTHORS_LICENCE = "CC BY 4.0 (the authors: Karen Simonyan and Andrew Zisserman)"
TORCHVISION_LICENCE = "BSD 3-Clause (torchvision)"
_MATCONVNET = "MatConvNet's table of pretrained models"
_KERAS = "the error table of Keras Applications"
_TORCHVISION = "torchvision's documentation of the weights"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published file."""

    name: str
    """Name by which the commands know it."""
    file: str
    """Under which it is kept: its own name, unless that says too little or another has it too."""
    format: str
    """A key of `vggfeat.weights.sniff.FORMATS`."""
    net: str
    """Column of Table 1 of the VGG paper, with -BN where batch normalisation was added."""
    addresses: tuple[str, ...]
    """Addresses where it was published, tried in this order."""
    checksum: tuple[Kind, str]
    """Kind, and hex digits: all of them, or for SHA-256 at least the first 8, which is what PyTorch publishes."""
    bytes: int | None = None
    """Its exact size, where it is known."""
    licence: str
    top1_error: float
    """Percent of ILSVRC-2012 validation, single centre crop."""
    top5_error: float
    errors_from: str
    """Who measured that. Resizing and decoding differ between libraries: figures within 0.5 % agree."""
    authors: bool
    """Holds the numbers that the authors published: D or E of the paper, trained with scale jittering."""


def _authors(
    name: str,
    net: str,
    errors: tuple[float, float] | None = None,
    errors_from: str = f"{_MATCONVNET}, for the same numbers",
    **facts: Any,
) -> Published:
    top1, top5 = errors or {"D": (28.5, 9.9), "E": (28.7, 9.9)}[net]
    return Published(
        name=name, net=net, licence=AUTHORS_LICENCE, authors=True, top1_error=top1, top5_error=top5,
        errors_from=errors_from, **facts,
    )  # fmt: skip


def _caffe(number: int, net: str, sha1: str, size: int) -> Published:
    file = f"VGG_ILSVRC_{number}_layers.caffemodel"
    place = "www.robots.ox.ac.uk/~vgg/software/very_deep/caffe"
    addresses = (f"https://{place}/{file}", f"http://{place}/{file}")
    name = f"vgg{number}-caffe"
    return _authors(
        name, net, file=file, format="caffe", addresses=addresses, checksum=("sha1", sha1), bytes=size,
    )  # fmt: skip


def _matconvnet(number: int, net: str, md5: str, release: str = "") -> Published:
    file = f"imagenet-vgg-verydeep-{number}"
    place = f"www.vlfeat.org/matconvnet/models/{release and release + '/'}{file}.mat"
    addresses, kept = (f"https://{place}", f"http://{place}"), "-".join(filter(None, (file, release)))
    name = "-".join(filter(None, (f"vgg{number}-matconvnet", release)))
    return _authors(
        name, net, file=f"{kept}.mat", format="matconvnet", addresses=addresses, checksum=("md5", md5),
        errors_from=_MATCONVNET,
    )  # fmt: skip


def _keras(number: int, net: str, md5: str, errors: tuple[float, float]) -> Published:
    file = f"vgg{number}_weights_tf_dim_ordering_tf_kernels.h5"
    addresses = (
        f"https://storage.googleapis.com/tensorflow/keras-applications/vgg{number}/{file}",
        f"https://github.com/fchollet/deep-learning-models/releases/download/v0.1/{file}",
    )
    return _authors(
        f"vgg{number}-keras", net, file=file, format="keras", addresses=addresses, checksum=("md5", md5),
        errors=errors, errors_from=_KERAS,
    )  # fmt: skip


def _jcjohnson(number: int, net: str, start: str) -> Published:
    file = f"vgg{number}-{start}.pth"
    addresses = (
        f"https://web.eecs.umich.edu/~justincj/models/{file}",
        f"https://s3-us-west-2.amazonaws.com/jcjohns-models/{file}",
    )
    return _authors(
        f"vgg{number}-jcjohnson", net, file=file, format="pytorch", addresses=addresses, checksum=("sha256", start),
    )  # fmt: skip


def _torchvision(model: str, net: str, sha256: str, errors: tuple[float, float], size: int | None = None) -> Published:
    file = f"{model}-{sha256[:8]}.pth"
    return Published(
        name=f"{model.replace('_', '-')}-torchvision", file=file, format="pytorch", net=net,
        addresses=(f"https://download.pytorch.org/models/{file}",), checksum=("sha256", sha256), bytes=size,
        licence=TORCHVISION_LICENCE, top1_error=errors[0], top5_error=errors[1], errors_from=_TORCHVISION,
        authors=False,
    )  # fmt: skip


def _timm(number: int, net: str, sha256: str, errors: tuple[float, float]) -> Published:
    return Published(
        name=f"vgg{number}-timm", file=f"vgg{number}.tv_in1k.safetensors", format="timm", net=net,
        addresses=(f"https://huggingface.co/timm/vgg{number}.tv_in1k/resolve/main/model.safetensors",),
        checksum=("sha256", sha256), licence=TORCHVISION_LICENCE, top1_error=errors[0], top5_error=errors[1],
        errors_from=f"{_TORCHVISION}, for the same numbers", authors=False,
    )  # fmt: skip


_ERRORS = {11: (30.98, 11.372), 13: (30.072, 10.754), 16: (28.408, 9.618), 19: (27.624, 9.124)}
_VGG16 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"

_ALL = (
    _caffe(16, "D", "9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24", 553432081),
    _caffe(19, "E", "239785e7862442717d831f682bb824055e51e9ba", 574671192),
    _matconvnet(16, "D", "f72d927587ca4c97fbd165ec9cb9997f"),
    _matconvnet(19, "E", "106118b7cf60435e6d8e04f6a6dc3657"),
    _matconvnet(19, "E", "8ee3263992981a1d26e73b3ca028a123", "beta16"),
    _keras(16, "D", "64373286793e3c8b2b4e3219cbf3544b", (28.732, 9.950)),
    _keras(19, "E", "cbe5617147190e668d6c5d5026f83318", (28.744, 10.012)),
    _jcjohnson(16, "D", "00b39a1b"),
    _jcjohnson(19, "E", "d01eb7cb"),
    _torchvision("vgg11", "A", "8a719046", _ERRORS[11]),
    _torchvision("vgg13", "B", "19584684", _ERRORS[13]),
    _torchvision("vgg16", "D", _VGG16, _ERRORS[16], 553433881),
    _torchvision("vgg19", "E", "dcbb9e9d", _ERRORS[19]),
    _torchvision("vgg11_bn", "A-BN", "6002323d", (29.63, 10.19)),
    _torchvision("vgg13_bn", "B-BN", "abd245e5", (28.414, 9.626)),
    _torchvision("vgg16_bn", "D-BN", "6c64b313", (26.64, 8.484)),
    _torchvision("vgg19_bn", "E-BN", "c79401a0", (25.782, 8.158)),
    _timm(11, "A", "682c023808812148d4e60c76d80ad83dbeaf5d50eb1a952a0b836895003151e5", _ERRORS[11]),
    _timm(16, "D", "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8", _ERRORS[16]),
)

PUBLISHED: Mapping[str, Published] = {published.name: published for published in _ALL}
"""All of them by name: first the authors' own numbers, in whatever format, then nets that others trained."""


def identify(digests: Mapping[str, str]) -> Published | None:
    """Say which published file has these checksums, if any.

    `digests` ({"sha256": ..., "sha1": ..., "md5": ...}): hex digits of the complete file, of all kinds or of some.
    """
    for published in _ALL:
        kind, value = published.checksum
        if digests.get(kind, "").startswith(value):
            return published
    return None


def weights_folder() -> Path:
    """Return the folder of nets known by name: $VGGFEAT_WEIGHTS, else `weights` in the current folder."""
    return Path(os.environ.get("VGGFEAT_WEIGHTS") or "weights")


def nets_in(folder: Path) -> list[Path]:
    """List the files of a folder that count as nets, sorted by name."""
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())


def find_file(spec: str | os.PathLike[str] | None = None, folder: Path | None = None, *, download: bool = True) -> Path:
    """Find the file that `load_backbone` would load, if it would load one.

    Parameters
    ----------
    spec, folder
        As for `load_backbone`.
    download : bool
        Whether a file of the Hub may be downloaded, if it is not there yet.

    Raises
    ------
    WeightsError
        If there is none, or more than one without a name.
    ConfigError
        If a name of the Hub is not understood, or its library is not installed.
    """
    folder = Path(folder) if folder is not None else weights_folder()
    remedy = (
        "ways to get one: --weights FILE (Caffe, MatConvNet, Keras, PyTorch or safetensors, for instance "
        f"vgg16-397923af.pth), a file put into {folder}/, a published net by name (vggfeat weights list), "
        "--weights hf://OWNER/NAME for one on the Hugging Face Hub, --weights "
        "small for the small net that comes with vggfeat, or --weights random:D:0 for a trial without training"
    )
    if spec is None:
        files = nets_in(folder)
        if len(files) == 1:
            return files[0]
        found = ", ".join(path.name for path in files) if files else "none"
        raise WeightsError(f"{folder}/: expected one net to use by default, found {found}; {remedy}")
    if spec == BUNDLED:
        return Path(str(resources.files("vggfeat.weights").joinpath(f"{BUNDLED}.safetensors")))
    if isinstance(spec, str) and spec.lower().startswith(HUB):
        return _find_on_hub(spec, download)
    published = PUBLISHED.get(str(spec))
    names = [f"{spec}{suffix}" for suffix in ("", *SUFFIXES)] + ([published.file] if published else [])
    for path in (Path(spec), *(folder / name for name in names)):
        if path.is_file():
            return path
    if published:
        raise WeightsError(f"{spec}: found no {published.file} in {folder}/; get it with vggfeat weights fetch {spec}")
    if Path(spec).exists():
        return Path(spec)  # a folder or a device: the reader says so
    raise WeightsError(f"{spec}: found neither as a file nor in {folder}/; {remedy}")


def hub_origin(path: Path) -> str:
    """Name a file that lies in the cache of the Hub's library, with its commit; empty for any other file."""
    found = _CACHED.fullmatch(path.as_posix())
    return f"{HUB}{found[1]}/{found[2]}/{found[4]}@{found[3]}" if found else ""


@cache  # a branch means the same commit as long as a command runs
def _find_on_hub(spec: str, download: bool) -> Path:
    asked = _HUB_SPEC.fullmatch(spec)
    if not asked:
        raise ConfigError(f"weights: expected hf://OWNER/NAME[/FILE][@REVISION], found {quoted(spec)}")
    import_hub(spec)
    from huggingface_hub.utils import logging as logs

    model, name, revision = asked.groups()
    verbosity = logs.get_verbosity()
    logs.set_verbosity_error()  # it would tell each of its attempts
    try:
        return _get_from_hub(spec, model, name, revision, download)
    except VggfeatError:
        raise
    except Exception as error:  # the library lets those of its own libraries out, which are of no common class
        reason = _HUB_REASONS.get(type(error).__name__) or hub_reason(error)
        raise WeightsError(
            f"{spec}: expected a file that the Hugging Face Hub gives, found {reason}; compare the names of owner, "
            "model, file and revision, and log in (hf auth login) where the model asks for it"
        ) from None
    finally:
        logs.set_verbosity(verbosity)


def import_hub(spec: str) -> Any:
    """Import the library of the Hub, which `spec` needs; ConfigError if it is missing."""
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(f"{spec}: the package huggingface_hub is missing; {install_extra('hub')}") from None
    return huggingface_hub


def hub_reason(error: Exception) -> str:
    """Return what the library of the Hub says of a failure, in one line."""
    return quoted((str(error).strip().splitlines() or [type(error).__name__])[0], 300)


def _get_from_hub(spec: str, model: str, name: str | None, revision: str | None, download: bool) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT") or None

    def get(name: str) -> Path:
        return Path(hf_hub_download(
            model, name, revision=revision, endpoint=endpoint, local_files_only=not download, library_name="vggfeat"
        ))  # fmt: skip

    if name:
        return get(name)
    try:
        return get(_USUAL_FILE)
    except LocalEntryNotFoundError:
        raise  # there is no connection, or nothing shall be downloaded
    except EntryNotFoundError:
        names = HfApi(endpoint=endpoint, library_name="vggfeat").list_repo_files(model, revision=revision)
        return get(_only_net(spec, names))


def _only_net(spec: str, names: list[str]) -> str:
    """Choose among the files of a model: the only one that counts as a net, safetensors before others."""
    nets = [name for name in sorted(names) if PurePosixPath(name).suffix in SUFFIXES]
    safe = [name for name in nets if name.endswith(SUFFIXES[0])]
    for some in (safe, nets):
        if len(some) == 1:
            return some[0]
    found = ", ".join(map(quoted, nets[:10])) or "none"
    raise WeightsError(
        f"{spec}: expected a model with one file of weights, found {found}; name one: hf://OWNER/NAME/FILE"
    )
