"""The bytes that the wire's extensions add."""

from __future__ import annotations

import pytest
from msgspec import Raw

from cloudstore_mapping import wire
from cloudstore_mapping.errors import BadValueError, ProtocolError
from cloudstore_mapping.wire import BATCH_PATH, Batch, Reply, Request, decode_request

EXTENDED: dict[str, tuple[Request, bytes]] = {
    "save if": (
        Request(api_key="K", name="f", value=Raw(b"1"), if_version="v1", once="r1"),
        b'{"key":"K","file":"f","options":null,"id":"_data","value":1,"password":null,"if_version":"v1","request":"r1"}',
    ),
    "save if absent": (
        Request(api_key="K", name="f", value=Raw(b"1"), if_version=None),
        b'{"key":"K","file":"f","options":null,"id":"_data","value":1,"password":null,"if_version":null}',
    ),
    "load if not": (
        Request(api_key="K", name="f", if_not_version="v1", brief=True),
        b'{"key":"K","file":"f","options":null,"id":"_data","password":null,"if_not_version":"v1","brief":true}',
    ),
    "stat": (
        Request(api_key="K", name="f", options="stat"),
        b'{"key":"K","file":"f","options":"stat","id":"_data","password":null}',
    ),
    "page": (
        Request(api_key="K", name="f", options="list", match="prefix", after="fa", limit=2),
        b'{"key":"K","file":"f","options":"list","id":"_data","password":null,"match":"prefix","after":"fa","limit":2}',
    ),
}


@pytest.mark.parametrize("case", EXTENDED)
def test_bytes_of_the_extensions(case: str) -> None:
    """What the extensions add to a request has its exact bytes, and is read back from them."""
    request, sent = EXTENDED[case]
    assert wire.encode_request(request) == sent
    assert decode_request(request.path, sent) == request


def test_bytes_of_a_batch() -> None:
    """A batch has its exact bytes; within it a request may leave out the API key, which is the batch's."""
    save = Request(name="f", value=Raw(b"1"))
    load = Request(name="g")
    sent = (
        b'{"key":"K","requests":['
        b'{"key":"","file":"f","options":null,"id":"_data","value":1,"password":null},'
        b'{"key":"","file":"g","options":null,"id":"_data","password":null}],"atomic":true,"request":"r1"}'
    )
    assert wire.encode_request(Batch(api_key="K", requests=[save, load], atomic=True, once="r1")) == sent
    batch = decode_request(BATCH_PATH, sent)
    assert isinstance(batch, Batch)
    assert [(item.api_key, item.operation.value) for item in batch.requests] == [("K", "save"), ("K", "load")]
    assert (batch.atomic, batch.once, batch.writes, batch.path) == (True, "r1", True, BATCH_PATH)
    short = b'{"key":"K","requests":[{"file":"g"}]}'
    assert decode_request(BATCH_PATH, short) == Batch(
        api_key="K", requests=[Request(api_key="K", name="g")], atomic=False
    )


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"requests":[{"file":"g"}]}', "`key`"),
        (b'{"key":"K","requests":[]}', r"`\$\.requests`"),
        (b'{"key":"K","requests":[' + b",".join([b'{"file":"g"}'] * 1001) + b"]}", r"`\$\.requests`"),
        (b'{"key":"K","requests":[{"file":"g"},{"key":"L","file":"g"}]}', r"\$\.requests\[1\]\.key"),
        (b'{"key":"K","requests":[{"file":"g","options":"merge"}]}', r"\$\.requests\[0\]\.value"),
        (b'{"key":"K","requests":[{"file":5}]}', r"\$\.requests\[0\]\.file"),
        (b'{"key":"K","requests":[{"key":"K","requests":[]}]}', "`file`"),
    ],
)
def test_what_is_no_batch(body: bytes, sentence: str) -> None:
    """A batch that is empty, too long, mixes accounts or holds what is no request is refused with the place."""
    with pytest.raises(ProtocolError, match=sentence):
        decode_request(BATCH_PATH, body)


def test_depth_in_a_batch() -> None:
    """A value in a batch may be as deep as one alone, and no deeper."""
    for depth, allowed in ((100, True), (101, False)):
        value = b"[" * depth + b"]" * depth
        body = b'{"key":"K","requests":[{"file":"g","value":' + value + b"}]}"
        if allowed:
            decode_request(BATCH_PATH, body)
        else:
            with pytest.raises(BadValueError):
                decode_request(BATCH_PATH, body)


@pytest.mark.parametrize(
    "batch",
    [b'{"key":"K","x":%b,"requests":[{"file":"f"}]}', b'{"key":"K","requests":[{"file":"f"},{"file":"g","x":%b}]}'],
)
def test_depth_of_what_nobody_knows(batch: bytes) -> None:
    """A field of a batch that nobody knows is passed over, unless it is nested as no value may be."""

    def deep(levels: int) -> bytes:
        return batch % (b"[" * levels + b"]" * levels)

    decode_request(BATCH_PATH, deep(100))
    for levels in (110, 100_000):
        with pytest.raises(BadValueError, match="deeper than 100 levels"):
            decode_request(BATCH_PATH, deep(levels))


def test_replies_of_the_extensions() -> None:
    """Version, unchanged, next and a batch's replies have their exact bytes, and are read back from them."""
    replies = [
        Reply(message=Raw(b'"Entry saved"'), version="v1"),
        Reply(unchanged=True, version="v1"),
        Reply(data=Raw(b'["a"]'), next="a"),
        Reply(data=Raw(b"[]"), next=None),
    ]
    data = wire.encode_replies(replies)
    assert bytes(data) == (
        b'[{"error":null,"message":"Entry saved","version":"v1"},'
        b'{"error":null,"message":"","version":"v1","unchanged":true},'
        b'{"error":null,"message":"","data":["a"],"next":"a"},'
        b'{"error":null,"message":"","data":[],"next":null}]'
    )
    assert wire.decode_replies(data) == replies
    with pytest.raises(ProtocolError, match="batch"):
        wire.decode_replies(Raw(b'{"error":null}'))
