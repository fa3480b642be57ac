"""Batches: many requests sent as one, each answered for itself."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from cloudstore_mapping.errors import CloudStoreError, NoFileError, ProtocolError, TransportError
from cloudstore_mapping.wire import (
    MAX_BATCH,
    Batch,
    Reply,
    Request,
    decode_request,
    encode_replies,
    encode_request,
    success,
)
from tests.scripted import ALL, DONE, NO_FILE, told

VALUE = Reply(data=Raw(b"1"), version="v1")


def test_a_batch_with_all_extensions() -> None:
    """A batch has the API key and the id once for all, and asks briefly for what is loaded and listed."""
    requests = [
        Request(name="a", password="p"),
        Request(name="", options="list"),
        Request(name="a", value=Raw(b"1"), if_version=None),
        Request(name="a", options="stat"),
    ]
    answers = success("", encode_replies([VALUE, success("", Raw(b"[]")), DONE, NO_FILE]))
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
