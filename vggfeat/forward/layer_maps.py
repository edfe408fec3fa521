"""The maps of one image as they are: nothing is averaged, no mirror goes with it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, ImageError, ResourceError, check_choice, out_of_memory
from vggfeat.forward.batching import to_compute_layout, upload
from vggfeat.forward.features import dense_maps
from vggfeat.forward.runner import MAX_RESCALED_PIXELS, BatchRunner
from vggfeat.nets.backbone import Net
from vggfeat.nets.transforms import rescaled_size


def maps_of_image(
    runner: BatchRunner, pixels: NDArray[np.uint8], layers: Sequence[str], scale: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """Run the net over an image, once for all layers.

    Parameters
    ----------
    runner : BatchRunner
        Gives net, device, preprocessing and precision.
    pixels : (H, W, 3) uint8
    layers : sequence of str
        Names of maps of the net.
    scale : int, optional
        Q, the smallest side in pixels that the image is rescaled to; by default it is not rescaled.

    Returns
    -------
    dict of str to (C, h, w) float32
        In the order of `layers`.

    Raises
    ------
    ConfigError
        If the net has no such layer, or the image is too small for it.
    ImageError
        If the image would be too large for the memory of any machine.
    ResourceError
        If the maps don't fit into memory.
    """
    layers = layers if isinstance(layers, str) else tuple(layers)
    if not layers or isinstance(layers, str):
        raise ConfigError(f"layers: expected a list of maps of the net, found {layers!r}")
    if scale is not None and (not isinstance(scale, int | np.integer) or scale < 1):
        raise ConfigError(f"scale: expected a whole number of pixels from 1, found {scale!r}")
    height, width = pixels.shape[:2]
    size = (height, width) if scale is None else rescaled_size(height, width, scale)
    _check_layers(runner.model, layers, size)
    if size[0] * size[1] > MAX_RESCALED_PIXELS:
        raise ImageError(
            "elongated", f"expected at most {MAX_RESCALED_PIXELS} pixels to run, found {size[1]}x{size[0]}"
        )
    try:
        with runner.computing():
            images, _ = runner.prepare([(upload(pixels, runner.device), size)])  # (1, 3, H, W)
            found = dense_maps(
                runner.model, to_compute_layout(images, runner.model), layers, runner.settings.batch_pixels
            )
            return {layer: found[layer][0].float().contiguous().cpu().numpy() for layer in layers}
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    raise ResourceError(
        f"maps: expected memory of {runner.device} for {', '.join(layers)} of {size[1]}x{size[0]} pixels, found too "
        "little; give fewer layers at a time, or a smaller scale"
    )


def _check_layers(model: Net, layers: Sequence[str], size: tuple[int, int]) -> None:
    for layer in layers:
        check_choice("layer", layer, model.maps)
        if min(size) < model.least_side(layer):
            raise ConfigError(
                f"scale: expected sides of at least {model.least_side(layer)} pixels for {layer}, found "
                f"{size[1]}x{size[0]}; give a larger scale"
            )
