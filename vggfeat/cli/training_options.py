"""Options that every training command has: the end of the recipe, and how the work is done."""

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--dropout", type=click.FloatRange(0, 0.999), help="Probability, of fc6 and fc7. [0.5]"),
    click.option("--momentum", type=click.FloatRange(0, 0.999), help="Of SGD. [0.9]"),
    click.option("--weight-decay", type=click.FloatRange(0), help="L2 penalty on the weights. [0.0005]"),
    click.option("--colour-shift", type=click.FloatRange(0), help="Deviation of the random colour shift. [0.1]"),
    click.option("--full-decode", is_flag=True, help="Decode JPEGs at full size, never at 1/2, 1/4 or 1/8 of it."),
    click.option("--drops", type=click.IntRange(0), help="How often the learning rate is divided by 10. [3]"),
    click.option("--patience", type=click.IntRange(1), help="Validations without a gain before that. [5]"),
    click.option(
        "--validate-every", type=click.IntRange(1), metavar="STEPS", help="Steps between validations. [an epoch]"
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything that is random."),
    click.option("--device", help="cpu, cuda, cuda:1, ... [a GPU if there is one]"),
    click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Of the net. [bf16 on a GPU, else fp32]"),
    click.option("--compile", "compiled", is_flag=True, help="Compile the net: slow to start, then faster on a GPU."),
    click.option("--micro-batch", type=click.IntRange(1), help="Images in one pass: bounds the memory. [what fits]"),
    click.option(
        "--workers", type=click.IntRange(0, 256), help="Processes that decode images. [one a core, at most 16]"
    ),
    click.option(
        "--checkpoint-every", type=click.IntRange(1), metavar="STEPS", help="Steps between checkpoints. [1000]"
    ),
    click.option("--log-every", type=click.IntRange(1), metavar="STEPS", help="Steps between lines of the log. [50]"),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
    click.option("--quiet", is_flag=True, help="No progress."),
)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options, behind those of its own that stand above."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
