"""The errors that vggfeat raises on purpose, one class per kind of cause.

Every message is one line and says what was expected, what was found, where, and what to do. The command line
prints the message alone and ends with the exit code of its class; anything else that escapes is a defect.
"""

import errno
import re
from dataclasses import dataclass, replace

_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""What `str.splitlines` takes for the end of a line."""


class VggfeatError(Exception):
    """Base of all errors that a user can cause and mend.

    Parameters
    ----------
    message : str
        One line: where, what was expected, what was found, what to do.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: object) -> str:
    """Return a text with its line breaks shown escaped, but for what ends it; the spaces of names stay."""
    return _BREAKS.sub(lambda found: ascii(found[0])[1:-1], str(text).lstrip("\r\n").rstrip())


class ConfigError(VggfeatError):
    """A setting that is not allowed, or two that do not go together."""

    exit_code = 2


class DatasetError(VggfeatError):
    """A data set that is missing, incomplete or not in its official layout."""

    exit_code = 4


class WeightsError(VggfeatError):
    """A weights file that is missing, damaged or of another network."""

    exit_code = 5


class StoreError(VggfeatError):
    """A file or folder that can't be written; a feature file, or its parts, that can't be read or continued."""

    exit_code = 6


class FitError(VggfeatError):
    """An SVM stage that can't be carried out on these features and labels."""

    exit_code = 7


class TrainingError(VggfeatError):
    """A training run that can't be started, continued, or carried on."""

    exit_code = 8


class ResourceError(VggfeatError):
    """Processes, open files or memory that the system does not give; no fault of an image or a file."""

    exit_code = 9


class ImageError(VggfeatError):
    """An image that gives no pixels.

    Parameters
    ----------
    reason : str
        One word of `vggfeat.images.decode.REASONS`, for counting.
    message : str
        What was found, in one line.
    """

    exit_code = 3

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Failure:
    """Why an image has no pixels, or no features; as text, and in files, "reason: message"."""

    reason: str
    """One word of `vggfeat.images.decode.REASONS`, for counting."""
    message: str
    """What was found, in one line."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @classmethod
    def of(cls, text: str) -> "Failure":
        """Return the failure that a file keeps as text."""
        reason, _, message = text.partition(": ")
        return cls(reason, message)

    def without(self, name: str) -> "Failure":
        """Return it without the name of the file, which its message may begin with."""
        return replace(self, message=self.message.removeprefix(f"{name}: "))


def without_number(error: BaseException) -> str:
    """Return what an error says: of one of the system its words alone, without number and name, which a message has."""
    return str(getattr(error, "strerror", None) or error)


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error of a library means that memory, of the machine or of a GPU, has run out."""
    # PyTorch has a class for some of these only; cuBLAS, cuDNN and oneDNN report the rest as text, and a library that
    # does not fit can't be imported.
    text = str(error).lower()
    signs = ("out of memory", "allocate memory", "alloc_failed", "bad_alloc", "memory object", "failed to map segment")
    reported = isinstance(error, RuntimeError | ImportError) and any(sign in text for sign in signs)
    return reported or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def out_of_resources(error: BaseException) -> bool:
    """Say whether an error means that the system gives no more memory, threads or open files."""
    threads = isinstance(error, RuntimeError) and "start new thread" in str(error)
    files = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    return threads or files or out_of_memory(error)
