"""Features of further images as an earlier run computed them: by its net, found again by its bytes, and its settings.

What the run said of itself is its provenance, which may come from anybody.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vggfeat.errors import ConfigError, StoreError, WeightsError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodeSettings
from vggfeat.runtime.devices import has_precision
from vggfeat.weights import Backbone, load_backbone
from vggfeat.weights.importing import hash_file
from vggfeat.weights.sources import BUNDLED, find_file, weights_folder


def find_net(where: str, provenance: Mapping[str, Any], weights: str | None = None) -> Backbone:
    """Load the net of an earlier run.

    Parameters
    ----------
    where : str
        What the run has made, for messages.
    provenance : mapping
        What it says of itself.
    weights : str, optional
        As for `vggfeat extract --weights`; by default the file that has the SHA-256: in the weights folder, in the
        current folder under the name that it had, or the net of the package. Nothing is loaded before its bytes are
        known to be those, and random weights are not built.

    Raises
    ------
    WeightsError
        If it is another net, or none is found.
    """
    wanted = str(provenance.get("weights_sha256"))
    name = f"{provenance.get('weights')} (net {provenance.get('net')})"[:100]
    found = weights or find_weights(wanted, str(provenance.get("weights")))
    if found is None:
        raise WeightsError(
            f"{where}: expected the weights that it was made with, {name}, in {weights_folder()}/, found no file "
            "of these bytes; give them with --weights"
        )
    backbone = load_backbone(found)
    if backbone.sha256 != wanted:
        raise WeightsError(
            f"{found}: expected the weights that {where} was made with, {name}, found another net "
            f"({backbone.model.config}); features of two nets can't be compared"
        )
    return backbone


def find_weights(sha256: str, name: str) -> str | None:
    """Find the file of weights with a SHA-256; a name that leads to another folder is not followed."""
    package = find_file(BUNDLED)
    own = [Path(name)] if name == Path(name).name else []
    for path in (*own, *sorted(weights_folder().glob("*")), package):
        if os.path.isfile(path) and hash_file(path) == sha256:
            return BUNDLED if path == package else str(path)
    return None


def rerun_net(
    where: str,
    provenance: Mapping[str, Any],
    scales: Sequence[int],
    net: Backbone,
    device: str = "cpu",
    *,
    exact: bool = False,
) -> tuple[BatchRunner, DecodeSettings]:
    """Make a net ready for whole images, and say how they are decoded, as it was in an earlier run.

    Parameters
    ----------
    where, provenance
        As for `find_net`.
    scales : sequence of int
        Q.
    net : Backbone
    device : str
    exact : bool
        In fp32, whatever the precision of the run was. It stands anyway for one that the device has not.

    Raises
    ------
    StoreError
        If the provenance doesn't say.
    """
    settings = _settings(where, provenance, scales, device)
    runner = feature_runner(net, replace(settings, precision="fp32") if exact else settings, device)
    limits = provenance.get("decode", {})
    known = ("max_pixels", "max_bytes", "allow_truncated")
    told = {name: limits[name] for name in known if isinstance(limits, dict) and name in limits}
    # Every net has its own limit to how far a large image is reduced, so each decodes for itself.
    return runner, DecodeSettings(largest_side=max(runner.sides), **told)


def _settings(where: str, provenance: Mapping[str, Any], scales: Sequence[int], device: str) -> ExtractionSettings:
    try:
        same = {name: provenance[name] for name in ("layer", "precision", "interpolation", "batch_pixels")}
        settings = ExtractionSettings(scales=tuple(scales), regions=("image",), **same)
    except (KeyError, TypeError, ConfigError) as error:
        raise StoreError(
            f"{where}: expected one that says how its features were extracted, found one that doesn't ({error}); "
            "extract them again"
        ) from None
    return settings if has_precision(device, settings.precision) else replace(settings, precision="fp32")
