"""No secret is shown: in no repr, error, traceback with local variables, log, pickle, or attribute."""

from __future__ import annotations

import io
import logging
import pickle
import pprint
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from rich.pretty import pretty_repr
from rich.traceback import Traceback
from urllib3.connection import HTTPConnection

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.client.mapping import files_of
from cloudstore_mapping.masking import SecretBytes, SecretText, hide
from cloudstore_mapping.wire import Batch, Request, Upload
from tests.vendor import Fault, Vendor, serve_vendor

KEY = "ZFA5mAkxjVznvSsXOUxE"
PASSWORD = "swordfish-swordfish"
SECRETS = (KEY, PASSWORD)


class Given:
    """Secrets of the test itself, whose frames show local variables as well."""

    def __init__(self, server: str) -> None:
        self._scheme, _, self._rest = server.partition("://")

    def __repr__(self) -> str:
        return "<Given>"

    @property
    def location(self) -> str:
        """The address with the API key."""
        return f"{self._scheme}://{KEY}@{self._rest}"

    @property
    def server(self) -> str:
        """The address without it."""
        return f"{self._scheme}://{self._rest}"

    @property
    def options(self) -> dict[str, Any]:
        """Options with passwords."""
        return {"password": PASSWORD, "passwords": {"own": PASSWORD}, "media_password": PASSWORD, "retries": 0}


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """Return a service that accepts the key."""
    with serve_vendor() as vendor:
        yield vendor


def shown(error: BaseException) -> str:
    """Return all texts that programs make of an error for people."""
    output = io.StringIO()
    for width in (10, 10_000):
        trace = Traceback.extract(
            type(error), error, error.__traceback__, show_locals=True, locals_max_string=width, locals_max_length=10
        )
        for stack in trace.stacks:
            for frame in stack.frames:
                output.write(f"{frame.name}: {', '.join(map(str, (frame.locals or {}).values()))}\n")
    log = logging.Logger("test")
    log.addHandler(logging.StreamHandler(output))
    log.error("%s %r", error, error, exc_info=error)
    captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    output.write("".join(captured.format()))
    output.write(f"{error} {error!r} {error.args!r} {vars(error)!r} {pretty_repr(error)}")
    with suppress(TypeError, AttributeError):
        output.write(repr(pickle.dumps(error)))
    return output.getvalue()


def check(text: str) -> None:
    """Fail if the text holds a secret."""
    found = [secret for secret in SECRETS if secret in text]
    assert not found


def refused(vendor: Vendor) -> None:
    """Break the connection of the next request."""
    vendor.faults.append(Fault(drop="before"))


def garbage(vendor: Vendor) -> None:
    """Answer the next request with a page."""
    vendor.faults.append(Fault(200, b"<html>"))


def forbidden(vendor: Vendor) -> None:
    """Refuse the next request."""
    vendor.faults.append(Fault(403, b"no"))


ACTS: dict[str, Callable[[Any], object]] = {
    "load": lambda store: store["own"],
    "save": lambda store: store.__setitem__("own", 1),
    "save, large": lambda store: store.__setitem__("other", "x" * 100_000),
    "merge": lambda store: store.merge("own", {}),
    "delete": lambda store: store.__delitem__("own"),
    "list": list,
    "update": lambda store: store.update(own=1, other=2),
    "items": lambda store: dict(store.items()),
    "edit": lambda store: store.edit("own", []).__enter__(),
    "upload": lambda store: store.upload(b"x", "x.bin"),
}


@pytest.mark.parametrize("way", ["own", "session"])
@pytest.mark.parametrize("fault", [refused, garbage, forbidden])
@pytest.mark.parametrize("act", ACTS)
def test_errors_of_requests(act: str, fault: Callable[[Vendor], None], way: str, vendor: Vendor) -> None:
    """The error of an operation shows neither API key nor password, with the local variables of all frames."""
    given = Given(vendor.address)
    more = {"session": requests.Session()} if way == "session" else {}
    with cm.open(given.location, **given.options, **more) as store:
        for _ in range(3):
            fault(vendor)
        with pytest.raises(cm.CloudStoreError) as caught:
            ACTS[act](store)
        text = shown(caught.value)
    check(text)


