"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    # A shell starts background jobs with Ctrl-C ignored, which the programs under test would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
