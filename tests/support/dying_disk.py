"""Disks that fail: one on which a process dies, so that nothing that it does afterwards changes anything; others."""

import errno

from vggfeat.runtime.durable import Files


class Killed(BaseException):
    """The process is no more."""


class Dying(Files):
    """A disk that takes so many calls, and none after them, as if the process had been killed."""

    def __init__(self, calls):
        self.calls = calls

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name == "calls" or not callable(found):
            return found

        def call(*arguments):
            if not self.calls:
                raise Killed
            self.calls -= 1
            return found(*arguments)

        return call


class FailingFiles(Files):
    """Fails at the call of a number, and at all after it if `dead`, as if the machine had gone."""

    def __init__(self, number: int, dead: bool) -> None:
        self.left, self.dead = number, dead
        for name in ("create", "write", "truncate", "sync", "sync_folder", "rename", "remove", "make_folder"):
            setattr(self, name, self._failing(getattr(super(), name)))

    def _failing(self, call):
        def maybe(*arguments):
            self.left -= 1
            if self.left == 0 or (self.dead and self.left < 0):
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments)

        return maybe
