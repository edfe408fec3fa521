"""Defaults for device and worker processes, by what the machine has."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vggfeat.errors import ConfigError
from vggfeat.runtime.system import ForkSafeLock, c_function, cores, processes_here

if TYPE_CHECKING:
    import torch

# Options of malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_KEEPING = {-4: 0, -1: 2**31 - 1, -2: 1 << 28}
# Twice what the largest maps of net D take in float32, 64 numbers a pixel before and after a convolution, with as much
# for the convolution itself.
_BYTES_A_PIXEL = 2048
# From the most, maps have 2^30 numbers: more, and they could no longer be counted in 32 bits.
_GPU_PIXELS = 1 << 22, 1 << 24
Precision = Literal["fp32", "winograd", "tf32", "bf16", "fp16"]
"""Of the convolutions of a net that runs. winograd is float32 too, with fewer multiplications; see
`vggfeat.nets.inference`."""
LearningPrecision = Literal["fp32", "bf16"]
"""Of a net that learns."""
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("fp32", "winograd", "bf16", "fp16"),
    "cuda": ("fp32", "tf32", "bf16", "fp16"),
    "mps": ("fp32", "fp16"),
}
"""Kind of device -> what nets can be run in on it. cuDNN chooses by itself where it convolves as Winograd did."""
# PyTorch's switches of a GPU belong to the whole process, so that threads take turns between them.
_SWITCHES = ForkSafeLock()


def default_device() -> str:
    """Return "cuda" where PyTorch sees a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(name: str | None, precision: str = "fp32") -> "torch.device":
    """Return the device of that name; without one a CUDA GPU if there is one, else the CPU.

    ConfigError if it is neither the CPU nor a device of CUDA or of Apple (mps) that answers, or lacks that precision;
    see `has_precision`.
    """
    import torch

    name = name or default_device()
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"{device.type} is not supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: expected cpu or a CUDA device of this machine, or mps, found {name!r}: {reason}"
        ) from None
    if not has_precision(name, precision):
        *others, last = PRECISIONS[device.type]
        raise ConfigError(f"precision: on {device.type} expected {', '.join(others)} or {last}, found {precision}")
    return device


def has_precision(name: str, precision: str) -> bool:
    """Say whether nets run in a precision on the device of that name."""
    return precision in PRECISIONS.get(name.partition(":")[0], ())


def layout(device: "torch.device") -> "torch.memory_format":
    """Return the order in memory in which nets run: channels last, but on mps, which has been wrong in it before."""
    import torch

    return torch.contiguous_format if device.type == "mps" else torch.channels_last


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make ordinary tensors on the CPU within, whatever inference mode and default device the caller's program has set.

    The default dtype belongs to all threads, so that it is left alone: who makes tensors says theirs.
    """
    import torch

    with torch.inference_mode(mode=False), torch.device("cpu"):
        yield


@contextmanager
def convolutions(*, tf32: bool, fastest: bool) -> Iterator[None]:
    """Set, within, how a GPU convolves, whatever the caller's program has set.

    Parameters
    ----------
    tf32 : bool
        Whether products of float32 may be rounded to TF32; if not, they are float32.
    fastest : bool
        Whether cuDNN tries out which algorithm is fastest for every new size; if not, equal sizes get equal bits.
    """
    import torch

    if not torch.cuda.is_available():
        yield
        return
    cudnn: Any = torch.backends.cudnn
    with _SWITCHES.held():
        before = cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic
        # The older switch, cudnn.allow_tf32, leaves the choice to the program where it says no.
        cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
        cudnn.benchmark, cudnn.deterministic = fastest, not fastest
        try:
            yield
        finally:
            cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic = before


def default_workers() -> int:
    """Return one decoding process a core, at most 16; processes that torchrun started share the cores of a machine."""
    return max(1, min(16, cores() // processes_here()))


def default_batch_pixels(device: str) -> int:
    """Return the pixels of one pass through a net: few on the CPU, where more are no faster; more on a GPU.

    On a CUDA device by its whole memory, and not by what is free of it: the number decides the last bits of features,
    and a run that goes on after an interruption has to find the same. The least for one that is not of this machine,
    which a run can be planned for.
    """
    if device.startswith("cpu"):
        return 1 << 20
    least, most = _GPU_PIXELS
    if not device.startswith("cuda"):
        return least
    import torch

    try:
        fitting: int = torch.cuda.get_device_properties(device).total_memory // _BYTES_A_PIXEL
    except (RuntimeError, AssertionError):
        return least
    return min(most, max(least, 1 << fitting.bit_length() - 1))


def ready_device(name: str | None) -> str:
    """Return the device of that name, or a GPU if there is one; before the CPU is used, `keep_freed_memory`."""
    name = name or default_device()
    if name.startswith("cpu"):
        keep_freed_memory()
    return name


def library_version(name: str) -> str:
    """Return the version of an installed library, "none" without it; of vggfeat in a checkout, what that declares."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        if name != "vggfeat" or not project.is_file():
            return "none"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for the next tensors, instead of giving it back to the system.

    Without it, half of the time of training a small net on the CPU goes into page faults, and a quarter of that of
    extraction with net D. It does so with the GNU C library, and nothing with others.
    """
    mallopt = c_function("mallopt")
    if mallopt is not None:
        for option, value in _KEEPING.items():
            mallopt(option, value)
