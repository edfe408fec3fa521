"""`python -m tests.proofs NAME [--full]`: one family of proofs, its figures, and exit code 1 if one fails."""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

NAMES = ("kills", "random_kills", "retries", "extensions", "disk", "power", "signals", "races", "ranks", "keys", "rot",
         "training", "soak", "flat", "images", "hostile", "fuzz", "commands")  # fmt: skip
QUICK = ("kills", "retries", "extensions", "disk", "power", "signals", "keys", "rot", "hostile", "fuzz", "commands")
"""Those that `quick` stands for, a part of the test suite; `pytest -m long` has the short forms of the others."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    lines = [f"  {name:<13} {first_line(name)}" for name in NAMES]
    lines.append(f"  {'quick':<13} The short forms of {', '.join(QUICK)}.")
    parser = argparse.ArgumentParser(
        prog="python -m tests.proofs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="families:\n" + "\n".join(lines),
    )
    parser.add_argument("name", choices=(*NAMES, "quick"), metavar="NAME")
    parser.add_argument("words", nargs="*", help="fuzz: names of readers")
    parser.add_argument("--full", action="store_true", help="the form whose figures docs/reliability.md tells")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="of a family that counts cases")
    parser.add_argument("--shown", type=int, default=20, help="failures that are told, at most")
    parser.add_argument("--folder", type=Path, help="images: the folder of hostile files")
    return parser.parse_intermixed_args(arguments)


def first_line(name: str) -> str:
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return text.removeprefix('"""').split("\n")[0].removesuffix('"""')


def main(arguments: list[str] | None = None) -> int:
    for name in ("OMP", "OPENBLAS", "MKL"):  # before the libraries are loaded: threads do not survive a fork
        os.environ.setdefault(f"{name}_NUM_THREADS", "1")
    sys.dont_write_bytecode = True  # A module that is compiled in the midst of a case would count as a deed of it.
    given = parse(arguments)
    return max(prove(name, given) for name in (QUICK if given.name == "quick" else (given.name,)))


def prove(name: str, given: argparse.Namespace) -> int:
    """Run a family, say what it found, and return the exit code."""
    family = importlib.import_module(f".{name}", __package__)
    from .common import Options

    options = Options(
        full=given.full, seed=given.seed, cases=given.cases, folder=given.folder, words=tuple(given.words)
    )
    begun = time.monotonic()
    report = family.run(options)
    seconds = round(time.monotonic() - begun)
    told = {"family": name, **report.figures, "seconds": seconds, "failures": len(report.failures)}
    print(json.dumps(told), flush=True)
    for sentence in report.failures[: given.shown]:
        print(f"  {sentence}", file=sys.stderr)
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
