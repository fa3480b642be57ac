"""The messages and their exact bytes, as the vendor's documentation and clients have them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from cloudstore_mapping import wire
from cloudstore_mapping.errors import REPLY_ERRORS, CloudStoreError, ProtocolError, TooOftenError
from cloudstore_mapping.wire import LOAD_PATH, SAVE_PATH, Operation, Reply, Request, decode_reply, decode_request

texts = st.text(st.characters(codec="utf-8"))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=25,
)
raws = json_values.map(wire.encode_value)


REQUESTS = {
    "save": (
        Request(api_key="K", name="Shopping_List", value=Raw(b'{"Apples":8,"x":[1.5,null]}')),
        SAVE_PATH,
        b'{"key":"K","file":"Shopping_List","options":null,"id":"_data",'
        b'"value":{"Apples":8,"x":[1.5,null]},"password":null}',
    ),
    "merge": (
        Request(api_key="K", name="é", options="merge", value=Raw(b"null"), password="p"),
        SAVE_PATH,
        b'{"key":"K","file":"\xc3\xa9","options":"merge","id":"_data","value":null,"password":"p"}',
    ),
    "delete": (
        Request(api_key="K", name="a\\b", options="delete"),
        SAVE_PATH,
        b'{"key":"K","file":"a\\\\b","options":"delete","id":"_data","password":null}',
    ),
    "load": (
        Request(api_key="K", name="f", password=""),
        LOAD_PATH,
        b'{"key":"K","file":"f","options":null,"id":"_data","password":""}',
    ),
    "list": (
        Request(api_key="K", name="", options="list"),
        LOAD_PATH,
        b'{"key":"K","file":"","options":"list","id":"_data","password":null}',
    ),
}

REPLIES = {
    "save": (wire.success("Entry saved"), b'{"error":null,"message":"Entry saved"}'),
    "load": (
        wire.success(Raw(b'{"a":[1]}'), Raw(b'{"a":[1]}')),
        b'{"error":null,"message":{"a":[1]},"data":{"a":[1]}}',
    ),
    "load null": (wire.success(Raw(b"null"), Raw(b"null")), b'{"error":null,"message":null,"data":null}'),
    "list": (
        wire.success("steve1,steve2", Raw(b'["steve1","steve2"]')),
        b'{"error":null,"message":"steve1,steve2","data":["steve1","steve2"]}',
    ),
    "delete": (wire.success("Entry deleted"), b'{"error":null,"message":"Entry deleted"}'),
    "upload": (
        wire.success(
            "File Uploaded",
            wire.encode_value({"name": "a.png", "folder": "0f", "id": "1e", "mimetype": "image/png", "size": 3}),
        ),
        b'{"error":null,"message":"File Uploaded",'
        b'"data":{"name":"a.png","folder":"0f","id":"1e","mimetype":"image/png","size":3}}',
    ),
}


@pytest.mark.parametrize("operation", list(REQUESTS))
def test_request_bytes(operation: str) -> None:
    """Each operation has its path and its exact bytes, and is read back from them."""
    request, path, posted = REQUESTS[operation]
    assert request.operation is Operation(operation)
    assert request.path == path
    assert wire.encode_request(request) == posted
    assert decode_request(path, posted) == request


def test_paths() -> None:
    """The paths are the vendor's."""
    assert (SAVE_PATH, LOAD_PATH, wire.UPLOAD_PATH) == ("/store/save", "/store/load", "/upload-2")


def test_writing_operations() -> None:
    """Save, merge and delete write, load and list don't."""
    assert {operation for operation in Operation if operation.writes} == {
        Operation.SAVE,
        Operation.MERGE,
        Operation.DELETE,
    }


@pytest.mark.parametrize("case", list(REPLIES))
def test_reply_bytes(case: str) -> None:
    """Each success has its exact bytes, and is read back from them."""
    reply, sent = REPLIES[case]
    assert wire.encode_reply(reply) == sent
    assert decode_reply(sent) == reply
    assert (reply.error, reply.status) == (None, 200)


@pytest.mark.parametrize("name", list(REPLY_ERRORS))
def test_failure_bytes(name: str) -> None:
    """Each error's name travels in the body, under its status."""
    status, kind = REPLY_ERRORS[name]
    reply = wire.failure(kind("Do so.", error=name))
    version = b',"version":null' if name == "Changed" else b""
    assert wire.encode_reply(reply) == b'{"error":"%s","message":"Do so."%s}' % (name.encode(), version)
    assert reply.status == status
    assert (reply.sentence, reply.data) == ("Do so.", UNSET)
    assert decode_reply(wire.encode_reply(reply), status=status) == reply


