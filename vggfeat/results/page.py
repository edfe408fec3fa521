"""Pages: templates become one file of HTML; and the page of folders of results, which are read, compared and shown.

Everything in a page that comes from outside is escaped, and nothing is loaded.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from vggfeat.checks import convert_fields
from vggfeat.errors import ConfigError
from vggfeat.metrics.bootstrap import BootstrapSettings
from vggfeat.results.charts import COLOURS
from vggfeat.results.predictions import ExplainedMistake, ExplainSettings, explain_mistakes, worst_mistakes
from vggfeat.results.reading import OtherRun, SvmRun, TrainingRun, read_runs
from vggfeat.results.record import DASH, percent, printable, unsolved
from vggfeat.results.run_parts import other_part, side_by_side, summary, training_part
from vggfeat.results.svm_page import RunGroup, compare_runs, group_runs, make_group, points
from vggfeat.results.thumbnails import BUDGET, Example, Key, find_root, reach, small_copies
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, open_bounded
from vggfeat.runtime.output_paths import check_target

MARK = b'<meta name="generator" content="vggfeat">'
"""In the first bytes of every page of ours."""
_FILES = resources.files("vggfeat.results").joinpath("templates")
_SORT, _STYLE = "sort.js", "page.css"
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and all."""
LISTS = 3
"""Lists of images for a class of a run: highest ranked, wrong, missed."""


def check_page_place(path: Path, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Check, before the work for a page, that nothing but another page would be replaced by it.

    Raises ConfigError if it is one of the inputs; StoreError if something else has that name.
    """
    check_target(path, inputs=inputs, ours=is_page, called="a page of vggfeat")


def is_page(path: Path) -> bool:
    """Say whether a file is a page of ours."""
    with open_bounded(path) as file:
        return MARK in file.read(1024)


def write_page(path: Path, content: bytes) -> None:
    """Write a page; a file of its name is replaced, see `check_page_place`.

    Raises StoreError if it can't be written.
    """
    path = Path(os.path.realpath(path))
    with disk_errors(path, "writing the page", "fix it, or choose another --out"), atomic_write(DISK, path) as file:
        file.write(content)


def render(template: str, *, script: str = _SORT, **content: Any) -> bytes:
    """Fill in a template.

    `template`: a name in the folder templates. `script`: a name there: the only one that runs on the page. `**content`:
    what it shows. Texts are escaped, and control characters in them, line breaks and marks of writing direction among
    them, stand in their escaped form. What is returned is UTF-8. The page's own policy lets no other script run, and
    loads nothing.
    """
    from markupsafe import Markup

    code = _read(script)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    shared = {"style": Markup(_read(_STYLE)), "script": Markup(code), "script_sha256": digest}
    return _environment().get_template(template).render(**content, **shared).encode() + b"\n"


@cache
def _environment() -> Any:
    """Keep the templates compiled, which takes longer than to fill them in."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_read),
        undefined=StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "percent": lambda value: percent(value, DASH),
        "points": points,
        "colour": lambda place: f"c{place % COLOURS}",
        "unsolved": unsolved,
    }
    environment.filters |= filters
    environment.tests |= {
        "listing": lambda value: isinstance(value, list | tuple),
        "facts": lambda value: isinstance(value, Mapping),
    }
    return environment


def _read(name: str) -> str:
    return _FILES.joinpath(name).read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """What goes onto a page."""

    images: Path | None = None
    """Root of the data set, as `vggfeat extract` was given it; None for a page without images."""
    bootstrap: BootstrapSettings = field(default_factory=BootstrapSettings)
    workers: int = 1
    """Processes that decode images."""
    explain: ExplainSettings | None = None
    """Draw where the scores of the worst mistakes come from, by the net; None for a page without that."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.explain is not None and self.images is None:
            raise ConfigError("--explain: expected the root of the images with it (--root), found none; give it")


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page, and what is worth saying of it."""

    content: bytes
    """HTML in UTF-8."""
    images: int
    """Small copies on it."""
    missing: int
    """Images that it would show, had they been found and sound."""
    groups: tuple[RunGroup, ...]
    """The SVM runs."""


