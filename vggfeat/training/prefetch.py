"""Work that is done in the background, a few items ahead of whoever takes them."""

import threading
from collections import deque
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")
_CLOSING_SECONDS = 5.0


class Ahead(Generic[T]):
    """An iterator over what a generator yields; a thread runs the generator. End it with `close`.

    Parameters
    ----------
    items : generator
        Runs and ends in the thread. An error of it is raised where its items are taken.
    depth : int
        Items that may wait; one more is in the making.
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._items, self._depth = items, depth
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = self._over = False
        self._error: BaseException | None = None
        # A daemon, so that a program which forgets to close can end.
        self._thread = threading.Thread(target=self._run, name="vggfeat-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Ahead[T]":
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._over or self._closed)
            if self._ready and not self._closed:
                self._changed.notify_all()
                return self._ready.popleft()
        if self._error is not None and not self._closed:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Stop the work: what is in the making is finished and dropped. May be called twice, also half-way."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_CLOSING_SECONDS)

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                    if self._closed:
                        return
                    self._ready.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # It belongs to the thread that waits for the items.
            self._error = error
        finally:
            self._items.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()
