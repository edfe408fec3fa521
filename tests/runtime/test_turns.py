"""What belongs to the whole process is one thread's at a time, and no fork leaves it taken."""

import os
import threading

import pytest

from vggfeat.runtime.system import Turns


def in_thread(turns):
    """Begin a turn in another thread; returns what ends it, and the thread."""
    begun, end = threading.Event(), threading.Event()

    def hold():
        with turns.turn():
            begun.set()
            end.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(20)
    return end, thread


def taken_in_child(turns):
    """Fork, and say whether the child gets a turn."""
    pid = os.fork()
    if pid == 0:
        got = threading.Event()

        def take():
            with turns.turn():
                got.set()

        threading.Thread(target=take, daemon=True).start()
        os._exit(0 if got.wait(10) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_thread_waits_for_the_turn_of_another_and_not_for_its_own():
    turns, entered = Turns(), threading.Event()

    def enter():
        with turns.turn(), turns.turn():
            entered.set()

    end, thread = in_thread(turns)
    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.1)
    end.set()
    assert entered.wait(20)
    thread.join()
    waiting.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("long", [False, True])
def test_the_child_of_a_fork_gets_its_turn(long):
    turns = Turns(long=long)
    end, thread = in_thread(turns)
    if not long:
        threading.Timer(0.2, end.set).start()
    assert taken_in_child(turns)
    assert end.is_set() is not long  # Only for the end of a short one it waits.
    end.set()
    thread.join()
    assert taken_in_child(turns)
