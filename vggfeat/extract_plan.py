"""Runs of many shards: a plan is made once, and whoever has a plan and a number computes that shard.

A shard depends on its own rows and the plan alone, so that nothing is agreed upon, nobody waits for another, and one
that is computed twice is the same. `vggfeat.engines` says who computes which.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from vggfeat.descriptors import mean_of_scales
from vggfeat.errors import ConfigError, StoreError
from vggfeat.extract import MIRROR
from vggfeat.formats.hdf5 import canonical_json
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.rerun import LEAST_COSINE, PrecisionCheck, check_precision, cosines, some_of
from vggfeat.forward.settings import describe_decoding, describe_machine, describe_made, describe_net
from vggfeat.forward.shards import shard_blocks
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.listing import Listing
from vggfeat.runtime.storage import Storage, joined, place_below
from vggfeat.samples import Box
from vggfeat.store.identity import differences
from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.plan import Plan, PlanSettings, shard_path
from vggfeat.store.planning import extend_plan, write_plan
from vggfeat.store.reader import count_reasons
from vggfeat.store.shard_files import read_shard, write_shard
from vggfeat.weights import Backbone

MACHINE = "machine.json"
"""In a run: what computed its first shard, which the others must be like."""
Fetch = Callable[[Iterator[Request]], Iterator[Any]]
"""Gets the bytes of images that are not on this machine, in order; see `vggfeat.forward.shards.shard_blocks`."""


class ShardResult(NamedTuple):
    """What became of a shard."""

    shard: int
    rows: int
    reasons: dict[str, int]
    """Rows that failed, by reason."""
    precision: PrecisionCheck | None = None
    """How near the features are to those of float32, where that was looked at: at the first shard of a process."""


def make_plan(
    listing: Listing,
    backbone: Backbone,
    storage: Storage,
    settings: ExtractionSettings,
    *,
    plan: PlanSettings = PlanSettings(),  # noqa: B008  frozen
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    progress: Callable[[int], None] = lambda rows: None,
) -> Plan:
    """Plan the extraction of a list of images, unless that is done already; nothing is computed.

    Parameters
    ----------
    listing : Listing
    backbone : Backbone
        The net, which the plan names by its SHA-256.
    storage : Storage
        Where the run is to be.
    settings : ExtractionSettings
    plan : PlanSettings
    decode : DecodeSettings
    progress : callable
        Called with the rows that are planned so far.

    Raises
    ------
    ConfigError, DatasetError
        If the settings do not go together, or with the list.
    StoreError
        If a run of other settings is there, or the store refuses.
    """
    backbone.check_layer(settings.layer)
    channels = backbone.model.maps[settings.layer].channels
    made = describe_made(backbone, settings, settings.sides(backbone.model))
    draft = Plan(
        storage=storage,
        key=json.loads(canonical_json(_key(backbone, settings, decode), "key")),
        provenance=json.loads(canonical_json({**made, **MIRROR, **listing.marks}, "provenance")),
        shape=Shape(scales=settings.scales, regions=settings.regions, channels=channels),
        settings=plan,
        name=listing.name,
        task=listing.task,
        classes=listing.classes,
        root=listing.root,
        boxes_as_stored=listing.boxes_as_stored,
        options=dict(listing.options),
    )
    return write_plan(draft, listing, progress)


def add_to_plan(plan: Plan, listing: Listing, progress: Callable[[int], None] = lambda rows: None) -> Plan:
    """Plan what is new in a list; see `vggfeat.store.planning.extend_plan`."""
    return extend_plan(replace(plan, root=listing.root), listing, progress)


def _key(backbone: Backbone, settings: ExtractionSettings, decode: DecodeSettings) -> dict[str, Any]:
    return {**describe_net(backbone, settings), **describe_decoding(decode)}


class ShardWorker:
    """The net of a plan on a device of this machine, that computes shards of it.

    `workers` processes decode, `timeout` seconds an image. With `mixed`, the machine may be of another kind than the
    one that computed the first shard; with `retry_failed`, shards that have rows which failed are computed again, and
    replaced. `root` is where the images are, if not where the plan says. StoreError if net, settings or versions are
    not those of the plan (every difference is named), or the machine is not.
    """

    def __init__(
        self,
        plan: Plan,
        backbone: Backbone,
        *,
        device: str = "cpu",
        workers: int = 2,
        timeout: float = 30.0,
        mixed: bool = False,
        retry_failed: bool = False,
        root: str | None = None,
        fetch: Fetch = iter,
    ) -> None:
        self.plan, self.workers, self.retry_failed = plan, workers, retry_failed
        settings = settings_of(plan)
        decode = DecodeSettings(timeout=timeout, **plan.key["decode"])
        _check_same(plan, _key(backbone, settings, decode))
        self.runner = feature_runner(backbone, settings, device)
        self.decode = replace(decode, largest_side=max(self.runner.sides))
        self.machine = describe_machine(self.runner.device)
        self._root, self._fetch = plan.root if root is None else root, fetch
        self._compared = False
        self._enter(mixed)

    def compute(self, shards: Iterable[int], progress: Callable[[float], None] | None = None) -> Iterator[ShardResult]:
        """Compute shards, those left out that are there already, and yield what became of each once it is kept.

        Parameters
        ----------
        shards : iterable of int
            Drawn one by one, shortly before they are computed.
        progress : callable, optional
            Called with the images of the shard at work that are done; on a CPU alone.
        """
        plan = self.plan
        parts = ((shard, self.requests(shard)) for shard in shards if self._is_open(shard))
        stream = shard_blocks(
            self.runner, parts, plan.shape, plan.settings.shard_rows, self.workers, self.decode, progress, self._fetch
        )
        for shard, block in stream:
            kept = write_shard(plan, shard, block, self.machine, retry_failed=self.retry_failed)
            precision = None if self._compared else self._precision(shard, block)
            self._compared = True
            yield ShardResult(shard, len(kept), count_reasons(filter(None, kept.reasons)), precision)

    def requests(self, shard: int) -> list[Request]:
        """Say what is to be decoded for the rows of a shard."""
        return shard_requests(self.plan, shard, self._root)

    def _is_open(self, shard: int) -> bool:
        """Say whether a shard is to be computed."""
        if not self.plan.storage.exists(shard_path(shard)):
            return True
        return self.retry_failed and bool((read_shard(self.plan, shard).block.status == Status.FAILED).any())

    def _precision(self, shard: int, block: Block) -> PrecisionCheck | None:
        if self.runner.settings.precision == "fp32":
            return None
        rows = some_of(np.flatnonzero(block.status == Status.DONE))
        requests = self.requests(shard)
        chosen = [requests[row] for row in rows.tolist()]
        features = [block.features[row] for row in rows.tolist()]
        return check_precision(self.runner, self._fetch(iter(chosen)), features, self.workers, self.decode)

    def _enter(self, mixed: bool) -> None:
        """Be the first machine of the run, or one like it, or, if that is allowed, one that computes the same."""
        storage, own = self.plan.storage, canonical_json(self.machine, MACHINE).encode()
        if storage.write_new(MACHINE, own) or (first := storage.read(MACHINE, 0, 1 << 16)) == own:
            return
        if not mixed:
            raise StoreError(
                f"{joined(storage.root, MACHINE)}: expected a machine like the first of this run, "
                f"{first.decode(errors='replace')[:200]}, found {own.decode()}; give --mixed to let the last bits of "
                "features differ, or delete that file if no shard is worth keeping"
            )
        for shard in sorted(self.plan.present()):
            found = read_shard(self.plan, shard)
            if found.machine != self.machine:
                self._compare(shard, found.block)
                return

    def _compare(self, shard: int, theirs: Block) -> None:
        """Compute some rows of another machine's shard, and check that they are the same but for rounding."""
        rows = some_of(np.flatnonzero(theirs.status == Status.DONE)).tolist()
        requests = self.requests(shard)
        with Decoder(min(self.workers, 1), self.decode) as decoder:
            found = self.runner.rows(decoder.stream(self._fetch(requests[row] for row in rows)))
        for row, mine in zip(rows, found, strict=True):
            if mine.features is None:
                continue
            own = mine.features if self.plan.settings.store == "scales" else mean_of_scales(mine.features[None])
            least = float(cosines(own, theirs.features[row]).min())
            if least < LEAST_COSINE:
                raise StoreError(
                    f"{joined(self.plan.where, shard_path(shard))}: expected the features that this machine computes, "
                    f"to a cosine of {LEAST_COSINE}, found {least:.6f} in row {row}; take machines that agree"
                )


