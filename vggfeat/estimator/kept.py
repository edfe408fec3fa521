"""What an extractor keeps between calls: a net on its device, and processes that decode."""

import os
import threading
import weakref
from collections.abc import Callable, Hashable

from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder


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
