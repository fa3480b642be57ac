"""Large bodies and replies: refused before they are decoded, sent in pieces, and bounded in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cloudstore_mapping.errors import BadKeyError
from cloudstore_mapping.web.api import LARGE_BODY
from cloudstore_mapping.web.http import LARGE_REPLY
from tests.raw_http import JSON, Connection, FakeService

LARGE = "x" * 4 * LARGE_BODY


class Strict(FakeService):
    """A service that knows one key only."""

    def check_key(self, api_key: str, address: str) -> None:
        """Refuse any other."""
        if api_key != "right":
            raise BadKeyError("The service doesn't know this API key.")


@pytest.fixture
def service() -> Strict:
    """Return a service that knows one key only."""
    return Strict()


@pytest.fixture
def address(service: Strict, no_threads_left: None) -> Iterator[str]:
    """Serve it."""
    with service.served() as address:
        yield address


@pytest.mark.parametrize("before", ["", '"file": "a\\"b", "options": null, "id": "_data", '])
def test_a_wrong_key_before_a_large_body(address: str, before: str) -> None:
    """A large body with a wrong API key is refused before all of it has come, and so before it is decoded."""
    beginning = f'{{{before}"key": "wrong", "value": "'.encode() + LARGE.encode()
    with Connection(address) as connection:
        connection.start("/store/save", f"{JSON}Content-Length: {2 * len(beginning)}\r\n", beginning)
        answer = connection.answer()
    assert (answer.status, answer.json["error"]) == (401, "BadKey")


@pytest.mark.parametrize("fields", [["key", "file", "value"], ["file", "key", "value"], ["value", "file", "key"]])
def test_a_right_key_in_a_large_body(service: Strict, address: str, fields: list[str]) -> None:
    """A large body with a right API key is accepted, wherever in it the key is; and so comes the large reply."""
    values = {"key": "right", "file": "name", "value": LARGE}
    with Connection(address) as connection:
        connection.post("/store/save", json.dumps({field: values[field] for field in fields}).encode())
        assert connection.answer().json["message"] == "Entry saved"
        connection.post("/store/load", json.dumps({"key": "right", "file": "name"}).encode())
        answer = connection.answer()
        assert len(answer.body) > LARGE_REPLY
        assert (answer.json["message"], answer.json["data"]) == (LARGE, LARGE)
        connection.post("/store/load", json.dumps({"key": "right", "file": "none"}).encode())
        assert connection.answer().json["error"] == "NoFile"
