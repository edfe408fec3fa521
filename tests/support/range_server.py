"""A web server on loopback that knows byte ranges, and does what a path asks for: redirects, endless files, drips."""

import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer(ThreadingHTTPServer):
    """Serves bytes by their names.

    `/redirect/URL` leads on to a URL; `/endless` has no end; `/whole/NAME` ignores ranges; `/drip/NAME` sends a byte a
    tenth of a second; `/fail/COUNT/NAME` answers 503 so many times first, and `/status/CODE` always fails.
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.log, self.failed = files, [], {}
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        pass  # Clients go away.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.log.append((self.command, self.path, self.headers.get("Range")))
        path = self.path[1:].split("?")[0]
        way, _, rest = path.partition("/")
        if way == "redirect":
            return self.head(302, Location=self.path.removeprefix("/redirect/"))
        if way == "status":
            return self.head(int(rest))
        if way == "endless":
            return self.endless()
        if way == "fail":
            count, _, rest = rest.partition("/")
            self.server.failed[path] = self.server.failed.get(path, 0) + 1
            if self.server.failed[path] <= int(count):
                return self.head(503)
        name = rest if way in ("whole", "drip", "fail") else path
        if name not in self.server.files:
            return self.head(404)
        return self.give(self.server.files[name], way)

    do_HEAD = do_GET  # noqa: N815

    def give(self, data, way):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or way == "whole":
            self.head(200, data)
        elif int(asked[1]) >= len(data):
            self.head(416)
        else:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            self.head(206, data[first : last + 1], **{"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def endless(self):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))

    def head(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        step = 1 if self.path.startswith("/drip") else max(1, len(data))
        for place in range(0, len(data), step):
            self.wfile.write(data[place : place + step])
            if step == 1:
                time.sleep(0.1)

    def log_message(self, *_):
        pass


@contextmanager
def served(files):
    """Run the server."""
    server = RangeServer(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
