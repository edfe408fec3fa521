"""Nets on the Hugging Face Hub, from a server on this machine that answers as the Hub does."""

import base64
import hashlib
import http.server
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save as save_safetensors

from other_nets import torchvision_net
from vggfeat.cli import run
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.store.reader import FeatureFile
from vggfeat.weights import load_backbone, sources
from vggfeat.weights.export import card, push
from vggfeat.weights.load import examine
from vggfeat.weights.sources import find_file, hub_origin
from vggfeat.weights.tensor_files import save_weights

FIRST, SECOND = "1" * 40, "2" * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Repositories as {"owner/name": {commit: {file: content}}}; main is the last commit."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).removeprefix("/api/models").strip("/")
        owner, name, what, *rest = [*path.split("/"), "", ""][: max(4, path.count("/") + 1)]
        self.server.seen.append((self.command, path))
        commits = self.server.models.get(f"{owner}/{name}")
        if commits is None:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        commit = next((one for one in commits if rest[0] == one), list(commits)[-1] if rest[0] == "main" else None)
        if commit is None:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if what == "tree":
            files = [
                {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                for file, content in commits[commit].items()
            ]
            return self.answer(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        found = commits[commit].get("/".join(rest[1:]))
        if found is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        tag = hashlib.sha256(found).hexdigest()
        return self.answer(200, found, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'})

    def do_POST(self):
        """Take a new repository, or one commit of files below 10 MB, as the Hub takes them."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.command, self.path))
        json_type = {"Content-Type": "application/json"}
        if self.server.refuses:
            self.answer(403, b'{"error": "You may not write here"}', json_type)
            return
        if self.path == "/api/validate-yaml":
            said = {"errors": [], "warnings": []}
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.made.append(asked)
            said = {"url": f"http://127.0.0.1/{asked.get('organization', 'me')}/{asked['name']}"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            said = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines if line["key"] == "file"
            }  # fmt: skip
            self.server.models["/".join(self.path.split("/")[3:5])] = {FIRST: files}
            said = {"success": True, "commitOid": FIRST, "commitUrl": "http://127.0.0.1/me/net/commit/" + FIRST}
        self.answer(200, json.dumps(said).encode(), json_type)

    def answer(self, code, content, headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def content():
    return save_safetensors(torchvision_net("A").state_dict())


@pytest.fixture
def hub(tmp_path, monkeypatch, content):
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    sources._find_on_hub.cache_clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        server.daemon_threads, server.seen, server.made, server.refuses = True, [], [], False
        server.models = {"timm/vgg11.x": {FIRST: {"model.safetensors": content, "README.md": b"a net"}}}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    sources._find_on_hub.cache_clear()


def test_a_model_is_loaded_by_its_name_and_its_commit_is_kept(hub, tmp_path, content):
    backbone = load_backbone("hf://timm/vgg11.x")
    origin = f"hf://timm/vgg11.x/model.safetensors@{FIRST}"
    assert (backbone.model.config, backbone.source, backbone.imported["hub"]) == ("A", origin, origin)
    assert backbone.sha256 == hashlib.sha256(content).hexdigest()
    hub.models["timm/vgg11.x"][SECOND] = {"model.safetensors": b"another"}
    seen = len(hub.seen)
    assert load_backbone(origin).sha256 == backbone.sha256  # what is recorded names the same file again
    assert [request for request in hub.seen[seen:] if request[0] == "GET"] == [], "it is in the cache"
    assert load_backbone(f"hf://timm/vgg11.x@{FIRST}").source == origin
    assert load_backbone(f"HF://timm/vgg11.x@{FIRST}").source == origin


def test_every_command_that_takes_weights_takes_it(hub, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (230, 230), (9, 99, 199)).save(tmp_path / "images" / "a" / "x.png")
    extract = ["extract", "--dataset", "folder", "--root", "images", "--weights", "hf://timm/vgg11.x", "--out", "x.h5"]
    assert run([*extract, "--scales", "224", "--workers", "0", "--quiet", "--device", "cpu"]) == 0
    with FeatureFile("x.h5") as file:
        assert file.provenance["weights"] == f"hf://timm/vgg11.x/model.safetensors@{FIRST}"
    assert run(["weights", "convert", "hf://timm/vgg11.x", "own.safetensors"]) == 0
    assert load_backbone("own.safetensors").imported["hub"].endswith(f"@{FIRST}")
    capsys.readouterr()
    assert run(["weights", "show", "hf://timm/vgg11.x/model.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["imported"]["hub"].endswith(f"@{FIRST}")


def test_the_only_file_of_weights_is_found_and_two_are_named(hub, tmp_path):
    torch.save(torchvision_net("A").state_dict(), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    hub.models["me/one"] = {FIRST: {"config.json": b"{}", "old/vgg.pth": content}}
    assert load_backbone("hf://me/one").source == f"hf://me/one/old/vgg.pth@{FIRST}"
    hub.models["me/two"] = {FIRST: {"a.pth": content, "b.pth": content}}
    with pytest.raises(
        WeightsError, match=r"hf://me/two: expected a model with one file .* found 'a.pth', 'b.pth'; name"
    ):
        load_backbone("hf://me/two")
    assert load_backbone("hf://me/two/b.pth").imported["file"] == "b.pth"


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("hf://nobody/none", "no model of that name that may be read"),
        ("hf://timm/vgg11.x/none.pth", "no file of that name"),
        ("hf://timm/vgg11.x@none", "no revision of that name"),
    ],
)
def test_what_is_not_there_is_one_line(hub, spec, found):
    with pytest.raises(
        WeightsError, match=rf"^{spec}: expected a file that the Hugging Face Hub gives, found {found};"
    ):
        load_backbone(spec)


def test_an_error_of_any_library_below_is_one_line(hub, monkeypatch):
    def broken(*args, **named):
        raise ZeroDivisionError("peer closed\n\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(WeightsError, match=r"Hugging Face Hub gives, found 'peer closed'; compare"):
        load_backbone("hf://timm/vgg11.x")


def test_without_a_download_only_what_is_cached_is_found(hub):
    with pytest.raises(WeightsError, match="found no connection, and no such file in the cache"):
        find_file("hf://timm/vgg11.x", download=False)
    assert hub.seen == []
    path = find_file("hf://timm/vgg11.x")
    sources._find_on_hub.cache_clear()
    seen = len(hub.seen)
    assert find_file("hf://timm/vgg11.x", download=False) == path
    assert len(hub.seen) == seen


@pytest.mark.parametrize("spec", ["hf://", "hf://timm", "hf://timm/", "hf://a/b@", "hf:///a/b", "hf://a b/c"])
def test_names_that_are_not_understood(spec):
    with pytest.raises(ConfigError, match=r"weights: expected hf://OWNER/NAME\[/FILE\]\[@REVISION\], found"):
        load_backbone(spec)


def test_without_its_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    sources._find_on_hub.cache_clear()
    with pytest.raises(
        ConfigError, match=r"hf://a/b: the package huggingface_hub is missing; pip install 'PATH_OF_CLONE\[hub\]'"
    ):
        load_backbone("hf://a/b")


def test_other_files_have_no_origin(tmp_path):
    assert hub_origin(tmp_path / "model.safetensors") == ""


def test_a_net_that_is_pushed_comes_back_by_its_name_with_a_card(hub, tmp_path, capsys):
    tiny = tmp_path / "tiny.safetensors"
    net = load_backbone("random:A:0:0.0625")
    save_weights(tiny, net.model, mean=net.mean, std=net.std, training={"steps": 7})
    assert run(["weights", "push", str(tiny), "me/net", "--licence", "mit", "--private", "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed["spec"] == f"hf://me/net@{FIRST}"
    assert [(one["name"], one["organization"], one["visibility"]) for one in hub.made] == [("net", "me", "private")]
    files = hub.models["me/net"][FIRST]
    assert files["README.md"].decode() == pushed["card"]
    head, _, text = pushed["card"].removeprefix("---\n").partition("\n---\n")
    assert {line.partition(": ")[0] for line in head.splitlines()} == {
        "library_name", "pipeline_tag", "tags", "license",
    }  # fmt: skip
    assert 'license: "mit"' in head
    assert '"steps": 7' in text
    assert "--weights hf://me/net" in text
    back = load_backbone(pushed["spec"])
    for name, tensor in net.model.state_dict().items():
        assert torch.equal(tensor, back.model.state_dict()[name]), name


def test_a_push_that_is_refused_is_one_line(hub, capsys):
    hub.refuses = True
    small = Path(str(find_file("small")))
    with pytest.raises(WeightsError, match=r"hf://me/net: expected the Hugging Face Hub to take the net, found .*403"):
        push(small, "me/net")
    with pytest.raises(ConfigError, match="repository: expected OWNER/NAME, found 'net'"):
        push(small, "net")


def test_the_card_of_a_published_net_has_its_licence():
    published = replace(examine(Path(str(find_file("small")))), published=sources.PUBLISHED["vgg16-caffe"])
    assert 'license: "cc-by-4.0"' in card(published, "me/net", dtype="float32")
