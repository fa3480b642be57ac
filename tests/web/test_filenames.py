"""The name of a file in a form: each client's way to encode it is undone, and no other name is changed."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from shutil import which
from typing import Any, Final

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.media_fakes import UPLOAD, Posted, Uploader, field
from tests.service_fakes import PATIENCE
from tests.storages import new_storage

#: Names that an encoding might change, and one of each kind that some client encodes.
NAMES: Final = [
    "plain.txt",
    "sp ace.txt",
    "100%20.txt",
    "50% off.txt",
    "%2F%2e",
    "é 🎈.txt",
    "q\"uo'te.txt",
    "a;filename=b.txt",
    "a; filename*=utf-8''b.txt",
    "a+b&[c]~(d).txt",
    "sp%20ace é.txt",
]


@pytest.fixture
def posted() -> Iterator[Posted]:
    """Return somebody with an account who uploads over HTTP."""
    with Service(new_storage()) as service, background(service) as address:
        yield Posted(Uploader(service), address)


def part(disposition: str, *, type_first: bool = False) -> bytes:
    """Return a form's file with the rest of its Content-Disposition, its type before or behind that."""
    lines = [f'Content-Disposition: form-data; name="file"; {disposition}', "Content-Type: text/plain"]
    return "\r\n".join([*(lines[::-1] if type_first else lines), "", "data"]).encode()


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        # .NET's HttpClient, with and without the name a second time; PowerShell, JavaMail.
        ("filename=\"=?utf-8?B?w6kg8J+OiC50eHQ=?=\"; filename*=utf-8''%C3%A9%20%F0%9F%8E%88.txt", "é 🎈.txt"),
        ('filename="=?utf-8?B?w6kg8J+OiC50eHQ=?="', "é 🎈.txt"),
        ('filename="=?UTF-8?Q?=C3=A9_a.txt?="', "é a.txt"),
        ('filename="=?utf-8?B?w6k=?= =?utf-8?B?w6k=?="', "éé"),
        ('filename="=?utf-8?B?ww==?= =?utf-8?B?qQ==?="', "é"),
        ('filename="=?iso-8859-1?Q?=E9?="', "é"),
        ("filename==?utf-8?B?w6k=?=", "é"),
        ("filename=\"sp ace.txt\"; filename*=utf-8''sp%20ace.txt", "sp ace.txt"),
        ("filename=plain.txt; filename*=utf-8''plain.txt", "plain.txt"),
        # Older urllib3, which sends no other name; ISO 8859-1 and a language are in the standard too.
        ("filename*=utf-8''%C3%A9%20100%2520.txt", "é 100%20.txt"),
        ("filename*=UTF-8'en'%C3%A9", "é"),
        ("filename*=iso-8859-1''%E9", "é"),
        # What can't be decoded, or is part of something else, is as it was sent.
        ('filename="=?utf-8?B?!!!!?="', "=?utf-8?B?!!!!?="),
        ('filename="=?utf-8?B?/w==?="', "=?utf-8?B?/w==?="),
        ('filename="=?utf-7?Q?a?="', "=?utf-7?Q?a?="),
        ('filename="a =?utf-8?B?w6k=?="', "a =?utf-8?B?w6k=?="),
        ('filename="=?utf-8?B?w6k=?= =?iso-8859-1?Q?=E9?="', "=?utf-8?B?w6k=?= =?iso-8859-1?Q?=E9?="),
        ("filename=\"a\"; filename*=utf-8''%FF", "a"),
        ("filename=\"a\"; filename*=utf-7''b", "a"),
        ("filename=\"a; filename*=utf-8''b\"", "a; filename*=utf-8''b"),
        ('filename="a \\"; filename*=utf-8\'\'b"', "a \"; filename*=utf-8''b"),
    ],
)
def test_an_encoded_name(posted: Posted, sent: str, name: str) -> None:
    """A name in RFC 2047's words or as RFC 8187's parameter is decoded; what can't be is the name as it was sent."""
    reply = posted.post(field("key", posted.uploader.api_key), part(sent))
    assert (reply["error"], reply["data"]["name"]) == (None, name)


