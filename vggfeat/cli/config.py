"""`--config FILE`: the settings that a result holds become the options of the command that made it.

What the command line gives wins. A setting of the file for which the command has no option is refused, unless it is
what the command would take anyway; what follows from the data, the net or the machine is not replayed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from vggfeat.cli.commands import PATH, option
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.runtime.storage import open_storage

MOST_BYTES = 1 << 28
"""Of a file of JSON."""
HDF5 = b"\x89HDF"
"""First bytes of a feature file."""
OF_NET = ("net", "width", "num_classes", "pool_rounding", "channel_order", "mean", "std", "trained", "last", "imported")
OF_RUN = ("machine", "versions", "image_sizes_sha256", "images", "sides", "mirror", "float32_cosine", "dtype")

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How the file of a command is read as its options."""

    of: str
    """Command, as a message names it."""
    read: Callable[[str, Settings], Settings | None]
    """Takes the kind of a file and its content; returns the settings in it, None if it is of another command."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Setting, with dots -> parameter of another name; any other goes to the parameter of its last name."""
    facts: tuple[str, ...] = ()
    """First names of what is no setting."""
    fixed: Callable[[], Settings] = dict
    """Returns what the command takes where it has no option."""

    @property
    def option(self) -> Any:
        """Declare the option of its command, which sets the others and is handed to nobody."""
        return option(
            type=PATH, is_eager=True, expose_value=False, callback=self._callback, metavar="FILE",
            help="Take the settings from a result of this command; options that are given win.",
        )  # fmt: skip

    def _callback(self, context: click.Context, _: click.Parameter, path: Path | None) -> None:
        if path is not None:
            context.default_map = self.options(path, {str(param.name) for param in context.command.params})

    def options(self, path: Path, params: set[str]) -> dict[str, Any]:
        """Return parameter -> value, or function that returns it, as `click.Context.default_map` takes them.

        Raises ConfigError if the file is of another command, or holds a setting without an option; StoreError if it
        can't be read.
        """
        kind, content = _read(path)
        try:
            settings = self.read(kind, content)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ConfigError(
                f"{path}: expected settings as vggfeat writes them, found others ({type(error).__name__}: {error}); "
                "give another file"
            ) from None
        if settings is None:
            raise ConfigError(
                f"{path}: expected a result of `vggfeat {self.of}`, found {kind}; give the file of that command"
            )
        found: dict[str, Any] = {}
        fixed = dict(_flat(self.fixed()))
        for name, value in _flat({key: one for key, one in settings.items() if key not in self.facts}):
            param = self.renamed.get(name, name.rpartition(".")[2])
            if param not in params:
                if name not in fixed or fixed[name] != value:
                    raise ConfigError(
                        f"{path}: expected settings that `vggfeat {self.of}` has options for, "
                        f"found {name} = {value!r}; set it in Python"
                    )
            elif value is not None:
                if not callable(value) and found.get(param, value) != value:
                    raise ConfigError(f"{path}: expected one value for {param}, found {found[param]!r} and {value!r}")
                found[param] = partial(value, path) if callable(value) else value
        return found


def weights(*nets: Settings, several: bool = False) -> Callable[[Path], Any]:
    """Return what finds the files of nets by their SHA-256, once it is known that no option names them."""

    def find(path: Path) -> Any:
        from vggfeat.forward.rerun import find_weights

        specs = []
        for net in nets:
            name = str(net.get("weights", "weights"))
            spec = find_weights(str(net["weights_sha256"]), name)
            if spec is None:
                raise WeightsError(
                    f"{path}: expected the weights that it was made with, {name} (SHA-256 {net['weights_sha256']}), "
                    "in the weights folder or here, found none of these bytes; give them as an option"
                )
            specs.append(spec)
        return tuple(specs) if several else specs[0]

    return find


def _read(path: Path) -> tuple[str, Settings]:
    """Return what a file is, and its content: JSON, or the provenance of a feature file or a run in shards."""
    from vggfeat.nets.backbone import BOX_FACTS
    from vggfeat.results.checked_json import parse_settings
    from vggfeat.runtime.durable import open_bounded, read_bounded
    from vggfeat.store.layout import POSTERIORS
    from vggfeat.store.plan import read_plan
    from vggfeat.store.reader import FeatureFile
    from vggfeat.store.sharded import is_run

    if is_run(path):
        plan = read_plan(open_storage(path))
        return "features", {**plan.key, **plan.provenance, "dataset": plan.name}
    if path.is_dir():
        path = next((path / name for name in ("results.json", "run.json") if (path / name).is_file()), path)
    try:
        with open_bounded(path) as file:
            is_hdf5 = file.read(len(HDF5)) == HDF5
        text = b"" if is_hdf5 else read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: expected a result to take settings from: {error.strerror or error}") from None
    if not is_hdf5:
        content = parse_settings(path, text)
        kind = "vggfeat-box-training" if BOX_FACTS in content else "vggfeat-training"
        return kind if "recipe" in content else str(content.get("format")), content
    with FeatureFile(path) as features:
        kind = POSTERIORS if features.key.get("layer") == POSTERIORS else "features"
        return kind, {**features.provenance, "dataset": features.dataset_name}


