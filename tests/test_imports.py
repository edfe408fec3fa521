"""The import law: which part of vggfeat may know which, and one doorway per library. It reads the source."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vggfeat"

# part: (other parts of vggfeat that it may import, libraries); errors and the standard library are free to all.
LAW: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "samples": (set(), {"numpy"}),
    "metrics": (set(), {"numpy"}),
    "descriptors": (set(), {"numpy"}),
    "transforms": (set(), {"torch"}),
    "models": (set(), {"torch"}),
    "devices": (set(), {"torch"}),
    "processes": ({"devices"}, {"torch"}),
    "packed": ({"samples"}, {"numpy"}),
    "mat5": (set(), {"numpy"}),
    "datasets": ({"samples", "packed", "mat5"}, {"numpy"}),
    "synthetic": ({"samples"}, {"numpy", "PIL", "scipy"}),
    "images": ({"samples"}, {"numpy", "PIL"}),
    "store": ({"samples"}, {"numpy", "h5py", "pyarrow", "scipy"}),
    "weights": ({"mat5", "models", "store"}, {"torch", "safetensors", "h5py", "numpy", "onnx"}),
    "passes": ({"devices", "models", "images", "transforms", "weights"}, {"torch", "numpy"}),
    "extraction": ({"models", "images", "passes", "samples", "transforms", "weights"}, {"torch", "numpy"}),
    "contract": ({"images", "passes"}, {"numpy"}),
    "computing": ({"extraction", "images", "passes", "processes", "samples", "store", "weights"}, {"numpy"}),
    "caching": (
        {"computing", "contract", "extraction", "images", "processes", "samples", "store", "weights"},
        {"torch", "numpy"},
    ),
    "classification": (
        {
            "caching",
            "computing",
            "extraction",
            "fusion",
            "images",
            "metrics",
            "models",
            "passes",
            "processes",
            "samples",
            "store",
            "weights",
        },
        {"torch", "numpy"},
    ),
    "training": (
        {"devices", "processes", "models", "images", "transforms", "samples", "packed", "weights", "store"},
        {"torch", "numpy", "matplotlib", "safetensors"},
    ),
    "localisation": (
        {
            "datasets",
            "extraction",
            "images",
            "metrics",
            "models",
            "passes",
            "processes",
            "samples",
            "store",
            "training",
            "transforms",
            "weights",
        },
        {"torch", "numpy", "PIL"},
    ),
    "fusion": ({"store", "descriptors", "samples"}, {"numpy"}),
    "svm": (set(), {"numpy", "sklearn", "joblib", "scipy", "torch", "safetensors"}),
    "protocols": ({"svm", "metrics", "samples", "fusion", "store"}, {"numpy"}),
    "report": (
        {"classification", "localisation", "protocols", "svm", "metrics", "samples", "datasets", "store"},
        {"numpy", "matplotlib"},
    ),
    "bootstrap": ({"metrics"}, {"numpy"}),
    "page": (
        {"bootstrap", "datasets", "images", "metrics", "report", "store"},
        {"numpy", "PIL", "jinja2", "markupsafe"},
    ),
    "similar": ({"descriptors", "extraction", "images", "samples", "store", "weights"}, {"numpy"}),
    "benchmarks": (
        {
            "caching",
            "computing",
            "contract",
            "descriptors",
            "devices",
            "extraction",
            "images",
            "metrics",
            "models",
            "passes",
            "processes",
            "samples",
            "store",
            "svm",
            "training",
            "transforms",
            "weights",
        },
        {"numpy", "scipy", "sklearn", "joblib", "threadpoolctl", "torch", "torchvision", "PIL", "h5py"},
    ),
    "estimator": ({"extraction", "weights", "images", "descriptors", "devices"}, {"numpy", "PIL", "sklearn"}),
    "reproduce": ({"cli"}, {"click"}),
    "reclassify": ({"cli", "models", "synthetic", "weights"}, {"click", "torch"}),
    "retrain": ({"cli", "reclassify"}, {"click"}),
    "bundle": ({"cli", "devices", "synthetic", "weights"}, {"click"}),
}
LAW["cli"] = (set(LAW) - {"reproduce", "reclassify", "retrain", "bundle"}, {"click", "rich"})
LAW["__init__"] = (set(LAW) - {"cli", "reproduce", "reclassify", "retrain", "bundle"}, set())
LAW["__main__"] = ({"cli"}, set())

# Heavy and seldom needed: only inside the functions that use them.
LATE = {
    "weights": {"onnx"},
    "report": {"matplotlib"},
    "store": {"pyarrow", "scipy"},
    "synthetic": {"scipy"},
    "training": {"matplotlib", "tensorboard"},
    "svm": {"torch"},
    "cli": {"rich"},
    "page": {"jinja2", "markupsafe"},
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "vggfeat" else [node.module]
            )
            found |= set(names)
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
PARTS = sorted({part_of(path) for path in FILES})


def test_every_part_is_under_the_law():
    assert set(PARTS) == set(LAW)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_only_what_it_may(part):
    ours, libraries = LAW[part]
    for path in FILES:
        if part_of(path) != part:
            continue
        for name in imports(path):
            top, _, rest = name.partition(".")
            if top == "vggfeat":
                assert rest.split(".")[0] in ours | {"errors", part}, f"{path.name} imports {name}"
            elif top not in sys.stdlib_module_names:
                assert top in libraries, f"{path.name} imports {name}"


def test_the_law_has_no_circle():
    graph = {part: ours for part, (ours, _) in LAW.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(LAW)


@pytest.mark.parametrize("part", sorted(LATE))
def test_heavy_libraries_are_imported_late(part):
    for path in FILES:
        if part_of(path) == part:
            assert not {name.partition(".")[0] for name in imports(path, top_only=True)} & LATE[part], path.name


def test_modules_are_of_a_size_that_reads_well():
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 380} == {}
