"""State dicts of PyTorch: which net they are of, by the names of their tensors.

Three sets of names for VGG nets: torchvision's, that of nets which were converted from Caffe for an older torchvision
(jcjohnson's), and timm's; the first and the last with batch normalisation or without. A net of another family brings
a function of its own: its line in `STATE_DICTS`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vggfeat.errors import WeightsError
from vggfeat.nets.backbone import IMAGENET_MEAN, Pool
from vggfeat.nets.vgg import BATCH_NORM_NETS, NETS, NetConfig
from vggfeat.weights.importing import ParsedNet, Read, Shapes, StateDict
from vggfeat.weights.match_layers import TOP, as_convolution, match_kernels, usable_top
from vggfeat.wording import listed, quoted

TORCHVISION_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
TORCHVISION_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
BATCH_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What the names of the fully connected layers in a state dict give away."""

    whose: str
    """Who names them so, for messages."""
    fc: tuple[str, str, str]
    """fc6, fc7 and fc8."""
    nets: Mapping[str, NetConfig]
    """Nets that have been published with these names."""
    pool: Pool
    facts: Mapping[str, Any]
    """Fields of `ParsedNet` that follow."""


_TORCHVISION: dict[str, Any] = {
    "channel_order": "RGB",
    "mean": TORCHVISION_MEAN,
    "std": TORCHVISION_STD,
    "mean_from": "torchvision's documentation (0.485, 0.456, 0.406 of 1)",
    "assumed": True,
    "pixel_range": 1,
}
NAMINGS = (
    Naming(
        whose="torchvision's",
        fc=("classifier.0", "classifier.3", "classifier.6"),
        nets=NETS | BATCH_NORM_NETS,
        pool="floor",
        facts=_TORCHVISION | {"format": "torchvision", "fc6_order": "C,H,W"},
    ),
    Naming(
        whose="timm's",
        fc=("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
        nets=NETS | BATCH_NORM_NETS,
        pool="floor",
        facts=_TORCHVISION | {"format": "timm", "fc6_order": "convolution"},
    ),
    Naming(  # Older torchvision put the dropout first; what is published with these names came from Caffe.
        whose="jcjohnson's",
        fc=("classifier.1", "classifier.4", "classifier.6"),
        nets=NETS,
        pool="ceil",
        facts={
            "format": "PyTorch, converted from Caffe",
            "channel_order": "BGR",
            "mean": IMAGENET_MEAN[::-1],
            "mean_from": "published with the authors' nets",
            "assumed": True,
            "fc6_order": "C,H,W",
        },
    ),
)

Parse = Callable[[Path, Shapes, Read], ParsedNet | None]
_WRAPPING = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into names, in front of them or within."""
_COUNTS = ("num_batches_tracked", "n_averaged")
"""Of the batches behind the statistics, and of the models in the mean of an AveragedModel: they change nothing."""
_MOST_GROUPS = 20
_ONE_ALONE = (
    "save one of them alone: torch.save({name.removeprefix(PREFIX): tensor for name, tensor in state.items() "
    "if name.startswith(PREFIX)}, FILE)"
)
_SHOWN = 3


def parse_state(path: Path, state: StateDict) -> ParsedNet:
    """Find the net of a state dict by its names, whatever it was wrapped in when it was saved.

    Raises WeightsError if there are two, or no net has such names; says which keys the nearest one misses or has too
    much.
    """
    names = _unwrapped(path, state.shapes)
    found = dict(_nets(path, state, names))
    prefixes = [*found, *(twin for prefix in found if len(found) == 1 for twin in _twins(names, prefix))]
    if len(prefixes) > 1:
        raise WeightsError(
            f"{path}: expected one net, found {len(prefixes)}, whose keys begin with "
            f"{' and '.join(map(quoted, prefixes))}; {_ONE_ALONE}"
        )
    for prefix, parsed in found.items():
        others = sorted(theirs for name, theirs in names.items() if not name.startswith(prefix))
        beside = [*filter(None, (state.notes.get("next_to"), _listed(others) if others else ""))]
        notes = {**state.notes, **({"next_to": ", ".join(beside)} if beside else {})}
        if prefix or any(name != theirs for name, theirs in names.items()):
            notes["names_less"] = _said(state.shapes, prefix)
        return replace(parsed, notes={**notes, **parsed.notes})
    raise WeightsError(f"{path}: {_difference(names)}")


def parse_vgg(path: Path, shapes: Shapes, read: Read) -> ParsedNet | None:
    """Return the VGG net of a state dict, complete or without some of fc6, fc7 and fc8; None if it is of another."""
    for naming, config, names in _known():
        top = {ours[:3] for ours, theirs in names.items() if ours[:3] in TOP and theirs in shapes}
        found = {ours: theirs for ours, theirs in names.items() if ours[:2] != "fc" or ours[:3] in top}
        if set(found.values()) == shapes.keys():
            nets = BATCH_NORM_NETS if config in BATCH_NORM_NETS else NETS  # kernels tell C and D apart
            return _parsed(path, naming, nets, found, shapes, read)
    return None


_WHOSE = [naming.whose for naming in NAMINGS]
STATE_DICTS: dict[str, Parse] = {
    f"{', '.join(_WHOSE[:-1])} or {_WHOSE[-1]} nets {', '.join(NETS | BATCH_NORM_NETS)}": parse_vgg
}
"""Importers of state dicts, by the words for what they know: each returns None where the names are not its own."""


def _parsed(
    path: Path, naming: Naming, nets: Mapping[str, NetConfig], names: Mapping[str, str], shapes: Shapes, read: Read
) -> ParsedNet:
    top, notes = usable_top(names)
    names = {ours: theirs for ours, theirs in names.items() if ours[:2] != "fc" or ours[:3] in top}
    # Linear (out, in) with in = C,H,W becomes a convolution (out, C, H, W) without moving a value.
    ours = {name: as_convolution(name.partition(".")[0], shapes[theirs]) for name, theirs in names.items()}
    return ParsedNet(
        model=match_kernels(path, ours, naming.pool, nets),
        shapes=ours,
        read=lambda name: read(names[name]).reshape(ours[name]),
        notes={"fc_layers": ", ".join(naming.fc[: len(top)]), **notes},
        **naming.facts,
    )


def _unwrapped(path: Path, shapes: Shapes) -> dict[str, str]:
    """Return the names without what wraps them, each with the name in the file."""
    names: dict[str, str] = {}
    for theirs in shapes:
        if theirs.rpartition(".")[2] in _COUNTS:
            continue
        name = ".".join(part for part in theirs.split(".") if part not in _WRAPPING)
        if name in names:
            raise WeightsError(
                f"{path}: expected one net, found two, whose keys differ by {' or '.join(_WRAPPING)} alone, for "
                f"instance {quoted(names[name])} and {quoted(theirs)}; {_ONE_ALONE}"
            )
        names[name] = theirs
    return names


def _nets(path: Path, state: StateDict, names: Mapping[str, str]) -> Iterator[tuple[str, ParsedNet]]:
    """Find the nets by what their names begin with: what is common to all, or else what a group of them has."""
    prefixes = list(_prefixes(names))
    for prefix in prefixes:
        if net := _parsed_behind(path, state, names, prefix):
            yield prefix, net
            return
    common = len(prefixes[-1])
    heads = sorted({name[: name.find(".", common) + 1] for name in names} - {""})
    for head in heads if len(heads) <= _MOST_GROUPS else ():
        group = {name: theirs for name, theirs in names.items() if name.startswith(head)}
        for prefix in _prefixes(group):
            if prefix.startswith(head) and (net := _parsed_behind(path, state, group, prefix)):
                yield prefix, net
                break


def _twins(names: Iterable[str], prefix: str) -> set[str]:
    """Return what other keys begin with that are, but for it, keys of the net behind a prefix."""
    own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    others = [name for name in names if not name.startswith(prefix)]
    ends = ((name, name.split(".", count)[-1]) for name in others for count in range(name.count(".")))
    return {name.removesuffix(end) for name, end in ends if end in own}


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    """Return what all names begin with, up to a dot: nothing first, then more and more."""
    yield ""
    first, last = min(names, default="").split("."), max(names, default="").split(".")
    for count in range(1, min(len(first), len(last))):
        if first[:count] != last[:count]:
            return
        yield ".".join(first[:count]) + "."


def _parsed_behind(path: Path, state: StateDict, names: Mapping[str, str], prefix: str) -> ParsedNet | None:
    ours = {name.removeprefix(prefix): theirs for name, theirs in names.items()}
    shapes = {name: state.shapes[theirs] for name, theirs in ours.items()}
    nets = (parse(path, shapes, lambda name: state.read(ours[name])) for parse in STATE_DICTS.values())
    return next((net for net in nets if net), None)


def _said(shapes: Shapes, prefix: str) -> str:
    wrapping = [f"{part}." for part in _WRAPPING if any(part in name.split(".") for name in shapes)]
    return " and ".join(quoted(part) for part in [*wrapping, prefix] if part)


def _known() -> Iterator[tuple[Naming, str, dict[str, str]]]:
    for naming in NAMINGS:
        for config in naming.nets:
            yield naming, config, _names(naming.nets[config], config in BATCH_NORM_NETS, naming.fc)


def _difference(found: Mapping[str, str]) -> str:
    """Say in what these names differ from those of the nearest net, or which families there are."""
    best: tuple[int, str, set[str], set[str]] = (0, "", set(), set())
    for prefix in {name[: -len(end)] for end in ("features.0.weight",) for name in found if name.endswith(end)} | {""}:
        names = {name.removeprefix(prefix) for name in found}
        for naming, config, known in _known():
            missing, more = set(known.values()) - names, names - set(known.values())
            shared = len(known) - len(missing) - len(more)
            if shared > best[0]:
                best = shared, f"{naming.whose} net {config}", missing, more
    _, net, missing, more = best
    sides = [
        f"{_listed(sorted(keys))} {'missing' if keys is missing else 'too much'}" for keys in (missing, more) if keys
    ]
    if net:
        return f"expected the keys of {net}, found {' and '.join(sides)}; rename or remove the keys that differ"
    return (
        f"expected the keys of {'; or of '.join(STATE_DICTS)}; found {len(found)} others: {_listed(sorted(found))}; "
        "for a net of one's own see 'Another network' in docs/weights.md"
    )


def _listed(names: list[str]) -> str:
    return listed(list(map(quoted, names)), _SHOWN) or "none"


def torchvision_names(config: str) -> dict[str, str]:
    """Map the names of our tensors to torchvision's: features.N counts all the layers of the convolutional part."""
    return _names(NAMINGS[0].nets[config], config in BATCH_NORM_NETS, NAMINGS[0].fc)


def _names(net: NetConfig, batch_norm: bool, fc: tuple[str, str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    position = 0
    for number, kernels in enumerate(net.blocks, start=1):
        for index in range(1, len(kernels) + 1):
            names |= {f"conv{number}_{index}.{kind}": f"features.{position}.{kind}" for kind in ("weight", "bias")}
            if batch_norm:
                position += 1
                names |= {f"bn{number}_{index}.{kind}": f"features.{position}.{kind}" for kind in BATCH_NORM_TENSORS}
            position += 2  # behind the ReLU
        position += 1  # behind the pooling
    for ours, theirs in zip(("fc6", "fc7", "fc8"), fc, strict=True):
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return names
