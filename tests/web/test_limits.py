"""The limits of the vendor's BASIC plan, hit one by one over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.service_fakes import ManualClock
from tests.storages import new_storage


class Basic:
    """An account on the plan, its service's address and clock."""

    def __init__(self, address: str, key: str, clock: ManualClock) -> None:
        self.address = address
        self.key = key
        self.clock = clock
        self.session = requests.Session()

    def post(self, path: str = "/store/save", *, wait: float = 3, **fields: Any) -> requests.Response:
        """Post a request some time after the last one."""
        self.clock.advance(wait)
        return self.session.post(self.address + path, json={"key": self.key, **fields}, timeout=30)

    def error(self, **options: Any) -> Any:
        """Return the error of a request that has to be answered as a success of HTTP."""
        answer = self.post(**options)
        assert answer.status_code == 200
        return answer.json()["error"]


@pytest.fixture
def basic(clock: ManualClock) -> Iterator[Basic]:
    """Return a client of an account on the plan."""
    clock.seconds = 1_700_006_400.0  # midnight, so that 300 requests at their pace are of one day
    with Service(new_storage(), clock=clock) as service, background(service) as address:
        client = Basic(address, service.accounts.create("small", plan="basic"), clock)
        with client.session:
            yield client


def test_a_hundred_files(basic: Basic) -> None:
    """The 101st file is `TooManyFiles`, which names the limit; one that is there can still be saved."""
    assert [basic.error(file=str(number), value=1) for number in range(100)] == [None] * 100
    refused = basic.post(file="one more", value=1).json()
    assert refused["error"] == "TooManyFiles"
    assert "100 files" in refused["message"]
    assert "'basic'" in refused["message"]
    assert basic.error(file="99", value=2) is None


def test_3072_bytes_a_file(basic: Basic) -> None:
    """A value of 3,072 bytes is saved, one byte more is `TooBig`."""
    assert basic.error(file="name", value="x" * 3070) is None
    refused = basic.post(file="name", value="x" * 3071).json()
    assert refused["error"] == "TooBig"
    assert "at most 3,072 (the account's file-bytes)" in refused["message"]


def test_300_accesses_a_day(basic: Basic) -> None:
    """The 301st access of a day is `DailyLimit`, which says when it ends; then the file can be used again."""
    assert basic.error(file="name", value=1) is None
    loads = {basic.error(path="/store/load", file="name") for _ in range(299)}
    assert loads == {None}
    refused = basic.post(path="/store/load", file="name").json()
    assert refused["error"] == "DailyLimit"
    assert "allows 300 (daily-accesses); it can be used again from 2023-11-16 00:00 UTC on" in refused["message"]
    assert basic.error(file="other", value=1) is None
    assert basic.error(path="/store/load", file="name", wait=86_400) is None


def test_a_request_every_three_seconds(basic: Basic) -> None:
    """Too many requests at once are 429 `TooOften`, and the one sent after `Retry-After` passes."""
    assert [basic.error(file="name", value=1, wait=0) for _ in range(6)] == [None] * 6
    answer = basic.post(path="/store/load", file="name", wait=1)
    assert (answer.status_code, answer.json()["error"], answer.headers["Retry-After"]) == (429, "TooOften", "2")
    assert answer.json()["message"].endswith("every 3 seconds (interval); send the next one in 2.0 seconds.")
    assert basic.error(path="/store/load", file="name", wait=2) is None
