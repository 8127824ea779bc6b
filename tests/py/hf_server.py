"""A stand-in for the Hugging Face hub on 127.0.0.1: the few routes that huggingface_hub asks.

Serves the files of one folder as one repository, and counts what was asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Server(ThreadingHTTPServer):
    """One repository, served from a folder."""

    daemon_threads = True

    def __init__(self, repo: str, folder: Path, commit: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo = repo
        self.folder = folder
        self.commit = commit
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(repo: str, folder: Path, commit: str = "0" * 40) -> Iterator[Server]:
    """Serves until the end of the `with`."""
    with Server(repo, folder, commit) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        repo = self.server.repo
        if path in (
            f"/api/models/{repo}",
            f"/api/models/{repo}/revision/main",
            f"/api/models/{repo}/revision/{self.server.commit}",
        ):
            self._send_json(self._info())
        elif path.startswith(f"/api/models/{repo}/tree/"):
            self._send_json([{"type": "file", **entry} for entry in self._entries()])
        elif path.startswith(f"/{repo}/resolve/"):
            self._send_file(path.removeprefix(f"/{repo}/resolve/").partition("/")[2])
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _entries(self) -> list[dict[str, object]]:
        files = sorted(path for path in self.server.folder.rglob("*") if path.is_file())
        return [
            {
                "path": str(path.relative_to(self.server.folder)),
                "size": path.stat().st_size,
                "oid": _etag(path),
            }
            for path in files
        ]

    def _info(self) -> dict[str, object]:
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in self._entries()]
        return {
            "id": self.server.repo,
            "modelId": self.server.repo,
            "sha": self.server.commit,
            "siblings": siblings,
        }

    def _send_file(self, name: str) -> None:
        path = self.server.folder / name
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        self._send(200, path.read_bytes(), {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": self.server.commit})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
