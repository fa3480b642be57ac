"""What the wire takes for a request, and what it refuses before anybody looks at it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from cloudstore_mapping import wire
from cloudstore_mapping.errors import BadValueError, CloudStoreError, ProtocolError
from cloudstore_mapping.wire import BATCH_PATH, LOAD_PATH, SAVE_PATH, Operation, Request, decode_request

FIELDS: dict[str, Any] = {"key": "K", "file": "f", "options": None, "id": "_data", "value": 1, "password": None}


def body(**fields: Any) -> bytes:
    """Return the body of a save with some fields changed; an UNSET one is left out."""
    return json.dumps({name: part for name, part in {**FIELDS, **fields}.items() if part is not UNSET}).encode()


def with_value(raw: bytes) -> bytes:
    """Return the body of a save of these bytes, JSON or not."""
    return b'{"key":"K","file":"f","options":null,"id":"_data","value":' + raw + b',"password":null}'


def refused(path: str, posted: bytes) -> str:
    """Return the sentence of the BadRequest that this body gets."""
    with pytest.raises(ProtocolError) as raised:
        decode_request(path, posted)
    assert raised.value.error == "BadRequest"
    return str(raised.value)


def single(path: str, body: bytes, **options: int) -> Request:
    """Return the request, which is no batch, that was posted."""
    request = decode_request(path, body, **options)
    assert isinstance(request, Request)
    return request


@pytest.mark.parametrize(
    "request_",
    [
        Request(api_key="\ud800", name="f"),
        Request(api_key="K", name="a\udfff"),
        Request(api_key="K", name="f", password="\ud83d\ude00"),
        Request(api_key="K", name="f", data_password="\ud800"),
    ],
    ids=["key", "file", "password", "data_password"],
)
def test_lone_surrogate_in_a_request(request_: Request) -> None:
    """A text that can't travel is an error before anything is sent."""
    with pytest.raises(ProtocolError, match="lone surrogate") as raised:
        wire.encode_request(request_)
    assert raised.value.error == "BadRequest"


@pytest.mark.parametrize("raw", [rb'"\ud800"', rb'"\udc00 and more"', rb'{"a": ["\ud83d\u0041"]}', rb'{"\ud800": 1}'])
def test_lone_surrogate_in_a_body(raw: bytes) -> None:
    """A lone surrogate in a value, or a name, that was posted is told as one."""
    for path, posted in (
        (SAVE_PATH, with_value(raw)),
        (SAVE_PATH, with_value(b"1").replace(b'"f"', raw)),
        (BATCH_PATH, b'{"key": "K", "requests": [' + with_value(raw) + b"]}"),
    ):
        assert refused(path, posted) == (
            "The body is not a request: it holds a lone surrogate, which JSON can't hold; remove it."
        )


@pytest.mark.parametrize("wrong", [5, 1.5, True, [], {}, ["x"], {"x": 1}], ids=repr)
@pytest.mark.parametrize("field", ["key", "file", "options", "id", "password", "dataPass"])
def test_wrong_type(field: str, wrong: object) -> None:
    """A field of a wrong type is refused with its path."""
    assert f"`$.{field}`" in refused(SAVE_PATH, body(**{field: wrong}))


@pytest.mark.parametrize(("field", "wrong"), [("key", None), ("file", None), ("options", "x"), ("id", "x")])
def test_wrong_value(field: str, wrong: object) -> None:
    """A field that may not be null, or is one of a few texts, is refused with its path."""
    assert f"`$.{field}`" in refused(SAVE_PATH, body(**{field: wrong}))


@pytest.mark.parametrize("posted", [b"", b" ", b"[]", b"null", b'"key"', b"5", b"[{}]", b"{}", b"{", b"{'key':1}"])
def test_no_object(posted: bytes) -> None:
    """A body that is no JSON object with the fields is refused."""
    refused(SAVE_PATH, posted)


@pytest.mark.parametrize("path", [SAVE_PATH, LOAD_PATH])
@pytest.mark.parametrize("field", ["key", "file"])
def test_missing_field(field: str, path: str) -> None:
    """A request without an API key or a name is refused with the field's name."""
    assert f"`{field}`" in refused(path, body(**{field: UNSET}))


def test_missing_value() -> None:
    """A save or a merge without a value is refused; a value of null is one."""
    for options in (None, "merge"):
        assert "`$.value` is missing" in refused(SAVE_PATH, body(options=options, value=UNSET))
        assert single(SAVE_PATH, body(options=options, value=None)).value == Raw(b"null")


@pytest.mark.parametrize("field", ["options", "id", "password"])
def test_field_that_may_be_absent(field: str) -> None:
    """Options, id and password may be absent, which means what their usual value means."""
    assert decode_request(SAVE_PATH, body(**{field: UNSET})) == single(SAVE_PATH, body())


