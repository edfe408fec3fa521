"""Who is waited for is named, once, by one process; who computes, or has left, is not."""

import threading
import time
from contextlib import ExitStack, contextmanager

import torch.distributed as dist

from vggfeat.runtime.rendezvous import Watch, named

SILENCE = 1.0


class Seen:
    """Watches of several processes over one store, in this process; `said` holds (rank, sentence)."""

    def __init__(self, size: int) -> None:
        self.size, self.store, self.said = size, dist.HashStore(), []
        for rank in range(size):
            self.store.set(f"sign {rank}", "1 0")

    @contextmanager
    def alive(self, *ranks):
        with ExitStack() as stack:
            watches = [
                Watch(
                    self.store, rank, self.size, silence=SILENCE, where="the store",
                    say=lambda sentence, rank=rank: self.said.append((rank, sentence)),
                )
                for rank in ranks
            ]  # fmt: skip
            for watch in watches:
                stack.callback(watch.start().close)
            yield watches

    def wait(self, count: int = 1) -> list:
        deadline = time.monotonic() + 30
        while len(self.said) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.said


def test_a_silent_process_is_named_once_by_the_first_that_is_not():
    seen = Seen(4)
    with seen.alive(1, 2):
        seen.wait()
        time.sleep(SILENCE)
    assert seen.said == [(1, "waiting for processes 0, 3 of 4, not heard of for 1 s: stopped, or out of reach")]


def test_a_process_that_has_left_is_not_waited_for():
    seen = Seen(3)
    with seen.alive(0):
        with seen.alive(1):
            pass
        assert seen.store.get("sign 1") == b"gone"
        seen.wait()
        time.sleep(SILENCE / 2)
    assert seen.said == [(0, "waiting for process 2 of 3, not heard of for 1 s: stopped, or out of reach")]


def test_one_that_is_heard_of_but_does_not_come_is_named_by_the_first():
    seen = Seen(3)
    with seen.alive(0, 1, 2) as (first, second, _):
        with first.waiting(), second.waiting():
            assert seen.wait() == [(0, "waiting for process 2 of 3")]
        with first.waiting():
            assert seen.wait(2)[1:] == [(0, "waiting for processes 1, 2 of 3")]


def test_processes_that_compute_for_long_are_not_named():
    seen = Seen(2)
    with seen.alive(0, 1) as (first, second):
        with first.waiting(), second.waiting():
            time.sleep(1.5 * SILENCE)
        time.sleep(1.5 * SILENCE)
    assert seen.said == []


def test_a_store_that_does_not_answer_is_named():
    seen, block = Seen(2), threading.Event()

    class Stopped:
        def set(self, key, text):
            block.wait(60)

        def check(self, keys):
            return False

    seen.store = Stopped()
    with seen.alive(1):
        seen.wait()
        block.set()
    assert seen.said == [(1, "the store has not answered for 1 s: process 0 or torchrun may be stopped")]


def test_names_are_cut_after_ten():
    assert named([2], 4) == "process 2 of 4"
    assert named(list(range(1, 13)), 64) == "processes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more of 64"
