"""An engine in one class: processes that agree through files in a folder that all of them see, without torch."""

import pickle
import time
from dataclasses import dataclass
from pathlib import Path

from vggfeat.errors import VggfeatError
from vggfeat.runtime.distributed import World


@dataclass(frozen=True)
class FolderWorld(World):
    """Each exchange is a numbered set of files, one a process; there are no tensors to sum, as in training."""

    folder: Path = Path()

    def _exchange(self, value, meanwhile=lambda: None):
        count = len(list(self.folder.glob(f"*-{self.rank}")))
        mine = self.folder / f"{count}-{self.rank}"
        mine.with_suffix(".new").write_bytes(pickle.dumps(value))
        mine.with_suffix(".new").rename(mine)
        files = [self.folder / f"{count}-{rank}" for rank in range(self.size)]
        while not all(file.exists() for file in files):
            meanwhile()
            time.sleep(0.01)
        return [pickle.loads(file.read_bytes()) for file in files]

    def barrier(self, meanwhile=lambda: None):
        self._exchange(None, meanwhile)

    def gather(self, value):
        return self._exchange(value)

    def any(self, flag):
        return max(self._exchange(flag))

    def all_reduce_min(self, value):
        return min(self._exchange(value))

    def on_main(self, action):
        result = error = None
        if self.is_main:
            try:
                result = action()
            except VggfeatError as raised:
                error = raised
        result, error = self._exchange((result, error))[0]
        if error is not None:
            raise error
        return result
