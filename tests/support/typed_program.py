"""A program that uses the public face, for `mypy --strict`: it is not run."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import vggfeat
from vggfeat.estimator import Failure
from vggfeat.protocols import Result
from vggfeat.svm import LinearOneVsRest, LinearOneVsRestCV
from vggfeat.table import DescriptorTable, LoadedFeatures


def describe(paths: Iterator[str]) -> NDArray[np.float32]:
    with vggfeat.Extractor("D.safetensors", scales=256, errors="nan", progress=True, workers=2) as extractor:
        rows: NDArray[np.float32] = extractor.fit().transform(paths)
        failures: list[Failure] = extractor.failures_
        logging.info("%d failed, the first at %d", len(failures), failures[0].index)
        maps: dict[str, NDArray[np.float32]] = extractor.maps("a.jpg", ["relu1_1", "pool5"], scale=256)
        # Each of these is an error only as long as the types are known.
        wrong: str = extractor.transform(paths)  # type: ignore[assignment]
        extractor.maps("a.jpg", 5)  # type: ignore[arg-type]
        return rows if wrong in maps else rows[:0]


def classify(path: Path) -> float:
    data: LoadedFeatures = vggfeat.load_features(path, join="mean", split=["train", "val"])
    model: LinearOneVsRest = LinearOneVsRestCV(cv=3).fit(data.descriptors, data.labels)
    return float((model.predict(data.descriptors) == data.labels).mean())


def whole_job(root: Path) -> Result:
    dataset = vggfeat.open_dataset("voc2007", root)
    backbone = vggfeat.load_backbone("D.safetensors")
    summary = vggfeat.extract_features(dataset, backbone, root / "x.h5", vggfeat.ExtractionSettings(scales=(256, 384)))
    table: DescriptorTable = vggfeat.read_descriptors([summary.path])
    result: Result = vggfeat.run_protocol(table)
    matrix: NDArray[np.int64] | None = result.confusion
    result.headline = 1.0  # type: ignore[misc]
    vggfeat.read_descriptors([summary.path], join="sum")  # type: ignore[arg-type]
    return result if matrix is None else vggfeat.run_protocol(table)


def loaded(path: str) -> Iterator[torch.Tensor]:
    for descriptors, _ in DataLoader(vggfeat.FeatureDataset(path, "train", failed="drop"), batch_size=8):
        yield descriptors
    with vggfeat.FeatureFile(path) as file:
        yield torch.from_numpy(vggfeat.join_features(file.read(), "max"))


def main() -> int:
    try:
        describe(iter(["a.jpg"]))
    except vggfeat.errors.ImageError as error:
        print(error.reason)
    except vggfeat.VggfeatError as error:
        return error.exit_code
    return 0
