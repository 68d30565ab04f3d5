# SPDX-License-Identifier: Apache-2.0
"""A web server on this machine, for tests of URLs."""

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class FileHandler(http.server.BaseHTTPRequestHandler):
    """Sends files of `folder`, and notes every request in `requests`."""

    folder: Path
    requests: list[str]
    has_ranges: bool

    def do_GET(self):
        self.requests.append(self.path)
        file = self.folder / Path(self.path).name
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        first, end = self._wanted(len(content))
        self.send_response(206 if self.has_ranges else 200)
        if self.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        self._send(content[first:end])

    def _wanted(self, length):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not (self.has_ranges and wanted):
            return 0, length
        return int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else length

    def _send(self, content):
        with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked has seen enough
            self.wfile.write(content)

    def log_message(self, *_):
        """Stay silent."""


class BreakingHandler(FileHandler):
    """Breaks the connection off in the middle of a file."""

    def _send(self, content):
        super()._send(content[: len(content) // 2])


class LiveHandler(FileHandler):
    """Sends a file as a stream of unknown length, as a broadcast does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.requests.append(self.path)
        self.send_response(200)
        self.send_header("Connection", "close")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        content = (self.folder / Path(self.path).name).read_bytes()
        self._send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))


@contextmanager
def serve(folder: Path, handler=FileHandler, has_ranges=False) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; gives its URL and the list of the paths that were asked for."""
    requests: list[str] = []
    members = {"folder": folder, "requests": requests, "has_ranges": has_ranges}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), members)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()
