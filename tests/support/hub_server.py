"""A server on loopback that answers about one data set as the Hugging Face Hub does."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

from fsspec.config import conf

NAME = "me/set"
_FACTS = {
    "id": NAME, "_id": "1", "sha": "0" * 40, "siblings": [], "private": False, "gated": False, "disabled": False,
    "downloads": 0, "likes": 0, "tags": [],
}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        tree = re.fullmatch(rf"/api/datasets/{NAME}/tree/main/?(.*)", path)
        file = re.fullmatch(rf"/datasets/{NAME}/resolve/main/(.*)", path)
        if re.fullmatch(rf"/api/datasets/{NAME}(/revision/main)?", path):
            return self.give(200, json.dumps(_FACTS).encode())
        if tree:
            return self.give(200, json.dumps(self.listed(f"{tree[1]}/" if tree[1] else "")).encode())
        if file and file[1] in self.server.files:
            return self.part(self.server.files[file[1]])
        return self.give(404, b"", **{"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def listed(self, above):
        found = {}
        for name, data in self.server.files.items():
            if name.startswith(above):
                first, inside, _ = name[len(above) :].partition("/")
                kind = {"type": "directory", "size": 0} if inside else {"type": "file", "size": len(data)}
                found[first] = {"path": above + first, "oid": "1" * 40, **kind}
        return list(found.values())

    def part(self, data):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self.give(200, data)
        first, last = int(asked[1]), int(asked[2] or len(data) - 1)
        return self.give(206, data[first : last + 1], **{"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def give(self, status, data, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "ETag": '"x"', **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def served(files):
    """Run the server; hf:// leads to it in this process."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.files = files
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        with (
            patch.dict(conf, {"hf": {"endpoint": address}}),
            patch.multiple(constants, ENDPOINT=address, HUGGINGFACE_CO_URL_TEMPLATE=template),
        ):
            yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