@pytest.mark.parametrize(("password", "read"), [(None, None), (UNSET, None), ("", ""), ("p", "p")])
def test_password(password: Any, read: str | None) -> None:
    """A password may be null, absent, empty or a text."""
    assert single(SAVE_PATH, body(password=password)).password == read


@pytest.mark.parametrize("password", [None, "", "p"])
def test_data_password(password: str | None) -> None:
    """The default password of data files may be null, absent, empty or a text, on both paths and in a batch."""
    assert single(SAVE_PATH, body()).data_password is UNSET
    for path, value in ((SAVE_PATH, 1), (LOAD_PATH, UNSET)):
        assert single(path, body(value=value, dataPass=password)).data_password == password
    batch = decode_request(
        BATCH_PATH, json.dumps({"key": "K", "requests": [{"file": "f", "dataPass": password}]}).encode()
    )
    assert isinstance(batch, wire.Batch)
    assert batch.requests[0].data_password == password
    assert "secret" not in repr(Request(name="f", data_password="secret"))


def test_wrong_type_in_a_batch() -> None:
    """A default password of a wrong type is refused with the path of its item."""
    posted = json.dumps({"key": "K", "requests": [{"file": "f"}, {"file": "g", "dataPass": 5}]}).encode()
    assert "`$.requests[1].dataPass`" in refused(BATCH_PATH, posted)


def test_extra_fields() -> None:
    """Fields that we don't know are passed over."""
    assert decode_request(SAVE_PATH, body(extra={"key": [None]}, api_key=5)) == single(SAVE_PATH, body())


@pytest.mark.parametrize(("options", "path"), [("merge", LOAD_PATH), ("delete", LOAD_PATH), ("list", SAVE_PATH)])
def test_options_on_the_wrong_path(options: str, path: str) -> None:
    """Each of the options belongs to one path, and is refused on the other."""
    assert "`$.options` belongs to" in refused(path, body(options=options))


def test_load_with_a_value() -> None:
    """What is posted to the load path never writes, whatever it carries."""
    request = single(LOAD_PATH, body())
    assert request.operation is Operation.LOAD
    assert request.value is UNSET


@pytest.mark.parametrize("value", [None, UNSET])
def test_delete_without_a_value(value: Any) -> None:
    """A delete's value may be null or absent."""
    assert decode_request(SAVE_PATH, body(options="delete", value=value)).operation is Operation.DELETE


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_other_encodings(encoding: str) -> None:
    """A body is UTF-8 without a mark; any other is refused."""
    refused(SAVE_PATH, body().decode().encode(encoding))


@pytest.mark.parametrize("trailing", [b"x", b"{}", b",", b"\0", b"]"])
def test_trailing_text(trailing: bytes) -> None:
    """Nothing but white space may follow."""
    refused(SAVE_PATH, body() + trailing)
    assert decode_request(SAVE_PATH, body() + b" \r\n\t") == single(SAVE_PATH, body())


