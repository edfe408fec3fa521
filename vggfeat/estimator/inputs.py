"""Whatever a program has of an image becomes a request to the decoders, or pixels, or one named reason why not.

N = images, H, W = image sides in pixels. Nothing is guessed: an array whose layout or range of values could mean two
things is refused, with a line that makes it one of them. What decodes is kept between calls, with the net on its
device; how far a long call is, a bar shows on the terminal, by standard error, or a line in a notebook.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggfeat.checks import check_unmasked
from vggfeat.errors import ConfigError, ImageError, without_number
from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request, failure, region_of
from vggfeat.images.fetch import FetchSettings, fetched
from vggfeat.images.pool import Decoder
from vggfeat.runtime.addresses import address_name, is_address

_WHOLE = (None,)


class Input(NamedTuple):
    """One image of those that were given."""

    name: str
    """What failures call it."""
    found: Request | DecodedImage | ImageError
    """What is to be decoded, or what came of it already."""


def images_of(given: Any) -> Iterable[Any]:
    """Return the images of a list, a batch or a column, one by one; a generator stays one.

    Parameters
    ----------
    given : iterable of images; array (N, H, W, 3); tensor (N, 3, H, W); column of a table; array (N, 1) of paths

    Raises
    ------
    ConfigError
        If it is a single image, or a table of several columns.
    """
    if _is_tensor(given):
        return _batch(given, "tensor", "(N, 3, H, W)")
    if hasattr(given, "to_pylist"):  # pyarrow
        return given.to_pylist()
    if hasattr(given, "to_numpy"):  # pandas and polars
        given = given.to_numpy()
    if isinstance(given, np.ndarray) and given.dtype.kind in "OUT":
        return _column(given)
    if isinstance(given, np.ndarray):
        return _batch(given, "array", "(N, H, W, 3)")
    single = isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    if single or hasattr(given, "read"):
        raise ConfigError(f"X: expected a list of images, found a single {type(given).__name__}; give [image]")
    if not isinstance(given, Iterable) or isinstance(given, dict):
        raise ConfigError(f"X: expected a list of images, found {type(given).__name__}")
    return given


def _batch(given: Any, kind: str, shape: str) -> Iterable[Any]:
    if given.ndim == 4:
        return iter(given)
    found = f"one of shape {tuple(given.shape)}"
    raise ConfigError(f"X: expected a batch {shape}, found a single {kind}, {found}; give [image], or a list of images")


def _column(given: NDArray[Any]) -> Iterable[Any]:
    if given.ndim == 1:
        return given.tolist()
    if given.ndim == 2 and given.shape[1] == 1:
        return given[:, 0].tolist()
    raise ConfigError(f"X: expected one column of images, found shape {given.shape}; choose the column that names them")


def inputs(images: Iterable[Any], settings: DecodeSettings, fetch: FetchSettings) -> Iterator[Input]:
    """Yield what is to be decoded, image by image; addresses are read a few at a time, ahead of their turn.

    Raises
    ------
    ConfigError
        If an item is nothing that an image can be, or an address can't be read here at all.
    """
    for remote, run in groupby(images, _is_address):
        if remote:
            yield from _downloaded(run, fetch)
        else:
            yield from (_input(item, settings) for item in run)


def _input(item: Any, settings: DecodeSettings) -> Input:
    if _is_empty_cell(item):
        return Input("none", failure("none", "missing", "expected an image, found an empty cell"))
    if isinstance(item, str | os.PathLike):
        return Input(os.fspath(item), Request(os.path.abspath(item), _WHOLE))
    if isinstance(item, bytes | bytearray | memoryview):
        return _of_bytes("bytes in memory", bytes(item))
    if isinstance(item, Image.Image):
        return Input(str(getattr(item, "filename", "") or "image in memory"), _tried(region_of, item, settings))
    if _is_tensor(item):
        return _of_tensor(item, settings)
    if hasattr(item, "read"):
        return _of_file(item, settings.max_bytes)
    if hasattr(item, "__array__") and np.ndim(item):
        check_unmasked("X", item, error=ConfigError)
        return _of_values("array", np.asarray(item), settings)
    raise ConfigError(
        f"X: expected paths, addresses, bytes, files, PIL images, arrays or tensors, found {type(item).__name__}"
    )


def _is_empty_cell(item: Any) -> bool:
    if isinstance(item, str):
        return not item.strip()
    nan = isinstance(item, float | np.floating) and bool(np.isnan(item))
    return item is None or nan or type(item).__name__ in ("NAType", "NaTType")  # of pandas


def _is_tensor(item: Any) -> bool:
    # Known by what they can do: PyTorch is not needed to see that something is no tensor.
    return hasattr(item, "detach") and hasattr(item, "cpu")


def _is_address(item: Any) -> bool:
    return isinstance(item, str) and is_address(item)


def _tried(make: Any, *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except ImageError as error:
        return error


def _of_bytes(name: str, data: bytes) -> Input:
    return Input(name, Request(name, _WHOLE, data=data))


def _of_file(file: Any, max_bytes: int) -> Input:
    """Read a file object from where it stands; one that can go back is left there."""
    name = file.name if isinstance(getattr(file, "name", None), str) else "file object"
    try:
        place = file.tell() if hasattr(file, "seekable") and file.seekable() else None
        data = file.read(max_bytes + 1)
        while isinstance(data, bytes) and len(data) <= max_bytes and (more := file.read(max_bytes + 1 - len(data))):
            data += more  # Unbuffered files and connections give what they have.
        if place is not None:
            file.seek(place)
    except UnicodeError:
        data = ""
    except (OSError, ValueError) as error:
        return Input(name, failure(name, "unreadable", f"expected an open file, found: {without_number(error)}"))
    if not isinstance(data, bytes):
        raise ConfigError(f"{name}: expected a file of bytes, found one of text; open it with open(path, 'rb')")
    return _of_bytes(name, data)


def _of_tensor(item: Any, settings: DecodeSettings) -> Input:
    try:
        values = np.asarray(item.detach().cpu())
    except (TypeError, RuntimeError) as error:  # bfloat16, sparse, without data
        name = f"tensor {tuple(item.shape)}"
        text = f"expected a tensor that NumPy can hold, found {item.dtype}: {error}; give it as uint8, 0 to 255"
        return Input(name, failure(name, "unsupported", text))
    return _of_values("tensor", values, settings)


def _of_values(kind: str, values: NDArray[Any], settings: DecodeSettings) -> Input:
    """Take an array (H, W, 3), (H, W, 1) or (H, W), or what was a tensor (3, H, W), (1, H, W) or (H, W)."""
    name = f"{kind} {tuple(values.shape)}"
    try:
        pixels = _bytes_of(_upright(kind, values))
        return Input(name, region_of(Image.fromarray(np.ascontiguousarray(pixels)), settings))
    except ImageError as error:
        return Input(name, failure(name, error.reason, str(error).removeprefix("image in memory: ")))


def _upright(kind: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return (H, W, 3) or (H, W)."""
    axis = 0 if kind == "tensor" else -1
    if values.ndim == 3 and values.shape[axis] in (1, 3):
        values = np.moveaxis(values, axis, -1)
        return values if values.shape[-1] == 3 else values[..., 0]
    if values.ndim == 2:
        return values
    layout = "(3, H, W)" if kind == "tensor" else "(H, W, 3)"
    raise ImageError("unsupported", f"expected {layout} or (H, W), found {values.shape}{_advice(kind, values)}")


