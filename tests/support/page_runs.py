"""Small folders of results with awkward names and images on the disk, and a reader of pages that is not a browser."""

from html.parser import HTMLParser

import numpy as np
from PIL import Image

from vggfeat.protocols.rules import ProtocolSettings, run_protocol
from vggfeat.results.svm import write_results
from vggfeat.samples import DataSet, Task
from vggfeat.svm import SvmSettings
from vggfeat.table import DescriptorTable

HOSTILE = (
    "<script>complain('class')</script>",
    "\"><img src=x onerror=complain('attribute')>",
    "{{ 7 * 7 }}{% raw %}",
    "two\nlines\x1b[31m",
    "</style></table><h1>big & bold",
    "猫 \u202ereversed",
)
"""Names of classes; complain is no function, so that any of these that runs is an error on the console."""
SIDE = (200, 100)
"""Width and height of the images."""
BOX = (50.0, 20.0, 150.0, 80.0)


def make_table(*, single=False, rows=36, noise=1.0, boxes=False, failed=(), name="manifest"):
    """Samples whose descriptors tell the classes, the less so the more noise; all else is the same for every noise."""
    count = 3 if single else len(HOSTILE)
    rng = np.random.default_rng(0)
    labels = np.full((rows, count), -1, np.int8)
    if single:
        labels[np.arange(rows), np.arange(rows) % count] = 1
    else:
        labels[rng.random((rows, count)) < 0.4] = 1
        labels[0] = 0  # Difficult ones.
    descriptors = labels + noise * rng.standard_normal((rows, count))
    splits = {"train": np.arange(rows // 2), "test": np.arange(rows // 2, rows)}
    dataset = DataSet(
        name=name,
        task=Task.SINGLE_LABEL if single else Task.MULTI_LABEL,
        classes=HOSTILE[:count],
        ids=tuple(f"{row}: <b onclick='complain()'>&amp;" for row in range(rows)),
        paths=tuple(f"<i>'\"{row}.png" for row in range(rows)),
        labels=labels,
        boxes=np.tile(BOX, (rows, 1)) if boxes else None,
        splits=splits,
    )
    ok = np.ones(rows, bool)
    ok[list(failed)] = False
    return DescriptorTable(
        dataset=dataset,
        descriptors=np.where(ok[:, None], descriptors, 0).astype(np.float32),
        ok=ok,
        settings={"join": "mean", "files": [], "note": "<script>complain('settings')</script>"},
        reasons=dict.fromkeys(failed, "truncated: it ends <early>"),
    )


def make_run(folder, **changes):
    """A folder as `vggfeat svm` writes it, and what it was made of."""
    table = make_table(**changes)
    settings = ProtocolSettings(svm=SvmSettings(jobs=1), grid=(0.5, 2.0), rule="auto")
    result = run_protocol(table, settings, clock=lambda: 0.0)
    write_results(result, table.dataset, folder, plots=False)
    return result, table.dataset


def edited(folder):
    """The same folder as one that a person has changed: without the checksums that would show it."""
    (folder / "run.sha256").unlink()
    return folder


def make_images(root, dataset):
    rng = np.random.default_rng(1)
    for path in dataset.paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE[1], SIDE[0], 3), rng.integers(60, 200, 3), np.uint8)).save(target)


class Parsed(HTMLParser):
    """A page: its elements, whose tags must nest, with attributes and the text directly in them."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "circle"})

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(page.decode("utf-8"))
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in self.VOID:
            self.open.append((tag, self.elements[-1]))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open, f"</{tag}> without a beginning"
            assert self.open.pop()[0] == tag, f"</{tag}> in the wrong place"

    def handle_data(self, data):
        if self.open:
            self.open[-1][1][2].append(data)

    def tags(self):
        return {tag for tag, _, _ in self.elements}

    def texts(self, tag):
        return ["".join(texts).strip() for found, _, texts in self.elements if found == tag]

    def attributes(self, tag, name):
        return [attrs.get(name) for found, attrs, _ in self.elements if found == tag]

    def whole_text(self):
        return " ".join("".join(texts) for tag, _, texts in self.elements if tag not in ("script", "style"))
