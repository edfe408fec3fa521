"""Proofs of what RELIABILITY.md promises: `python -m tests.reliability` lists them.

Each runs in a short form, of seconds, and in a full one, of minutes, whose figures RELIABILITY.md tells.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))  # for what the tests share
