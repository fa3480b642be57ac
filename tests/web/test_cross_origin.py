"""A program in a browser, on a page of another origin: Chromium lets it send and read what the protocol promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from cloudstore_mapping.service.media import link
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import connections
from cloudstore_mapping.web.server import background
from tests.browser import chromium, needs_chromium
from tests.media_fakes import Uploader
from tests.raw_http import Connection, FakeService, body
from tests.service_fakes import ManualClock
from tests.storages import new_storage

__all__ = ["chromium"]  # a fixture, defined beside

DATA = bytes(range(100))
MAX_BODY = 2**18
ASK = """async ([url, options]) => {
    const reply = await fetch(url, options);
    const body = options?.method === "HEAD" ? [] : [...new Uint8Array(await reply.arrayBuffer())];
    return {status: reply.status, headers: Object.fromEntries(reply.headers), body};
}"""


@dataclass
class Program:
    """A program on a page of another origin than the service's."""

    service: Service
    uploader: Uploader
    address: str
    page: Page

    def fetch(self, path: str, **options: Any) -> Any:
        """Return status, headers and body of a reply, as the program sees them."""
        return self.page.evaluate(ASK, [self.address + path, options])

    def post(self, path: str, fields: dict[str, Any], **headers: str) -> Any:
        """Return the reply to a request on data files."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.page.evaluate(
            "async ([url, fields, headers]) => {"
            " const reply = await fetch(url, {method: 'POST', body: JSON.stringify(fields),"
            " headers: {'Content-Type': 'application/json', ...headers}});"
            " return {status: reply.status, headers: Object.fromEntries(reply.headers), said: await reply.json()}; }",
            [self.address + path, {"key": self.uploader.api_key, **fields}, named],
        )

    def put(self) -> str:
        """Upload a file, and return the path of its link."""
        media = self.uploader.find(self.uploader.upload(DATA, "a.bin", "application/octet-stream"))
        assert media is not None
        return link(self.uploader.account, media)


@pytest.fixture
def program(chromium: Browser, clock: ManualClock) -> Iterator[Program]:
    """Return a program on a page of another port, which is another origin."""
    with (
        Service(new_storage(), Settings(max_body_bytes=MAX_BODY), clock=clock) as service,
        background(service) as address,
        FakeService().served() as elsewhere,
    ):
        context = chromium.new_context()
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.goto(f"{elsewhere}/health")
        yield Program(service, Uploader(service), address, page)
        context.close()


@needs_chromium
def test_a_write_with_an_id(program: Program) -> None:
    """A program may give its write an id by `Idempotency-Key`, and learns what the service can."""
    for value in (1, 1):
        reply = program.post("/store/save", {"file": "a", "value": value}, Idempotency_Key="one-save")
        assert (reply["status"], reply["said"]["message"]) == (200, "Entry saved")
        assert "once" in reply["headers"]["cloudstore-extensions"]


@needs_chromium
def test_a_part_of_a_file(program: Program) -> None:
    """A program may ask for a file's last bytes, and learns which they are."""
    part = program.fetch(program.put(), headers={"Range": "bytes=-5"})
    assert (part["status"], part["body"]) == (206, list(DATA[-5:]))
    assert part["headers"]["content-range"] == "bytes 95-99/100"
    assert "a.bin" in part["headers"]["content-disposition"]


@needs_chromium
def test_a_file_that_a_program_has(program: Program) -> None:
    """A program may read a file's tag, and ask for the file unless it is still that."""
    path = program.put()
    whole = program.fetch(path)
    assert (whole["status"], whole["body"]) == (200, list(DATA))
    same = program.fetch(path, headers={"If-None-Match": whole["headers"]["etag"]})
    assert (same["status"], same["body"]) == (304, [])


@needs_chromium
def test_errors_can_be_read(program: Program) -> None:
    """A program reads the status, the error and the wait of whatever is refused."""
    path = program.put()
    refusals: list[tuple[Any, int, str]] = [
        (program.post("/store/load", {"key": "nobody" * 6, "file": "a"}), 401, "BadKey"),
        (program.post("/store/nothing", {"file": "a"}), 404, "NoPath"),
        (program.post("/store/load", {"file": ["a"]}), 400, "BadRequest"),
        (program.post("/upload-2", {}), 415, "BadType"),
        (program.post("/store/load", {"file": "a" * 2 * MAX_BODY}), 413, "BodyTooBig"),
    ]
    program.service.accounts.set_limits("owner", min_interval=60, max_daily_accesses=1)
    saved = [program.post("/store/save", {"file": "a", "value": 1}) for _ in range(5)]
    refusals.append((saved[-1], 429, "TooOften"))
    for reply, status, error in refusals:
        assert (reply["status"], reply["said"]["error"]) == (status, error)
    assert 0 < int(saved[-1]["headers"]["retry-after"]) <= 60
    assert program.fetch(path)["status"] == 200
    media = program.fetch(path, cache="no-store")
    assert (media["status"], int(media["headers"]["retry-after"]) > 0) == (429, True)
    assert program.fetch(path.replace("files/", "files/0"))["status"] == 404
    assert program.fetch(path, method="POST")["status"] == 405
    behind = program.fetch(path, headers={"Range": "bytes=1000-"}, cache="no-store")
    assert (behind["status"], behind["headers"]["content-range"]) == (416, "bytes */100")


def test_a_crowd_can_read_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal of a connection too many has the headers of all replies, for a program to read it."""
    monkeypatch.setattr(connections, "NOT_LIMITED", ())
    with FakeService(Settings(max_connections_per_address=1)).served() as address, ExitStack() as stack:
        first = stack.enter_context(Connection(address))
        first.post("/store/load", body())
        assert first.answer().status == 200
        answer = stack.enter_context(Connection(address)).answer()
    assert (answer.status, answer.json["error"]) == (429, "TooOften")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert answer.headers["x-content-type-options"] == "nosniff"
