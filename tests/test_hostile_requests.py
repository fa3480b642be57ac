"""What a confused or hostile client sends to a real service gets a clear answer, and damages nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.server import background
from tests.storages import new_storage

KEY = "ZFA5mAkxjVznvSsXOUxE"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real service with a file that has a password, and one that holds an array."""
    settings = Settings(max_value_bytes=150_000, max_body_bytes=300_000)
    file: Path = tmp_path_factory.mktemp("hostile") / "service.db"
    with Service(new_storage(file), settings) as service, background(service) as address:
        service.accounts.create("owner", KEY)
        post(address, save("locked", "1"))
        post(address, save("array", "[1]"))
        service.set_passwords("owner", "locked", edit="right")
        yield address


def save(name: str, value: str, *, key: str = KEY, password: str = "null") -> bytes:
    """Return the body of a save, of a JSON value as it stands."""
    return f'{{"key":"{key}","file":"{name}","value":{value},"password":{password}}}'.encode()


def post(address: str, body: bytes, path: str = "/store/save") -> requests.Response:
    """Return what a body is answered."""
    headers = {"Content-Type": "application/json"}
    return requests.post(address + path, data=body, headers=headers, timeout=60)


def loaded(address: str, name: str) -> Any:
    """Return the bytes of what is stored, in the reply to a short load."""
    body = f'{{"key":"{KEY}","file":"{name}","brief":true}}'.encode()
    return post(address, body, "/store/load").content


ANSWERS: dict[str, tuple[bytes, int, str | None]] = {
    "wrong password": (save("locked", "2", password='"wrong"'), 200, "Locked"),
    "no password": (save("locked", "2"), 200, "Locked"),
    "unknown key": (save("a", "1", key="unknown"), 401, "BadKey"),
    "empty key": (save("a", "1", key=""), 400, "BadRequest"),
    "malformed": (b'{"key":', 400, "BadRequest"),
    "nothing": (b"", 400, "BadRequest"),
    "an array": (b"[]", 400, "BadRequest"),
    "no UTF-8": (save("a", '"\xff"').replace("\xff".encode(), b"\xff"), 400, "BadRequest"),
    "a body over the limit": (save("a", '"' + "x" * 400_000 + '"'), 413, "BodyTooBig"),
    "a value over the limit": (save("a", '"' + "x" * 200_000 + '"'), 200, "TooBig"),
    "NUL in a name": (save("a\\u0000b", "1"), 200, "BadName"),
    "an empty name": (save("", "1"), 200, "BadName"),
    "a name of 2,000 bytes": (save("n" * 2000, "1"), 200, "BadName"),
    "a lone surrogate": (save("\\ud800", "1"), 400, "BadRequest"),
    "../ in a name": (save("../../etc/passwd", "1"), 200, None),
    "a comma in a name": (save("a,b", "1"), 200, None),
    "100,000 brackets": (save("a", "[" * 100_000 + "]" * 100_000), 200, "BadValue"),
    "101 levels": (save("a", "[" * 101 + "]" * 101), 200, "BadValue"),
    "100 levels": (save("deep", "[" * 100 + "]" * 100), 200, None),
    "NaN": (save("a", "NaN"), 400, "BadRequest"),
    "Infinity": (save("a", "[-Infinity]"), 400, "BadRequest"),
    "1e400": (save("a", "1e400"), 400, "BadRequest"),
    "an integer of 1,000 digits": (save("digits", "7" * 1000), 200, None),
    "an integer of 5,000 digits": (save("a", "7" * 5000), 200, "BadValue"),
    "a duplicate name": (save("duplicate", '{"a":1,"a":2}'), 200, None),
    "__proto__": (save("proto", '{"__proto__":{"x":1},"constructor":2,"length":3}'), 200, None),
    "a byte order mark": (b"\xef\xbb\xbf" + save("a", "1"), 400, "BadRequest"),
    "UTF-16": (save("a", "1").decode().encode("utf-16"), 400, "BadRequest"),
    "text behind the end": (save("a", "1") + b"{}", 400, "BadRequest"),
    "a lone surrogate in a value": (save("a", '"\\ud800"'), 400, "BadRequest"),
    "numbers": (save("numbers", "[18446744073709551616,1.0,-0.0,1e2]"), 200, None),
    "SQL in a name": (save("'; DROP TABLE files; --", "1"), 200, None),
    "SQL in a value": (save("sql", "\"' OR '1'='1\""), 200, None),
    "escapes in a name": (save("%2e%2e%2fetc", "1"), 200, None),
    "an absolute path": (save("/etc/passwd", "1"), 200, None),
    "a composed name": (save("\N{LATIN SMALL LETTER E WITH ACUTE}", "1"), 200, None),
    "a decomposed name": (save("e\N{COMBINING ACUTE ACCENT}", "2"), 200, None),
    "3 MB of empty lists": (save("a", "[" + "[]," * 2**20 + "1]"), 413, "BodyTooBig"),
    "an index far behind an array": (
        save("array", '{"4294967295":1}').replace(b'"password"', b'"options":"merge","password"'),
        200,
        "BadMerge",
    ),
    "an unknown field": (save("a", "1").replace(b'"password"', b'"account":1,"password"'), 200, None),
    "a missing name": (b'{"key":"%b","value":1}' % KEY.encode(), 400, "BadRequest"),
    "a list for a name": (b'{"key":"%b","file":["a"],"value":1}' % KEY.encode(), 400, "BadRequest"),
    "a wrong type": (b'{"key":5,"file":"a","value":1}', 400, "BadRequest"),
    "a wrong option": (save("a", "1").replace(b'"password"', b'"options":"drop","password"'), 400, "BadRequest"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_each_try_has_its_answer(address: str, case: str) -> None:
    """A status, a name and one sentence."""
    body, status, error = ANSWERS[case]
    answer = post(address, body)
    reply = answer.json()
    assert (answer.status_code, reply["error"]) == (status, error)
    assert isinstance(reply["message"], str)
    assert reply["message"]
    assert "Traceback" not in answer.text
    assert KEY not in answer.text


def test_what_was_taken_is_kept_exactly(address: str) -> None:
    """Names and values that look dangerous are data, byte for byte."""
    for body, _, error in ANSWERS.values():
        if error is None:
            assert post(address, body).status_code == 200
    assert b'"data":[18446744073709551616,1.0,-0.0,1e2],' in loaded(address, "numbers")
    assert b"\"data\":\"' OR '1'='1\"," in loaded(address, "sql")
    assert b'"data":' + b"7" * 1000 + b"," in loaded(address, "digits")
    assert b'"data":{"a":1,"a":2},' in loaded(address, "duplicate")
    assert b'"data":{"__proto__":{"x":1},"constructor":2,"length":3},' in loaded(address, "proto")
    names = post(address, f'{{"key":"{KEY}","file":"","options":"list"}}'.encode(), "/store/load").json()["data"]
    assert {"../../etc/passwd", "a,b", "/etc/passwd", "%2e%2e%2fetc", "'; DROP TABLE files; --"} <= set(names)
    assert {"\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"} <= set(names)


def test_a_merge_into_a_duplicate_name(address: str) -> None:
    """Of equal names the last one counts, for a merge as for whoever reads the value."""
    post(address, save("twice", '{"a":1,"a":{"x":2}}'))
    post(address, save("twice", '{"a":{"y":3}}').replace(b'"password"', b'"options":"merge","password"'))
    assert b'"data":{"a":{"x":2,"y":3}},' in loaded(address, "twice")
