"""A disk on which a process dies: nothing that it does afterwards changes anything."""

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
