"""The stages of extraction one by one and all together, and what a user would write in their place; each can be timed.

N = images, S = scales, C = channels, H, W = image sides in pixels. Every act returns how many images it has done.

The plain loop has torchvision's net and resampling, and PyTorch's defaults everywhere: float32 (of which cuDNN makes
TF32 in convolutions), maps channels first, no batches, one image and scale at a time, the mirror as a second pass,
images decoded by the same process, every row appended to an HDF5 file. In bfloat16 either by autocast or with the whole
net in it. The tuned loop is the same with channels last, which most who care for speed would write.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as TF

from vggfeat.benchmarks.measure import listed
from vggfeat.benchmarks.roofline import layer_costs
from vggfeat.errors import ConfigError, ImageError, out_of_memory
from vggfeat.extract import Job, RunSettings, run_job
from vggfeat.forward.rerun import cosines
from vggfeat.forward.runner import BatchRunner, Row, upload
from vggfeat.forward.shards import to_block
from vggfeat.images.decode import DecodedImage, DecodeSettings, row_requests
from vggfeat.images.pool import Decoder
from vggfeat.nets.backbone import Net
from vggfeat.nets.transforms import rescaled_size
from vggfeat.nets.vgg import NETS
from vggfeat.samples import DataSet
from vggfeat.store.layout import Shape
from vggfeat.store.reader import FeatureFile
from vggfeat.store.writer import FeatureWriter
from vggfeat.weights import Backbone

DENSE = ("fc6", "fc7", "fc8")
Way = Literal["float32", "autocast", "bfloat16"]
WAYS: dict[Way, str] = {
    "float32": "PyTorch's defaults",
    "autocast": "torch.autocast around the net in float32",
    "bfloat16": "net and images in bfloat16",
}
STAGES = DECODING, RESIZING, WRITING = "decoding", "resizing", "writing"
NETWORK, TOGETHER, PLAIN, TUNED = "network, ", "files to file, ", "plain loop, ", "tuned loop, "


class PlainExtractor:
    """Computes the features of one file after the other, with a copy of the weights, at scales Q of `sides` (S,)."""

    def __init__(
        self,
        backbone: Backbone,
        sides: Sequence[int],
        layer: str,
        device: torch.device,
        way: Way = "float32",
        *,
        tuned: bool = False,
    ) -> None:
        self.way, self.sides, self.tuned, self._device = way, tuple(sides), tuned, device
        self._dtype = torch.bfloat16 if way == "bfloat16" else torch.float32
        self._layout = torch.channels_last if tuned else torch.contiguous_format
        net = plain_net(backbone.model, layer)
        self.net: nn.Sequential = net.to(device, self._dtype, memory_format=self._layout)  # type: ignore[call-overload]
        self.channels = backbone.model.maps[layer].channels
        self._mean, self._std = list(backbone.mean), list(backbone.std)

    @torch.inference_mode()
    def features(self, path: str | Path) -> NDArray[np.float32]:
        """Return (S, C)."""
        with Image.open(path) as image:
            pixels = TF.pil_to_tensor(image.convert("RGB")).to(self._device).float()
        rows = []
        for side in self.sides:
            size = list(rescaled_size(pixels.shape[1], pixels.shape[2], side))
            x = TF.normalize(TF.resize(pixels, size, antialias=True), self._mean, self._std)[None]
            rows.append((self._mean_of(x) + self._mean_of(TF.hflip(x))) / 2)
        return torch.cat(rows).cpu().numpy()

    def run(self, paths: Sequence[str | Path], out: Path) -> NDArray[np.float32]:
        """Append the features of all files to a new HDF5 file, and return what it holds, (N, S, C)."""
        shape = (len(self.sides), self.channels)
        with h5py.File(out, "w") as file:
            table = file.create_dataset("features", (0, *shape), maxshape=(None, *shape), dtype="float32")
            for path in paths:
                table.resize(len(table) + 1, axis=0)
                table[-1] = self.features(path)
        with h5py.File(out) as file:
            features: NDArray[np.float32] = file["features"][...]
        return features

    def _mean_of(self, x: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.way == "autocast"):
            maps: Tensor = self.net(x.to(self._dtype).contiguous(memory_format=self._layout))
        return maps.mean((2, 3)).float()


def plain_precision(device: torch.device) -> str:
    """Return what PyTorch's defaults make of convolutions in float32."""
    return "tf32" if device.type == "cuda" else "fp32"


