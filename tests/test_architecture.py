"""What may import what, read from the source: packages import from lower layers only, and libraries belong to some."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "vggfeat"

# The lowest first: a package, or a module beside the packages, imports from lower layers only.
LAYERS = (
    {"errors", "lazy", "wording"},
    {"checks"},
    {"runtime"},
    {"samples", "formats", "nets", "metrics", "svm", "descriptors"},
    {"listing"},
    {"images", "datasets", "store", "weights", "synthetic"},
    {"descriptor_stream", "training"},
    {"table", "search_index"},
    {"forward", "protocols", "feature_dataset", "given"},
    {"summary"},
    {"extract"},
    {"extract_plan"},
    {"engines"},
    {"classification", "localisation", "similar", "estimator", "predict", "audit", "projection"},
    {"explain"},
    {"results"},
    {"benchmarks"},
    {"cli"},
)
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages} | {
    "__init__": 99,
    "__main__": 99,
}
# Library: the packages, or modules, that may import it.
ALLOWED = {
    "torch": {"nets", "weights", "forward", "feature_dataset", "training", "extract", "localisation", "classification",
              "explain",
              "runtime.distributed", "runtime.rendezvous", "runtime.devices", "svm", "benchmarks"},
    "torchvision": {"benchmarks"},
    "huggingface_hub": {"weights.sources"},
    "h5py": {"store", "formats.hdf5", "weights.keras", "benchmarks"},
    "PIL": {"images", "synthetic", "results.thumbnails", "results.predictions", "localisation.predict",
            "benchmarks", "estimator"},
    "click": {"cli"},
    "rich": {"cli", "estimator"},
    "aiohttp": {"runtime.http_client"},
    "ray": {"engines.ray_engine"},
    "fsspec": {"runtime.addresses"},
    "IPython": {"estimator"},
    "pandas": {"protocols", "store.export"},
    "anndata": {"store.export"},
    "safetensors": {"weights", "svm", "training"},
    "sklearn": {"svm", "estimator", "benchmarks", "projection", "protocols.probes"},
    "joblib": {"svm", "benchmarks"},
    "snapml": {"benchmarks"},
    "scipy": {"svm", "synthetic", "benchmarks"},
    "openpyxl": {"datasets.cells"},
    "pyarrow": {"listing", "benchmarks.scale", "store", "formats.parquet", "datasets.cells", "given",
                "datasets.streamed.folders", "datasets.streamed.spool", "datasets.streamed.tables"},
    "matplotlib": {"results", "training", "runtime.figures"},
    "tensorboard": {"training"},
    "jinja2": {"results"},
    "markupsafe": {"results"},
    "onnx": {"weights.export"},
    "onnxruntime": {"benchmarks.extraction"},
    "openvino": {"benchmarks.extraction"},
    "umap": {"projection"},
    "faiss": {"search_index"},
    "threadpoolctl": {"svm", "benchmarks"},
    "numpy": {"*"},
}  # fmt: skip
# Heavy and seldom needed: only inside the functions that use them.
LATE = {"onnx", "onnxruntime", "openvino", "huggingface_hub", "matplotlib", "openpyxl", "pyarrow", "tensorboard",
        "rich", "jinja2", "markupsafe", "aiohttp", "fsspec", "IPython", "anndata", "pandas", "ray", "umap",
        "faiss"}  # fmt: skip
LATE_IN = {"svm": {"torch"}, "synthetic": {"scipy"}}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path, *, top_only: bool = False) -> set[str]:
    tree, found = parsed(path), set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = [f"vggfeat.{alias.name}" for alias in node.names] if node.module == "vggfeat" else [node.module]
            found |= set(inner)
    return found


def test_every_package_has_a_layer():
    assert {module.partition(".")[0] for module in FILES} == set(LAYER)


def test_the_layers_are_those_in_the_documents():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M)
    assert [int(number) for number, _ in rows] == list(range(len(LAYERS)))
    assert [set(re.findall("`(\\w+)`", text)) for _, text in rows] == [set(packages) for packages in LAYERS]


def test_imports_go_down():
    wrong = []
    for module, path in FILES.items():
        package = module.partition(".")[0]
        for name in imports(path):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            # Without another package it is vggfeat itself.
            if top == "vggfeat" and other != package and (not other or LAYER[other] >= LAYER[package]):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_libraries_are_imported_where_they_belong():
    wrong = []
    for module, path in FILES.items():
        package = module.partition(".")[0]
        tops = {name.partition(".")[0] for name in imports(path)} - {"vggfeat"} - sys.stdlib_module_names
        wrong += [f"{module} imports {top}" for top in tops if not ALLOWED.get(top, set()) & {"*", package, module}]
        early = {name.partition(".")[0] for name in imports(path, top_only=True)}
        heavy = early & (LATE | LATE_IN.get(package, set()))
        wrong += [f"{module}: {name}: to be imported inside the function that needs it" for name in heavy]
    assert not wrong


def test_modules_are_of_a_size_that_reads_well():
    long = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in FILES.items()}
    assert {module: lines for module, lines in long.items() if lines > 380} == {}