def upload(posted: Posted, boundary: str, file: bytes) -> str:
    """Return the name that a file is stored under, which is sent in a form with a boundary."""
    parts = (field("key", posted.uploader.api_key), file)
    body = b"".join(b"--%b\r\n%b\r\n" % (boundary.encode(), each) for each in parts) + f"--{boundary}--\r\n".encode()
    answer = posted.answer(body, f"Content-Type: multipart/form-data; boundary={boundary}\r\n")
    name: str = answer.json["data"]["name"]
    return name


HEX: Final = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("boundary", "type_first", "sent", "name"),
    [
        (HEX, True, "sp%20ace.txt", "sp ace.txt"),
        (HEX, True, "%C3%A9%2520.txt", "é%20.txt"),
        (HEX, False, "sp%20ace.txt", "sp%20ace.txt"),  # requests, httpx
        ("dart-http-boundary-x", True, "sp%20ace.txt", "sp%20ace.txt"),
        (HEX, True, "sp%20ace!.txt", "sp%20ace!.txt"),
        (HEX, True, "sp%2fa.txt", "sp%2fa.txt"),
        (HEX, True, "%FF.txt", "%FF.txt"),
        (HEX, True, "100%.txt", "100%.txt"),
    ],
)
def test_a_name_as_aiohttp_sends_it(posted: Posted, boundary: str, type_first: bool, sent: str, name: str) -> None:
    """Percent signs are undone only where all marks of aiohttp's forms are there, and all of the name is encoded."""
    assert upload(posted, boundary, part(f'filename="{sent}"', type_first=type_first)) == name


def _aiohttp(posted: Posted, name: str, *, quote_fields: bool = True) -> Any:
    aiohttp = pytest.importorskip("aiohttp")

    async def work() -> Any:
        form = aiohttp.FormData(quote_fields=quote_fields)
        form.add_field("key", posted.uploader.api_key)
        form.add_field("file", b"data", filename=name)
        async with aiohttp.ClientSession() as session, session.post(posted.address + UPLOAD, data=form) as reply:
            return await reply.json()

    return asyncio.run(work())


def _httpx(posted: Posted, name: str) -> Any:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(trust_env=False) as client:
        files = {"file": (name, b"data")}
        return client.post(posted.address + UPLOAD, data={"key": posted.uploader.api_key}, files=files).json()


def _requests(posted: Posted, name: str) -> Any:
    data, files = {"key": posted.uploader.api_key}, {"file": (name, b"data")}
    return requests.post(posted.address + UPLOAD, data=data, files=files, timeout=PATIENCE).json()


def _curl(posted: Posted, name: str) -> Any:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    fields = ["-F", f"key={posted.uploader.api_key}", "-F", f'file=@-;filename="{escaped}"']
    command = ["curl", "--silent", "--fail", *fields, posted.address + UPLOAD]
    return json.loads(subprocess.run(command, input=b"data", capture_output=True, check=True).stdout)


def _own(posted: Posted, name: str) -> Any:
    with cm.open(posted.address.replace("//", f"//{posted.uploader.api_key}@")) as store:
        return {"data": {"name": store.upload(b"data", name).name}}


CLIENTS: Final[dict[str, Callable[[Posted, str], Any]]] = {
    "aiohttp": _aiohttp,
    "aiohttp, unquoted": lambda posted, name: _aiohttp(posted, name, quote_fields=False),
    "httpx": _httpx,
    "requests": _requests,
    "curl": _curl,
    "this package": _own,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_name_of_a_real_client(posted: Posted, client: str) -> None:
    """Whichever client uploads a file, it is stored under the name that the client's user gave."""
    if client == "curl" and which("curl") is None:
        pytest.skip("needs curl: apt-get install curl")
    # Without its quoting aiohttp sends this one as it sends "100 .txt" with it.
    names = [name for name in NAMES if (client, name) != ("aiohttp, unquoted", "100%20.txt")]
    assert [CLIENTS[client](posted, name)["data"]["name"] for name in names] == names


def test_a_name_that_looks_encoded(posted: Posted) -> None:
    """A name that looks like an encoded one is stored as it is where this package's own client uploads it."""
    name = "=?utf-8?B?w6k=?="
    assert _own(posted, name)["data"]["name"] == name