def _advice(kind: str, values: NDArray[Any]) -> str:
    if values.ndim != 3:
        return ""
    if kind == "tensor" and values.shape[-1] in (1, 3):
        return "; give image.permute(2, 0, 1)"
    if kind == "array" and values.shape[0] in (1, 3):
        return "; give image.transpose(1, 2, 0)"
    if 4 in (values.shape[0], values.shape[-1]):
        return "; give PIL.Image.fromarray of it as (H, W, 4), which is laid over white, or its first three channels"
    return ""


def _bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return values as uint8: they are, or they are floats that are whole numbers of 255ths from 0 to 1."""
    if values.dtype == np.uint8:
        return values
    found, remedy = str(values.dtype), "give it as uint8, 0 to 255"
    if values.size and values.dtype.kind in "fiu":
        found += f" from {values.min():.6g} to {values.max():.6g}"
    if values.size and values.dtype.kind == "f":
        steps = values.astype(np.float64) * 255
        whole = np.rint(steps)
        inside = bool(((whole >= 0) & (whole <= 255)).all())
        # Nothing but 0 and 1 may be two neighbouring values of 0 to 255.
        if inside and (np.abs(steps - whole) < 1e-2).all() and (not whole.any() or ((whole > 0) & (whole < 255)).any()):
            return whole.astype(np.uint8)
        remedy += "; of values from 0 to 1 that is (255 * image).round() as uint8, before any normalisation"
    expected = "expected uint8, or floats that are whole 255ths from 0 to 1"
    raise ImageError("unsupported", f"{expected}, found {found}; {remedy}")


def _downloaded(addresses: Iterable[str], settings: FetchSettings) -> Iterator[Input]:
    """Read addresses side by side, and yield them in their order; few more are drawn than are being read."""
    names: deque[str] = deque()

    def requests() -> Iterator[Request]:
        for address in addresses:
            names.append(address_name(address))
            yield Request(address, _WHOLE)

    for found in fetched(requests(), settings):
        name = names.popleft()
        yield Input(name, found._replace(path=name) if isinstance(found, Request) else found)


class Kept:
    """A net and decoders, for all threads of one process.

    Parameters
    ----------
    owner : object
        With its end the decoders end too.
    """

    def __init__(self, owner: object) -> None:
        self.process = os.getpid()
        self.calls = threading.local()
        """What the last call of each thread has left."""
        self._owner = weakref.ref(owner)
        self._lock = threading.Lock()
        self._wanted: Hashable = None
        self._runner: BatchRunner | None = None
        self._decoders: dict[DecodeSettings, tuple[Decoder, Callable[[], object]]] = {}

    def runner(self, wanted: Hashable, make: Callable[[], BatchRunner]) -> BatchRunner:
        """Return the net for some parameters; for other ones than before it is made, once."""
        with self._lock:
            if self._runner is None or self._wanted != wanted:
                self._close()
                self._runner, self._wanted = make(), wanted
            return self._runner

    def decoder(self, workers: int, settings: DecodeSettings) -> Decoder:
        """Return the decoder with these settings, which is started when it is first needed."""
        with self._lock:
            if settings in self._decoders and self._decoders[settings][0].workers != workers:
                self._close()
            if settings not in self._decoders:
                decoder = Decoder(workers, settings)
                self._decoders[settings] = decoder, weakref.finalize(self._owner(), _close_in, self.process, decoder)
            return self._decoders[settings][0]

    def close(self) -> None:
        """End the processes that decode; they are started again when they are needed."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        while self._decoders:
            self._decoders.popitem()[1][1]()


