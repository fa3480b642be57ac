"""`/metrics` tells what the service did, in numbers that Prometheus reads, and nothing of whose files they were."""

from __future__ import annotations

import asyncio

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from cloudstore_mapping.errors import LockedError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.http import Message, Receive, Scope, Send
from cloudstore_mapping.web.metrics import OPERATIONS, InstrumentedApp, Metrics, new_rows
from cloudstore_mapping.web.options import Options
from cloudstore_mapping.web.server import background
from tests.raw_http import JSON, Connection, FakeService, body
from tests.service_fakes import Asker

SECRET = "s3cret" * 8


def numbers(address: str) -> dict[tuple[str, ...], float]:
    """Return what /metrics says: a number by its name and the values of its labels."""
    answer = requests.get(f"{address}/metrics", timeout=20)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = text_string_to_metric_families(answer.text)
    return {(it.name, *it.labels.values()): it.value for family in families for it in family.samples}


def test_requests_are_counted_by_operation_and_outcome() -> None:
    """Each request counts once, under what it asked for and how it ended, with its time."""
    with FakeService(Settings(max_body_bytes=1000)).served() as address, Connection(address) as connection:
        for path, data in (
            ("/store/save", body(value=1)),
            ("/store/load", body()),
            ("/store/load", body("absent")),
            ("/store/load", b"nonsense"),
            ("/store/load", body("x" * 2000)),
        ):
            connection.post(path, data)
            connection.answer()
        assert requests.get(f"{address}/health", timeout=20).ok
        assert requests.get(f"{address}/nowhere", timeout=20).status_code == 404
        found = numbers(address)
    counted = {key[1:]: value for key, value in found.items() if key[0] == "cloudstore_requests_total" and value}
    assert counted == {
        ("save", "ok"): 1,
        ("load", "ok"): 1,
        ("load", "NoFile"): 1,
        ("other", "BadRequest"): 1,
        ("other", "BodyTooBig"): 1,
        ("health", "ok"): 1,
        ("other", "NoPath"): 1,
    }
    assert found["cloudstore_request_seconds_count", "load"] == 2
    assert found["cloudstore_request_seconds_bucket", "+Inf", "load"] == 2
    assert found["cloudstore_request_seconds_sum", "load"] > 0


def test_errors_have_their_names(service: Service, ask: Asker) -> None:
    """A request that the service refuses counts under the error's name."""
    ask.save("list", 1)
    service.set_passwords("owner", "list", edit="pie")
    with background(service) as address, Connection(address) as connection:
        connection.post("/store/save", body(key=ask.api_key, value=2))
        assert connection.answer().json["error"] == LockedError.error
        connection.post("/store/load", body(key="0" * 32))
        assert connection.answer().status == 401
        found = numbers(address)
    assert found["cloudstore_requests_total", "save", "Locked"] == 1
    assert found["cloudstore_requests_total", "load", "BadKey"] == 1


def test_bytes_and_connections() -> None:
    """Bytes each way and open connections are told; a client that left before its reply counts as gone."""
    service = FakeService()
    with service.served() as address, Connection(address) as connection:
        connection.post("/store/save", body(value="x" * 10_000))
        sent = len(connection.answer().body)
        with Connection(address) as leaving:
            leaving.start("/store/save", f"{JSON}Content-Length: 1000\r\n", b"{")
        while ("cloudstore_requests_total", "other", "Gone") not in (found := numbers(address)):
            pass
    assert found["cloudstore_received_bytes_total",] > 10_000
    assert found["cloudstore_sent_bytes_total",] >= sent
    assert found["cloudstore_connections",] >= 2
    assert found["cloudstore_worker_starts_total",] == 1
    assert found["cloudstore_start_time_seconds",] > 1.6e9
    assert next(key for key in found if key[0] == "cloudstore_build_info")


def test_nothing_of_whose_files_they_are(service: Service) -> None:
    """No key, account, file name, password or value is in what is told."""
    key = service.accounts.create("account-name", SECRET)
    with background(service) as address:
        for path in ("/store/save", "/store/load", f"/files/{'ab' * 16}/{'cd' * 16}.png", "/admin.html", f"/{SECRET}"):
            data = body("file-name", key=key, value="the value", password="the password")
            requests.post(address + path, data, headers={"Content-Type": "application/json"}, timeout=20)
        text = requests.get(f"{address}/metrics", timeout=20).text
    for secret in (SECRET, "account-name", "file-name", "the value", "the password", "abab", "cdcd"):
        assert secret not in text


TOKEN = "a-token-of-the-metrics"
LOCAL = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"]
REMOTE = ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "not an address", None]


