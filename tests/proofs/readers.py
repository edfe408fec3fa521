"""What vggfeat reads and others may have written, but for weights: small sound samples, and how to read them.

Weights in their published formats have a harness of their own, tests/support/fuzz_weights.py.
"""

import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from scipy.io import savemat

from crash_runs import contents
from feature_rows import finish, make_block, open_parts
from image_files import draw
from vggfeat.datasets import caltech, folder, ilsvrc, manifest, voc
from vggfeat.datasets import ilsvrc_boxes as boxes
from vggfeat.errors import DatasetError, FitError, ImageError, StoreError, TrainingError, VggfeatError
from vggfeat.formats.hdf5 import write_text_attribute
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.runtime.durable import DISK
from vggfeat.samples import LabelledImages
from vggfeat.store.parts import HEAD
from vggfeat.svm.model import LinearModel, load_model, save_model
from vggfeat.training.checkpoints import Checkpoints, read_checkpoint
from vggfeat.training.packing import PackSettings, pack
from vggfeat.training.run_folder import RunFolder
from vggfeat.training.statistics import PixelStatistics, read_statistics, save_statistics

from .mutants import Tree, damage, read


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One kind of what is read."""

    make: Callable[[Path], None]
    """Write a sound sample into a folder."""
    read: Callable[[Path], str | None]
    """Read it; return a digest of what was found, or None where it tells of damage and goes on."""
    error: type[VggfeatError]
    """What it may raise."""
    texts: tuple[str, ...] = ()
    """Endings of the files that are text."""
    damaged: tuple[str, ...] = ("",)
    """Endings of the files whose content is damaged; none: only the tree is."""
    tree: bool = True
    """Whether names and kinds of files are changed too; not in folders that only vggfeat writes to."""
    exact: bool = False
    """Whether checksums promise that what is read is what was written."""
    reseal: Callable[[random.Random, str, bytes], bytes] | None = None
    """Damage a file behind its checksum: what an attacker does, and chance does not."""


def told(*found: object) -> str:
    return hashlib.sha256(repr(found).encode()).hexdigest()


# PASCAL VOC


def voc2007(place: Path) -> None:
    main = place / "VOC2007" / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for part, images in (("train", ("000012", "000005")), ("val", ("000007",)), ("test", ("000001", "000002"))):
        (main / f"{part}.txt").write_text("".join(f"{image}\n" for image in images))
        for number, cls in enumerate(voc.CLASSES):
            lines = [f"{image} {(number + n) % 3 - 1:2d}\n" for n, image in enumerate(images)]
            (main / f"{cls}_{part}.txt").write_text("".join(lines))


PERSON = """<object><name>person</name><actions><jumping>1</jumping></actions>
 <bndbox><xmax>{}</xmax><xmin>11</xmin><ymax>80.5</ymax><ymin>1</ymin></bndbox></object>"""


def actions(place: Path) -> None:
    main = place / "VOC2012" / "ImageSets" / "Action"
    notes = place / "VOC2012" / "Annotations"
    main.mkdir(parents=True)
    notes.mkdir()
    for part, images in (("train", ("2010_1", "2010_2")), ("val", ("2010_3",)), ("test", ("2010_4",))):
        (main / f"{part}.txt").write_text("".join(f"{image}\n" for image in images))
        for image in images:
            people = "".join(PERSON.format(50 + n) for n in range(2))
            (notes / f"{image}.xml").write_text(f"<annotation><filename>{image}.jpg</filename>{people}</annotation>")
        for action in voc.ACTIONS:
            lines = [f"{image}  {index}  {index % 2 or -1:2d}\n" for image in images for index in (1, 2)]
            (main / f"{action}_{part}.txt").write_text("".join(lines))


# Trees of images


def class_folders(*names: str, count: int) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        for name in names:
            (place / name).mkdir(parents=True)
            for number in range(count):
                (place / name / f"image_{number:04d}.jpg").write_bytes(b"")

    return make


MANIFEST = """path,labels,split,box,id
a/1.jpg,cat;dog,train,1 2 30.5 40,one
a/2.jpg,?cat,train;val,,two
"b,c.jpg","dog","test","0;0;5;5","thr""ee"
d.jpg,,,,
"""


# ILSVRC

KIT = [(1, "n02119789", "kit fox"), (2, "n01440764", "tench"), (3, "n0", "entity")]
IMAGES = [*(f"train/{wnid}/{wnid}_{n}.JPEG" for _, wnid, _ in KIT[:2] for n in (1, 2)),
            *(f"val/ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2, 3))]  # fmt: skip


def ilsvrc_tree(place: Path) -> None:
    for name in IMAGES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"")


def ilsvrc_kit(place: Path) -> None:
    ilsvrc_tree(place)
    data = place / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    table = np.zeros((len(KIT), 1), dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "words")])
    for row, values in enumerate(KIT):
        table[row, 0] = (float(values[0]), *values[1:])
    savemat(data / "meta.mat", {"synsets": table})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n2\n")


def ilsvrc_lists(place: Path) -> None:
    ilsvrc_tree(place)
    lines = [f"ILSVRC2012_val_0000000{n},{KIT[n % 2][1]} 1 2 30 40 \n" for n in (1, 2, 3)]
    (place / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
    (place / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {words}\n" for _, wnid, words in KIT))


def box_tree(place: Path) -> None:
    for name in IMAGES[:4]:
        path = place / "Annotations" / "CLS-LOC" / name.replace("JPEG", "xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        wnid = name.split("/")[1]
        box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>50</xmax><ymax>60</ymax></bndbox>"
        item = f"<object><name>{wnid}</name>{box}</object>"
        path.write_text(f"<annotation><size><width>90</width><height>70</height></size>{item}</annotation>")


def read_box_tree(place: Path) -> str:
    wnids = tuple(sorted(wnid for _, wnid, _ in KIT[:2]))
    targets = np.array([wnids.index(name.split("/")[1]) for name in IMAGES[:4]], np.int64)
    images = LabelledImages(root=place, paths=tuple(IMAGES[:4]), targets=targets, classes=wnids)
    return told(boxes.read_boxes(place, images, "train").fingerprint())


# Our own files


def read_features(place: Path) -> str | None:
    found, problems = contents(place / "x.h5")
    return None if problems else told(found)


def reseal_features(rng: random.Random, name: str, content: bytes) -> bytes:
    """Other numbers, texts or attributes, in HDF5 that is in order."""
    memory = io.BytesIO(content)
    with h5py.File(memory, "r+") as file:
        columns = [*(item for item in file.values() if isinstance(item, h5py.Dataset)), *file["splits"].values()]
        column, attribute = rng.choice(columns), rng.choice(list(file.attrs))
        if rng.random() < 0.5 and column.nbytes:
            old = column[...]
            new = damage(rng, old.tobytes(), content)[: old.nbytes].ljust(old.nbytes, b"\0")
            column[...] = np.frombuffer(new, old.dtype).reshape(old.shape)
            digest = hashlib.sha256(new).hexdigest()
            write_text_attribute(column, "sha256", digest)
            if column.name == "/features":
                write_text_attribute(file, "features_sha256", digest)
        elif isinstance(file.attrs[attribute], np.int64):
            file.attrs[attribute] = np.int64(rng.choice((-1, 0, 1, 2, 2**62)))
        else:
            text = damage(rng, bytes(file.attrs[attribute]), content).decode("utf-8", "surrogateescape")
            write_text_attribute(file, attribute, text.replace("\0", ""))
    return memory.getvalue()


def unfinished(place: Path) -> None:
    with open_parts(place / "x.h5") as parts:
        for shard in parts.pending[:2]:
            parts.append(shard, make_block(parts.rows(shard)))


def read_parts(place: Path) -> str:
    finish(place / "x.h5")
    return told((place / "x.h5").read_bytes())


def reseal_shard(rng: random.Random, name: str, content: bytes) -> bytes:
    if not name.endswith(".h5"):
        return content
    image = damage(rng, content[HEAD:], content)
    line = f"vggfeat shard; the rest is HDF5 with SHA-256 {hashlib.sha256(image).hexdigest()}\n"
    return line.encode().ljust(HEAD - 1) + b"\n" + image


def model(place: Path) -> None:
    draws = np.random.default_rng(0)
    found = LinearModel(
        coef=draws.normal(size=(3, 5)), intercept=np.zeros(3), C=np.ones(3), gap=np.zeros(3), converged=np.ones(3, bool)
    )
    save_model(place / "m.safetensors", found, {"classes": ["a", "b", "c"], "note": "é"})


def read_model(place: Path) -> str:
    found, about = load_model(place / "m.safetensors")
    return told(*(array.tobytes() for array in (found.coef, found.intercept, found.C, found.gap)), about)


def reseal_model(rng: random.Random, name: str, content: bytes) -> bytes:
    start = content.find(b'\\"sha256\\":\\"') + len(b'\\"sha256\\":\\"')
    blank = content[:start] + b"0" * 64 + content[start + 64 :]
    blank = damage(rng, blank[: start - 20], blank) + blank[start - 20 :] if rng.random() < 0.2 else blank
    blank = blank[: start + 64] + damage(rng, blank[start + 64 :], blank)
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[start + 64 :]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (("a", (3, 2)), ("b", (5,)), ("c", ()))}


def checkpoint(place: Path) -> None:
    Checkpoints(place, DISK).save(3, tensors(), {"run": {"net": "A"}, "state": {"step": 3}})


def read_one_checkpoint(place: Path) -> str:
    found = read_checkpoint(place / "step-00000003.safetensors")
    return told(found.about, [(name, tensor.numpy().tobytes()) for name, tensor in sorted(found.tensors.items())])


def reseal_checkpoint(rng: random.Random, name: str, content: bytes) -> bytes:
    """Other things said of the run, in a file that is in order."""
    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    text = damage(rng, head["__metadata__"]["about"].encode(), content).decode("utf-8", "replace")
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors()):
        tensor = tensors()[key]
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    head["__metadata__"] = {"about": text, "sha256": digest.hexdigest()}
    new = json.dumps(head).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


def run_folder(place: Path) -> None:
    found = RunFolder(place, DISK)
    found.begin({"recipe": {"net": "A", "batch": 4}}, resume=False)
    found.add_unreadable([("a/1.jpg", "truncated"), ("b/2.jpg", "damaged")])
    found.close()


def read_run_folder(place: Path) -> str:
    found = RunFolder(place, DISK)
    try:
        found.begin({"recipe": {"net": "A", "batch": 4}}, resume=True)
        return told(found.add_unreadable([("c.jpg", "empty")]))
    finally:
        found.close()


def packed_copy(place: Path) -> None:
    tree = place.with_name(f"{place.name}-tree")
    for number in range(6):
        draw(tree / ("train" if number < 4 else "val") / "ab"[number % 2] / f"{number}.png", number, (20, 16))
    pack(ilsvrc.read(tree), place, PackSettings(side=16, shard_images=3), workers=0)
    for path in sorted(tree.rglob("*"), reverse=True):
        (path.rmdir if path.is_dir() else path.unlink)()
    tree.rmdir()


def read_packed_copy(place: Path) -> str:
    data = ilsvrc.read(place)
    sizes = []
    for images in (data.train, data.val):
        for row in range(min(len(images), 6)):
            file, span = images.place(row)
            try:
                sizes.append(decode(Request(file, (None,), span), DecodeSettings()).size)
            except ImageError as error:
                sizes.append(error.reason)
    return told(sizes)


def statistics(place: Path) -> None:
    save_statistics(place / "statistics.json", PixelStatistics(np.array([1.0, 2.0, 3.0]), np.eye(3), 7))


READERS = {
    "voc": Reader(make=voc2007, read=lambda place: told(voc.read(place, 2007).fingerprint()), error=DatasetError,
                  texts=(".txt",)),
    "voc-actions": Reader(make=actions, read=lambda place: told(voc.read_actions(place).fingerprint()),
                          error=DatasetError, texts=(".txt", ".xml")),
    "caltech": Reader(make=class_folders("101_ObjectCategories/bass", "101_ObjectCategories/crab", count=32),
                      read=lambda place: told(caltech.read(place, 101).fingerprint()), error=DatasetError, damaged=()),
    "folder": Reader(make=class_folders("train/bass", "train/crab", "val/bass", count=3),
                     read=lambda place: told(folder.read(place).fingerprint()), error=DatasetError, damaged=()),
    "manifest": Reader(make=lambda place: (place / "list.csv").write_text(MANIFEST) and None,
                       read=lambda place: told(manifest.read_manifest(place / "list.csv").fingerprint()),
                       error=DatasetError, texts=(".csv",)),
    "ilsvrc-kit": Reader(make=ilsvrc_kit, read=lambda place: told(ilsvrc.read(place).val.fingerprint()),
                         error=DatasetError, texts=(".txt",), damaged=(".mat", ".txt")),
    "ilsvrc-lists": Reader(make=ilsvrc_lists, read=lambda place: told(ilsvrc.read(place).val.fingerprint()),
                           error=DatasetError, texts=(".csv", ".txt"), damaged=(".csv", ".txt")),
    "boxes": Reader(make=box_tree, read=read_box_tree, error=DatasetError, texts=(".xml",)),
    "features": Reader(make=lambda place: finish(place / "x.h5") and None, read=read_features, error=StoreError,
                       exact=True, damaged=(".h5",), reseal=reseal_features),
    "parts": Reader(make=unfinished, read=read_parts, error=StoreError, texts=(".json", ".jsonl"), exact=True,
                    reseal=reseal_shard),
    "model": Reader(make=model, read=read_model, error=FitError, exact=True, reseal=reseal_model),
    "checkpoint": Reader(make=checkpoint, read=read_one_checkpoint, error=TrainingError, tree=False, exact=True,
                         reseal=reseal_checkpoint),
    "run-folder": Reader(make=run_folder, read=read_run_folder, error=TrainingError, texts=(".json", ".jsonl"),
                         tree=False),
    "packed": Reader(make=packed_copy, read=read_packed_copy, error=DatasetError, texts=(".json",)),
    "statistics": Reader(make=statistics, read=lambda place: told(read_statistics(place / "statistics.json")),
                         error=TrainingError, texts=(".json",), tree=False),
}  # fmt: skip


def sample(reader: Reader, place: Path) -> Tree:
    place.mkdir()
    reader.make(place)
    return read(place)
