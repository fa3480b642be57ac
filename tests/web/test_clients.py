"""HTTP clients that people use, against `cloudstore serve`: each one's every operation, from a program of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from playwright.sync_api import Browser

from tests.browser import chromium, needs_chromium
from tests.serving import serving, told

__all__ = ["chromium"]  # a fixture, defined beside

PROGRAMS: Final = Path(__file__).parent.parent / "clients"
NAME: Final = "sp ace é.txt"
MEDIA: Final = "some media" * 20_000

#: The requests on data files in their order: path and fields.
REQUESTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "save": ("/store/save", {"file": "list", "value": {"Apples": 8}}),
    "merge": ("/store/save", {"file": "list", "options": "merge", "value": {"Oranges": 10}}),
    "load": ("/store/load", {"file": "list"}),
    "list": ("/store/load", {"file": "", "options": "list"}),
    "large": ("/store/save", {"file": "large", "value": "x" * 200_000}),
    "delete": ("/store/save", {"file": "list", "options": "delete", "value": None}),
    "absent": ("/store/load", {"file": "list"}),
}


class Served(NamedTuple):
    """Where a service answers, and to which key."""

    address: str
    key: str


class Answer(NamedTuple):
    """What an operation was answered."""

    status: int
    body: str

    @property
    def reply(self) -> Any:
        """What the body says."""
        return json.loads(self.body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a service that all clients share; each leaves one data file and one media file."""
    with serving("--json", "--store", str(tmp_path_factory.mktemp("store") / "service.db")) as process:
        facts = told(process)
        yield Served(facts["address"], facts["api_key"])


def needed(program: str, package: str) -> str:
    """Return the path of a program; skip the test on a machine without it."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}: apt-get install {package}")
    return found


def printed(*command: str, **environment: str) -> dict[str, Answer]:
    """Return the answers that a program prints."""
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return answers(done.stdout.splitlines())


def answers(lines: list[str]) -> dict[str, Answer]:
    """Return what lines of an operation, a status and a body say."""
    parts = [line.split(" ", 2) for line in lines]
    return {operation: Answer(int(status), body) for operation, status, body in parts}


def check(got: dict[str, Answer]) -> None:
    """Check that each operation was answered as the protocol says."""
    with suppress(ValueError):  # where one went wrong, all are worth seeing
        assert {name: answer.reply["error"] for name, answer in got.items() if name not in {"download", "part"}} == {
            **dict.fromkeys(REQUESTS),
            "absent": "NoFile",
            "upload": None,
        }
    assert {name: answer.status for name, answer in got.items()} == {
        **dict.fromkeys([*REQUESTS, "upload", "download"], 200),
        "part": 206,
    }
    assert got["save"].reply["message"] == got["merge"].reply["message"] == "Entry saved"
    assert got["load"].reply["message"] == {"Apples": 8, "Oranges": 10}
    assert "list" in got["list"].reply["data"]
    assert got["delete"].reply["message"] == "Entry deleted"
    facts = got["upload"].reply["data"]
    assert (facts["name"], facts["mimetype"], facts["size"]) == (NAME, "text/plain", len(MEDIA))
    assert (got["download"].body, got["part"].body) == (MEDIA, "media")


def curl(server: Served, *options: str) -> dict[str, Answer]:
    """Return the answers to curl, a process for each request."""
    program = needed("curl", "curl")

    def run(path: str, *arguments: str, data: str = "") -> Answer:
        command = [program, "--silent", "--show-error", "--write-out", " %{http_code}", *options, *arguments]
        done = subprocess.run(
            [*command, server.address + path], input=data, capture_output=True, encoding="utf-8", check=True
        )
        body, _, status = done.stdout.rpartition(" ")
        return Answer(int(status), body)

    got = {}
    for operation, (path, fields) in REQUESTS.items():
        body = json.dumps({"key": server.key, **fields})
        got[operation] = run(path, "-H", "Content-Type: application/json", "--data-binary", "@-", data=body)
    file = f'file=@-;filename="{NAME}";type=text/plain'
    got["upload"] = run("/upload-2", "-F", f"key={server.key}", "-F", file, data=MEDIA)
    link = link_of(got["upload"])
    return {**got, "download": run(link), "part": run(link, "--range", "-5")}


def link_of(upload: Answer) -> str:
    """Return where an uploaded file is."""
    facts = upload.reply["data"]
    return f"/files/{facts['folder']}/{facts['id']}.txt"


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
def test_curl(server: Served, version: str) -> None:
    """Every operation works by curl, in each version of HTTP that it speaks without TLS."""
    check(curl(server, version))


@pytest.mark.parametrize("version", [[], ["HTTP_1_1"]], ids=["as it is", "HTTP/1.1"])
@pytest.mark.slow
def test_java(server: Served, version: list[str]) -> None:
    """Every operation works by Java's HttpClient, which by itself asks to upgrade to HTTP/2."""
    java = needed("java", "default-jdk-headless")
    check(
        printed(
            java, "-Dfile.encoding=UTF-8", str(PROGRAMS / "Client.java"), server.address, server.key, NAME, *version
        )
    )


