"""Addresses: what they name, what is refused, and that no refusal shows the key."""

from __future__ import annotations

import re
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudstore_mapping.client.address import (
    DEFAULT_SERVER,
    check_server,
    default_interval,
    is_loopback,
    parse_address,
    resolve_server,
)
from tests.service_fakes import PATIENCE

KEY = "S3cretKey"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (f"https://{KEY}@droidscript.cloud/cloudstore", (KEY, "https://droidscript.cloud/cloudstore")),
        (f"https://{KEY}@Example.ORG:8443/a/b/", (KEY, "https://example.org:8443/a/b")),
        (f"https://{KEY}@example.org", (KEY, "https://example.org")),
        (f"HTTPS://{KEY}@example.org", (KEY, "https://example.org")),
        ("https://a%2Fb%40%3A%C3%A9@example.org/x", ("a/b@:é", "https://example.org/x")),
        (f"http://{KEY}@127.0.0.1:8787/cloudstore", (KEY, "http://127.0.0.1:8787/cloudstore")),
        (f"http://{KEY}@[::1]:8787/cloudstore", (KEY, "http://[::1]:8787/cloudstore")),
    ],
)
def test_parse(address: str, expected: tuple[str, str]) -> None:
    """An address is an API key, percent-decoded, and a server without it."""
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "",
        KEY,
        f"{KEY}@example.org/x",
        f"ftp://{KEY}@example.org/x",
        "https://example.org/x",
        "https://@example.org/x",
        f"https://{KEY}@/x",
        f"https://{KEY}:password@example.org/x",
        f"https://{KEY}:@example.org/x",
        f"https://{KEY}@example.org/x?a=1",
        f"https://{KEY}@example.org/x?",
        f"https://{KEY}@example.org/x#a",
        f"https://{KEY}@example.org/x#",
        f"https://{KEY}@example.org:port/x",
        f"https://{KEY}@example.org:99999/x",
        f"https://{KEY}@[::1/x",
        f"https://{KEY}\u2100@example.org/x",
        f"https://{KEY}%FF@example.org/x",
        f"https://{KEY}/slash@example.org/x",
        f"https://{KEY}#hash@example.org/x",
        f"https://{KEY}@exam\nple.org/x",
        f" https://{KEY}@example.org/x",
        f"http://{KEY}@example.org/x",
    ],
)
def test_refused_without_the_key(address: str) -> None:
    """What is no address is `ValueError` with a sentence, and nothing of the traceback shows the key."""
    with ThreadPoolExecutor() as pool:  # on a thread of its own no other exception is being handled
        error = pool.submit(parse_address, address).exception(PATIENCE)
    assert type(error) is ValueError
    assert re.match(r"^[A-Z].*\.$", str(error))
    shown = "".join(traceback.format_exception_only(error)) + str(error.__cause__)
    assert KEY not in shown
    assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("store.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost.example.org", False),
        ("notlocalhost", False),
        ("127.0.0.1.example.org", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("::2", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Only localhost, what ends in it, 127.0.0.0/8 and ::1 are this machine."""
    assert is_loopback(host) is loopback
    address = f"http://{f'[{host}]' if ':' in host else host}:1/x"
    if loopback:
        assert check_server(address) == address
    else:
        with pytest.raises(ValueError, match="insecure=True"):
            check_server(address)
        assert check_server(address, insecure=True) == address
        assert parse_address(address.replace("//", "//k@"), insecure=True) == ("k", address)


def test_server_with_a_key_is_refused() -> None:
    """A server's address has no place for the key, and the refusal doesn't show it."""
    with pytest.raises(ValueError, match="API key as its own argument") as caught:
        check_server(f"https://{KEY}@example.org/x")
    assert KEY not in str(caught.value)


def test_environment_replaces_the_default_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """`CLOUDSTORE_SERVER` stands for the default server, and for no other."""
    monkeypatch.delenv("CLOUDSTORE_SERVER", raising=False)
    assert resolve_server(DEFAULT_SERVER) == DEFAULT_SERVER
    monkeypatch.setenv("CLOUDSTORE_SERVER", "")
    assert resolve_server(DEFAULT_SERVER) == DEFAULT_SERVER
    monkeypatch.setenv("CLOUDSTORE_SERVER", "https://other.example/x")
    assert resolve_server(DEFAULT_SERVER) == "https://other.example/x"
    assert resolve_server("https://enjine.cloud/cloudstore") == "https://enjine.cloud/cloudstore"


@pytest.mark.parametrize(
    ("server", "interval"),
    [
        (DEFAULT_SERVER, 3.0),
        ("https://enjine.cloud/cloudstore", 3.0),
        ("https://notenjine.cloud/cloudstore", 0.0),
        ("http://127.0.0.1:8787/cloudstore", 0.0),
    ],
)
def test_default_interval(server: str, interval: float) -> None:
    """Only the vendor's two hosts are paced unless a user says so."""
    assert default_interval(server) == interval
