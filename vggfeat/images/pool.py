"""Images decoded side by side, in processes that may hang, swell or die without harm to the run.

Each worker has a connection of its own and holds one image at a time: a worker that is stopped or killed, even half-way
through an answer, is known with its image and blocks no other. Pools with one pipe for all workers do not give
that. Workers are started as programs, not by multiprocessing, which would run the user's main script once more.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from types import TracebackType

from vggfeat.checks import whole_number
from vggfeat.errors import ImageError, ResourceError, StoreError
from vggfeat.images import decode as decoding
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.images.worker import Worker, not_started
from vggfeat.runtime.system import HAS_GUARDED_PROCESSES, note_unguarded

Answer = DecodedImage | ImageError
AHEAD = 3
"""Images per worker that are drawn before they are asked for."""


class Decoder:
    """Decodes images in worker processes; use it in a `with` statement, which ends them.

    Parameters
    ----------
    workers : int
        Processes; 0 decodes in this one, without limits of time and memory. Where the system has no processes with
        limits, as many threads of this one, without them too; then that is logged.
    settings : DecodeSettings
    decode : callable
        What a worker does with a request: a function at the top of a module that can be imported, or
        `functools.partial` of one with named arguments that JSON can hold.
    ahead : int
        Images that may be drawn before they are asked for; at least 3 per worker are.
    hold : int
        Bytes of decoded images that may wait to be taken before less is drawn ahead.

    Raises
    ------
    ConfigError
        If the number of workers is no whole number from 0.
    """

    def __init__(
        self,
        workers: int,
        settings: DecodeSettings,
        *,
        decode: Callable[[Request, DecodeSettings], DecodedImage] = decoding.decode,
        ahead: int = 0,
        hold: int = 1 << 28,
    ) -> None:
        self.workers = workers = whole_number("workers", workers, 0)
        self.settings = settings
        self._decode = decode
        self._answer = self._in_worker if HAS_GUARDED_PROCESSES else self._here
        self._most_ahead = max(ahead, AHEAD * workers)
        self._hold = hold
        self._threads = ThreadPoolExecutor(max(1, workers), "vggfeat-decoder")
        self._idle: SimpleQueue[Worker | None] = SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._lock = threading.Lock()
        self._living: set[Worker] = set()
        self._closed = False
        if workers and not HAS_GUARDED_PROCESSES:
            note_unguarded("images are decoded")

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers at once, also those that are at work. May be called twice."""
        with self._lock:
            self._closed = True
            for worker in self._living:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        while self._living:
            self._living.pop().end()

    def stream(self, requests: Iterable[Request | Answer]) -> Iterator[Answer]:
        """Decode one request after the other.

        Requests are drawn only so far ahead: at most 3 per worker or `ahead`, and no more than one
        beyond the number of workers once the images that wait outgrow `hold`.

        `requests`: images that are decoded already, or have failed already, are passed on in their turn.
        Returns an answer for each request, in the order of the requests. Reasons of its own: time-out, and worker-died
        for an image that ended two workers in turn.
        Raises ResourceError while iterating, if a worker can't be started; or if the system refuses something else,
        such as one more open file, that is no fault of the image. Raises StoreError while iterating, if a file of
        packed images can't be read now. Raises RuntimeError if the decoder is closed; while iterating, if decoding
        failed in a way that is no fault of the image.
        """
        if self._closed:
            raise RuntimeError("the decoder is closed")
        return self._ahead(requests) if self.workers else (self._here(request) for request in requests)

    def _here(self, request: Request | Answer) -> Answer:
        if not isinstance(request, Request):
            return request
        try:
            return self._decode(request, self.settings)
        except ImageError as error:
            # A new one: the traceback of the old one would keep the file's bytes alive.
            return ImageError(error.reason, str(error))

    def _ahead(self, requests: Iterable[Request | Answer]) -> Iterator[Answer]:
        source = iter(requests)
        waiting, largest = _Queue(), self._hold
        try:
            while True:
                while self._wants_more(waiting, largest) and (drawn := list(islice(source, 1))):
                    if self._closed:
                        raise CancelledError
                    waiting.join(self._submit(drawn[0]))
                if not len(waiting):
                    return
                answer = waiting.take()
                # Until the first answer, every image is taken for a very large one.
                largest = max(_bytes(answer), 0 if largest == self._hold else largest)
                yield answer
                del answer
        except CancelledError:
            raise RuntimeError("the decoder was closed before its stream had been read to the end") from None
        finally:
            waiting.cancel()

    def _submit(self, request: Request | Answer) -> Future[Answer]:
        if not isinstance(request, Request):
            ready: Future[Answer] = Future()
            ready.set_result(request)
            return ready
        try:
            return self._threads.submit(self._answer, request)
        except RuntimeError as error:
            if self._closed:
                raise CancelledError from None
            raise not_started(str(error)) from None

    def _wants_more(self, waiting: "_Queue", largest: int) -> bool:
        if len(waiting) <= self.workers:
            return True
        held = waiting.held + waiting.unfinished * largest
        return len(waiting) < self._most_ahead and held + largest <= self._hold

    def _in_worker(self, request: Request) -> Answer:
        endings = []
        for _ in range(2):
            worker = self._idle.get()
            try:
                worker = worker if worker and worker.alive() else self._replace(worker)
                return worker.decode(request)
            except (ResourceError, StoreError):
                raise
            except ImageError as error:
                return ImageError(error.reason, str(error))
            except TimeoutError:
                self._end(worker)
                return decoding.failure(
                    request.name, "time-out", f"expected pixels within {self.settings.timeout:g} s, found none"
                )
            except (EOFError, OSError):
                endings.append(self._end(worker))
            except Exception:
                # Half an answer may still be in the connection.
                self._end(worker)
                raise
            finally:
                self._idle.put(worker)
        ended = f"expected pixels, found that decoding ended its process twice, by {' and by '.join(endings)}"
        return decoding.failure(request.name, "worker-died", ended)

    def _replace(self, dead: Worker | None) -> Worker:
        self._end(dead)
        worker = Worker(self._decode, self.settings)
        with self._lock:
            self._living.add(worker)
            if self._closed:
                worker.kill()
        worker.wait_until_ready()
        return worker

    def _end(self, worker: Worker | None) -> str:
        with self._lock:
            if self._closed:
                raise CancelledError
            if worker is None:
                return ""
            self._living.discard(worker)
        return worker.end()


class _Queue:
    """Images that are being decoded or wait to be taken, in order, and what they hold.

    An image that is finished is counted as such a moment later; until then it is taken for a large one.
    """

    def __init__(self) -> None:
        self._futures: deque[Future[Answer]] = deque()
        self._lock = threading.Lock()
        self.held = 0
        """Bytes of finished ones."""
        self.unfinished = 0

    def __len__(self) -> int:
        return len(self._futures)

    def join(self, future: Future[Answer]) -> None:
        """Add an image at the end."""
        self._futures.append(future)
        with self._lock:
            self.unfinished += 1
        future.add_done_callback(self._finished)

    def take(self) -> Answer:
        """Wait for the first image, and return it."""
        answer = self._futures.popleft().result()
        with self._lock:
            self.held -= _bytes(answer)
        return answer

    def cancel(self) -> None:
        """Give up all."""
        for future in self._futures:
            future.cancel()

    def _finished(self, future: Future[Answer]) -> None:
        failed = future.cancelled() or future.exception() is not None
        with self._lock:
            self.unfinished -= 1
            self.held += 0 if failed else _bytes(future.result())


def _bytes(answer: Answer) -> int:
    return 0 if isinstance(answer, ImageError) else sum(region.nbytes for region in answer.regions)
