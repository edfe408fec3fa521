"""Unfinished parts and finished files of other settings are never taken for ours: one component after the other.

Every leaf of the description of a run (`manifest.json`) is changed in turn, as if the run that stands there had had
another value; and every option of the command that changes a value is. Each time the command must refuse with exit code
6, name what differs, and change no byte of what stands there.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crash_runs import killing

from .common import Job, Options, Report, scratch

OTHER = {
    "weights_sha256": ("--weights", "random:A:1:0.03125"),
    "net": ("--weights", "random:B:0:0.03125"),
    "channels": ("--weights", "random:A:0:0.0625"),
    "scales": ("--scales", "230"),
    "scales.": ("--scales", "224,256"),
    "layer": ("--layer", "fc6"),
    "precision": ("--precision", "bf16"),
    "interpolation": ("--interpolation", "bicubic"),
    "batch_pixels": ("--batch-pixels", "100000"),
    "batching": ("--batching", "padded"),
    "compiled": ("--compile",),
    "max_pixels": ("--max-pixels", "1000000"),
    "allow_truncated": ("--allow-truncated",),
    "shard_rows": ("--shard-rows", "2"),
}
"""What a refusal must name -> words that bring it about."""


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        job = Job(folder, 3)
        job.start(files=killing(job.calls().index("free") + 8, False)).wait()
        whole = json.loads((job.parts / "manifest.json").read_text())
        for path, value in list(leaves(whole))[:: 1 if options.full else 11]:
            leaf(job, whole, path, value, report)
        for name, words in list(OTHER.items())[:: 1 if options.full else 4]:
            refused(job, name.rstrip("."), list(words), "parts", report)
        job.finish(report, "after all refusals", 1)
        job.start().wait()
        for name, words in list(OTHER.items())[: None if options.full else 2]:
            if name != "shard_rows":  # of which nothing depends once the file is there
                refused(job, name.rstrip("."), list(words), "file", report)
        if options.full:
            image(job, report)
    return report


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}x" if isinstance(value, str) else 1


def leaf(job: Job, whole: dict, path: tuple, value: Any, report: Report) -> None:
    other = json.loads(json.dumps(whole))
    place = other
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = changed(value)
    manifest = job.parts / "manifest.json"
    before = manifest.read_bytes()
    manifest.write_text(json.dumps(other))
    refused(job, next(str(key) for key in reversed(path) if isinstance(key, str)), [], "leaf", report)
    manifest.write_bytes(before)


def refused(job: Job, name: str, words: list[str], what: str, report: Report) -> None:
    report.count({"leaf": "components", "parts": "options, parts", "file": "options, file"}[what])
    before = contents(job)
    job.options = tuple(words)
    ended = job.start().wait()
    job.options = ()
    where = f"{what}, {name} {' '.join(words)}"
    report.check(
        ended.code == 6 and ended.clean, f"{where}: expected exit code 6, found {ended.code}: {ended.err[:300]}"
    )
    report.check(f"{name}" in ended.err, f"{where}: the refusal does not name it: {ended.err[:300]}")
    if contents(job) != before:
        report.failures.append(f"{where}: files were changed")
        job.clear()
        for path, content in before.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def image(job: Job, report: Report) -> None:
    """Another size, name or label of an image makes another list."""
    path = next(job.root.rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"\0")
    refused(job, "image_sizes_sha256", [], "file", report)
    path.rename(path.with_name("other.png"))
    refused(job, "fingerprint", [], "file", report)


def contents(job: Job) -> dict[Path, bytes]:
    files = [*job.parts.glob("*"), job.out]
    return {path: path.read_bytes() for path in files if path.is_file() and path.name != "LOCK"}