OPENINGS: dict[str, Callable[[Given], object]] = {
    "option": lambda given: cm.open(given.location, **{**given.options, "cache_ttl": -1}),
    "unknown option": lambda given: cm.open(given.location, **given.options, nothing=1),
    "option of a file": lambda given: cm.open("memory:", **{**given.options, "retries": -1}),
    "password of another type": lambda given: cm.open("memory:", password=[PASSWORD]),
    "plain http": lambda given: cm.open(f"http://{KEY}@example.org/cloudstore"),
    "white space": lambda given: cm.open(given.location + " "),
    "password beside it": lambda given: cm.open(given.location.replace("@", ":x@")),
    "port": lambda given: cm.open(f"http://{KEY}@host:port/"),
    "query": lambda given: cm.open(given.location + "?x"),
    "two @": lambda given: cm.open(f"https://host/{KEY}@x"),
    "not UTF-8": lambda given: cm.open(f"https://%ff{KEY}@host/"),
    "one slash": lambda given: cm.open(f"http:/{KEY}@host/x"),
    "no colon": lambda given: cm.open(f"https//{KEY}@host/x"),
    "semicolon": lambda given: cm.open(f"http;//{KEY}@host/x"),
    "quotes": lambda given: cm.open(f"'https://{KEY}@host/x'"),
    "leading space": lambda given: cm.open(f" https://{KEY}@host/x"),
    "another scheme": lambda given: cm.open(f"htps://{KEY}@host/x"),
    "no scheme": lambda given: cm.open(f"{KEY}@host/x"),
    "no scheme, slashes": lambda given: cm.open(f"//{KEY}@host/x"),
    "a path": lambda given: cm.open(f"/{KEY}@host/x"),
    "bytes": lambda given: cm.open(f"http:/{KEY}@host/x".encode()),
    "address as a key": lambda given: cm.CloudStoreMapping(given.location),
    "address as the callback client's key": lambda given: cm.CloudStore(given.location),
    "address with key as the server": lambda given: cm.CloudStoreMapping("k", given.location),
    "address with key as the callback client's server": lambda given: cm.CloudStore("k", given.location),
    "option of the mapping": lambda given: cm.CloudStoreMapping(KEY, given.server, password=PASSWORD, retries=-1),
    "option of the callback client": lambda given: cm.CloudStore(KEY, given.server, password=PASSWORD, retries=-1),
    "options of the callback client": lambda given: cm.CloudStore(
        KEY, given.server, {"dataPass": PASSWORD}, retries=-1
    ),
    "wrong options of the callback client": lambda given: cm.CloudStore(KEY, given.server, {"x": PASSWORD}),
    "options of another type": lambda given: cm.CloudStore(KEY, given.server, [PASSWORD]),  # type: ignore[arg-type]
    "password of another type for the callback client": lambda given: cm.CloudStore(
        KEY,
        given.server,
        password=[PASSWORD],  # type: ignore[arg-type]
    ),
    "key of another type": lambda given: cm.CloudStoreMapping(KEY.encode()),  # type: ignore[arg-type]
    "shelf": lambda given: shelve.open(f"http:/{KEY}@host/x"),
    "shelf's option": lambda given: shelve.open(given.location, **given.options, cache_ttl=-1),
}


