"""Who asks is whoever connects, unless that is a proxy which is trusted to say for whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from cloudstore_mapping.web.http import HSTS
from tests.raw_http import JSON, Connection, body
from tests.serving import serving, told


@pytest.mark.parametrize(
    ("trusted", "address"),
    [
        pytest.param("", "127.0.0.1", marks=pytest.mark.slow),
        pytest.param("127.0.0.1", "203.0.113.7", marks=pytest.mark.slow),
        ("10.1.1.1, 127.0.0.0/8", "203.0.113.7"),
        ("10.1.1.1", "127.0.0.1"),
    ],
)
def test_the_address_of_a_request(trusted: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """X-Forwarded-For counts only where it comes from a trusted proxy; else anybody could be anybody."""
    monkeypatch.setenv("CLOUDSTORE_SERVICE_TRUSTED_PROXIES", trusted)
    log: list[str] = []
    with serving("--json", "--access-log", "--log-json", "--store", str(tmp_path / "service.db"), log=log) as process:
        url = f"{told(process)['address']}/health"
        assert requests.get(url, headers={"X-Forwarded-For": "203.0.113.7"}, timeout=20).ok
    assert [json.loads(line)["address"] for line in log] == [address]


@pytest.mark.parametrize(("proto", "is_pinned"), [("https", True), ("http", False)])
def test_https_of_a_proxy(proto: str, is_pinned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a trusted proxy says that the browser speaks https, replies pin it to that, however the request comes in."""
    monkeypatch.setenv("CLOUDSTORE_SERVICE_TRUSTED_PROXIES", "127.0.0.1")
    with serving("--json", "--store", str(tmp_path / "service.db")) as process:
        facts = told(process)
        data = body("absent", key=facts["api_key"])
        proxied = f"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: {proto}\r\n"
        with Connection(facts["address"]) as connection:
            connection.post("/store/load", data, proxied)  # in one piece
            answers = [connection.answer()]
            connection.start("/store/load", f"{JSON}{proxied}Content-Length: {len(data)}\r\n")
            connection.send(data)
            answers.append(connection.answer())
    assert [answer.json["error"] for answer in answers] == ["NoFile", "NoFile"]
    assert [HSTS[0].decode() in answer.headers for answer in answers] == [is_pinned] * 2
