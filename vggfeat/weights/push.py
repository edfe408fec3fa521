"""A net as a model on the Hugging Face Hub: its weights in vggfeat's own form, and a card of what is known of it."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from vggfeat.errors import ConfigError, WeightsError, quoted
from vggfeat.weights.load import WeightsFile, convert
from vggfeat.weights.sources import AUTHORS_LICENCE, HUB, TORCHVISION_LICENCE, hub_reason, import_hub

_REPOSITORY = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)")
_LICENCES = {AUTHORS_LICENCE: "cc-by-4.0", TORCHVISION_LICENCE: "bsd-3-clause"}
"""What the Hub calls the licences of published nets."""
_CARD = """\
---
{front}
---

# {name}

Net {net} of *Very Deep Convolutional Networks for Large-Scale Image Recognition* ({numbers:,} numbers, {dtype}), in the
form of vggfeat, which runs it densely over whole images.

    pip install 'vggfeat[hub]'
    vggfeat extract --dataset folder --root IMAGES --weights hf://{repository}

```python
import vggfeat

extractor = vggfeat.Extractor("hf://{repository}")
features = extractor.transform(["image.jpg"])
```

{table}

{details}
"""


class Pushed(NamedTuple):
    """What lies on the Hub now."""

    spec: str
    """hf://OWNER/NAME@COMMIT, as `--weights` takes it."""
    card: str
    """Text of its model card."""


def push(
    source: Path, repository: str, *, dtype: str = "float32", licence: str | None = None, private: bool = False
) -> Pushed:
    """Write a net and its card to the Hub, in one commit; the repository is made if there is none.

    Raises ConfigError if `repository` is no name, or the library of the Hub is not installed. Raises WeightsError if
    the source can't be loaded, or the Hub refuses.

    Parameters
    ----------
    source : Path
        A file of weights in any format.
    repository : str
        OWNER/NAME, or hf://OWNER/NAME.
    dtype : "float32" or "float16"
        How the numbers are stored.
    licence : str, optional
        As the Hub names licences, for instance mit. By default that of the published net, or none.
    private : bool
        Of a repository that is made now: whether only its owner may read it.
    """
    asked = _REPOSITORY.fullmatch(repository)
    if not asked:
        raise ConfigError(f"repository: expected OWNER/NAME, found {quoted(repository)}")
    hub = import_hub(f"{HUB}{asked[1]}")
    with TemporaryDirectory() as folder:
        target = Path(folder, "model.safetensors")
        text = card(convert(source, target, dtype=dtype), asked[1], dtype=dtype, licence=licence)
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="vggfeat")
        try:
            api.create_repo(asked[1], private=private, exist_ok=True)
            files = [hub.CommitOperationAdd(target.name, target), hub.CommitOperationAdd("README.md", text.encode())]
            commit = api.create_commit(asked[1], files, commit_message="Add a net of vggfeat")
        except Exception as error:  # as where a net is read: errors of many libraries, of no common class
            raise WeightsError(
                f"{HUB}{asked[1]}: expected the Hugging Face Hub to take the net, found {hub_reason(error)}; log in "
                "(hf auth login) with a token that may write there"
            ) from None
    return Pushed(f"{HUB}{asked[1]}@{commit.oid}", text)


def card(file: WeightsFile, repository: str, *, dtype: str, licence: str | None = None) -> str:
    """Make the model card of a net: the head that the Hub reads, how to use it, and a table of all that is known."""
    about = file.describe()
    known = _LICENCES.get(file.published.licence) if file.published else None
    front = {
        "library_name": "vggfeat",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["vgg", "transfer-learning"],
    }
    if licence or known:
        front["license"] = licence or known or ""
    return _CARD.format(
        front="\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()), name=repository.split("/")[1],
        net=about["net"], numbers=about["numbers"], dtype=dtype, repository=repository, table=_table(about),
        details="".join(_details(about["facts"])),
    )  # fmt: skip


def _table(about: dict[str, Any]) -> str:
    rows: dict[str, Any] = {
        "width": f"{about['width']:g} of the paper's",
        "images": f"RGB, 0 to 255, less {_words(about['mean'])}, over {_words(about['std'])}",
        "poolings": f"round {'up' if about['pool_rounding'] == 'ceil' else 'down'}",
        "classes": about["num_classes"],
        **about["imported"],
    }
    lines = (f"| {name} | {_words(value)} |" for name, value in rows.items())
    return "\n".join(["| what | value |", "|---|---|", *lines])


def _words(value: Any) -> str:
    text = ", ".join(f"{one:g}" for one in value) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|")


def _details(facts: Mapping[str, Any]) -> Iterator[str]:
    """Say what else the file says of itself, such as how the net was trained."""
    for name, value in facts.items():
        if name != "imported":
            yield f"## {name}\n\n```json\n{json.dumps(value, indent=1, sort_keys=True)}\n```\n"
