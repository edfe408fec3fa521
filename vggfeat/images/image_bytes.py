"""The bytes of an image, from a file of its own or from one that holds many, or one named reason why not."""

import errno
import os
import stat
import zlib

from vggfeat.errors import ImageError, ResourceError


def read_bytes(path: str, max_bytes: int, span: tuple[int, ...] | None) -> bytes:
    """Read the bytes of an image, all of its file or those of a span (first byte, number of bytes, their CRC-32).

    Raises
    ------
    ImageError
        If it is no regular file of 1 to `max_bytes` bytes, can't be read, or a span has another CRC-32.
    ResourceError
        If this process may open no more files.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer that may never come.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise ResourceError(
                f"{shown(path)}: expected to open one more file, found: {error.strerror}; "
                "raise the limit on open files (ulimit -n), or decode with fewer workers (--workers)"
            ) from None
        raise ImageError(
            _reason_to_stay_closed(error),
            f"expected a readable file, found: {getattr(error, 'strerror', None) or error}",
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not-a-file", "expected a regular file, found a folder, FIFO, socket or device")
        start, length, *checksums = span or (0, status.st_size)
        check_length(length, max_bytes)
        if start + length > status.st_size:
            raise ImageError("truncated", f"expected at least {start + length} bytes, found {status.st_size}")
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(start)
            data = file.read(length)
        if any(zlib.crc32(data) != checksum for checksum in checksums):
            raise ImageError("damaged", "expected the bytes that were packed, found others; give `data pack` again")
        return data
    except OSError as error:
        raise ImageError(
            "unreadable", f"expected a readable file, found: {getattr(error, 'strerror', None) or error}"
        ) from None
    finally:
        os.close(descriptor)


def check_length(length: int, max_bytes: int) -> None:
    """Check the number of bytes of an image.

    Raises
    ------
    ImageError
        If it is not from 1 to `max_bytes`.
    """
    if not 0 < length <= max_bytes:
        raise ImageError("too-large" if length > 0 else "empty", f"expected 1 to {max_bytes} bytes, found {length}")


def _reason_to_stay_closed(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError) or error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return "missing"
    return {errno.ELOOP: "link-loop", errno.ENXIO: "not-a-file"}.get(error.errno or 0, "unreadable")


def shown(text: str) -> str:
    """Make a text of a file's name or content fit for a message."""
    return "".join(char if char.isprintable() else "?" for char in text.encode("utf-8", "backslashreplace").decode())
