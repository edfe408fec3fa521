"""How a GPU convolves is ours while we compute, whatever the program around us has set, and its own again after."""

import json
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

import vggfeat
from vggfeat.errors import ConfigError, TrainingError
from vggfeat.runtime.devices import (
    checked_device,
    convolutions,
    default_batch_pixels,
    default_device,
    layout,
    library_version,
)
from vggfeat.runtime.distributed import open_world

# In forks of a process of its own: what a program has set can't all be set back.
SCRIPT = """
import json, os, sys
import torch
from vggfeat.runtime.devices import convolutions

torch.cuda.is_available = lambda: True
cudnn = torch.backends.cudnn

def seen():
    return cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic

def check(before, after):
    exec(before)
    was = seen()
    for tf32, fastest in ((False, False), (True, False), (False, True)):
        with convolutions(tf32=tf32, fastest=fastest):
            assert seen() == ("tf32" if tf32 else "ieee", fastest, not fastest), seen()
        assert seen() == was, seen()
    try:
        with convolutions(tf32=False, fastest=True):
            raise KeyError
    except KeyError:
        assert seen() == was, seen()
    exec(after)

for before, after in json.loads(sys.argv[1]):
    if os.fork() == 0:
        check(before, after)
        os._exit(0)
    assert os.wait()[1] == 0, before
"""


def test_convolutions_are_as_asked_for_whatever_the_program_has_set():
    programs = [
        ("", "assert cudnn.allow_tf32"),
        ("torch.backends.fp32_precision = 'tf32'", "assert torch.backends.fp32_precision == 'tf32'"),
        ("cudnn.conv.fp32_precision = 'ieee'", ""),
        ("cudnn.allow_tf32 = False", "assert not cudnn.allow_tf32"),
        ("cudnn.benchmark = True", ""),
    ]
    command = [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(programs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_nothing_is_touched():
    before = torch.backends.cudnn.conv.fp32_precision
    with convolutions(tf32=False, fastest=True):
        assert torch.backends.cudnn.conv.fp32_precision == before


@pytest.mark.parametrize(("gigabytes", "exponent"), [(6, 22), (16, 22), (24, 23), (40, 24), (141, 24)])
def test_a_larger_gpu_has_more_pixels_in_a_pass(gigabytes, exponent, monkeypatch):
    about = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    assert default_batch_pixels("cuda:1") == 1 << exponent
    assert (default_batch_pixels("cpu"), default_batch_pixels("mps")) == (1 << 20, 1 << 22)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_for_a_gpu_of_another_machine_passes_have_the_least_pixels():
    assert default_batch_pixels("cuda") == default_batch_pixels("cuda:7") == 1 << 22


def test_the_version_of_a_checkout_is_what_it_declares(monkeypatch):
    expected = library_version("vggfeat")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert library_version("vggfeat") == expected == vggfeat.__version__
    assert library_version("torch") == "none"


def test_mps_is_taken_where_pytorch_has_it_for_what_it_computes(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: torch.zeros(*size))
    apple = checked_device("mps", "fp16")
    assert (apple.type, layout(apple)) == ("mps", torch.contiguous_format)
    assert default_device() in ("cpu", "cuda")
    for precision in ("bf16", "tf32", "winograd"):
        with pytest.raises(ConfigError, match=f"on mps expected fp32 or fp16, found {precision}"):
            checked_device("mps", precision)
    with pytest.raises(ConfigError, match="to train, expected cpu or cuda, found mps"):
        open_world("mps", {}, lost=TrainingError, sums=True).__enter__()
