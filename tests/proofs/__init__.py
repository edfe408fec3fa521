"""Proofs of what docs/reliability.md promises: `python -m tests.proofs` lists them.

Each runs in a short form, of seconds, and in a full one, of minutes, whose figures docs/reliability.md tells.
"""

import sys
from pathlib import Path

SUPPORT = Path(__file__).parents[1] / "support"
if str(SUPPORT) not in sys.path:
    sys.path.insert(0, str(SUPPORT))  # for what the tests share
