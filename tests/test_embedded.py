"""The service within the user's own process answers as it would over a network."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET
from msgspec.structs import replace

from cloudstore_mapping.embedded import LOCAL_ACCOUNT, LOCAL_SETTINGS, InProcessTransport, open_service
from cloudstore_mapping.links import media_link
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.wire import (
    Batch,
    Reply,
    Request,
    Upload,
    decode_replies,
    decode_request,
    decode_value,
    encode_reply,
    encode_request,
)
from tests.service_fakes import Asker
from tests.storages import new_storage


@pytest.fixture
def service(no_threads_left: None) -> Iterator[Service]:
    """Return a service in memory."""
    with Service(new_storage()) as service:
        yield service


def asker(transport: InProcessTransport, api_key: str) -> Asker:
    """Return somebody who asks the service behind a transport."""
    return Asker(transport._service, api_key)


REQUESTS: list[tuple[str | None, str, dict[str, Any]]] = [
    (None, "name", {"value": {"a": 1}}),
    (None, "name", {}),
    ("merge", "name", {"value": {"b": [1.5, None, "é"]}}),
    (None, "name", {}),
    ("list", "", {}),
    ("delete", "name", {}),
    ("delete", "name", {}),
    (None, "name", {}),
    (None, "", {}),
    (None, "n" * 1025, {"value": 1}),
]


def test_replies_are_the_wire_s(service: Service) -> None:
    """Each reply is, byte for byte and status for status, what the service's bytes on a network would be."""
    transport = InProcessTransport(service)
    here = Asker(service, service.accounts.create("here"))
    there = Asker(service, service.accounts.create("there"))
    for operation, name, value in REQUESTS:
        reply = transport.send(here.request(operation, name, **value))
        request = there.request(operation, name, **value)
        direct = service.handle(decode_request(request.path, encode_request(request)))
        assert (reply.version is UNSET) == (direct.version is UNSET)  # itself it is random
        assert encode_reply(replace(reply, version=UNSET)) == encode_reply(replace(direct, version=UNSET))
        assert (reply.status, reply.retry_after) == (direct.status, direct.retry_after)
        assert reply.response is None


def test_all_that_a_network_s_service_can_do(service: Service) -> None:
    """Every extension but `once` is there, for no reply is lost on its way, and a batch is one message as well."""
    transport = InProcessTransport(service)
    key = service.accounts.create("owner")
    requests = [Request(name="a", value=msgspec.Raw(b"[1]")), Request(name="a", brief=True), Request(name="b")]
    reply = transport.send(Batch(api_key=key, requests=requests))
    assert reply.extensions == {"version", "stat", "batch", "page", "brief", "values"}
    assert reply.data is not UNSET
    saved, loaded, absent = decode_replies(reply.data)
    assert (bytes(loaded.content), loaded.version, absent.error) == (b"[1]", saved.version, "NoFile")
    assert transport.send(Request(name="a")).extensions == reply.extensions


def refused(reply: Reply) -> tuple[str | None, int]:
    """Return an error's name and status."""
    assert reply.data is UNSET
    return reply.error, reply.status


def test_what_the_wire_refuses_is_refused(service: Service) -> None:
    """A request that could not travel, or would not be read, gets the reply that it would get over a network."""
    transport = InProcessTransport(service)
    ask = Asker(service, service.accounts.create("owner"))
    assert refused(transport.send(ask.request(None, "lone \ud800", value=1))) == ("BadRequest", 400)
    assert refused(transport.send(ask.request("merge", "name"))) == ("BadRequest", 400)
    deep = replace(ask.request(None, "name", value=1), value=msgspec.Raw(b"[" * 101 + b"]" * 101))
    assert refused(transport.send(deep)) == ("BadValue", 200)
    broken = replace(deep, value=msgspec.Raw(b"nan"))
    assert refused(transport.send(broken)) == ("BadRequest", 400)
    assert refused(transport.send(Asker(service, "unknown").request(None, "name"))) == ("BadKey", 401)


def test_an_upload_is_stored(service: Service) -> None:
    """A media file is stored for whoever has the key, and got by its link, whole or from a byte on."""
    transport = InProcessTransport(service)
    upload = Upload(api_key="any key of nobody", name="a.png", content_type="image/png", data=b"12345")
    assert refused(transport.send(upload)) == ("BadKey", 401)
    reply = transport.send(replace(upload, api_key=service.accounts.create("owner")))
    assert (reply.error, reply.sentence) == (None, "File Uploaded")
    facts = decode_value(reply.content)
    link = media_link(facts["folder"], facts["id"], facts["name"], facts["mimetype"])
    whole = transport.fetch(link)
    assert (whole.size, whole.mimetype, whole.name, b"".join(whole.pieces)) == (5, "image/png", "a.png", b"12345")
    assert b"".join(transport.fetch(link, 3, whole.tag).pieces) == b"45"
    assert transport.fetch(link, 3, "of another content").start == 0


def test_a_link_that_leads_nowhere(service: Service) -> None:
    """A link that is no link, or of no file, is refused with `NoFile`."""
    transport = InProcessTransport(service)
    for link in ("", "/files/", "/files/a/b.png", f"/files/{'0' * 32}/{'0' * 32}.png", "/a/b/c/d"):
        refusal = transport.fetch(link).refusal
        assert refusal is not None
        assert refusal.error == "NoFile"


def test_a_closed_one_is_unavailable(no_threads_left: None) -> None:
    """Closing the transport closes its service; later requests are `Unavailable`."""
    transport, api_key = open_service(None)
    request = asker(transport, api_key).request(None, "name", value=1)
    assert transport.send(request).error is None
    transport.close()
    transport.close()
    assert refused(transport.send(request)) == ("Unavailable", 503)


def test_the_key_opens_it_in_this_process_only(tmp_path: Path, no_threads_left: None) -> None:
    """Each opening has a key of its own that opens the same files, is worth nothing elsewhere and isn't in the file."""
    path = tmp_path / "store.db"
    one, first = open_service(path)
    two, second = open_service(path)
    assert first != second
    assert asker(one, first).save("name", "value").error is None
    assert asker(two, second).value("name") == "value"
    assert asker(one, second).load("name").error == "BadKey"
    one.close()
    two.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM accounts").fetchall() == [(LOCAL_ACCOUNT,)]
        assert connection.execute("SELECT * FROM api_keys").fetchall() == []
    content = path.read_bytes()
    assert first.encode() not in content
    assert second.encode() not in content


def test_what_can_t_be_opened_leaves_nothing_open(tmp_path: Path, no_threads_left: None) -> None:
    """Where the file is refused there is no thread of the service left."""
    (tmp_path / "store.db").write_text("Dear diary")
    with pytest.raises(Exception, match="no CloudStore file"):
        open_service(tmp_path / "store.db")


def test_its_limits_are_the_machine_s(no_threads_left: None) -> None:
    """Names of 10,000 characters are taken, and the largest file still fits into a row of SQLite's."""
    transport, api_key = open_service(None)
    ask = asker(transport, api_key)
    assert transport.send(ask.request(None, "😀" * 10_000, value=1)).error is None
    with closing(sqlite3.connect(":memory:")) as connection:
        longest = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    assert LOCAL_SETTINGS.max_name_bytes + LOCAL_SETTINGS.max_value_bytes < longest
    transport.close()