def _flat(settings: Settings, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", _tuple(value)


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _of_extract(kind: str, content: Settings) -> Settings | None:
    return {**content, "weights": weights(content)} if kind == "features" else None


def _fixed_of_runs() -> Settings:
    from vggfeat.forward.settings import ForwardSettings
    from vggfeat.images.decode import DecodeSettings

    return {**asdict(ForwardSettings()), "decode": asdict(DecodeSettings())}


def _of_svm(kind: str, content: Settings) -> Settings | None:
    if kind != "vggfeat-results":
        return None
    from vggfeat.given import GIVEN
    from vggfeat.protocols.rules import FOLDING

    features = content["settings"]["features"]
    regions = [file["regions"] for file in features.get("files", [])][:1]
    # Descriptors of another program were joined there, which is no setting of ours.
    own = {name: features[name] for name in ("join", "normalisation") if features[name] != GIVEN}
    svm = content["settings"]["protocol"]["svm"]
    place = ("device", "jobs")
    protocol = {
        **content["settings"]["protocol"], "svm": {name: value for name, value in svm.items() if name not in place}
    }  # fmt: skip
    if protocol["protocol"] not in FOLDING:
        protocol["folds"] = None  # Files of earlier versions have a number that decided nothing.
    return {"protocol": protocol, **own, **({"regions": regions[0]} if regions else {})}


def _fixed_of_svm() -> Settings:
    from vggfeat.protocols.rules import ProtocolSettings

    return {"protocol": asdict(ProtocolSettings())}


def _of_classify(kind: str, content: Settings) -> Settings | None:
    if kind == "posteriors":
        return {**content, "weights": weights(content, several=True)}
    if kind != "vggfeat-classification":
        return None
    parts = content["posteriors"]
    modes = sorted({str(part["mode"]) for part in parts})
    nets = {part["weights_sha256"]: part for part in parts}
    common = ("scales", "softmax", "precision", "interpolation")
    found: dict[str, Any] = {}
    for name in common:
        values = [part[name] for part in parts if part.get(name) is not None]  # Crops have no soft-max over space.
        if any(value != values[0] for value in values):
            raise ConfigError(f"{name}: expected one value in all posteriors, found several; give the file of one")
        if values:
            found[name] = values[0]
    mode = "both" if modes == ["dense", "multi-crop"] else modes[0]
    return {**found, "mode": mode, "weights": weights(*nets.values(), several=True)}


def _of_localise(kind: str, content: Settings) -> Settings | None:
    if kind != "vggfeat-localisation":
        return None
    settings = dict(content["settings"])
    nets, rating = settings.pop("box_nets"), settings.pop("classifier")
    if settings["protocol"] == "gt":
        del settings["merging"]  # A centre crop gives one box.
    found = {**settings, "specs": weights(*nets, several=True)}
    return found if rating is None else {**found, "classifier": weights(rating)}


def _fixed_of_localise() -> Settings:
    from vggfeat.localisation.maps import LocaliseSettings

    return {**_fixed_of_runs(), **LocaliseSettings(scales=((1,),)).describe()}


def _of_train(kind: str, content: Settings) -> Settings | None:
    if kind != "vggfeat-training":
        return None
    recipe = {name: value for name, value in content["recipe"].items() if name != "start"}
    start = content.get("started_from")
    found = {"full_decode": not recipe.pop("reduced"), "recipe": recipe}
    return {**found, "init_from": weights({"weights_sha256": start})} if start else found


def _fixed_of_train() -> Settings:
    from vggfeat.training.recipe import Recipe

    return {"recipe": asdict(Recipe())}


EXTRACT = Replay(
    of="extract",
    read=_of_extract,
    renamed={"dataset": "name"},
    facts=(*OF_NET, *OF_RUN, "weights_sha256"),
    fixed=_fixed_of_runs,
)
SVM = Replay(
    of="svm",
    read=_of_svm,
    fixed=_fixed_of_svm,
)
CLASSIFY = Replay(
    of="classify",
    read=_of_classify,
    facts=(*OF_NET, *OF_RUN, "weights_sha256", "dataset", "layer", "layout", "averaged", "class_order", "words",
           "trained_scale", "regions"),
    fixed=_fixed_of_runs,
)  # fmt: skip
LOCALISE = Replay(
    of="localise evaluate",
    read=_of_localise,
    renamed={"merging.threshold": "threshold", "merging.average": "average", "group": "shard_rows"},
    facts=(*OF_RUN, "labels"),
    fixed=_fixed_of_localise,
)
TRAIN = Replay(of="train", read=_of_train, fixed=_fixed_of_train)
