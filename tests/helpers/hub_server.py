"""Serves a model hub on this machine's loopback: the few endpoints that a download asks.

It serves files of one repository, counts what it was asked, and can break off a download halfway,
once for each time it was told to. It is no proxy and knows no accounts. It sends ``X-Repo-Commit``,
without which huggingface_hub takes the server for something else.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves `files` as the repository ``org/repo``.

    Attributes:
        files: Contents by name.
        asked: Method, path and ``Range`` of each request, in order.
        break_after_bytes: Sizes at which the next downloads break off, first to last.
        status: If set, the status of every answer.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[tuple[str, str, str | None]] = []
        self.break_after_bytes: list[int] = []
        self.status: int | None = None
        self.gated = False

    @property
    def url(self) -> str:
        """Address for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str | None]:
        """Returns the ``Range`` of each request for a file's content."""
        return [span for method, path, span in self.asked if method == "GET" and "resolve" in path]


@contextmanager
def hub_server(files: dict[str, bytes]) -> Iterator[HubServer]:
    """Runs a `HubServer` in a thread."""
    with HubServer(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        span = self.headers.get("Range")
        self.server.asked.append((self.command, path, span))
        if self.server.status is not None:
            self._send(self.server.status, b"", {})
        elif self.server.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"})
        elif path == "/api/models/org/repo":
            names = [{"rfilename": name} for name in self.server.files]
            about = {"id": "org/repo", "modelId": "org/repo", "sha": COMMIT, "siblings": names}
            self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/org/repo/resolve/main/"):
            self._file(path.removeprefix("/org/repo/resolve/main/"), span, with_body=with_body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str, span: str | None, *, with_body: bool) -> None:
        content = self.server.files.get(name)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._send(404, b"", headers)
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if span:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status = 206
        body = content[start:]
        if with_body and self.server.break_after_bytes:
            headers["Content-Length"] = str(len(body))
            self._send(status, body[: self.server.break_after_bytes.pop(0)], headers)
            self.close_connection = True
            return
        self._send(status, body, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
