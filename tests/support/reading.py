"""Files of other libraries read in the process of the test, for cases by the hundred."""

from vggfeat.weights.importing import ParsedNet, finish
from vggfeat.weights.pytorch import parse_state
from vggfeat.weights.reader_process import opened_here
from vggfeat.weights.sniff import recognise
from vggfeat.weights.tensor_files import load_own


def load_here(path, kind=None):
    """Return the net of a file, as `load_file` does, but read without limits."""
    kind = kind or recognise(path)
    if kind == "vggfeat":
        return load_own(path)
    with opened_here(kind, path) as found:
        return finish(path, found if isinstance(found, ParsedNet) else parse_state(path, found))
