"""What a file of weights holds, whether it is sound, and whether it is a known one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggfeat.errors import WeightsError
from vggfeat.nets.backbone import Backbone
from vggfeat.weights.load import load_file
from vggfeat.weights.native import save_weights
from vggfeat.weights.preprocessing import Preprocessing
from vggfeat.weights.published import PUBLISHED, Published, identify
from vggfeat.weights.sniff import FORMATS, digests, recognise


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """All that is known of a file that could be loaded."""

    path: Path
    format: str
    """A key of `vggfeat.weights.sniff.FORMATS`."""
    bytes: int
    digests: Mapping[str, str]
    """sha256, sha1 and md5 of the file."""
    backbone: Backbone
    published: Published | None
    """Which published file it is, or which it was converted from."""

    def describe(self) -> dict[str, Any]:
        """Return it for JSON, with a row for every tensor."""
        tensors = [
            {"name": name, "shape": list(tensor.shape), "numbers": tensor.numel()}
            for name, tensor in self.backbone.model.layers.state_dict().items()
        ]
        return {
            "path": str(self.path),
            "format": FORMATS[self.format].words,
            "bytes": self.bytes,
            **self.digests,
            "published": self.published.name if self.published else None,
            **self.backbone.describe(),
            "imported": dict(self.backbone.imported),
            "facts": dict(self.backbone.facts),
            "classes": list(self.backbone.classes),
            "numbers": sum(tensor["numbers"] for tensor in tensors),
            "tensors": tensors,
        }


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Whether a file can be relied on."""

    path: Path
    file: WeightsFile | None
    """None if it can't be loaded."""
    problems: tuple[str, ...]
    """One line each; none in a sound file."""

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        about: dict[str, Any] = {"path": str(self.path), "sound": not self.problems, "problems": list(self.problems)}
        if self.file is None:
            return about | {"published": None}
        known = self.file.published
        fields = ("top1_error", "top5_error", "errors_from") if known else ()
        expected = {name: getattr(known, name) for name in fields}
        return about | dict(self.file.digests) | {"published": known.name if known else None} | expected


def examine(path: Path, stated: Preprocessing | None = None) -> WeightsFile:
    """Load a file in any format and say what it holds; `stated` is for `load_file`.

    Raises
    ------
    WeightsError
        If it can't be loaded.
    """
    kind, backbone, found = recognise(path), load_file(path, stated), digests(path)
    source = PUBLISHED.get(str(backbone.imported.get("published"))) if kind == "vggfeat" else None
    return WeightsFile(
        path=path, format=kind, bytes=path.stat().st_size, digests=found, backbone=backbone,
        published=identify(found) or source,
    )  # fmt: skip


def verify(path: Path) -> Verification:
    """Check a file: its structure, that its numbers are finite and no layer is blank, and its checksum if it is known.

    A file with the name of a published one and another checksum is not sound; one with neither is just not known.
    """
    try:
        file = examine(path)
    except WeightsError as error:
        return Verification(path=path, file=None, problems=(str(error),))
    return Verification(path=path, file=file, problems=tuple(_problems(file)))


def convert(source: Path, target: Path, *, dtype: str = "float32", stated: Preprocessing | None = None) -> WeightsFile:
    """Write a file in any format as a file of ours, with all that is known of where it came from.

    What is known stays as it is, so that converting a second time changes nothing.

    Parameters
    ----------
    source, target : Path
    dtype : "float32" or "float16"
    stated : Preprocessing, optional
        Which pixels the net takes, where its file does not say.

    Returns
    -------
    WeightsFile
        Of the source.

    Raises
    ------
    WeightsError
        If the source can't be loaded.
    ConfigError
        If what is stated can't be.
    StoreError
        If the target can't be written.
    """
    file = examine(source, stated)
    net = file.backbone
    imported = {**net.imported, **({"published": file.published.name} if file.published else {})}
    facts = {**net.facts, **({"imported": imported} if imported else {})}
    save_weights(target, net.model, mean=net.mean, std=net.std, classes=net.classes, dtype=dtype, **facts)
    return file


def _problems(file: WeightsFile) -> Iterator[str]:
    for name, tensor in file.backbone.model.layers.state_dict().items():
        if tensor.ndim > 1 and bool((tensor == tensor.flatten()[0]).all()):
            value = tensor.flatten()[0].item()
            yield f"{name}: expected the weights of a trained layer, found {value:g} {tensor.numel()} times"
    if file.published:
        return
    for published in PUBLISHED.values():
        if (published.file, published.format) == (file.path.name, file.format):
            kind, value = published.checksum
            yield (
                f"expected {kind} {value}, which {published.name} of that name has, found {file.digests[kind]}; "
                f"fetch it again: vggfeat weights fetch {published.name}"
            )
