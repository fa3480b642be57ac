"""Requests made from the service's own description, right ones and wrong ones, get only answers that it describes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.serving import memory
from cloudstore_mapping.web.openapi import OPENAPI_PATH, openapi_document
from tests.raw_http import body
from tests.serving import serving, told

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, which the extra 'dev' brings")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

#: Seconds for all of it at full length, and requests of each kind otherwise.
FULL_SECONDS = 600
REQUESTS = 60
#: Seconds after which an answer is a hang, and bytes that the service may come to take meanwhile.
HANG = 30
MOST_MORE = 256 * 2**20
# A name or value that the rules refuse is told by `error` in a 200, as the wire has always done it.
EXCLUDED = [getattr(checks, name) for name in ("positive_data_acceptance", "negative_data_rejection", "ignored_auth")]
OPERATIONS = [
    (path, method)
    for path, item in openapi_document("")["paths"].items()
    for method in ("get", "head", "post")
    if method in item
]
#: Those of which no two requests need be the same.
VARIED = [(path, method) for path, method in OPERATIONS if method == "post" or "{" in path]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Run a service as a process of its own; what it says of itself, and its process's number."""
    folder: Path = tmp_path_factory.mktemp("described")
    with serving("--json", "--store", str(folder / "service.db")) as process:
        facts = told(process) | {"pid": process.pid}
        load = body("name", key=facts["api_key"])
        requests.post(f"{facts['address']}/store/load", load, headers={"Content-Type": "application/json"}, timeout=20)
        before = memory(process.pid, "VmHWM")
        yield facts
        assert memory(process.pid, "VmHWM") - before < MOST_MORE


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_is_described(service: dict[str, Any], path: str, method: str, at_length: bool) -> None:
    """No answer is 5xx, takes half a minute, or differs from what the description says of it."""
    operation = schemathesis.openapi.from_url(service["address"] + OPENAPI_PATH)[path][method.upper()]
    session = requests.Session()
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(modes), is_known=st.booleans())
    def trial(case: Any, is_known: bool) -> None:
        if is_known and isinstance(case.body, dict) and "key" in case.body:
            case.body["key"] = service["api_key"]
        case.call_and_validate(base_url=service["address"], session=session, timeout=HANG, excluded_checks=EXCLUDED)

    with session:
        end = time.monotonic() + (FULL_SECONDS / len(VARIED) if at_length and (path, method) in VARIED else 0)
        trial()
        while time.monotonic() < end:
            trial()
