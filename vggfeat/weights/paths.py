"""Where nets lie that are known by name."""

import os
from pathlib import Path

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".caffemodel", ".mat", ".h5", ".hdf5")
"""Of what counts as a net in the folder of nets. What a file is, its content says."""


def weights_folder() -> Path:
    """Return the folder of nets known by name: $VGGFEAT_WEIGHTS, else `weights` in the current folder."""
    return Path(os.environ.get("VGGFEAT_WEIGHTS") or "weights")


def nets_in(folder: Path) -> list[Path]:
    """List the files of a folder that count as nets, sorted by name."""
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())