def shard_requests(plan: Plan, shard: int, root: str) -> list[Request]:
    """Say what is to be decoded for the rows of a shard, of images below a root."""
    columns = plan.table(shard).select(["file", "offset", "length", "size", "box"]).to_pydict()
    regions, stored = plan.shape.regions, plan.boxes_as_stored
    found = []
    for file, offset, length, size, box in zip(*columns.values(), strict=True):
        boxes = tuple(Box(*box) if region == "box" else None for region in regions)
        span = None if offset is None else (offset, length)
        found.append(Request(place_below(root, file), boxes, span, stored=stored, size=size))
    return found


def settings_of(plan: Plan) -> ExtractionSettings:
    """Return the settings that a plan was made with; StoreError if it does not say them."""
    try:
        settings: dict[str, Any] = {one.name: plan.provenance[one.name] for one in fields(ExtractionSettings)}
        settings |= {name: tuple(settings[name]) for name in ("scales", "regions")}
        return ExtractionSettings(**settings)
    except (KeyError, TypeError, ConfigError) as error:
        raise StoreError(
            f"{plan.where}: expected a plan with all settings, found one without ({error}); plan again"
        ) from None


def _check_same(plan: Plan, key: dict[str, Any]) -> None:
    different = differences(json.loads(canonical_json(key, "key")), plan.key)
    if different:
        raise StoreError(
            f"{plan.where}: expected the net, settings and versions of the plan, found others: {'; '.join(different)}; "
            "install the versions of the plan, or plan again into another folder"
        )