def plain_net(model: Net, layer: str) -> nn.Sequential:
    """Copy the net up to a layer, layer by layer as torchvision has it."""
    config, found = NETS[model.config], list[nn.Module]()
    for number, kernels in enumerate(config.blocks, start=1):
        for index in range(1, len(kernels) + 1):
            found += [model.layers[f"conv{number}_{index}"], nn.ReLU(inplace=True)]
            if config.lrn and number == index == 1:
                found.append(_Norm(5, alpha=5e-4, beta=0.75, k=2.0))
        found.append(nn.MaxPool2d(2, 2, ceil_mode=model.pool == "ceil"))
    for name in DENSE[: 1 + DENSE.index(layer)] if layer in DENSE else ():
        found += [model.layers[name], *([] if name == "fc8" else [nn.ReLU(inplace=True)])]
    return copy.deepcopy(nn.Sequential(*found)).eval().requires_grad_(False)


class _Norm(nn.LocalResponseNorm):
    """In float32, because PyTorch has none in half precision on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Subject(NamedTuple):
    """Something that is timed."""

    act: Callable[[], int]
    """Returns how many images it has done."""
    facts: Mapping[str, Any] = {}
    """What else its row says."""


Subjects = dict[str, Subject]


class NetBatch(NamedTuple):
    """Images that go through the net together, as it takes them: on its device, rescaled and normalised."""

    images: Tensor
    """(N, 3, H, W), float32."""
    sides: Tensor | None
    """(N, 2), height and width of each where they differ, else None."""
    places: list[tuple[int, int]]
    """N numbers of an image and of a scale."""


class Stages:
    """Images in memory, and what is done to all of them.

    `reference`: a net in float32; its features are what others are compared with. `files`: JPEG files. `repeat`: how
    many times writing, and the run from files to file, go through them.
    """

    def __init__(self, reference: BatchRunner, files: DataSet, repeat: int, decoder: Decoder, run: RunSettings) -> None:
        self.reference, self.files, self.decoder, self.settings = reference, files, decoder, run
        self.often = listed(Path(files.root), files.paths, repeat)
        self.images: list[DecodedImage] = []
        self.decode()
        self.batches: dict[str, list[NetBatch]] = {}
        """Batches of the net, by the way of batching."""
        self.expected = self.features(reference)  # (N, S, C)

    def shared(self) -> Subjects:
        """Return what all forms have in common."""
        return {DECODING: Subject(self.decode), RESIZING: Subject(self.resize), WRITING: Subject(self.write)}

    def of_form(self, runner: BatchRunner) -> Subjects:
        """Run a form once, and return the net alone and the run from files to file."""
        precision, batching = runner.settings.precision, runner.batching
        facts = {"precision": precision, "batching": batching}
        found = self.expected if runner is self.reference else self.features(runner)
        if batching not in self.batches:
            self.batches[batching] = self.net_batches(runner)
        network = Subject(partial(self.forward, runner), facts)
        network.act()
        together = Subject(partial(self.run, runner), facts | {"least_cosine": least_cosine(found, self.expected)})
        return {f"{NETWORK}{precision}, {batching}": network, f"{TOGETHER}{precision}, {batching}": together}

    def of_plain(self, precision: str, loop: PlainExtractor) -> Subjects:
        """Run a plain or tuned loop once, and return it."""
        paths = [self.files.place(row).file for row in range(len(self.files))]

        def features() -> NDArray[np.float32]:
            with self.out() as out:
                return loop.run(paths, out)

        least = least_cosine(features(), self.expected)
        facts = {"precision": precision, "way": loop.way, "least_cosine": least}
        return {f"{TUNED if loop.tuned else PLAIN}{precision}": Subject(lambda: len(features()), facts)}

    def decode(self) -> int:
        """Turn the files into pixels."""
        self.images = []
        for image in self.decoder.stream(row_requests(self.files, range(len(self.files)), ("image",))):
            if isinstance(image, ImageError):
                raise image
            self.images.append(image)
        return len(self.images)

    def resize(self) -> int:
        """Upload every image, rescale it to all sizes and normalise it."""
        one = self.reference
        with torch.inference_mode():
            for image in self.images:
                uploaded = upload(image.regions[0], one.device)  # (3, H, W)
                for side in one.sides:
                    size = rescaled_size(uploaded.shape[1], uploaded.shape[2], side)
                    one.prepare([(uploaded, size)])
        return len(self.images)

    def write(self) -> int:
        """Commit the features of files in shards, and join these to a file that is read back."""
        one, files = self.reference, self.often
        rows = [
            Row(features[:, None], None, image.size, image.sha256)
            for features, image in zip(self.expected, self.images, strict=True)
        ]
        shape = Shape(scales=one.settings.scales, regions=one.regions, channels=one.head.channels)
        opened = partial(FeatureWriter.open, shard_rows=self.settings.rows())
        with self.out() as out, opened(out, files, {"benchmark": "writing"}, shape) as writer:
            for shard in writer.pending:
                numbers = writer.rows(shard)
                block = [rows[number % len(rows)] for number in numbers]
                writer.append(shard, to_block(block, shape, row_requests(files, numbers, one.regions)))
            writer.finish({})
        return len(files)

    def net_batches(self, runner: BatchRunner) -> list[NetBatch]:
        """Return the batches that a form makes of the images, shard by shard."""
        found, step = [], self.settings.rows()
        with torch.inference_mode():
            for start in range(0, len(self.images), step):
                pixels = [one.regions[0] for one in self.images[start : start + step]]
                for tasks in runner.task_batches([[one.shape[:2]] for one in pixels]):
                    chosen = [(upload(pixels[task.image], runner.device), task.size) for task in tasks]
                    places = [(start + task.image, task.scale) for task in tasks]
                    found.append(NetBatch(*runner.prepare(chosen), places))
        return found

    def forward(self, runner: BatchRunner) -> int:
        """Run the net alone: mirrors, precision, the layers, the means over space and mirror."""
        with runner.computing():
            for images, sides, _ in self.batches[runner.batching]:
                runner.head.values(runner.model, images, runner.settings.batch_pixels, sides)
        return len(self.images)

    def run(self, runner: BatchRunner) -> int:
        """Go from files to a feature file, as `vggfeat extract` does once the net is there.

        What that does after the last image of a run in bf16, fp16 or tf32 is left out: it computes four images
        again in float32, which is nothing next to a real data set and much next to a few files.

        Raises ConfigError if an image fails; MemoryError if a batch had to be halved: halves are other batches than
        those of the net alone.
        """
        with self.out() as out:
            self._extract(runner, self.often, out)
        return len(self.often)

    def features(self, runner: BatchRunner) -> NDArray[np.float32]:
        """Do what `run` does, once with every file, and return the features, (N, S, C)."""
        with self.out() as out:
            self._extract(runner, self.files, out)
            with FeatureFile(out) as file:
                return file.read()[:, :, 0]

    def _extract(self, runner: BatchRunner, files: DataSet, out: Path) -> None:
        job = Job(dataset=files, images=files, runner=runner, check_precision=False)
        summary = run_job(job, out, run=self.settings, decode=DecodeSettings())
        if runner.halvings:
            raise MemoryError(f"{runner.halvings} that had to be halved")
        for _, reason in summary.failures[:1]:
            raise ConfigError(f"{runner.settings.precision}: expected features of every image: {reason}")

    def multiply_adds(self, layer: str) -> float:
        """Return those of an image and its mirror at all scales up to a layer, the mean over the images."""
        sizes = [rescaled_size(*image.size, side) for image in self.images for side in self.reference.sides]
        costs = [cost for size in sizes for cost in layer_costs(self.reference.model, *size, layer)]
        return 2 * sum(cost.multiply_adds for cost in costs) / len(self.images)

    @contextmanager
    def out(self) -> Iterator[Path]:
        """Lend the name of a new file, which is removed in the end."""
        with TemporaryDirectory(dir=self.files.root) as folder:
            yield Path(folder) / "features.h5"


@contextmanager
def enough_memory(device: str, batch_pixels: int) -> Iterator[None]:
    """Turn what is raised when memory runs out into a ConfigError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        found = str(error).partition(". ")[0] or "no memory left"
        raise ConfigError(
            f"{device}: expected batches that fit into its memory, found {found}; give a --batch-pixels below "
            f"{batch_pixels}, or fewer --images"
        ) from None


def least_cosine(features: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the least cosine between features (N, S, C) over images and scales."""
    return float(cosines(features, expected).min())
