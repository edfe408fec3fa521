"""One flipped bit in what vggfeat keeps: always found, never computed with.

Shards are computed again and the file ends the same; feature files, checkpoints and models are refused, or read as they
were where the bit means nothing (blanks, and gaps of HDF5); a shard of a packed copy is made again by the same command.
Full: 100 flips of each. Short: 8.
"""

import random
from pathlib import Path

from image_files import draw
from vggfeat.datasets import ilsvrc
from vggfeat.training.packing import PackSettings, pack

from . import mutants
from .common import Options, Report, scratch
from .readers import READERS, sample

FILES = {"parts": "s00000.h5", "features": "x.h5", "checkpoint": ".safetensors", "model": ".safetensors"}


def run(options: Options) -> Report:
    report, rng = Report(), random.Random(options.seed)
    count = 100 if options.full else 8
    for name, ending in FILES.items():
        with scratch() as folder:
            kept(name, ending, count, rng, folder, report)
    with scratch() as folder:
        packed(count, rng, folder, report)
    return report


def flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def kept(name: str, ending: str, count: int, rng: random.Random, folder: Path, report: Report) -> None:
    reader = READERS[name]
    tree = sample(reader, folder / "sound")
    path = next(path for path in tree if path.endswith(ending))
    wanted = reader.read(folder / "sound")
    for number in range(count):
        place = folder / "flipped"
        place.mkdir()
        mutants.write(place, tree | {path: flipped(tree[path], rng)})
        try:
            found = reader.read(place)
        except reader.error:
            report.count(f"{name}: refused")
        else:
            outcome = "told" if found is None else "as it was" if name != "parts" else "computed again"
            report.count(f"{name}: {outcome}")
            report.check(found in (None, wanted), f"{name}, flip {number}: read as something else than was written")
        mutants.remove(place)


def packed(count: int, rng: random.Random, folder: Path, report: Report) -> None:
    for number in range(6):
        draw(folder / "in" / ("train" if number < 4 else "val") / "ab"[number % 2] / f"{number}.png", number, (20, 16))
    settings, out = PackSettings(side=16, shard_images=3), folder / "out"
    data = ilsvrc.read(folder / "in")
    pack(data, out, settings, workers=0)
    shards = {path: path.read_bytes() for path in sorted(out.glob("shards/*.tar"))}
    for number in range(count):
        path = rng.choice(list(shards))
        path.write_bytes(flipped(shards[path], rng))
        pack(data, out, settings, workers=0)
        report.check(path.read_bytes() == shards[path], f"packed copy, flip {number}: {path.name} was left damaged")
        report.count("packed: made again")
