"""A service with a certificate speaks https, and one that can't be used is one line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from tests.serving import serving, told
from tests.support.command_line import CliRunner

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the program openssl")


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
    """With a certificate the address is https, a client that trusts it works, and plain http isn't answered."""
    tls = ["--tls-cert", str(files / "cert.pem"), "--tls-key", str(files / "key.pem"), "--workers", workers]
    with serving("--json", "--store", str(tmp_path / "service.db"), *tls) as process:
        first = told(process)
        assert first["address"].startswith("https://127.0.0.1:")
        assert first["dashboard"].startswith(first["address"])
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files / "cert.pem"))
        location = first["address"].replace("://", f"://{first['api_key']}@")
        with cm.open(location) as store:
            store["key"] = "x" * 100_000
            assert store["key"] == "x" * 100_000
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{first['address'].replace('https', 'http')}/health", timeout=20)
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{first['address']}/health", timeout=20)


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
