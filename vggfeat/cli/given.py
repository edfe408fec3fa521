"""Options of commands that take descriptors of another program in the place of feature files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.features import DescriptorOptions
from vggfeat.cli.options import PATH, option
from vggfeat.cli.output import say_note
from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from vggfeat.table import DescriptorTable


@dataclass(frozen=True, kw_only=True)
class GivenFile:
    """Descriptors of another program, and the data set that they are of; for commands whose --root is of images."""

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

    def read(
        self, files: Sequence[Path], descriptors: DescriptorOptions, root: Path | None = None
    ) -> "DescriptorTable":
        """Read what `inputs` has returned; `root` is that of the data set of given descriptors."""
        if self.file is None or self.dataset is None:
            return descriptors.read(files)
        for name in ("join", "regions"):
            if getattr(descriptors, name) is not None:
                raise ConfigError(f"--{name}: not together with --descriptors, which are made already; leave it out")

        from vggfeat.datasets.catalogue import open_dataset
        from vggfeat.given import notes, read_given

        data = open_dataset(self.dataset, root)
        table = read_given(self.file, data, normalisation=descriptors.normalisation)  # type: ignore[arg-type]
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
