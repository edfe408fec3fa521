"""What `vggfeat bench extract` has measured, and what follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

DECODING, RESIZING, NETWORK, WRITING = "decoding", "resizing", "network", "writing"


class Form(NamedTuple):
    """One way to run the net, by settings of extraction; all give the same features, up to rounding."""

    precision: str
    batching: str

    def __str__(self) -> str:
        return ", ".join(self)


def plain_name(precision: str) -> str:
    """Return what tables and progress call a baseline."""
    return f"plain baseline, {precision}"


class Rates(NamedTuple):
    """Images per second of one thing."""

    rounds: tuple[float, ...]
    """In the order in which they were measured."""

    @property
    def median(self) -> float:
        """Return what is reported."""
        return median(self.rounds)


@dataclass(frozen=True, kw_only=True)
class FormSpeeds:
    """Of one form."""

    form: Form
    network: Rates
    """The net alone, on rescaled images in the device's memory."""
    together: Rates
    """From JPEG files to the feature file."""
    least_cosine: float
    """Between its features and those of fp32, size: the least over images and scales."""


@dataclass(frozen=True, kw_only=True)
class PlainSpeeds:
    """Of what a user would write with torchvision, in one precision."""

    precision: str
    """tf32 where float32 convolutions are that by default."""
    way: str
    """float32, autocast or bfloat16: of `vggfeat.benchmarks.plain`."""
    module: str
    """Where its net comes from."""
    together: Rates
    """From JPEG files to an HDF5 file."""
    least_cosine: float
    """As of a form."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """All figures of one run; rates in images per second."""

    device: str
    decoding: Rates
    """JPEG files to pixels by the workers, nothing else running."""
    resizing: Rates
    """Pixels to rescaled and normalised images of all scales, uploading included."""
    writing: Rates
    """Features in memory to shards, and these to the feature file, read back."""
    forms: tuple[FormSpeeds, ...]
    plain: tuple[PlainSpeeds, ...]
    """Each of another precision."""
    matrix_multiply_adds: Mapping[str, float]
    """Per second, of large matrices in each precision."""
    image_multiply_adds: float
    """Of an image and its mirror at all scales; the mean over the images."""

    def share(self, precision: str, rate: float) -> float:
        """Return which share of the matrix rate so many images a second are."""
        return rate * self.image_multiply_adds / self.matrix_multiply_adds[precision]

    def stages(self, one: FormSpeeds) -> dict[str, float]:
        """Return the rate of every stage alone."""
        return {
            DECODING: self.decoding.median,
            RESIZING: self.resizing.median,
            NETWORK: one.network.median,
            WRITING: self.writing.median,
        }

    def limit(self, one: FormSpeeds) -> str:
        """Return the stage that is the slowest alone."""
        stages = self.stages(one)
        return min(stages, key=stages.__getitem__)

    def ratio(self, one: FormSpeeds) -> float | None:
        """Return how many times the rate of the plain baseline of its precision a form reaches; None without one."""
        rates = {plain.precision: plain.together.median for plain in self.plain}
        precision = one.form.precision
        return one.together.median / rates[precision] if precision in rates else None

    def describe(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        alone = {DECODING: self.decoding, RESIZING: self.resizing, WRITING: self.writing}
        return {
            "device": self.device,
            "image_multiply_adds": self.image_multiply_adds,
            "matrix_multiply_adds": dict(self.matrix_multiply_adds),
            **{name: _described(rates) for name, rates in alone.items()},
            "forms": [self._form(one) for one in self.forms],
            "plain": [self._plain(one) for one in self.plain],
        }

    def _plain(self, one: PlainSpeeds) -> dict[str, Any]:
        return {
            "precision": one.precision,
            "way": one.way,
            "module": one.module,
            "together": _described(one.together),
            "together_share": self.share(one.precision, one.together.median),
            "least_cosine": one.least_cosine,
        }

    def _form(self, one: FormSpeeds) -> dict[str, Any]:
        return {
            **one.form._asdict(),
            "network": _described(one.network),
            "network_share": self.share(one.form.precision, one.network.median),
            "together": _described(one.together),
            "together_share": self.share(one.form.precision, one.together.median),
            "ratio": self.ratio(one),
            "least_cosine": one.least_cosine,
            "limit": self.limit(one),
        }


def _described(rates: Rates) -> dict[str, Any]:
    return {"median": rates.median, "rounds": list(rates.rounds)}
