"""Bodies that are small on the wire and large to read take no more memory than their limit allows, and are refused."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks.serving import memory
from tests.raw_http import JSON, Connection
from tests.serving import serving, told

SIZE = 3 * 2**20
#: Bytes of memory for each byte of a value that has to be read to be merged: an empty list is 3 bytes of JSON.
FACTOR = 80
#: Bytes that the service takes for all else that it does meanwhile.
ROOM = 64 * 2**20


@pytest.fixture
def service(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Run a service as a process of its own; what it says of itself, and its process's number."""
    with serving("--json", "--store", str(tmp_path / "service.db")) as process:
        facts = told(process)
        yield facts | {"pid": process.pid, "json": {"Content-Type": "application/json"}}


def post(service: dict[str, Any], value: bytes, options: bytes = b"null") -> tuple[int, str | None]:
    """Save or merge a value as it stands; return the status and the error."""
    body = b'{"key":"%b","file":"bomb","options":%b,"value":%b}' % (service["api_key"].encode(), options, value)
    answer = requests.post(f"{service['address']}/store/save", body, headers=service["json"], timeout=60)
    return answer.status_code, answer.json()["error"]


def test_what_is_refused_is_not_read(service: dict[str, Any]) -> None:
    """Brackets within brackets, numbers without end and packed bodies are refused at no cost but that of the body."""
    before = memory(service["pid"], "VmHWM")
    for value in (b"[" * SIZE, b'{"a":' * (SIZE // 5), b"[" * (SIZE // 2) + b"]" * (SIZE // 2)):
        assert post(service, value) == (200, "BadValue")
    assert post(service, b"7" * SIZE) == (200, "BadValue")
    assert post(service, b'"' + b"\\" * (SIZE | 1) + b'"') == (400, "BadRequest")
    bomb = gzip.compress(bytes(1000 * SIZE // 3 // 100))
    headers = f"{JSON}Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n"
    with Connection(service["address"]) as connection:
        connection.start("/store/save", headers, bomb)
        assert (answer := connection.answer()).status == 415
        assert answer.json["error"] == "BadType"
    assert memory(service["pid"], "VmHWM") - before < ROOM


def test_what_is_kept_is_not_taken_apart(service: dict[str, Any]) -> None:
    """A million empty lists are saved and loaded as the bytes that they are."""
    before = memory(service["pid"], "VmHWM")
    value = b"[" + b"[]," * (SIZE // 3) + b"1]"
    assert post(service, value) == (200, None)
    body = b'{"key":"%b","file":"bomb","brief":true}' % service["api_key"].encode()
    loaded = requests.post(f"{service['address']}/store/load", body, headers=service["json"], timeout=60)
    assert value in loaded.content
    assert memory(service["pid"], "VmHWM") - before < ROOM


@pytest.mark.slow
def test_what_is_merged_has_its_limit(service: dict[str, Any]) -> None:
    """What has to be taken apart takes memory by the size of its body, once, however many come at a time."""
    value = b"[" + b"[]," * (SIZE // 3) + b"1]"
    before = memory(service["pid"], "VmHWM")
    for _ in range(2):
        assert post(service, value, b'"merge"') == (200, None)
    assert memory(service["pid"], "VmHWM") - before < FACTOR * SIZE + ROOM