def test_failure_carries_the_wait() -> None:
    """What is to be waited travels beside the body."""
    reply = wire.failure(TooOftenError("Wait.", retry_after=2.5))
    assert (reply.retry_after, reply.status) == (2.5, 429)


def test_failure_without_a_name() -> None:
    """An error that the wire has no name for is the service's own."""
    for error in (ProtocolError("Oh."), CloudStoreError("Oh.", error="Unheard")):
        assert wire.encode_reply(wire.failure(error)) == b'{"error":"ServerError","message":"Oh."}'
        assert wire.failure(error).status == 500


def test_secrets_stay_out_of_repr() -> None:
    """No repr shows an API key, a password or a value."""
    request = Request(api_key="SECRET", name="f", value=Raw(b'"SECRET"'), password="SECRET")
    upload = wire.Upload(api_key="SECRET", name="f", content_type="text/plain", data=b"SECRET", password="SECRET")
    reply = Reply(message=Raw(b'"SECRET"'), data=Raw(b'"SECRET"'))
    assert [repr(request), repr(upload), repr(reply)] == [
        "<Request to save 'f'>",
        "<Upload of 'f' as text/plain>",
        "<Reply without error>",
    ]


@given(texts.filter(bool), texts, st.none() | texts, raws, st.sampled_from([None, "merge", "delete", "list", "stat"]))
def test_request_round_trip(api_key: str, name: str, password: str | None, value: Raw, options: Any) -> None:
    """A request comes back from its bytes as it was."""
    request = Request(api_key=api_key, name=name, options=options, value=value, password=password)
    assert decode_request(request.path, wire.encode_request(request), max_depth=10_000) == request


@given(st.none() | texts, raws, st.just(UNSET) | raws)
def test_reply_round_trip(error: str | None, message: Raw, data: Any) -> None:
    """A reply comes back from its bytes as it was."""
    reply = Reply(error=error, message=message, data=data)
    assert decode_reply(wire.encode_reply(reply)) == reply
    assert reply.content == (message if data is UNSET else data)


@given(json_values)
def test_value_round_trip(value: Any) -> None:
    """A value comes back from its JSON as it was, types and order included."""
    assert json.dumps(wire.decode_value(wire.encode_value(value))) == json.dumps(value)


@pytest.mark.parametrize(
    "sent",
    [
        *(b"", b"[]", b"null", b"{}", b'{"message":""}', b'{"error":5}', b'{"error":["NoFile"]}', b"<html></html>"),
        *(b'{"error":null} x', b'\xef\xbb\xbf{"error":null}', b'{"error":null,"message":"\xff"}', b'{"error":null'),
        *(b'{"error":null,"message":NaN}', b'{"error":null,"message":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ],
)
def test_answer_that_is_no_reply(sent: bytes) -> None:
    """An answer that is not CloudStore's is an error that carries the status and the response."""
    response = object()
    with pytest.raises(ProtocolError, match="not CloudStore's") as raised:
        decode_reply(sent, status=203, response=response)
    assert raised.value.status == 203
    assert raised.value.response is response


def test_reply_fields() -> None:
    """A reply may hold fields that we don't know; what HTTP carries stands beside them."""
    response = object()
    reply = decode_reply(b'{"error":"X","message":"","extra":[1]}', status=429, retry_after=1.5, response=response)
    assert reply == Reply(error="X", message=Raw(b'""'), status=429, retry_after=1.5, response=response)
    assert reply.sentence == ""


def test_content() -> None:
    """A load's value is in `data`, or in `message` where a service sends it only there; null is a value."""
    assert decode_reply(b'{"error":null,"message":[1]}').content == Raw(b"[1]")
    assert decode_reply(b'{"error":null,"message":"","data":null}').content == Raw(b"null")


def test_sentence() -> None:
    """A message is shown as its text, and as JSON where it is none."""
    assert decode_reply(b'{"error":"X","message":"No \\u00e9"}').sentence == "No é"
    assert decode_reply('{"error":"X","message":{"é":1}}'.encode()).sentence == '{"é":1}'


def test_messages_cannot_be_changed() -> None:
    """Requests and replies are values."""
    request = Request(api_key="K", name="f")
    with pytest.raises(AttributeError):
        request.name = "g"  # type: ignore[misc]  # frozen
    assert msgspec.structs.replace(request, name="g").name == "g"
