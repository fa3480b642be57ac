"""The service's description of its wire, which programs read, is what the service does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cloudstore_mapping.errors import REPLY_ERRORS
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.api import make_app
from cloudstore_mapping.web.http import HEALTH_PATH
from cloudstore_mapping.web.metrics import METRICS_PATH
from cloudstore_mapping.web.openapi import OPENAPI_PATH, openapi_document
from cloudstore_mapping.web.server import background
from cloudstore_mapping.wire import Batch, Request
from tests.raw_http import FakeService
from tests.storages import new_storage


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a service in memory."""
    with Service(new_storage()) as service, background(service) as address:
        yield address


def test_it_is_served(address: str) -> None:
    """It is there for GET and HEAD, for pages of any origin; nothing near it is."""
    told = requests.get(address + OPENAPI_PATH, timeout=20)
    assert told.headers["Content-Type"] == "application/json"
    assert told.headers["Access-Control-Allow-Origin"] == "*"
    assert told.json() == openapi_document("/cloudstore")
    headers = requests.head(address + OPENAPI_PATH, timeout=20).headers
    assert headers["Content-Length"] == told.headers["Content-Length"]
    assert requests.post(address + OPENAPI_PATH, timeout=20).status_code == 405
    assert requests.get(address + OPENAPI_PATH + "x", timeout=20).status_code == 404


def test_it_is_openapi() -> None:
    """It is a valid document of OpenAPI 3.1, under any base path."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, which the extra 'dev' brings")
    for base in ("", "/cloudstore"):
        schemathesis.openapi.from_dict(openapi_document(base)).validate()


def test_every_path_is_described(address: str) -> None:
    """What the application answers at is in it, but for the dashboard, and answers as it says."""
    service = FakeService()
    app: Any = make_app(service.as_service(), base_path="")
    answered = {*app._posts, *app._mounts, HEALTH_PATH, METRICS_PATH} - {"/admin"}
    service.close()
    paths = openapi_document("")["paths"]
    assert {path.partition("{")[0] for path in paths} == answered
    for path, item in paths.items():
        for method in {"get", "post"} & item.keys():
            answer = requests.request(method, address + path, timeout=20)
            assert str(answer.status_code) in item[method]["responses"], path


def test_every_field_and_error_is_described() -> None:
    """The fields of the messages, under their names on the wire, and all errors with their statuses."""
    told = openapi_document("")
    schemas = told["components"]["schemas"]
    assert {"key", "file", "options", "value", "if_version", "request"} <= schemas["Request"]["properties"].keys()
    assert len(schemas["Request"]["properties"]) == len(Request.__struct_fields__)
    assert len(schemas["Batch"]["properties"]) == len(Batch.__struct_fields__)
    responses = told["paths"]["/store/save"]["post"]["responses"]
    for name, (status, _) in REPLY_ERRORS.items():
        schema = responses[str(status)]["content"]["application/json"]["schema"]
        assert name in schema["allOf"][1]["properties"]["error"]["enum"]
