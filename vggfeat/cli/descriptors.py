"""Options of commands that take descriptors: of feature files, or those of another program in their place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.options import PATH, Words, option
from vggfeat.cli.output import say_note
from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vggfeat.descriptor_stream import DescriptorStream, Memory
    from vggfeat.runtime.distributed import World
    from vggfeat.table import DescriptorTable


@dataclass(frozen=True, kw_only=True)
class DescriptorOptions:
    """How features become descriptors."""

    join: str | None = option(
        "--join", type=click.Choice(["mean", "max", "stack"]), help="Over scales. [the paper's for the data set]"
    )
    normalisation: str = option(
        "--normalisation", type=click.Choice(["blocks", "whole", "none"]), default="blocks",
        help="L2 of every net and region, then of the whole; of the whole only; or none.",
    )  # fmt: skip
    regions: tuple[str, ...] | None = option(
        "--regions", type=Words(), help="Which of the stored regions to stack: image, box. [all]"
    )

    def read(self, files: Sequence[Path]) -> "DescriptorTable":
        """Read feature files."""
        from vggfeat.table import read_descriptors

        return read_descriptors(files, normalisation=self.normalisation, **self._joined(files))  # type: ignore[arg-type]

    def stream(self, files: Sequence[Path], world: "World | None") -> "AbstractContextManager[DescriptorStream]":
        """Open feature files for going through their descriptors again and again, alone or with other processes."""
        from vggfeat.descriptor_stream import stream_descriptors

        joined = self._joined(files)
        return stream_descriptors(files, normalisation=self.normalisation, world=world, **joined)  # type: ignore[arg-type]

    def memory(self, files: Sequence[Path]) -> "Memory":
        """Return the memory that the table of feature files takes, and what there is."""
        from vggfeat.descriptor_stream import memory_for

        return memory_for(files, **self._joined(files))

    def _joined(self, files: Sequence[Path]) -> dict[str, Any]:
        return {"join": self.join or default_join(files[0]), "regions": self.regions}


def default_join(file: Path) -> str:
    """Return the paper's way to join scales for the data set in a feature file."""
    from vggfeat.datasets.catalogue import DATASETS
    from vggfeat.store.sharded import open_features

    with open_features(file) as features:
        name = features.dataset_name
        if features.store == "mean":
            return "mean"
    return DATASETS[name].join if name in DATASETS else "mean"


@dataclass(frozen=True, kw_only=True)
class GivenFile(DescriptorOptions):
    """The same, or descriptors of another program and the data set that they are of; --root is of images here."""

    file: Path | None = option(  # noqa: RUF009
        "--descriptors", type=PATH, metavar="FILE.parquet|.npz|.npy",
        help="Descriptors of another program in the place of feature files; needs --dataset.",
    )  # fmt: skip
    dataset: str | None = option(
        "--dataset", metavar="NAME", help="With --descriptors: whose images they are, a name of `vggfeat data list`."
    )

    def inputs(self, files: Sequence[Path]) -> list[Path]:
        """Return the files that are read: feature files, or that of the descriptors.

        Raises
        ------
        ConfigError
            If both are given, or neither, or options that don't go together.
        """
        if self.file is None:
            if self.dataset is not None:
                raise ConfigError("--dataset: expected together with --descriptors, found alone; leave it out")
            if not files:
                name = click.get_current_context().command_path
                raise click.UsageError(f"expected a feature file, found none; for example: {name} voc2007.h5")
            return list(files)
        if files:
            raise ConfigError(f"--descriptors: expected no feature files with it, found {files[0]}; leave one out")
        if self.dataset is None:
            raise ConfigError("--descriptors: expected --dataset as well, found none; name the data set of the images")
        return [self.file]

    def read(self, files: Sequence[Path], root: Path | None = None) -> "DescriptorTable":
        """Read what `inputs` has returned; `root` is that of the data set of given descriptors."""
        if self.file is None or self.dataset is None:
            return super().read(files)
        for name in ("join", "regions"):
            if getattr(self, name) is not None:
                raise ConfigError(f"--{name}: not together with --descriptors, which are made already; leave it out")

        from vggfeat.datasets.catalogue import open_dataset
        from vggfeat.given import notes, read_given

        data = open_dataset(self.dataset, root)
        table = read_given(self.file, data, normalisation=self.normalisation)  # type: ignore[arg-type]
        for note in notes(table):
            say_note(note)
        return table


@dataclass(frozen=True, kw_only=True)
class GivenOptions(GivenFile):
    """The same with the root of the data set, for commands that show no images."""

    data_root: Path | None = option(  # noqa: RUF009
        "--root", type=PATH, help="With --descriptors: where the data set is. [$VGGFEAT_DATA/NAME, data/NAME]"
    )

    def inputs(self, files: Sequence[Path]) -> list[Path]:
        """Return the files that are read, as `GivenFile`."""
        if self.file is None and self.data_root is not None:
            raise ConfigError("--root: expected together with --descriptors, found alone; leave it out")
        return super().inputs(files)