@pytest.mark.parametrize("name", OPENINGS)
def test_errors_of_opening(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a location or option shows no secret, in frames of this package, and makes no file."""
    monkeypatch.chdir(tmp_path)
    given = Given("http://127.0.0.1:9/cloudstore")
    with pytest.raises((TypeError, ValueError)) as caught:
        OPENINGS[name](given)
    error = caught.value
    frames = error.__traceback__
    # Frames of the test show its own source lines and arguments.
    while frames is not None and "cloudstore_mapping" not in frames.tb_frame.f_globals["__name__"]:
        frames = frames.tb_next
    text = shown(error.with_traceback(frames))
    check(text)
    assert not list(tmp_path.iterdir())


def test_reprs(vendor: Vendor) -> None:
    """No repr, pprint or attribute of a store and its parts shows a secret, nor does its pickle."""
    given = Given(vendor.address)
    with cm.open(given.location, **given.options) as store, cm.CloudStore(KEY, vendor.address) as cloud:
        store["own"] = 1
        files = files_of(store)
        parts: list[Any] = [store, store.view("o"), cloud, files, files.store, files.client, files.client._transport]
        parts += [store.keys(), store.stats, cm.Password(PASSWORD, PASSWORD), files.store.passwords]
        texts = [repr(pickle.dumps(store))]
        for part in parts:
            attributes = vars(part) if hasattr(part, "__dict__") else {}
            texts += [repr(part), pprint.pformat(part), pretty_repr(part), repr(attributes), pretty_repr(attributes)]
    for text in texts:
        check(text)


CALLS: dict[str, Callable[[cm.CloudStore], Any]] = {
    "save": lambda cloud: cloud.save("own", 1, None, PASSWORD),
    "load": lambda cloud: cloud.load("own"),
    "upload": lambda cloud: cloud.upload(b"x", "own", None, None, PASSWORD),
    "no JSON": lambda cloud: cloud.save("own", {1}, None, PASSWORD),
    "no Unicode": lambda cloud: cloud.save("\ud800", 1, None, PASSWORD),
    "no name of a file": lambda cloud: cloud.upload(b"x", "\ud800", None, None, PASSWORD),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", [refused, garbage, forbidden])
def test_calls_of_the_callback_client(call: str, fault: Callable[[Vendor], None], vendor: Vendor) -> None:
    """No reply of the callback client shows a secret, nor does the error in it."""
    options = {"dataPass": PASSWORD, "mediaPass": PASSWORD}
    with cm.CloudStore(KEY, vendor.address, options, password=PASSWORD, retries=0) as cloud:
        fault(vendor)
        reply = CALLS[call](cloud).result(30)
        text = f"{reply['message']} {reply['response']!r} {vars(cloud)!r} {vars(cloud._sender)!r}"
    if "exception" in reply:
        text += shown(reply["exception"])
    if reply["response"] is not None:
        text += repr(vars(reply["response"].request))
    check(text)


def test_messages() -> None:
    """A message shows neither API key nor password, also if it was made of plain texts."""
    request = Request(api_key=KEY, name="own", password=PASSWORD)
    upload = Upload(api_key=KEY, name="own", content_type="text/plain", data=b"", password=PASSWORD)
    for message in (request, Batch(api_key=KEY, requests=[request]), upload):
        check(f"{message!r} {pretty_repr(message)} {pprint.pformat(message)}")


def test_errors_with_a_response(vendor: Vendor) -> None:
    """The response of an error has the request, whose body is masked."""
    given = Given(vendor.address)
    forbidden(vendor)
    with cm.open(given.location, **given.options) as store, pytest.raises(cm.CloudStoreError) as caught:
        store["own"] = 1
    response = caught.value.response
    assert KEY.encode() in bytes(response.request.body)
    assert KEY not in repr(response.request.body)
    assert KEY not in repr(vars(response.request))


@pytest.mark.parametrize("size", [1, 100_000])
def test_errors_of_sending(size: int, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's TLS keeps the sent bytes in local variables, so these are masked as well."""

    class Broken:
        """Socket written in Python, like that of TLS, which breaks."""

        def __init__(self, inner: socket.socket) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def sendall(self, data: bytes) -> None:
            if KEY.encode() in bytes(data):
                raise ConnectionResetError
            self._inner.sendall(data)

    connect = HTTPConnection.connect

    def connect_broken(connection: HTTPConnection) -> None:
        connect(connection)
        connection.sock = Broken(connection.sock)

    monkeypatch.setattr(HTTPConnection, "connect", connect_broken)
    given = Given(vendor.address)
    with cm.open(given.location, **given.options) as store:
        for act in (lambda: store.__setitem__("own", "x" * size), lambda: store.upload(b"x" * size, "x.bin")):
            with pytest.raises(cm.TransportError) as caught:
                act()
            text = shown(caught.value)
            assert "sendall" in text
            check(text)


def test_unreachable() -> None:
    """A refused connection shows no secret either."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        given = Given(f"http://127.0.0.1:{free.getsockname()[1]}/cloudstore")
        with cm.open(given.location, **given.options) as store, pytest.raises(cm.TransportError) as caught:
            store["own"] = 1
        text = shown(caught.value)
    check(text)


def test_masked_texts() -> None:
    """Masked text and bytes behave as their content, but in a repr, and survive pickles."""
    text, data = hide(KEY), hide(KEY.encode())
    assert (text, data) == (KEY, KEY.encode())
    assert f"{text}" == KEY
    assert KEY not in f"{text!r} {data!r} {[text, data]}"
    again = pickle.loads(pickle.dumps([text, data]))
    assert again == [KEY, KEY.encode()]
    assert [type(part) for part in again] == [SecretText, SecretBytes]
    assert hide(text) is text
    assert hide(None) is None


def test_a_misspelled_option() -> None:
    """The value under an unknown name may be a secret, so it is masked, too."""
    with pytest.raises(TypeError, match="did you mean 'password'") as caught:
        cm.open("memory:", pasword=SECRETS[0])
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    assert not [frame for frame in frames if "cloudstore_mapping" in frame.filename and SECRETS[0] in str(frame.locals)]
