"""A server of the S3 interface on loopback, and a proxy before it that fails as it is told."""

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

from fsspec.config import conf

BUCKET = "bucket"
_DROPPED = {"connection", "transfer-encoding", "content-length", "server", "date"}


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a port.

    `fault` takes method, path and the number of the request, from 1, and names what goes wrong with it, if anything:
    "500", "403", "reset" (before it is passed on), "lost" (it is carried out, but the answer does not come), "cut"
    (half of the body comes), "slow" (a byte a tenth of a second), "stuck" (nothing comes).
    """

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.fault, self.log, self.lock = port, lambda method, path, number: None, [], threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        pass  # Clients that have been failed go away.

    def count(self, method, path):
        with self.lock:
            self.log.append((method, path))
            return len(self.log)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.body()
        fault = self.server.fault(self.command, self.path, self.server.count(self.command, self.path))
        if fault in ("500", "403"):
            code = {"500": "InternalError", "403": "AccessDenied"}[fault]
            return self.give(int(fault), [], f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
        if fault == "reset":
            return self.reset()
        if fault == "stuck":
            time.sleep(3)
            return self.reset()
        status, headers, content = self.passed_on(body)
        if fault == "lost":
            return self.reset()
        return self.give(status, headers, content, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.all_of(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.all_of(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def all_of(self, size):
        data = self.rfile.read(size)
        if len(data) < size:  # The client has given up, and no server would keep half a body.
            raise ConnectionError
        return data

    def passed_on(self, body):
        inner = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        inner.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = inner.getresponse()
        content = answer.read()
        kept = [pair for pair in answer.getheaders() if pair[0].lower() not in _DROPPED]
        length = answer.getheader("Content-Length")
        inner.close()
        if self.command == "HEAD" and length:
            kept.append(("Content-Length", length))
        return answer.status, kept, content

    def give(self, status, headers, content, fault=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            return self.reset()
        if fault == "slow":
            for place in range(len(content)):
                self.wfile.write(content[place : place + 1])
                time.sleep(0.1)
            return None
        self.wfile.write(content)
        return None

    def reset(self):
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_):
        pass


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def served():
    """Run the server and a proxy before it, with one bucket in it; s3:// leads to the proxy, in other processes too."""
    port = free_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | environment, **quiet)
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    environment["FSSPEC_S3_ENDPOINT_URL"] = proxy.endpoint
    try:
        _make_bucket(port)
        thread.start()
        with patch.dict(os.environ, environment), patch.dict(conf, {"s3": {"endpoint_url": proxy.endpoint}}):
            yield proxy
        proxy.shutdown()
    finally:
        proxy.server_close()
        process.kill()
        process.wait()


def _make_bucket(port):
    end = time.monotonic() + 60
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        finally:
            connection.close()