@pytest.mark.slow
def test_go(server: Served, tmp_path: Path) -> None:
    """Every operation works by Go's net/http, whose forms give no file a type."""
    go = needed("go", "golang-go")
    settings = {"GOCACHE": str(tmp_path), "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    check(printed(go, "run", str(PROGRAMS / "client.go"), server.address, server.key, NAME, **settings))


@pytest.mark.slow
def test_node(server: Served) -> None:
    """Every operation works by Node's fetch."""
    node = needed("node", "nodejs")
    source = (PROGRAMS / "client.js").read_text("utf-8").strip().removesuffix(";")
    source = re.sub(r"^//.*\n", "", source, flags=re.MULTILINE)
    program = f"({source})(process.argv.slice(1)).then(lines => console.log(lines.join('\\n')))"
    check(printed(node, "-e", program, server.address, server.key, NAME))


@needs_chromium
@pytest.mark.slow
def test_chromium(server: Served, chromium: Browser) -> None:
    """Every operation works by Chromium's fetch, on a page of no origin."""
    page = chromium.new_page()
    source = re.sub(r"^//.*\n", "", (PROGRAMS / "client.js").read_text("utf-8"), flags=re.MULTILINE)
    check(answers(page.evaluate(source.strip().removesuffix(";"), [server.address, server.key, NAME])))
    page.close()


@pytest.mark.slow
def test_aiohttp(server: Served) -> None:
    """Every operation works by aiohttp."""
    aiohttp = pytest.importorskip("aiohttp")

    async def work() -> dict[str, Answer]:
        async with aiohttp.ClientSession() as session:

            async def send(method: str, path: str, **options: Any) -> Answer:
                async with session.request(method, server.address + path, **options) as reply:
                    return Answer(reply.status, await reply.text())

            got = {
                operation: await send("POST", path, json={"key": server.key, **fields})
                for operation, (path, fields) in REQUESTS.items()
            }
            form = aiohttp.FormData({"key": server.key})
            form.add_field("file", MEDIA.encode(), filename=NAME, content_type="text/plain")
            got["upload"] = await send("POST", "/upload-2", data=form)
            link = link_of(got["upload"])
            part = await send("GET", link, headers={"Range": "bytes=-5"})
            return {**got, "download": await send("GET", link), "part": part}

    with ThreadPoolExecutor(1) as thread:  # this one may have Playwright's loop
        check(thread.submit(lambda: asyncio.run(work())).result())


@pytest.mark.slow
def test_httpx(server: Served) -> None:
    """Every operation works by httpx."""
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=server.address, trust_env=False) as client:

        def send(method: str, path: str, **options: Any) -> Answer:
            reply = client.request(method, path, **options)
            return Answer(reply.status_code, reply.text)

        got = {
            operation: send("POST", path, json={"key": server.key, **fields})
            for operation, (path, fields) in REQUESTS.items()
        }
        file = {"file": (NAME, MEDIA.encode(), "text/plain")}
        got["upload"] = send("POST", "/upload-2", data={"key": server.key}, files=file)
        link = link_of(got["upload"])
        part = send("GET", link, headers={"Range": "bytes=-5"})
        check({**got, "download": send("GET", link), "part": part})
