"""Files: the client's operations, listings, batches and file passwords."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from cloudstore_mapping.client.files import Client, Password, Passwords, described, listed
from cloudstore_mapping.client.transport import HTTPTransport, Sendable
from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    CloudStoreError,
    LockedError,
    NoFileError,
    ProtocolError,
    TooOftenError,
    TransportError,
    UnavailableError,
    UnsupportedError,
)
from cloudstore_mapping.wire import (
    MAX_BATCH,
    Batch,
    Reply,
    Request,
    decode_request,
    decode_value,
    encode_replies,
    encode_request,
    encode_value,
    success,
)
from tests.support.scripted import ALL, DONE, NO_FILE, told
from tests.vendor import Vendor

KEY = "ZFA5mAkxjVznvSsXOUxE"


@pytest.fixture
def client(vendor: Vendor) -> Iterator[Client]:
    """Return a client of the service."""
    with Client(HTTPTransport(vendor.address), KEY) as opened:
        yield opened


def load(client: Client, name: str, password: str | None = None) -> Raw:
    """Return the value that is loaded."""
    loaded = client.load(name, password)
    assert loaded is not None
    return loaded.value


def bytes_sent(vendor: Vendor) -> list[tuple[str, bytes]]:
    """Return what came at the service, each request's path and body."""
    return [(request.path, request.body) for request in vendor.requests]


def test_bytes_of_requests(client: Client, vendor: Vendor) -> None:
    """Each operation posts the fields of the vendor's clients, in their order."""
    vendor.files["a"] = 1
    client.save("a", Raw(b'{"x": 1.0}'))
    client.save("a", Raw(b"null"), "pass")
    client.merge("a", Raw(b'{"y":2}'), "pass")
    client.load("a")
    client.load("a", "view")
    client.list("a")
    client.delete("a", "pass")
    start = b'{"key":"' + KEY.encode() + b'","file":"a","options":'
    assert bytes_sent(vendor) == [
        ("/cloudstore/store/save", start + b'null,"id":"_data","value":{"x": 1.0},"password":null}'),
        ("/cloudstore/store/save", start + b'null,"id":"_data","value":null,"password":"pass"}'),
        ("/cloudstore/store/save", start + b'"merge","id":"_data","value":{"y":2},"password":"pass"}'),
        ("/cloudstore/store/load", start + b'null,"id":"_data","password":null}'),
        ("/cloudstore/store/load", start + b'null,"id":"_data","password":"view"}'),
        ("/cloudstore/store/load", start + b'"list","id":"_data","password":null}'),
        ("/cloudstore/store/save", start + b'"delete","id":"_data","password":"pass"}'),
    ]
    assert {request.method for request in vendor.requests} == {"POST"}
    assert {request.headers["Content-Type"] for request in vendor.requests} == {"application/json; charset=UTF-8"}


@pytest.mark.parametrize("text", [b"null", b"0", b"false", b'""', b"[]", b"{}", b'{"a":[1,2.5,"\\u0000"]}', b"1" * 400])
def test_values_pass_through(client: Client, text: bytes) -> None:
    """What was saved is loaded, also where the service sends it in `message` alone."""
    client.save("a", Raw(text))
    assert decode_value(load(client, "a")) == decode_value(text)


@pytest.mark.parametrize("name", ["", " ", ",", "a/b", "../x", "%2e", "é", "😀", "\0", '"', "x" * 10_000])
def test_any_name(client: Client, vendor: Vendor, name: str) -> None:
    """A name is any text."""
    client.save(name, Raw(b"1"))
    assert vendor.files == {name: 1}
    assert bytes(load(client, name)) == b"1"


def test_list(client: Client, vendor: Vendor) -> None:
    """A list is the names that hold the text, none for the empty answer."""
    assert client.list() == []
    vendor.files.update({"steve1": 1, "steve2": 2, "Steve3": 3})
    assert client.list("steve") == ["steve1", "steve2"]
    assert client.list() == ["steve1", "steve2", "Steve3"]
    assert client.list("none") == []


def reply(message: bytes = b'""', data: bytes | None = None) -> Reply:
    """Return an answer that says all went well."""
    return Reply(message=Raw(message), data=UNSET if data is None else Raw(data))


