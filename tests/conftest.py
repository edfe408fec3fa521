"""What holds for all tests."""

import os
import signal
import sys

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # As the command line does; read when PyTorch is loaded.


LONGEST = ("proofs/test_proofs.py", "tests/test_pipelines.py", "tests/test_uses.py", "tests/test_streamed_runs.py",
           "training/test_train.py", "store/test_writer.py", "engines/test_ray_engine.py")  # fmt: skip
"""Files that take longest: they begin first, so that processes that share the files of tests end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not str(item.path).endswith(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with Ctrl-C ignored, and nohup SIGHUP; the programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", "") and hasattr(config, "cache"):
        # Else every run of the suite, and every process that a test starts, would compile all libraries again.
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(config.cache.mkdir("compiled"))
        sys.dont_write_bytecode = False
