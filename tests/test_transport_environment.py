"""HTTP and what surrounds it: timeouts, proxies of the environment, forks, and imports."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from typing import Any

import pytest
import requests

from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import ProtocolError, TransportError
from cloudstore_mapping.wire import Request
from tests.vendor import Vendor

KEY = "S3cretKey"
LOAD = Request(api_key=KEY, name="a")


@pytest.fixture
def vendor(vendor: Vendor) -> Vendor:
    """Return a running service that holds one file."""
    vendor.files["a"] = 1
    return vendor


@pytest.mark.parametrize("timeout", [0, -1, (5, 0), (None, 1), (5, None), None, "5"])
def test_timeouts_are_always_there(timeout: Any) -> None:
    """No request can wait without an end."""
    with pytest.raises(ValueError, match="timeout"):
        HTTPTransport("http://127.0.0.1:1/x", timeout=timeout)


def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch, vendor: Vendor) -> None:
    """The environment's proxies are used, but not on the way to this machine."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, vendor.address.removesuffix("/cloudstore"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    transport = HTTPTransport("http://service.invalid/cloudstore")
    transport.send(LOAD)
    transport.close()
    assert [request.path for request in vendor.requests] == ["http://service.invalid/cloudstore/store/load"]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    local = HTTPTransport(vendor.address)
    assert local.send(LOAD).error is None
    local.close()


@pytest.mark.parametrize("proxy", ["http://user:passw0rd@:1", "http://user:passw0rd@a:999999", "ftp://user:passw0rd@a"])
def test_bad_proxy(monkeypatch: pytest.MonkeyPatch, session: requests.Session | None, proxy: str) -> None:
    """A proxy's address that can't be one is an error about it, and nothing shows the password in it."""
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises((TransportError, ProtocolError), match="proxy") as caught:
        HTTPTransport("https://service.invalid/x", session=session).send(LOAD)
    if isinstance(caught.value, TransportError):
        assert caught.value.sent is False
    assert "passw0rd" not in "".join(traceback.format_exception(caught.value, chain=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork(vendor: Vendor) -> None:
    """A child opens its own connections, and leaves the parent's alone."""
    transport = HTTPTransport(vendor.address)
    transport.send(LOAD)
    child = os.fork()
    if child == 0:
        os._exit(0 if transport.send(LOAD).error is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert transport.send(LOAD).error is None
    transport.close()
    assert vendor.accepted == 2


def test_repr_and_import() -> None:
    """A transport's `repr` has the server alone; importing it doesn't load `requests`."""
    assert repr(HTTPTransport("https://example.org/x")) == "<HTTPTransport to https://example.org/x>"
    program = "import sys, cloudstore_mapping.client.callbacks, CloudStore; print('requests' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ran.stdout == "False\n"
