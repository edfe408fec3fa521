"""What goes through the net."""

import contextlib
from collections.abc import Iterator

import pytest

from vggfeat.forward.runner import BatchRunner


@contextlib.contextmanager
def seen_by_the_net() -> Iterator[list]:
    """Give a list of the images that go through the net within a block, which grows as they do."""
    seen, original = [], BatchRunner.launch

    def launch(self, images, *rest):
        taken = list(images)
        seen.extend(taken)
        return original(self, taken, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchRunner, "launch", launch)
        yield seen