def asked(token: str | None, client: str | None, headers: dict[str, str]) -> tuple[int, bytes, dict[bytes, bytes]]:
    """Return status, body and headers of the answer to a request for the metrics."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    async def receive() -> Message:
        raise NotImplementedError

    async def send(message: Message) -> None:
        sent.append(message)

    observed = InstrumentedApp(app, Metrics(new_rows(1)), "/base", lambda: 0, logs=False, metrics_token=token)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/base/metrics",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": None if client is None else (client, 1),
    }
    asyncio.run(observed(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("token", "client", "headers", "status"),
    [
        *((None, client, {}, 200) for client in LOCAL),
        *((None, client, {}, 401) for client in REMOTE),
        *(
            (None, "127.0.0.1", {header: "192.0.2.1"}, 401)
            for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP")
        ),
        (None, "192.0.2.1", {"Authorization": "Bearer "}, 401),
        (TOKEN, "192.0.2.1", {"Authorization": f"Bearer {TOKEN}"}, 200),
        (TOKEN, None, {"Authorization": f"bearer  {TOKEN}"}, 200),
        (TOKEN, "127.0.0.1", {}, 401),
        (TOKEN, "127.0.0.1", {"Authorization": f"Bearer {TOKEN}x"}, 401),
        (TOKEN, "127.0.0.1", {"Authorization": f"Basic {TOKEN}"}, 401),
        (TOKEN, "127.0.0.1", {"Authorization": TOKEN}, 401),
    ],
)
def test_who_may_see_the_metrics(token: str | None, client: str | None, headers: dict[str, str], status: int) -> None:
    """The metrics are for whoever sends their token; without one set, for this machine, and for nobody by a proxy."""
    answer = asked(token, client, headers)
    assert answer[0] == status
    assert (b"cloudstore_requests_total" in answer[1]) is (status == 200)
    if status == 401:
        assert answer[2][b"www-authenticate"] == b"Bearer"
        assert (b"metrics_token" in answer[1]) is (token is None)
        assert TOKEN.encode() not in answer[1]


def test_the_token_is_no_secret_of_a_repr() -> None:
    """The options tell nobody the token."""
    assert TOKEN not in repr(Options(metrics_token=TOKEN))


def test_only_get() -> None:
    """/metrics is for GET and HEAD, and answers JSON to the rest."""
    with FakeService().served() as address:
        answer = requests.post(f"{address}/metrics", timeout=20)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        head = requests.head(f"{address}/metrics", timeout=20)
        assert (head.status_code, head.content, int(head.headers["content-length"]) > 1000) == (200, b"", True)


def test_processes_add_up() -> None:
    """What several processes counted is told together, and a restarted one goes on from where it was."""
    rows = new_rows(3)
    for own in range(3):
        Metrics(rows, own).start()
        Metrics(rows, own).count("load", None, 0.002, 10)
    Metrics(rows, 1).start()
    text = Metrics(rows, 0).text(lambda: 4096).decode()
    assert 'cloudstore_requests_total{operation="load",outcome="ok"} 3.0' in text
    assert 'cloudstore_request_seconds_bucket{le="0.001",operation="load"} 0.0' in text
    assert 'cloudstore_request_seconds_bucket{le="0.0025",operation="load"} 3.0' in text
    assert "cloudstore_worker_starts_total 4.0" in text
    assert "cloudstore_sent_bytes_total 30.0" in text
    assert "cloudstore_store_bytes 4096.0" in text


def test_what_has_no_name_counts_by_its_status() -> None:
    """Pages and media count under their path's beginning, as well or as an error of the client's or the service's."""
    metrics = Metrics(new_rows(1))
    statuses = iter([200, 304, 403, 500])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": next(statuses), "headers": []})
        await send({"type": "http.response.body", "body": b"12345"})

    async def receive() -> Message:
        raise NotImplementedError

    async def send(_: Message) -> None:
        pass

    observed = InstrumentedApp(app, metrics, "/base", lambda: 0, logs=False)
    for path in ("/base/files/x", "/base/files/x", "/base/admin/data", "/base/admin.html"):
        coroutine = observed({"type": "http", "path": path, "method": "GET", "client": None}, receive, send)
        with pytest.raises(StopIteration):
            coroutine.send(None)  # it never waits
    text = metrics.text(lambda: 0).decode()
    assert 'cloudstore_requests_total{operation="media",outcome="ok"} 2.0' in text
    assert 'cloudstore_requests_total{operation="dashboard",outcome="Http4xx"} 1.0' in text
    assert 'cloudstore_requests_total{operation="dashboard",outcome="Http5xx"} 1.0' in text
    assert "cloudstore_sent_bytes_total 20.0" in text


def test_every_operation_is_told_from_the_start() -> None:
    """Each operation's count of what went well is there before the first of them, as rates need it."""
    text = Metrics(new_rows(1)).text(lambda: 0).decode()
    for operation in OPERATIONS:
        assert f'cloudstore_requests_total{{operation="{operation}",outcome="ok"}} 0.0' in text
