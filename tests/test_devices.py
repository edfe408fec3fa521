"""How a GPU convolves is ours while we compute, whatever the program around us has set, and its own again after."""

import subprocess
import sys

import pytest
import torch

# A process of its own: what is set in one for good would be seen by other tests.
SCRIPT = """
import torch
from vggfeat.devices import convolutions

torch.cuda.is_available = lambda: True
cudnn = torch.backends.cudnn
{before}

def seen():
    return cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic

was = seen()
for tf32, fastest in ((False, False), (True, False), (False, True)):
    with convolutions(tf32=tf32, fastest=fastest):
        assert seen() == ("tf32" if tf32 else "ieee", fastest, not fastest), seen()
    assert seen() == was, seen()
try:
    with convolutions(tf32=False, fastest=True):
        raise KeyError
except KeyError:
    assert seen() == was
{after}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "assert cudnn.allow_tf32"),
        ("torch.backends.fp32_precision = 'tf32'", "assert torch.backends.fp32_precision == 'tf32'"),
        ("cudnn.conv.fp32_precision = 'ieee'", ""),
        ("cudnn.allow_tf32 = False", "assert not cudnn.allow_tf32"),
        ("cudnn.benchmark = True", ""),
    ],
)
def test_convolutions_are_as_asked_for_whatever_the_program_has_set(before, after):
    script = SCRIPT.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_nothing_is_touched(monkeypatch):
    from vggfeat.devices import convolutions

    before = torch.backends.cudnn.conv.fp32_precision
    with convolutions(tf32=False, fastest=True):
        assert torch.backends.cudnn.conv.fp32_precision == before
