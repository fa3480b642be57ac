"""What a client makes of a service's extensions: it asks for nothing that the last reply didn't name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from cloudstore_mapping.client.files import Client, Loaded
from cloudstore_mapping.errors import (
    ChangedError,
    CloudStoreError,
    NoFileError,
    ProtocolError,
    TransportError,
    UnavailableError,
    UnsupportedError,
)
from cloudstore_mapping.wire import (
    Reply,
    Request,
    encode_replies,
    success,
)
from tests.support.scripted import ALL, DESCRIBED, DONE, NO_FILE, Script, told

VALUE = Reply(data=Raw(b"1"), version="v1")

START = '{"key":"k","file":"a","options":'


def test_the_first_request_uses_none() -> None:
    """Before the first reply nobody knows what the service can."""
    script = Script(VALUE, extensions=ALL)
    client = script.client()
    assert client.extensions == frozenset()
    with pytest.raises(UnsupportedError):
        client.stat("a")
    with pytest.raises(UnsupportedError):
        client.save("a", Raw(b"1"), if_version="v1")
    client.load("a", if_not_version="v1")
    assert script.requests == [Request(api_key="k", name="a")]
    assert client.extensions == ALL


def test_extensions_come_and_go() -> None:
    """The service's last reply counts, an error as well; what a proxy answers says nothing of the service."""
    client, script = told(ALL, NO_FILE, DONE, *[replace(DONE, error="Http error", status=502)] * 5)
    with pytest.raises(NoFileError):
        client.load("a")
    assert client.extensions == ALL
    script.extensions = frozenset({"stat"})
    client.save("a", Raw(b"1"))
    assert client.extensions == {"stat"}
    script.extensions = frozenset()
    with pytest.raises(UnavailableError):
        client.load("a")
    assert client.extensions == {"stat"}
    script.outcomes = [NO_FILE]
    with pytest.raises(NoFileError):
        client.load("a")
    assert client.extensions == frozenset()


@pytest.mark.parametrize("error", [TransportError("lost", sent=True), ProtocolError("no reply")])
def test_no_reply_changes_nothing(error: CloudStoreError) -> None:
    """What can't be read, or didn't come, says nothing of the service."""
    client, _ = told(ALL, *[error] * 4)
    with pytest.raises(type(error)):
        client.load("a")
    assert client.extensions == ALL


#: What each call sends to a service that has this extension alone.
SENT: dict[str, tuple[str, Callable[[Client], object], Reply, str]] = {
    "load of a known version": (
        "version",
        lambda client: client.load("a", if_not_version="v1"),
        VALUE,
        START + 'null,"id":"_data","password":null,"if_not_version":"v1"}',
    ),
    "load": ("version", lambda client: client.load("a"), VALUE, START + 'null,"id":"_data","password":null}'),
    "save over a version": (
        "version",
        lambda client: client.save("a", Raw(b"1"), if_version="v1"),
        DONE,
        START + 'null,"id":"_data","value":1,"password":null,"if_version":"v1"}',
    ),
    "save where nothing is": (
        "version",
        lambda client: client.save("a", Raw(b"1"), if_version=None),
        DONE,
        START + 'null,"id":"_data","value":1,"password":null,"if_version":null}',
    ),
    "delete of a version": (
        "version",
        lambda client: client.delete("a", if_version="v1"),
        DONE,
        START + '"delete","id":"_data","password":null,"if_version":"v1"}',
    ),
    "stat": (
        "stat",
        lambda client: client.stat("a"),
        DESCRIBED,
        START + '"stat","id":"_data","password":null}',
    ),
    "brief load": (
        "brief",
        lambda client: client.load("a", if_not_version="v1"),
        VALUE,
        START + 'null,"id":"_data","password":null,"brief":true}',
    ),
    "brief list": (
        "brief",
        lambda client: client.list("a", prefix=True),
        success("", Raw(b"[]")),
        START + '"list","id":"_data","password":null,"brief":true}',
    ),
    "list with values": (
        "values",
        lambda client: client.values(["a b", "a c"], "a", after="a a"),
        success("", Raw(b"[]")),
        START + '"list","id":"_data","password":null,"match":"prefix","after":"a a","limit":2,"values":true}',
    ),
    "list of a prefix": (
        "page",
        lambda client: client.list("a", prefix=True),
        success("", Raw(b"[]")),
        START + '"list","id":"_data","password":null,"match":"prefix"}',
    ),
    "list": (
        "page",
        lambda client: client.list("a"),
        success("", Raw(b"[]")),
        START + '"list","id":"_data","password":null}',
    ),
    "pages": (
        "page",
        lambda client: list(client.pages("a", limit=5)),
        success("", Raw(b"[]")),
        START + '"list","id":"_data","password":null,"limit":5}',
    ),
    "pages of a prefix": (
        "page",
        lambda client: list(client.pages("a", prefix=True)),
        success("", Raw(b"[]")),
        START + '"list","id":"_data","password":null,"match":"prefix","limit":10000}',
    ),
    "pages in one": (
        "stat",
        lambda client: list(client.pages("a", prefix=True, limit=5)),
        success("", Raw(b"[]")),
        START + '"list","id":"_data","password":null}',
    ),
    "save with an id": (
        "once",
        lambda client: client.save("a", Raw(b"1")),
        DONE,
        START + 'null,"id":"_data","value":1,"password":null,"request":"id"}',
    ),
    "merge with an id": (
        "once",
        lambda client: client.merge("a", Raw(b"1")),
        DONE,
        START + '"merge","id":"_data","value":1,"password":null,"request":"id"}',
    ),
    "delete with an id": (
        "once",
        lambda client: client.delete("a"),
        DONE,
        START + '"delete","id":"_data","password":null,"request":"id"}',
    ),
    "reads have no id": ("once", lambda client: client.load("a"), DONE, START + 'null,"id":"_data","password":null}'),
    "batch": (
        "batch",
        lambda client: client.batch([Request(name="a")]),
        success("", encode_replies([VALUE])),
        '{"key":"k","requests":[{"key":"","file":"a","options":null,"id":"_data","password":null}],"atomic":false}',
    ),
}


