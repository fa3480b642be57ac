"""The log says what happened, as lines or as JSON, and never a key, a password, a value or a whole link."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.web.logs import logging_as
from tests.raw_http import FakeService, body
from tests.serving import serving, told

KEY = "API-key-of-32-characters-or-more"
SECRETS = [KEY, "the-password", "the-value", "the-query", "ab" * 16, "cd" * 16]


@pytest.fixture(params=[True, False], ids=["json", "lines"])
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What is logged during the test."""
    stream = io.StringIO()
    with logging_as(as_json=request.param, access=True, stream=stream):
        yield stream


@pytest.mark.parametrize("as_json", [True, False])
def test_no_secret_is_logged(tmp_path: Path, as_json: bool) -> None:
    """Whatever requests hold, the access log holds method, path, status, time and address only."""
    log: list[str] = []
    arguments = ["--access-log", *(["--log-json"] if as_json else []), "--json", "--store", str(tmp_path / "s.db")]
    with serving(*arguments, log=log) as process:
        first = told(process)
        secrets = [*SECRETS, first["api_key"], first["password"]]
        for key in (KEY, first["api_key"]):
            for path in ("/store/save", "/store/load", "/store/batch", "/upload-2", "/nowhere", "/admin/sign-in"):
                data = body("file", key=key, value="the-value", password="the-password")
                headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "Cookie": f"s={key}"}
                requests.post(f"{first['address']}{path}?q=the-query", data, headers=headers, timeout=20)
        requests.get(f"{first['address']}/files/{'ab' * 16}/{'cd' * 16}.png?q=the-query", timeout=20)
    assert len(log) == 13
    assert not [secret for secret in secrets for line in log if secret in line]
    if as_json:
        save = json.loads(log[0])
        assert save.keys() == {"time", "level", "message", "method", "path", "status", "milliseconds", "address"}
        assert (save["method"], save["path"], save["status"]) == ("POST", "/cloudstore/store/save", 401)
        assert (save["address"], save["milliseconds"] > 0) == ("127.0.0.1", True)
        assert json.loads(log[-1])["path"] == "/cloudstore/files/abab…/cdcd….png"
    else:
        line = r"20\S+Z INFO 127\.0\.0\.1 POST /cloudstore/store/save 401 [0-9.]+ ms"
        assert re.fullmatch(line, log[0])
        assert "/cloudstore/files/abab…/cdcd….png 4" in log[-1]


def test_requests_are_logged_only_where_that_is_wanted(tmp_path: Path) -> None:
    """Without --access-log a request leaves no trace in the log."""
    log: list[str] = []
    with serving("--log-json", "--json", "--store", str(tmp_path / "s.db"), log=log) as process:
        assert requests.get(f"{told(process)['address']}/health", timeout=20).ok
    assert log == []


def test_a_failure_has_its_places_and_no_values(log: io.StringIO) -> None:
    """An error that nobody expected is logged with where it came from, its cause too, but not with its sentence."""
    service = FakeService()
    service.reply = ValueError("the-value")
    service.reply.__cause__ = KeyError("the-value")
    with service.served() as address:
        data = body(key=KEY, password="the-password")
        headers = {"Content-Type": "application/json"}
        assert requests.post(f"{address}/store/load", data, headers=headers, timeout=20).status_code == 500
    text = log.getvalue()
    assert not [secret for secret in SECRETS if secret in text]
    for told_ in ("A request to /cloudstore/store/load failed.", "raw_http.py", "ValueError", "KeyError", "which led"):
        assert told_ in text


@pytest.mark.parametrize("error", [UnavailableError("The disk is full."), OSError(28, "No space left")])
def test_errors_of_the_machine_are_told(log: io.StringIO, error: Exception) -> None:
    """What a disk or a database says holds no values, and the owner needs it."""
    logging.getLogger("test").error("It failed.", exc_info=error)
    assert str(error) in log.getvalue()


def test_one_line_each(log: io.StringIO) -> None:
    """Whatever a path holds, a record can't look like two, nor steer a terminal."""
    facts = {"method": "GET", "path": "/\n\x1b[31m\u2028", "status": 404, "milliseconds": 1.0, "address": ""}
    logging.getLogger("cloudstore_mapping.access").info("request", extra={"request": facts})
    text = log.getvalue()
    assert (text.count("\n"), "\x1b" in text, "\u2028" in text) == (1, False, False)


def test_what_was_before_is_put_back() -> None:
    """Logging is as it was before, once the service has ended."""
    before = list(logging.getLogger().handlers)
    with logging_as(as_json=True, access=True):
        assert logging.getLogger().handlers != before
    assert logging.getLogger().handlers == before