def make_page(folders: Sequence[Path], settings: PageSettings | None = None, progress: Progress | None = None) -> Page:
    """Make one page of the results in some folders; equal folders give equal bytes.

    `folders`: see `vggfeat.results.reading.read_runs`. Raises ConfigError if no folder is given or one twice, or the
    images are not where they should be; StoreError if a folder holds no results, or some that can't be read.
    """
    settings = settings or PageSettings()
    report = progress or (lambda doing, done, total: None)
    runs = read_runs(folders)
    tested = [run for run in runs if isinstance(run, SvmRun)]
    trained = [run for run in runs if isinstance(run, TrainingRun)]
    lists = LISTS * sum(len(run.classes) for run in tested)
    groups = []
    for members in group_runs(tested):
        found = compare_runs(members, settings.bootstrap, lambda done, total: report("comparing", done, total))
        groups.append(make_group(members, found, lists))
    copies = _copies(tested, groups, settings, lambda done, total: report("images", done, total))
    others = [other_part(run) for run in runs if isinstance(run, OtherRun)]
    mistakes = [_mistakes(group, settings, report) for group in groups]
    content = render(
        "page.html",
        groups=groups,
        mistakes=mistakes,
        trainings=[training_part(run) for run in trained],
        together=side_by_side(trained),
        others=others,
        summary=summary(others),
        copies=copies,
        images=settings.images is not None,
        bootstrap=settings.bootstrap,
    )
    there, missing = reach(copies)
    return Page(content=content, images=there, missing=missing, groups=tuple(groups))


def _copies(
    runs: Sequence[SvmRun], groups: Sequence[RunGroup], settings: PageSettings, progress: Callable[[int, int], None]
) -> dict[Key, str]:
    if settings.images is None:
        return {}
    if not runs:
        raise ConfigError("--root: expected a folder of `vggfeat svm` to show images of, found none; leave it out")
    names = list(dict.fromkeys(str(run.results["dataset"]["name"]) for run in runs))
    if len(names) > 1:
        raise ConfigError(f"--root: expected runs of one data set, found {', '.join(names)}; make a page for each")
    test = next((test for run in runs for test in run.tests if test.paths is not None), None)
    if test is None or test.paths is None:
        raise ConfigError(
            f"--root: expected runs that know the paths of their images, found none ({runs[0].name}); give the "
            "`vggfeat svm` command again, or leave --root out"
        )
    root = find_root(settings.images, names[0], test.paths)
    keys = islice((one.key for one in _examples(groups)), BUDGET)
    return small_copies(root, keys, dataset=names[0], workers=settings.workers, progress=progress)


def _mistakes(group: RunGroup, settings: PageSettings, report: Progress) -> list[tuple[ExplainedMistake, ...]]:
    """Explain the worst mistakes of each run of a group; nothing where that is not asked for."""
    if settings.explain is None or settings.images is None:
        return []
    from vggfeat.explain import Explainer

    found = []
    for number, run in enumerate(group.runs):
        chosen = worst_mistakes(group.classes, number)
        weights, device = settings.explain.weights, settings.explain.device
        explainer = Explainer(run.folder, weights=weights, device=device, workers=min(settings.workers, 1))
        paths = [one.key.path for _, one in chosen]
        root = find_root(settings.images, group.title, paths) if paths else settings.images
        found.append(explain_mistakes(chosen, explainer, root, partial(report, "explaining")))
    return found


def _examples(groups: Sequence[RunGroup]) -> Iterable[Example]:
    """Yield the rows that are shown, those of the worst classes first."""
    for group in groups:
        for part in group.classes:
            for found in part.examples:
                if found is not None:
                    yield from (*found.highest, *found.alarms, *found.missed)


def page_json(page: Page) -> dict[str, Any]:
    """Return the headlines and the differences of a page, ready for JSON."""
    return {
        "groups": [
            {
                "dataset": group.title,
                "measure": group.measure,
                "runs": [
                    {
                        "name": run.name,
                        "headline": run.results["headline"],
                        "deviation": run.deviation(run.metric),
                        "tested": run.tested,
                    }
                    for run in group.runs
                ],
                "differences": [_difference_json(group, found) for found in group.comparisons],
            }
            for group in page.groups
        ],
        "images": page.images,
        "missing_images": page.missing,
        "bytes": len(page.content),
    }


def _difference_json(group: RunGroup, found: Any) -> dict[str, Any]:
    names = {"first": group.runs[found.first].name, "second": group.runs[found.second].name}
    if found.difference is None:
        return {**names, "reason": found.reason}
    settings = found.difference.settings
    return {
        **names,
        "mean": found.difference.mean,
        "interval": list(found.difference.interval),
        "level": settings.level,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "images": found.difference.images,
    }