def test_list_prefers_the_array() -> None:
    """Names with a comma are whole where the service sends an array as well."""
    assert listed(reply(b'"a,b,c"', b'["a,b","c"]')) == ["a,b", "c"]
    assert listed(reply(b'""', b"[]")) == []


@pytest.mark.parametrize("answer", [reply(b"null"), reply(b"1"), reply(b'""', b"[1]"), reply(b'""', b"{}")])
def test_list_of_something_else(answer: Reply) -> None:
    """An answer to a list without names is `ProtocolError`."""
    with pytest.raises(ProtocolError):
        listed(answer)


@pytest.mark.parametrize("answer", [reply(), reply(b'""', b"null"), reply(b'""', b"[]")])
def test_upload_that_is_not_described(answer: Reply) -> None:
    """An answer to an upload without an object is `ProtocolError`."""
    with pytest.raises(ProtocolError):
        described(answer)


def test_upload(client: Client, vendor: Vendor) -> None:
    """An upload says where the file is now."""
    facts = client.upload("pixel.png", b"\x89PNG", "image/png", "media")
    assert facts["name"] == "pixel.png"
    assert facts["size"] == 4
    assert vendor.media["pixel.png"].data == b"\x89PNG"
    assert vendor.media["pixel.png"].fields == {"key": KEY, "password": "media"}


def test_absent(client: Client) -> None:
    """What isn't there is `NoFileError`, a `KeyError` of the key, with the facts of the reply."""
    for call in (client.load, client.delete):
        with pytest.raises(NoFileError) as caught:
            call("a%2Cb", key="a,b")
        error = caught.value
        assert isinstance(error, KeyError)
        assert error.args == ("a,b",)
        assert (error.key, error.error, error.status) == ("a,b", "NoFile", 200)
        assert "'a,b'" in str(error)
        assert error.response.json()["error"] == "NoFile"


def test_locked(client: Client, vendor: Vendor) -> None:
    """A missing or wrong password is `LockedError`, a `PermissionError`; the right one opens."""
    vendor.files["a"] = 1
    vendor.view_passwords["a"] = "view"
    vendor.edit_passwords["a"] = "edit"
    for password in (None, "", "wrong"):
        with pytest.raises(LockedError) as caught:
            client.load("a", password)
        assert caught.value.key == "a"
        with pytest.raises(LockedError):
            client.save("a", Raw(b"2"), password)
        with pytest.raises(LockedError):
            client.delete("a", password)
    assert bytes(load(client, "a", "view")) == b"1"
    client.merge("a", Raw(b"3"), "edit")
    assert vendor.files["a"] == 3


class _Answer:
    """A transport with one answer to all."""

    def __init__(self, answer: Reply) -> None:
        self._answer = answer
        self.requests: list[Sendable] = []

    def send(self, request: Sendable) -> Reply:
        self.requests.append(request)
        return self._answer

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("name", "row"), REPLY_ERRORS.items())
def test_each_error_name(name: str, row: tuple[int, type[CloudStoreError]]) -> None:
    """Each name that a service replies with is the error of the table, with key, name, status and a sentence."""
    status, kind = row
    response = object()
    answer = Reply(error=name, message=Raw(b'"The reason."'), status=status, retry_after=40.0, response=response)
    with pytest.raises(kind) as caught:
        Client(_Answer(answer), KEY).save("a", Raw(b"1"))
    error = caught.value
    assert type(error) is kind
    assert (error.key, error.error, error.status) == ("a", name, status)
    assert error.response is response
    assert "'a'" in str(error)
    assert str(error) == error.message
    if isinstance(error, TooOftenError | UnavailableError):
        assert error.retry_after == 40.0
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("status", "advice"), [(301, "redirects"), (307, "redirects"), (401, "API key"), (403, "API key"), (404, "address")]
)
def test_advice(status: int, advice: str) -> None:
    """A status that proxies and web servers answer with gets a sentence that says what to do."""
    answer = Reply(error="Http error", message=Raw(b'"Reason"'), status=status)
    with pytest.raises(ProtocolError, match=advice) as caught:
        Client(_Answer(answer), KEY).load("a")
    assert f"{status} Reason" in str(caught.value)