@pytest.mark.parametrize(
    "raw",
    [
        *(b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf4\x90\x80\x80"', b'{"\xff":1}'),  # no UTF-8
        *(b'"\\ud800"', b'"\\udc00"', b'"\\ud800x"', b'["\\ud800\\u0041"]', b'{"\\udfff":1}'),  # lone surrogates
        *(b"NaN", b"[nan]", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"[1E+400]", b'{"a":1e0309}'),
        *(b"1" + b"0" * 400 + b".0", b"9" * 199 + b"e111", b"[" + b"9" * 500 + b"e-1]"),  # beyond a float's range
        *(b"01", b"1.", b".5", b"+1", b"0x1", b"'a'", b"tru", b"[1,]", b"{1:2}", b'"\t"', b'"\\x41"', b"", b"1 2"),
    ],
)
def test_value_that_is_no_json(raw: bytes) -> None:
    """A value that is no strict JSON, or no number that Python can hold, is refused."""
    refused(SAVE_PATH, with_value(raw))


@pytest.mark.parametrize(
    "raw",
    [
        *(b"null", b"-0.0", b"-0", b"1.0", b"1e-400", b"1e308", b"1e0000001", b"18446744073709551616", b" [ ] "),
        *(b'"\\ud83d\\ude00"', b'"\\u0000\x7f"', b"9" * 1000, b"[-" + b"9" * 4299 + b"]", b"9" * 4300),
        *(b"0." + b"1" * 500, b'"' + b"9" * 5000 + b'"', b'{"a":1,"a":2}', '"é\u2028😀"'.encode()),
    ],
)
def test_value_is_kept_byte_for_byte(raw: bytes) -> None:
    """A value travels as the bytes that it came in, numbers of any length and equal names too."""
    value = single(SAVE_PATH, with_value(raw)).value
    assert isinstance(value, Raw)
    assert bytes(value) == raw.strip()


def test_long_integer_is_exact() -> None:
    """An integer of 1,000 digits is read exactly."""
    value = single(SAVE_PATH, with_value(b"[" + b"7" * 1000 + b"]")).value
    assert isinstance(value, Raw)
    assert wire.decode_value(value) == [int("7" * 1000)]


@pytest.mark.parametrize(
    "raw", [b"9" * 4301, b"9" * 5000, b"[-" + b"9" * 5000 + b"]", b'{"a":' + b"1" * 100_000 + b"}"]
)
def test_integer_over_the_limit(raw: bytes) -> None:
    """An integer over the digits limit is a BadValueError, never rounded."""
    with pytest.raises(BadValueError, match="more than 4,300 digits"):
        decode_request(SAVE_PATH, with_value(raw))


def test_equal_fields() -> None:
    """Of equal names the last wins, in the request as in a value."""
    request = single(SAVE_PATH, b'{"key":"A","key":"K","file":"f","file":"g","value":1,"value":{"a":1,"a":2}}')
    assert (request.api_key, request.name) == ("K", "g")
    assert isinstance(request.value, Raw)
    assert wire.decode_value(request.value) == {"a": 2}


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth(opening: bytes, closing: bytes) -> None:
    """A value may be as deep as the limit, and not a level deeper."""

    def deep(levels: int) -> bytes:
        return with_value(opening * (levels - 1) + opening[:1] + closing[-1:] + closing * (levels - 1))

    for limit in (1, 3, 100):
        decode_request(SAVE_PATH, deep(limit), max_depth=limit)
        with pytest.raises(BadValueError, match=f"deeper than {limit} levels"):
            decode_request(SAVE_PATH, deep(limit + 1), max_depth=limit)
    decode_request(SAVE_PATH, deep(wire.DEFAULT_MAX_DEPTH))
    with pytest.raises(BadValueError):
        decode_request(SAVE_PATH, deep(wire.DEFAULT_MAX_DEPTH + 1))


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000, b'[{"a":' * 50_000]
)
def test_hundred_thousand_brackets(raw: bytes) -> None:
    """A flood of brackets is refused before anything follows them down, closed or not."""
    with pytest.raises(BadValueError):
        decode_request(SAVE_PATH, with_value(raw))
    with pytest.raises(CloudStoreError):
        decode_request(SAVE_PATH, raw)


@pytest.mark.parametrize(
    "raw", [b'"' + b"[{" * 500 + b'"', b'["' + b'\\"[' * 500 + b'"]', b"[" + b"[]," * 500 + b"[]]"]
)
def test_brackets_that_are_not_deep(raw: bytes) -> None:
    """Brackets within a text and brackets beside each other don't count."""
    assert single(SAVE_PATH, with_value(raw), max_depth=2).value == Raw(raw)


def is_deeper_by_hand(text: bytes, depth: int) -> bool:
    """Return what `is_deeper` should, byte by byte."""
    level = deepest = 0
    within = escaped = False
    for character in text.decode():
        if escaped:
            escaped = False
        elif within:
            escaped = character == "\\"
            within = character != '"'
        elif character == '"':
            within = True
        elif character in "[{":
            level += 1
            deepest = max(deepest, level)
        elif character in "]}":
            level -= 1
    return deepest > depth


# Strings with all that may stand in one, brackets, and at the end perhaps a string that is never closed.
insides = st.lists(st.sampled_from(["[", "}", "a", "\\\\", '\\"', "\\n", "\\u0041", "{"])).map("".join)
tokens = st.sampled_from(["[", "{", "]", "}", ",", "1", '""']) | insides.map('"{}"'.format)
ends = st.sampled_from(["", '"', '"\\']) | insides.map('"{}'.format)
bodies = st.tuples(st.lists(tokens).map("".join), ends).map(lambda parts: "".join(parts).encode())


@given(bodies, st.integers(0, 4))
def test_is_deeper(text: bytes, depth: int) -> None:
    """The depth is that of brackets outside strings, escapes and strings without an end minded."""
    assert wire.is_deeper(text, depth) is is_deeper_by_hand(text, depth)


@pytest.mark.parametrize("text", [b'\\"' * (8 << 20), b"\\" * (16 << 20), b"[{" * (8 << 20), b"a" * (16 << 20)])
def test_is_deeper_is_linear(text: bytes) -> None:
    """Sixteen megabytes within a string that never ends are passed once."""
    assert not wire.is_deeper(b'"' + text, 0)
