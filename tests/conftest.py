"""What holds for all tests."""

import os
import signal
import tempfile

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # As the command line does; read when PyTorch is loaded.


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with Ctrl-C ignored, and nohup SIGHUP; the programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        # Else every process that a test starts would compile all libraries again.
        compiled = tempfile.TemporaryDirectory()
        os.environ["PYTHONPYCACHEPREFIX"] = compiled.name
        config.add_cleanup(compiled.cleanup)