def test_unknown_error_name() -> None:
    """A name that isn't known is `ProtocolError`, and never taken for success."""
    with pytest.raises(ProtocolError, match="Brandnew") as caught:
        Client(_Answer(Reply(error="Brandnew", message=Raw(b'"why"'))), KEY).load("a")
    assert caught.value.error == "Brandnew"


def test_error_of_a_list_has_no_key() -> None:
    """A list is about no key, so its error has none."""
    with pytest.raises(ProtocolError) as caught:
        Client(_Answer(Reply(error="ServerError", message=Raw(b'"why"'), status=500)), KEY).list("filter")
    assert caught.value.key is None
    assert "filter" not in str(caught.value)


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


VALUE = Reply(data=Raw(b"1"), version="v1")


def test_a_batch_with_all_extensions() -> None:
    """A batch has the API key and the id once for all, and asks briefly for what is loaded and listed."""
    requests = [
        Request(name="a", password="p"),
        Request(name="", options="list"),
        Request(name="a", value=Raw(b"1"), if_version=None),
        Request(name="a", options="stat"),
    ]
    answers = success("", encode_replies([VALUE, success("", Raw(b"[]")), replace(DONE, version="v1"), NO_FILE]))
    client, script = told(ALL, answers)
    replies = client.batch(requests, atomic=True)
    assert [reply.error for reply in replies] == [None, None, None, "NoFile"]
    (sent,) = script.requests
    assert isinstance(sent, Batch)
    assert decode_request(sent.path, encode_request(sent)) == Batch(
        api_key="k",
        requests=[
            replace(request, api_key="k", **({"brief": True} if number < 2 else {}))
            for number, request in enumerate(requests)
        ],
        atomic=True,
        once=sent.once,
    )
    assert requests[0].brief is UNSET


def test_a_batch_that_only_reads_has_no_id() -> None:
    """Only what writes must not be done twice."""
    client, script = told(ALL, success("", encode_replies([VALUE])))
    client.batch([Request(name="a")])
    assert script.requests[0] == Batch(api_key="k", requests=[Request(name="a", brief=True)])


def test_limits_of_a_batch() -> None:
    """A batch of none needs no request, and one of more than the wire takes is `ValueError`."""
    client, script = told(ALL, success("", encode_replies([NO_FILE] * MAX_BATCH)))
    assert client.batch([]) == []
    with pytest.raises(ValueError, match="1000"):
        client.batch([Request(name="a")] * (MAX_BATCH + 1))
    assert script.requests == []
    assert len(client.batch([Request(name="a")] * MAX_BATCH)) == MAX_BATCH


@pytest.mark.parametrize(
    "data", [UNSET, Raw(b"null"), Raw(b"[]"), Raw(b"{}"), Raw(b"[1,2]"), encode_replies([DONE]), Raw(b"[{}]")]
)
def test_a_batch_with_too_few_replies(data: Any) -> None:
    """Requests and replies that can't be matched are `ProtocolError`."""
    client, _ = told(ALL, replace(DONE, data=data))
    with pytest.raises(ProtocolError):
        client.batch([Request(name="a", value=Raw(b"1"))] * 2)


def test_errors_in_a_batch() -> None:
    """The error of one reply is the one that its request alone would have raised; that of the whole is raised."""
    client, _ = told(ALL, success("", encode_replies([VALUE, NO_FILE])), replace(NO_FILE, error="BodyTooBig"))
    fine, absent = client.batch([Request(name="a"), Request(name="b")])
    assert client.error_of(fine, "a") is None
    client.raise_for(fine, "a")
    error = client.error_of(absent, "b")
    assert isinstance(error, NoFileError)
    assert error.args == ("b",)
    with pytest.raises(NoFileError, match="'b'"):
        client.raise_for(absent, "b")
    with pytest.raises(CloudStoreError) as caught:
        client.batch([Request(name="a")])
    assert caught.value.error == "BodyTooBig"
    assert caught.value.key is None


def test_an_error_of_the_whole_has_no_key() -> None:
    """A batch is about no key in particular."""
    client, _ = told(ALL, *[TransportError("lost", sent=True)] * 4)
    with pytest.raises(TransportError) as caught:
        client.batch([Request(name="a")])
    assert caught.value.key is None


