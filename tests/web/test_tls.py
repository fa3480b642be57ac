"""TLS: a service with a certificate speaks https and pins browsers to it; one without warns of plain http."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.web.http import HSTS, Message, Receive, Scope, Send
from cloudstore_mapping.web.metrics import InstrumentedApp, Metrics, new_rows
from cloudstore_mapping.web.options import Options, warn_of_plain_http
from cloudstore_mapping.web.workers import MAX_STILLBORN
from tests.serving import serving, told
from tests.support.command_line import CliRunner
from tests.web.test_workers import AT_ONCE, children, number

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the program openssl")

PLAIN = "The service speaks HTTPS here; write https:// in its address."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for 127.0.0.1 and its key, another key, and the key with a passphrase."""
    folder = tmp_path_factory.mktemp("tls")
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    name = "-addext subjectAltName=IP:127.0.0.1"
    for command in (
        f"{new} {name} -keyout key.pem -out cert.pem",
        f"{new} -keyout other.pem -out other-cert.pem",
        "openssl ec -aes256 -passout pass:secret -in key.pem -out locked.pem",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    (folder / "text.pem").write_text("This is no certificate.")
    return folder


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.slow
def test_https(files: Path, tmp_path: Path, workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a certificate the address is https, a client that trusts it works, and plain http is told to say https."""
    tls = ["--tls-cert", str(files / "cert.pem"), "--tls-key", str(files / "key.pem"), "--workers", workers]
    log: list[str] = []
    with serving("--json", "--store", str(tmp_path / "service.db"), *tls, log=log) as process:
        first = told(process)
        assert first["address"].startswith("https://127.0.0.1:")
        assert first["dashboard"].startswith(first["address"])
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files / "cert.pem"))
        location = first["address"].replace("://", f"://{first['api_key']}@")
        with cm.open(location) as store:
            store["key"] = "x" * 100_000
            assert store["key"] == "x" * 100_000
        for answer in (
            requests.get(f"{first['address']}/health", timeout=20),
            requests.get(first["dashboard"], timeout=20),
            requests.post(f"{first['address']}/store/load", json={"key": first["api_key"], "file": "key"}, timeout=20),
        ):
            assert (answer.status_code, answer.headers["Strict-Transport-Security"]) == (200, "max-age=31536000")
        plain = requests.get(f"{first['address'].replace('https', 'http')}/health", timeout=20)
        assert (plain.status_code, plain.json()["message"]) == (400, PLAIN)
        with (
            pytest.raises(cm.CloudStoreError, match=PLAIN),
            cm.open(location.replace("https", "http"), insecure=True, retries=0) as store,
        ):
            store["key"] = 1
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{first['address']}/health", timeout=20)
    assert 1 <= len([line for line in log if "refused: It sent plain HTTP, and here is TLS." in line]) <= int(workers)
    assert [line for line in log if "refused" not in line] == []


@pytest.mark.parametrize(
    ("scheme", "host", "is_pinned"),
    [
        ("https", "cloud.example.com", True),
        ("https", "127.0.0.1:8787", True),
        ("http", "cloud.example.com", False),
        ("https", "localhost:8787", False),
        ("https", "Shop.LocalHost", False),
        ("https", "localhost.example.com", True),
    ],
)
def test_hsts(scheme: str, host: str, is_pinned: bool) -> None:
    """Over https replies tell browsers to stay with it, but for localhost, whose other ports may speak http."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": ((b"a", b"b"),)})

    async def receive() -> Message:
        raise NotImplementedError

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "scheme": scheme, "path": "/", "client": None}
    scope["headers"] = [(b"host", host.encode())]
    observed = InstrumentedApp(app, Metrics(new_rows(1)), "", lambda: 0, logs=False)
    asyncio.run(observed(scope, receive, send))
    assert dict(sent[0]["headers"]) == {b"a": b"b"} | (dict([HSTS]) if is_pinned else {})


@pytest.mark.parametrize(
    ("options", "is_plain"),
    [
        (Options(host="0.0.0.0"), True),
        (Options(host="::"), True),
        (Options(host="192.0.2.1"), True),
        (Options(host="cloud.example.com"), True),
        (Options(), False),
        (Options(host="::1"), False),
        (Options(host="localhost"), False),
        (Options(host="0.0.0.0", tls_cert="cert.pem", tls_key="key.pem"), False),
        (Options(host="0.0.0.0", trusted_proxies="10.0.0.0/8"), False),
    ],
)
def test_plain_http(options: Options, is_plain: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A service that other machines reach by plain http warns of it at its start, and says what to do."""
    warn_of_plain_http(options)
    assert len(caplog.records) == is_plain
    for record in caplog.records:
        assert f"plain http on {options.host}: " in record.getMessage()
        assert "--tls-cert" in record.getMessage()


@pytest.mark.parametrize(
    ("cert", "key", "says"),
    [
        ("cert.pem", None, "both --tls-cert and --tls-key"),
        (None, "key.pem", "both --tls-cert and --tls-key"),
        ("absent.pem", "key.pem", "absent.pem can't be read (No such file"),
        ("cert.pem", "absent.pem", "absent.pem can't be read (No such file"),
        ("cert.pem", "other.pem", "is not the key of the certificate"),
        ("text.pem", "key.pem", "no certificate and key"),
        ("cert.pem", "text.pem", "no certificate and key"),
        ("cert.pem", "locked.pem", "locked.pem has a passphrase"),
    ],
)
def test_a_certificate_that_can_not_be_used(
    files: Path, tmp_path: Path, cert: str | None, key: str | None, says: str
) -> None:
    """A certificate or key that is missing, no PEM, another's or locked is exit status 2 and one line."""
    arguments = ["--tls-cert", str(files / cert)] if cert else []
    arguments += ["--tls-key", str(files / key)] if key else []
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--store", str(tmp_path / "service.db"), *arguments])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_certificate_that_is_replaced_by_halves(tmp_path: Path, files: Path) -> None:
    """A process that meets a certificate without its key names both files, and is started again until they fit."""
    for name in ("cert.pem", "key.pem"):
        shutil.copy(files / name, tmp_path)
    tls = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    command = [sys.executable, "-c", AT_ONCE, "serve", "--port", "0", "--workers", "2", "--json", *tls]
    with Popen([*command, "--store", str(tmp_path / "s.db")], stdout=PIPE, stderr=PIPE, text=True) as process:
        try:
            address = told(process)["address"]
            shutil.copy(files / "other.pem", tmp_path / "key.pem")
            os.kill(min(children(process)), signal.SIGKILL)
            assert process.stderr is not None
            log = [process.stderr.readline() for _ in range(2 * MAX_STILLBORN)]
            assert all(f"{tmp_path / 'key.pem'} is not the key of the certificate" in line for line in log[1:])
            shutil.copy(files / "key.pem", tmp_path / "key.pem")
            verify = str(files / "cert.pem")
            text = ""
            while not text or number(text, "cloudstore_worker_starts_total") < 3:
                text = requests.get(f"{address}/metrics", verify=verify, timeout=20).text
        finally:
            process.terminate()
            process.communicate()
    assert process.returncode == 0
