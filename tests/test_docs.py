"""The documents against the product: every command, option named, format field and example is what it says."""

import json
import re
from pathlib import Path

import h5py
import pytest
from safetensors import safe_open

from vggfeat.cli import EXIT_CODES, group, run
from vggfeat.datasets.facts import FACTS
from vggfeat.nets.vgg import VGG
from vggfeat.weights import save_weights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands():
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {word}", sub) for word, sub in inner.items())


def test_every_command_is_in_the_readme_and_no_other():
    table = set(re.findall(r"^\| `vggfeat ([a-z ]+)` \|", README, re.MULTILINE))
    assert table == {name for name, _ in commands()}


def test_every_option_that_the_readme_names_exists():
    known = {option for _, command in commands() for param in command.params for option in param.opts}
    known |= {"--twin", "--help", "--no-dev"}  # of pipelines, of everything, of uv
    known |= {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}  # torchrun's own
    assert set(re.findall(r"(--[a-z][a-z0-9-]+)", README)) <= known


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_option_has_a_help_text_or_speaks_for_itself(name):
    command = dict(commands())[name]
    for param in command.params:
        if param.param_type_name == "option":
            plain = param.help or getattr(param.type, "choices", None)
            assert plain, f"{name} {param.opts}"


def test_the_exit_codes_in_the_readme_are_those_of_the_help():
    told = re.findall(r"(?:^|, )(\d+) ", README.split("Exit codes: ")[1].split("\n\n")[0].replace("\n", " "))
    assert told == re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)


def test_every_data_set_has_a_page():
    for name in FACTS:
        assert (ROOT / "data" / f"{name}.md").is_file()


def test_links_in_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "BENCHMARKS.md", *(ROOT / "data").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    words = ["demo", "--out", str(out), "--size", "tiny", "--scales", "224", "--weights", "random:A:0:0.03125"]
    assert run(words) == 0
    return out


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_h5py_example_reads_the_file_in_ten_lines(demo, monkeypatch):
    monkeypatch.chdir(demo)
    code = next(block for block in python_blocks() if "h5py" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    found: dict = {}
    exec(code, found)
    assert found["features"].shape == (120, 1, 1, 128)
    assert len(found["ids"]) == len(found["labels"]) == 120
    assert found["ids"][0] == "000001" or found["ids"][0].isdigit()
    assert found["made_by"]["net"] == "A"


def test_the_example_for_other_projects_runs(demo, monkeypatch):
    monkeypatch.chdir(demo)
    code = next(block for block in python_blocks() if "load_features" in block)
    images = sorted((demo / "voc2007").rglob("*.jpg"))[:2]
    code = code.replace("vgg16-397923af.pth", "random:A:0:0.03125")
    code = code.replace('["a.jpg", "b.png"]', repr([str(path) for path in images]))
    found: dict = {}
    exec(code, found)
    data = found["data"]
    assert len(data.descriptors) == len(data.labels) == len(data.ids) == 40
    assert len(data.classes) == 20


def test_the_table_of_the_feature_file_is_the_feature_file(demo):
    section = README.split("**Feature file**")[1].split("Attributes:")[0]
    told = {
        name
        for cell in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", cell)
    }
    with h5py.File(demo / "voc2007.h5") as file:
        assert told - {"splits/NAME"} == set(file) - {"splits"}
        attributes = README.split("Attributes:")[1].split("\n\n")[0]
        assert set(re.findall(r"`(\w+)`", attributes)) == set(file.attrs) | {"sha256"}
        assert all("sha256" in data.attrs for data in (file["features"], file["ids"], file["labels"]))


def test_the_fields_of_the_results_are_those_in_the_readme(demo):
    section = README.split("**results.json**")[1].split("**scores.npz**")[0]
    results = json.loads((demo / "voc2007.svm" / "results.json").read_text())
    assert set(results) <= set(re.findall(r"`(\w+)`", section))


def test_the_table_of_a_training_folder_is_the_folder(tmp_path):
    root = tmp_path / "rendered"
    assert run(["data", "synth", "folder", "--root", str(root), "--size", "tiny"]) == 0
    next(root.rglob("*.jpg")).write_bytes(b"no image")
    words = ["--net", "A", "--width", "0.03125", "--batch", "48", "--steps", "1", "--workers", "0", "--device", "cpu"]
    assert run(["train", "--root", str(root), "--out", str(tmp_path / "x"), *words]) == 0
    section = README.split("**Folder of a training run.**")[1].split("\n\n**")[0]
    told = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    names = [path.name + "/" * path.is_dir() for path in (tmp_path / "x").iterdir()]
    found = {re.sub(r"-[0-9a-f]{16}\.", "-KEY.", name) for name in names}
    assert found - {"tensorboard/"} == told
    log = [json.loads(line) for line in (tmp_path / "x" / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in log} <= set(re.search(r"`kind` \(([^)]+)\)", section)[1].split(", "))


def test_the_weights_file_holds_what_the_readme_says(tmp_path):
    model = VGG("A", 2, width=1 / 64)
    save_weights(tmp_path / "x.safetensors", model, mean=(1, 2, 3), training={})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        about = json.loads(file.metadata()["vggfeat"])
    section = README.split("**Weights** (safetensors)")[1].split("\n\n")[0]
    assert set(about) <= set(re.findall(r"`(\w+)`", section))


def test_versions_agree():
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