class Lazy(Mapping[str, "str | Password | None"]):
    """A mapping that answers one key at a time, and can't be walked or asked in any other way."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getitem__(self, key: str) -> str:
        self.asked.append(key)
        if key == "broken":
            raise OSError("the vault is shut")
        if key == "absent":
            raise KeyError(key)
        return f"secret of {key}"

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __contains__(self, key: object) -> bool:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("password", "view", "edit"),
    [
        ("both", "both", "both"),
        ("", "", ""),
        (None, None, None),
        (Password(), None, None),
        (Password(view="v"), "v", None),
        (Password(edit="e"), "e", "e"),
        (Password(view="v", edit="e"), "v", "e"),
        (Password(view="", edit="e"), "", "e"),
    ],
)
def test_purposes(password: str | Password | None, view: str | None, edit: str | None) -> None:
    """A text serves for both, the edit password for viewing as well, and an explicit None is none."""
    passwords = Passwords({"k": password}, "default")
    assert passwords.for_view("k") == view
    assert passwords.for_edit("k") == edit


@pytest.mark.parametrize("mapping", [None, {}, {"other": "x"}])
@pytest.mark.parametrize("default", [None, "", "d"])
def test_default(mapping: dict[str, str | Password | None] | None, default: str | None) -> None:
    """A key that the mapping doesn't know has the default password."""
    passwords = Passwords(mapping, default)
    assert passwords.for_view("k") == default
    assert passwords.for_edit("k") == default


def test_change_counts_at_once() -> None:
    """A password is looked up at each request, so a change of the mapping is in force at the next."""
    mapping: dict[str, str | Password | None] = {}
    passwords = Passwords(mapping, None)
    assert passwords.for_edit("k") is None
    mapping["k"] = "new"
    assert passwords.for_edit("k") == "new"


def test_lazy_mapping() -> None:
    """A mapping is only ever asked for the one key, and its other errors go through."""
    mapping = Lazy()
    passwords = Passwords(mapping, "default")
    assert mapping.asked == []
    assert passwords.for_view("a") == "secret of a"
    assert passwords.for_edit("absent") == "default"
    with pytest.raises(OSError, match="vault"):
        passwords.for_view("broken")
    assert mapping.asked == ["a", "absent", "broken"]


def test_repr_hides() -> None:
    """No repr shows a password, only whether one is set."""
    assert repr(Password(edit="hunter2")) == "Password(view=not set, edit=set)"
    assert repr(Password(view="", edit=None)) == "Password(view=set, edit=not set)"
    assert repr(Passwords({"key": "hunter2"}, "hunter3")) == "<Passwords, with a default>"
    assert repr(Passwords(None, None)) == "<Passwords, without a default>"


def test_password_is_a_value() -> None:
    """Passwords compare by what they hold and can't be changed."""
    password = Password("v", "e")
    assert password == Password(view="v", edit="e")
    assert hash(password) == hash(Password("v", "e"))
    with pytest.raises(AttributeError):
        password.view = "other"  # type: ignore[misc]  # frozen


@pytest.mark.parametrize(
    ("answer", "is_exact"),
    [
        (reply(b'"a,b"', b'["a,b"]'), True),
        (reply(b'""', b"[]"), True),
        (reply(b'"a,b"'), False),
        (reply(b'""'), False),
        (NO_FILE, False),
        (Reply(error="Forbidden", message=Raw(b'"why"')), True),
    ],
)
def test_which_service_lists_exactly(answer: Reply, is_exact: bool) -> None:
    """A list reply with an array in its body is an exact service's, and so is its refusal; no header decides it."""
    for extensions in (frozenset[str](), ALL - {"brief"}):
        client, _ = told(extensions, answer)
        assert client.lists_exactly is None
        client.ask("a,b")
        assert client.lists_exactly is is_exact


def test_asking_takes_a_page_of_one() -> None:
    """Where the service is known to have pages the list that asks brings one name, else it has no new field."""
    client, script = told(ALL, names("a"))
    client.ask("a")
    client, plain = told(frozenset(), names("a"))
    client.ask("a")
    assert '"limit":1' in script.bodies[0]
    assert "limit" not in plain.bodies[0]


def test_asking_fails_like_a_list() -> None:
    """Any other error of the list that asks is raised."""
    client, _ = told(ALL, Reply(error="ServerError", message=Raw(b'"why"'), status=500))
    with pytest.raises(ProtocolError):
        client.ask("a")
    assert client.lists_exactly is None
