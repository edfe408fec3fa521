"""timm's VGG nets in safetensors: torchvision's weights under other names, with the head as convolutions."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from vggfeat.errors import WeightsError
from vggfeat.weights.backbone import Backbone
from vggfeat.weights.torchvision import from_state


def load_timm(path: Path) -> Backbone:
    """Load a state dict in safetensors: timm's, or one with torchvision's names.

    The nets take RGB, 0 to 1, less the mean and over the deviation that torchvision documents; poolings round down;
    fc6 is a convolution already.

    Raises
    ------
    WeightsError
        If it is damaged or of another network.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return from_state(path, shapes, file.get_tensor)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: expected a safetensors file, found a damaged one: {error}") from error
