"""A service as the vendor documents it, on a loopback socket: no extensions, no `data` beside a load's `message`."""

from __future__ import annotations

import json
import secrets
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any, ClassVar, Literal, NamedTuple, Self

import python_multipart

from cloudstore_mapping.errors import BadMergeError
from cloudstore_mapping.merge import merge


class Recorded(NamedTuple):
    """A request as it came; `body` is empty where the connection was dropped before it was read."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Fault:
    """
    What the next request gets in place of its answer; nothing is done for it.

    `drop` ends the connection without an answer: ``before`` the body is read, or ``after`` what was asked is done.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drop: Literal["before", "after"] | None = None


class Media(NamedTuple):
    """An uploaded file as it came."""

    content_type: str
    data: bytes
    fields: dict[str, str]


class Vendor:
    """
    The service, one account of it; a context manager that runs it on a thread.

    `files` are its data files, `edit_passwords` and `view_passwords` those of some of them, by name; `media` what was
    uploaded, by filename, and `links` by its path. `requests` is what came, in order, on `accepted` connections; the
    next request uses up the first of `faults`. Any API key is right, unless it `checks_keys`.

    No public source tells about some names and merges. `refuses_commas` is True if a name with a comma is an error;
    `slashes_are_folders` if a list has only the folder of a name with a slash, and no file beside a folder of its name;
    `merges_whole_values` if a merge replaces the whole value.
    """

    api_key = "ZFA5mAkxjVznvSsXOUxE"

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}
        self.edit_passwords: dict[str, str] = {}
        self.view_passwords: dict[str, str] = {}
        self.media: dict[str, Media] = {}
        self.links: dict[str, Media] = {}
        self.requests: list[Recorded] = []
        self.faults: deque[Fault] = deque()
        self.accepted = 0
        self.checks_keys = False
        self.refuses_commas = False
        self.slashes_are_folders = False
        self.merges_whole_values = False
        self.lock = threading.Lock()
        self._server = _Server(self)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/cloudstore"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def hang_up(self) -> None:
        """End all connections that clients keep open."""
        self._server.hang_up()

    @property
    def bodies(self) -> list[Any]:
        """What the requests with JSON said."""
        return [json.loads(request.body) for request in self.requests if request.method == "POST"]

    def answer(self, request: Recorded) -> dict[str, Any]:
        """Do what a request asks for, and return the reply's object."""
        if request.path == "/cloudstore/upload-2":
            return self._upload(request)
        asked = json.loads(request.body)
        name, options, password = asked["file"], asked["options"], asked.get("password") or ""
        if self.checks_keys and asked["key"] != self.api_key:
            return {"error": "BadKey", "message": "Wrong key"}
        if request.path == "/cloudstore/store/save":
            if self.edit_passwords.get(name, "") not in ("", password):
                return {"error": "Locked", "message": "Wrong password"}
            return self._write(name, options, asked.get("value"))
        if options == "list":
            return {"error": None, "message": ",".join(file for file in self._listed() if name in file)}
        if self.view_passwords.get(name, "") not in ("", password):
            return {"error": "Locked", "message": "Wrong password"}
        if name not in self.files:
            return _no_file()
        return {"error": None, "message": self.files[name]}

    def _write(self, name: str, options: str | None, value: Any) -> dict[str, Any]:
        if options == "delete":
            if name not in self.files:
                return _no_file()
            del self.files[name]
            return {"error": None, "message": "Entry deleted"}
        if self.refuses_commas and "," in name:
            return {"error": "InvalidName", "message": "No commas, please"}
        if self.slashes_are_folders and self._is_in_the_way(name):
            return {"error": "InvalidName", "message": "Not a directory"}
        try:
            merges = options == "merge" and not self.merges_whole_values
            self.files[name] = merge(self.files.get(name), value) if merges else value
        except BadMergeError as error:  # what the vendor's says here, no public source tells
            return {"error": "BadMerge", "message": str(error)}
        return {"error": None, "message": "Entry saved"}

    def _listed(self) -> list[str]:
        if not self.slashes_are_folders:
            return list(self.files)
        return list(dict.fromkeys(name.partition("/")[0] for name in self.files))

    def _is_in_the_way(self, name: str) -> bool:
        return any(
            longer.startswith(f"{shorter}/")
            for other in self.files
            for longer, shorter in ((name, other), (other, name))
        )

    def _upload(self, request: Recorded) -> dict[str, Any]:
        fields: dict[str, str] = {}
        parts: list[Any] = []
        python_multipart.parse_form(
            {"Content-Type": request.headers["Content-Type"].encode()},
            BytesIO(request.body),
            lambda part: fields.update({(part.field_name or b"").decode(): (part.value or b"").decode()}),
            parts.append,
        )
        (part,) = parts
        name = part.file_name.decode()
        if self.edit_passwords.get(name, "") not in ("", fields["password"]):
            return {"error": "Locked", "message": "Wrong password"}
        part.file_object.seek(0)
        media = Media(part.content_type, part.file_object.read(), fields)
        part.close()
        self.media[name] = media
        facts = {"name": name, "folder": "0" * 32, "id": secrets.token_hex(16), "mimetype": media.content_type}
        ending = name.rpartition(".")[2]  # what it is for a name without one, no public source tells
        self.links[f"/cloudstore/files/{facts['folder']}/{facts['id']}.{ending}"] = media
        return {"error": None, "message": "File Uploaded", "data": {**facts, "size": len(media.data)}}


