"""What this machine has: the defaults for device and worker processes."""

import os


def default_device() -> str:
    """Return "cuda" where PyTorch sees a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_workers() -> int:
    """Return one decoding process a core, at most 16."""
    return min(16, len(os.sched_getaffinity(0)))
