"""A stand-in of the hub on this machine, for its real clients: data sets with commits, branches and tags."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


@dataclass(frozen=True)
class Repository:
    """A data set of the hub.

    Attributes:
        commits: By commit, by path, what a file holds.
        references: By branch or tag, its commit.
    """

    commits: Mapping[str, Mapping[str, bytes]]
    references: Mapping[str, str]

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.references.get(revision)


@contextmanager
def stand_in(repositories: Mapping[str, Repository]) -> Iterator[str]:
    """The address (HF_ENDPOINT) of a hub with these data sets, for as long as the context lasts."""
    handler = type("Handler", (_Handler,), {"repositories": repositories})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Mapping[str, Repository]

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        routes: tuple[tuple[str, Callable[..., None]], ...] = (
            (r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", self._about),
            (r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", self._listed),
            (r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
        )
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, path):
                name, revision, *rest = match.groups()
                repository = self.repositories.get(name)
                commit = repository.commit(revision or "main") if repository else None
                if repository is None or commit is None:
                    return self._missing("RevisionNotFound" if repository else "RepoNotFound")
                return answer(name, commit, repository.commits[commit], *rest)
        return self._missing("RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _about(self, name: str, commit: str, files: Mapping[str, bytes]) -> None:
        siblings = [{"rfilename": path} for path in files]
        self._send(200, json.dumps({"id": name, "sha": commit, "tags": [], "siblings": siblings}).encode())

    def _listed(self, _name: str, _commit: str, files: Mapping[str, bytes], folder: str | None) -> None:
        if folder is not None:
            return self._missing("EntryNotFound")
        entries = [{"type": "file", "path": p, "size": len(held), "oid": _sha1(held)} for p, held in files.items()]
        return self._send(200, json.dumps(entries).encode())

    def _file(self, _name: str, commit: str, files: Mapping[str, bytes], path: str) -> None:
        if path not in files:
            return self._missing("EntryNotFound", {"X-Repo-Commit": commit})
        return self._send(200, files[path], {"ETag": f'"{_sha1(files[path])}"', "X-Repo-Commit": commit})

    def _missing(self, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sha1(held: bytes) -> str:
    return hashlib.sha1(held, usedforsecurity=False).hexdigest()