@contextmanager
def serve_vendor() -> Iterator[Vendor]:
    """Yield a running service; clients find it under its `address`, with its `api_key`."""
    with Vendor() as vendor:
        yield vendor


def _no_file() -> dict[str, Any]:
    return {"error": "NoFile", "message": "File does not exist"}


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for them

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def hang_up(self) -> None:
        for connection in tuple(self.open):
            _shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up at any time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    log_message: ClassVar[Any] = lambda *_: None

    def setup(self) -> None:
        super().setup()
        self.server.vendor.accepted += 1
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def do_POST(self) -> None:
        vendor = self.server.vendor
        with vendor.lock:
            fault = vendor.faults.popleft() if vendor.faults else None
            body = b"" if fault is not None and fault.drop == "before" else self._body()
            request = Recorded(self.command, self.path, dict(self.headers), body)
            vendor.requests.append(request)
            if len(body) < int(self.headers.get("Content-Length", 0)):
                fault = fault or Fault(drop="before")  # the client hung up
            if fault is None or fault.drop == "after":
                answer = json.dumps(vendor.answer(request)).encode()
        if fault is None:
            self._answer(Fault(200, answer, {"Content-Type": "application/json"}))
        elif fault.drop is None:
            self._answer(fault)
        else:
            self.close_connection = True
            _shut(self.connection)

    def do_GET(self) -> None:
        vendor = self.server.vendor
        with vendor.lock:
            vendor.requests.append(Recorded(self.command, self.path, dict(self.headers), b""))
            fault = vendor.faults.popleft() if vendor.faults else None
            media = vendor.links.get(self.path)
        if fault is not None:
            self._answer(fault)
        elif media is None:
            self._answer(Fault(404, b"<h1>Not Found</h1>", {"Content-Type": "text/html"}))
        else:
            self._answer(Fault(200, media.data, {"Content-Type": media.content_type}))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while line := self.rfile.readline():
            pieces.append(self.rfile.read(int(line, 16)))
            self.rfile.readline()
            if not pieces[-1]:
                return b"".join(pieces)
        raise ConnectionResetError("The client hung up.")

    def _answer(self, fault: Fault) -> None:
        self.send_response(fault.status)
        for name, text in {"Content-Length": str(len(fault.body)), **fault.headers}.items():
            self.send_header(name, text)
        self._headers_buffer.extend([b"\r\n", fault.body])  # type: ignore[attr-defined]  # one packet, no delay
        self.flush_headers()
        if int(fault.headers.get("Content-Length", len(fault.body))) != len(fault.body):
            self.close_connection = True  # there is nothing more to come


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
