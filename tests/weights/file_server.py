"""A file server on loopback that can behave badly, and remembers what it was asked for."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One file and how it is served.

    Attributes:
        content: Its bytes.
        break_after: Lengths after which the next requests are cut off, one for each request, then none.
        ranges: Whether Range is honoured.
        validators: Whether ETag is sent.
        status: Answers before the file is given, one for each request: their status codes.
        content_type: Of the file.
        token: Bearer token that is asked for.
        redirect: Address that every request is sent on to.
        gate: If set, the body waits for it.
        length: Whether Content-Length is sent.
        headers: Further ones to send.
        tag: ETag to send instead of that of the content.
    """

    content: bytes
    break_after: list[int] = field(default_factory=list)
    ranges: bool = True
    validators: bool = True
    status: list[int] = field(default_factory=list)
    content_type: str = "application/octet-stream"
    token: str | None = None
    redirect: str | None = None
    gate: threading.Event | None = None
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    tag: str | None = None

    @property
    def etag(self) -> str:
        return self.tag or f'"{hashlib.sha256(self.content).hexdigest()}"'


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    sent: int = 0


class FileServer:
    """``files`` maps paths to what is served there; ``requests`` are those that came, in order."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []
        self.url = ""

    def ranges(self) -> list[str | None]:
        return [request.headers.get("range") for request in self.requests]

    def sent(self) -> int:
        return sum(request.sent for request in self.requests)


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            request = Request(self.path, {key.lower(): value for key, value in self.headers.items()})
            server.requests.append(request)
            served = server.files.get(self.path.partition("?")[0])
            if served is None:
                return self.send_error(404)
            if served.redirect:
                self.send_response(302)
                self.send_header("Location", served.redirect)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if served.status:
                return self.refuse(served.status.pop(0), served.headers)
            if served.token and request.headers.get("authorization") != f"Bearer {served.token}":
                return self.refuse(401, {})
            return self.give(served, request)

        def refuse(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": "0"} | headers).items():
                self.send_header(name, value)
            self.end_headers()

        def give(self, served: Served, request: Request) -> None:
            start, total = 0, len(served.content)
            wanted = request.headers.get("range")
            same = request.headers.get("if-range") in (None, served.etag)
            if wanted and served.ranges and same:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            for name, value in ({"Content-Type": served.content_type} | served.headers).items():
                self.send_header(name, value)
            if served.length:
                self.send_header("Content-Length", str(total - start))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            if served.validators:
                self.send_header("ETag", served.etag)
            self.end_headers()
            if self.command == "HEAD":
                return
            if served.gate:
                served.gate.wait(10)
            end = start + served.break_after.pop(0) if served.break_after else total
            request.sent = len(served.content[start:end])
            self.wfile.write(served.content[start:end])
            if end < total:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

    return Handler


def serve_hub(server: FileServer, repo: str, commit: str, files: dict[str, bytes]) -> None:
    """Answer as the Hugging Face hub does for one repository: its listing, its tree, and its files."""
    tree = []
    for name, content in files.items():
        sha256 = hashlib.sha256(content).hexdigest()
        entry = {"type": "file", "path": name, "rfilename": name, "size": len(content), "oid": sha256[:40]}
        if name.endswith((".safetensors", ".bin", ".ckpt")):
            entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 135}
        tree.append(entry)
        for revision in ("main", commit):
            server.files[f"/{repo}/resolve/{revision}/{name}"] = Served(content, headers={"X-Repo-Commit": commit})
    info = {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": tree}
    for path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main", f"/api/models/{repo}/revision/{commit}"):
        server.files[path] = Served(json.dumps(info).encode(), content_type="application/json")
    for revision in ("main", commit):
        path = f"/api/models/{repo}/tree/{revision}"
        server.files[path] = Served(json.dumps(tree).encode(), content_type="application/json")


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    http = _QuietServer(("127.0.0.1", 0), _handler(server))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
