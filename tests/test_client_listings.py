"""Listings: by text, by prefix, and page by page."""

from __future__ import annotations

import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from cloudstore_mapping.errors import ProtocolError, TransportError, UnsupportedError
from cloudstore_mapping.wire import Reply, Request, encode_value
from tests.scripted import ALL, told


def names(*names: str) -> Reply:
    """Return a page of names."""
    return Reply(data=encode_value(names), next=None)


def test_prefixes_on_a_service_without_them() -> None:
    """What only holds the text is left out here, where the service can't."""
    client, _ = told(ALL - {"page"}, names("ab", "ba", "a"), names("ab", "ba", "a"), names("ab", "ba", "a"))
    assert client.list("a", prefix=True) == ["ab", "a"]
    assert client.list("a") == ["ab", "ba", "a"]
    assert list(client.pages("a", prefix=True)) == [["ab", "a"]]


def test_pages() -> None:
    """Each page goes on after the name that the one before told, until one tells none; each is asked for in time."""
    client, script = told(ALL, replace(names("a", "b"), next="b"), replace(names(), next="c"), names("d"))
    pages = client.pages("", limit=2)
    assert script.requests == []
    assert next(pages) == ["a", "b"]
    assert len(script.requests) == 1
    assert list(pages) == [[], ["d"]]
    assert [request.after for request in script.requests if isinstance(request, Request)] == [UNSET, "b", "c"]


@pytest.mark.parametrize("second", [replace(names("a"), next="a"), replace(names("a"), next=UNSET)])
def test_pages_that_lost_their_place(second: Reply) -> None:
    """A listing that would begin again, or never end, is `ProtocolError`, and not a name twice."""
    client, _ = told(ALL, replace(names("a"), next="a"), second)
    pages = client.pages(limit=1)
    assert next(pages) == ["a"]
    with pytest.raises(ProtocolError):
        next(pages)


def test_a_whole_listing_for_a_page() -> None:
    """A service that has just lost its pages answers the first one with all."""
    client, _ = told(ALL, replace(names("a", "b", "c"), next=UNSET))
    assert list(client.pages(limit=1)) == [["a", "b", "c"]]


def test_errors_of_pages_have_no_key() -> None:
    """A listing is about no key."""
    client, _ = told(ALL, *[TransportError("lost", sent=True)] * 4)
    with pytest.raises(TransportError) as caught:
        list(client.pages("text"))
    assert caught.value.key is None


def test_pages_of_values() -> None:
    """Values come with their names and versions, which the service has to be able to, and say in this form."""
    client, _ = told(ALL, Reply(data=Raw(b'[["a","v1",[1]],["b","v2",null]]'), next="b"))
    assert client.values(["a", "b"]) == [("a", "v1", Raw(b"[1]")), ("b", "v2", Raw(b"null"))]
    with pytest.raises(UnsupportedError):
        told(ALL - {"values"})[0].values(["a"])


@pytest.mark.parametrize("data", [b'["a"]', b'{"a":1}', b'[["a",1,2]]', b"null"])
def test_what_is_no_page_of_values(data: bytes) -> None:
    """An answer of another form is `ProtocolError`."""
    client, _ = told(ALL, Reply(data=Raw(data)))
    with pytest.raises(ProtocolError, match="holds no values"):
        client.values(["a"])