def _close_in(process: int, decoder: Decoder) -> None:
    # After a fork, the processes belong to the parent.
    if os.getpid() == process:
        decoder.close()


_SECONDS_BETWEEN_LINES = 0.5

Advance = Callable[[int], None]
"""Takes the number of images that are done."""


@contextmanager
def progress_bar(total: int | None, *, shown: bool) -> Iterator[Advance]:
    """Show progress within; `total` is None where it is not known."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with _notebook_line(total) if console.is_jupyter else _terminal_bar(console, total) as advance:
        yield advance


@contextmanager
def _terminal_bar(console: Any, total: int | None) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("images", total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _notebook_line(total: int | None) -> Iterator[Advance]:
    # rich's own bar needs ipywidgets there, and warns without.
    from IPython.display import display

    started, shown = time.monotonic(), 0.0

    def text(done: int) -> dict[str, str]:
        rate = done / max(time.monotonic() - started, 1e-9)
        return {"text/plain": f"{done}{'' if total is None else f'/{total}'} images, {rate:.1f} images/s"}

    handle = display(text(0), raw=True, display_id=True)
    last = 0

    def advance(done: int) -> None:
        nonlocal shown, last
        last = done
        if time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            handle.update(text(done), raw=True)

    try:
        yield advance
    finally:
        handle.update(text(last), raw=True)
