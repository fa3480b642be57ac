"""Replies that lack a field promised by the protocol: each is `ProtocolError`, for every operation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from msgspec import Raw

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport, Sendable
from cloudstore_mapping.errors import ChangedError, NoFileError, ProtocolError
from cloudstore_mapping.wire import EXTENSIONS, Reply, Request, decode_reply
from tests.vendor import Fault, Vendor

ALL = frozenset(EXTENSIONS)
NONE: frozenset[str] = frozenset()

MEDIA = {"name": "a", "folder": "0" * 32, "id": "1" * 32, "mimetype": "text/plain", "size": 1}
FACTS = {"size": 1, "version": "v1", "created": 1.5, "updated": 2.5, "passwords": {"edit": True, "view": False}}
SAVED = {"error": None, "message": "Entry saved"}
LOADED = {"error": None, "message": "", "data": 1, "version": "v1"}


class Case(NamedTuple):
    """An operation, a service's extensions, its whole reply, and the promised fields, by their paths."""

    act: Callable[[Client], object]
    extensions: frozenset[str]
    reply: dict[str, Any]
    promised: tuple[str, ...]


def batch(*items: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to a batch."""
    return {"error": None, "message": "", "data": [*items]}


def in_batch(**fields: Any) -> Callable[[Client], object]:
    """Return a batch with a single request."""
    return lambda client: client.batch([Request(name="a", **fields)])


CASES: dict[str, Case] = {
    "save": Case(lambda client: client.save("a", Raw(b"1")), NONE, SAVED, ("error", "message")),
    "merge": Case(lambda client: client.merge("a", Raw(b"1")), NONE, SAVED, ("error", "message")),
    "delete": Case(lambda client: client.delete("a"), NONE, SAVED, ("error", "message")),
    "load": Case(lambda client: client.load("a"), NONE, {"error": None, "message": 1}, ("error", "message")),
    "list": Case(lambda client: client.list(), NONE, {"error": None, "message": "a,b"}, ("error", "message")),
    "upload": Case(
        lambda client: client.upload("a", b"1", "text/plain"),
        NONE,
        {"error": None, "message": "File Uploaded", "data": MEDIA},
        ("error", "message", "data", *(f"data.{name}" for name in MEDIA)),
    ),
    "save with versions": Case(
        lambda client: client.save("a", Raw(b"1")), ALL, {**SAVED, "version": "v1"}, ("error", "message", "version")
    ),
    "merge with versions": Case(
        lambda client: client.merge("a", Raw(b"1")), ALL, {**SAVED, "version": "v1"}, ("error", "message", "version")
    ),
    "brief load": Case(lambda client: client.load("a"), ALL, LOADED, ("error", "message", "data", "version")),
    "brief list": Case(
        lambda client: client.list(), ALL, {"error": None, "message": "", "data": ["a"]}, ("error", "message", "data")
    ),
    "unchanged": Case(
        lambda client: client.load("a", if_not_version="v1"),
        ALL,
        {"error": None, "unchanged": True, "version": "v1"},
        ("error", "unchanged", "version"),
    ),
    "stat": Case(
        lambda client: client.stat("a"),
        ALL,
        {"error": None, "message": "", "data": FACTS},
        ("error", "message", "data", *(f"data.{name}" for name in FACTS)),
    ),
    "page": Case(
        lambda client: [*client.pages(limit=1)],
        ALL,
        {"error": None, "message": "", "data": ["a"], "next": None},
        ("error", "message", "data", "next"),
    ),
    "page of values": Case(
        lambda client: client.values(["a"]),
        ALL,
        {"error": None, "message": "", "data": [["a", "v1", 1]], "next": None},
        ("error", "message", "data", "next"),
    ),
    "batch": Case(lambda client: client.batch([Request(name="a")]), ALL, batch(LOADED), ("error", "message", "data")),
    "load in a batch": Case(
        in_batch(),
        ALL,
        batch(LOADED),
        ("data.0", *(f"data.0.{name}" for name in ("error", "message", "data", "version"))),
    ),
    "save in a batch": Case(
        in_batch(value=Raw(b"1")),
        ALL,
        batch({**SAVED, "version": "v1"}),
        tuple(f"data.0.{name}" for name in ("error", "message", "version")),
    ),
    "delete in a batch": Case(in_batch(options="delete"), ALL, batch(SAVED), ("data.0.error", "data.0.message")),
    "list in a batch": Case(
        in_batch(options="list"),
        ALL,
        batch({"error": None, "message": "", "data": ["a"]}),
        tuple(f"data.0.{name}" for name in ("error", "message", "data")),
    ),
    "stat in a batch": Case(
        in_batch(options="stat"),
        ALL,
        batch({"error": None, "message": "", "data": FACTS}),
        ("data.0.message", "data.0.data", *(f"data.0.data.{name}" for name in FACTS)),
    ),
}


class Answering:
    """Way to a service that gives a single answer to everything."""

    def __init__(self, answer: Any, extensions: frozenset[str]) -> None:
        self._answer = json.dumps(answer).encode()
        self._extensions = extensions

    def send(self, request: Sendable) -> Reply:
        """Answer."""
        return decode_reply(self._answer, extensions=self._extensions)

    def close(self) -> None:
        """Do nothing."""


def client(answer: Any, extensions: frozenset[str]) -> Client:
    """Return a client that knows the extensions, of a service that now answers so."""
    told = Client(Answering({"error": None, "message": "Entry deleted"}, extensions), "k")
    told.delete("first")
    told._transport = Answering(answer, extensions)
    return told


def without(reply: Any, path: str) -> Any:
    """Return the reply without the field at a path."""
    reply = json.loads(json.dumps(reply))
    *outer, last = path.split(".")
    part = reply
    for name in outer:
        part = part[int(name) if name.isdigit() else name]
    del part[int(last) if last.isdigit() else last]
    return reply


@pytest.mark.parametrize("name", CASES)
def test_a_whole_reply(name: str) -> None:
    """A reply with every promised field is trusted."""
    case = CASES[name]
    case.act(client(case.reply, case.extensions))


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, case in CASES.items() for path in case.promised])
def test_a_reply_without_a_promised_field(name: str, path: str) -> None:
    """A reply that lacks any of them is `ProtocolError`."""
    case = CASES[name]
    with pytest.raises(ProtocolError):
        case.act(client(without(case.reply, path), case.extensions))


FOREIGN: list[Any] = [
    {"jsonrpc": "2.0", "error": None, "result": "ok"},
    {"error": None, "result": [], "data": "a"},
    {"error": None},
    {"error": None, "unchanged": True},
    {"error": None, "data": []},
    {"error": "NoFile"},
    {"error": "Locked", "result": None},
    {"error": {"code": -32600}, "jsonrpc": "2.0"},
]


@pytest.mark.parametrize("answer", FOREIGN, ids=json.dumps)
@pytest.mark.parametrize("name", CASES)
def test_an_answer_of_something_else(name: str, answer: Any) -> None:
    """An answer of another program is `ProtocolError`, whatever was asked."""
    case = CASES[name]
    with pytest.raises(ProtocolError):
        case.act(client(answer, case.extensions))


@pytest.mark.parametrize("message", [None, 5, {}, ["a"]])
@pytest.mark.parametrize("name", ["save", "merge", "delete", "list", "upload"])
def test_a_message_is_text(name: str, message: Any) -> None:
    """The message of a success is text, except a load's."""
    case = CASES[name]
    with pytest.raises(ProtocolError):
        case.act(client({**case.reply, "message": message}, case.extensions))


def test_a_changed_file_without_its_version() -> None:
    """`Changed` carries the present version, None if there is no file."""
    changed = {"error": "Changed", "message": "Changed.", "version": None}
    with pytest.raises(ChangedError):
        client(changed, ALL).save("a", Raw(b"1"), if_version="v0")
    del changed["version"]
    with pytest.raises(ProtocolError):
        client(changed, ALL).save("a", Raw(b"1"), if_version="v0")


def test_an_error_without_extensions() -> None:
    """An error of a service without extensions needs a name and a message."""
    with pytest.raises(NoFileError):
        client({"error": "NoFile", "message": "File does not exist"}, NONE).load("a")


OPERATIONS: dict[str, Callable[[CloudStoreMapping[Any]], object]] = {
    "load": lambda store: store["total"],
    "get": lambda store: store.get("total", 5),
    "in": lambda store: "total" in store,
    "save": lambda store: store.__setitem__("total", 1),
    "merge": lambda store: store.merge("total", 1),
    "delete": lambda store: store.__delitem__("total"),
    "discard": lambda store: store.discard("total"),
    "pop": lambda store: store.pop("total", None),
    "list": list,
    "len": len,
    "clear": lambda store: store.clear(),
    "search": lambda store: store.list("t"),
    "setdefault": lambda store: store.setdefault("total", 1),
    "upload": lambda store: store.upload(b"1", "a.txt"),
    "transform": lambda store: store.transform("total", str, 1),
}


@pytest.fixture
def vendor_store(vendor: Vendor) -> Iterator[CloudStoreMapping[Any]]:
    """Return a store on the vendor's service."""
    with CloudStoreMapping[Any](vendor.api_key, transport=HTTPTransport(vendor.address)) as store:
        yield store


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_address_of_something_else(vendor: Vendor, vendor_store: CloudStoreMapping[Any], operation: str) -> None:
    """At the address of another service every operation of a store is `ProtocolError`."""
    body = json.dumps({"jsonrpc": "2.0", "error": None, "result": ""}).encode()
    vendor.faults.append(Fault(200, body, {"Content-Type": "application/json"}))
    with pytest.raises(ProtocolError):
        OPERATIONS[operation](vendor_store)