@pytest.mark.parametrize("call", SENT)
def test_what_is_sent(call: str) -> None:
    """Each extension adds its fields to the requests that are its own, and to no other."""
    extension, act, reply, expected = SENT[call]
    client, script = told(frozenset({extension}), reply)
    act(client)
    assert script.bodies == [expected]


@pytest.mark.parametrize("answer", [VALUE, replace(VALUE, data=UNSET, message=Raw(b"1"))])
def test_loaded(answer: Reply) -> None:
    """A load returns the value with its version."""
    client, _ = told(frozenset({"version"}), answer)
    loaded = client.load("a")
    assert loaded is not None
    assert (bytes(loaded.value), loaded.version) == (b"1", "v1")


def test_versions_of_writes() -> None:
    """A save and a merge return the version that they made, None where the service has no versions."""
    client, _ = told(ALL, replace(DONE, version="v1"), replace(DONE, version="v1"))
    assert (client.save("a", Raw(b"1")), client.merge("a", Raw(b"1"))) == ("v1", "v1")
    client, _ = told(frozenset({"once"}), DONE, DONE)
    assert (client.save("a", Raw(b"1")), client.merge("a", Raw(b"1"))) == (None, None)


def test_unchanged() -> None:
    """A load of a version that still stands returns None, and only where that was asked."""
    unchanged = Reply(unchanged=True, version="v1")
    client, script = told(ALL, unchanged, replace(VALUE, unchanged=False), unchanged)
    assert client.load("a", if_not_version="v1") is None
    assert client.load("a", if_not_version="v0") == Loaded(VALUE.data, "v1")  # type: ignore[arg-type]  # it is set
    with pytest.raises(ProtocolError):
        client.load("a")
    assert script.outcomes == []


def test_changed() -> None:
    """A version that no longer stands is `ChangedError`, with the key and the one that stands, None for absent."""
    changed = Reply(error="Changed", message=Raw(b'"?"'), version="v2")
    client, _ = told(ALL, changed, replace(changed, version=None))
    for version in ("v2", None):
        with pytest.raises(ChangedError, match="a,b") as caught:
            client.save("a%2Cb", Raw(b"1"), key="a,b", if_version="v1")
        assert (caught.value.version, caught.value.key, caught.value.status) == (version, "a,b", 200)


UNSUPPORTED: dict[str, tuple[str, Callable[[Client], object]]] = {
    "save": ("version", lambda client: client.save("a", Raw(b"1"), if_version="v1")),
    "save where nothing is": ("version", lambda client: client.save("a", Raw(b"1"), if_version=None)),
    "delete": ("version", lambda client: client.delete("a", if_version="v1")),
    "in a batch": ("version", lambda client: client.batch([Request(name="a", value=Raw(b"1"), if_version="v1")])),
    "upload of only a new file": ("version", lambda client: client.upload("a", b"", "a/b", only_new=True)),
    "stat": ("stat", lambda client: client.stat("a")),
    "batch": ("batch", lambda client: client.batch([Request(name="a")])),
    "empty batch": ("batch", lambda client: client.batch([])),
}


@pytest.mark.parametrize("call", UNSUPPORTED)
def test_unsupported(call: str) -> None:
    """What only the missing extension could do is refused before anything is sent."""
    missing, act = UNSUPPORTED[call]
    client, script = told(ALL - {missing})
    with pytest.raises(UnsupportedError, match=missing):
        act(client)
    assert script.requests == []


BARE = Reply()
LACKING: dict[str, tuple[Callable[[Client], object], Reply]] = {
    "load": (lambda client: client.load("a"), BARE),
    "list": (lambda client: client.list(), BARE),
    "pages": (lambda client: list(client.pages()), BARE),
    "stat": (lambda client: client.stat("a"), BARE),
    "upload": (lambda client: client.upload("a", b"", "a/b"), BARE),
    "batch": (lambda client: client.batch([Request(name="a")]), BARE),
    "load in a batch": (lambda client: client.batch([Request(name="a")]), success("", encode_replies([BARE]))),
}


@pytest.mark.parametrize("call", LACKING)
def test_a_reply_without_what_was_asked_for(call: str) -> None:
    """Where a service has all extensions, an answer without data is never taken for an empty text or listing."""
    act, answer = LACKING[call]
    client, _ = told(ALL, answer)
    with pytest.raises(ProtocolError):
        act(client)


def test_a_service_that_became_another_one() -> None:
    """A service that no longer knows `brief` answers with `message` alone, as it did before."""
    client, script = told(ALL, Reply(message=Raw(b'""')))
    script.extensions = frozenset()
    assert client.load("a") == Loaded(Raw(b'""'), None)
