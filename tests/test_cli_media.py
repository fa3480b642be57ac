"""The commands on media files do what they say, on a file and through a service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.command_line import CliRunner, Result
from tests.test_cli_terminal import on_terminal

PNG = b"\x89PNG\r\n\x1a\n\0\xff"


class Run(Protocol):
    """Runs a command on the store."""

    def __call__(self, command: str, *arguments: str, stdin: bytes = b"") -> Result:
        """Run it."""


@pytest.fixture(params=["embedded", "service"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where an empty store is."""
    if request.param == "embedded":
        cm.open(tmp_path / "store.db").close()
        yield str(tmp_path / "store.db")
        return
    with Service(new_storage(tmp_path / "service.db")) as service, background(service) as address:
        yield address.replace("://", f"://{service.accounts.create('tests')}@")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder to work in, with a picture in it."""
    monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    (work / "jazz3.png").write_bytes(PNG)
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def run(location: str, folder: Path) -> Run:
    """Run a command on the store."""

    def run(command: str, *arguments: str, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(app, [command, "--at", location, *arguments], input=stdin)

    return run


def fails(result: Result, status: int, *, beginning: str = "cloudstore: ") -> str:
    """Check that a command ended with this status and one line on stderr, and return that."""
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert result.stderr.startswith(beginning)
    return result.stderr


def test_there_and_back(run: Run, folder: Path) -> None:
    """`upload` prints a link, with which `download` writes the file again, under its name, and prints where."""
    uploaded = run("upload", "jazz3.png")
    assert (uploaded.exit_code, uploaded.stderr) == (0, "")
    link = uploaded.stdout.removesuffix("\n")
    assert link.endswith(".png")
    (folder / "jazz3.png").unlink()
    downloaded = run("download", link)
    assert (downloaded.exit_code, downloaded.output) == (0, "jazz3.png\n")
    assert (folder / "jazz3.png").read_bytes() == PNG
    assert len(list(folder.iterdir())) == 1


def test_for_a_program(run: Run, location: str, folder: Path) -> None:
    """With --json `upload` prints the file's facts on one line, and `download` where it is, of what size."""
    facts = json.loads(run("upload", "jazz3.png", "--as", "a b.bin", "--type", "x/y", "--json").stdout)
    assert list(facts) == ["name", "folder", "id", "mimetype", "size", "url"]
    assert (facts["name"], facts["mimetype"], facts["size"]) == ("a b.bin", "x/y", len(PNG))
    with cm.open(location) as store:
        assert store.download(cm.Media(**facts)) == PNG
    result = run("download", facts["url"], "--json", "--to", str(folder))
    assert json.loads(result.stdout) == {"file": str(folder / "a b.bin"), "size": len(PNG)}


def test_pipes(run: Run) -> None:
    """A FILE of - is standard input, which has no name of its own; --to - is standard output, with nothing else."""
    assert "--as" in fails(run("upload", "-", stdin=PNG), 2)
    link = run("upload", "-", "--as", "a.png", stdin=PNG).stdout.strip()
    assert run("download", link, "--to", "-").stdout_bytes == PNG


def test_nothing_is_overwritten(run: Run, folder: Path) -> None:
    """A file that is there stays, by whichever name it is meant, unless --force is said."""
    link = run("upload", "-", "--as", "jazz3.png", stdin=b"new").stdout.strip()
    for arguments in ([], ["--to", "jazz3.png"], ["--to", "."]):
        assert "--force" in fails(run("download", link, *arguments), 2)
    assert (folder / "jazz3.png").read_bytes() == PNG
    assert run("download", link, "--force").exit_code == 0
    assert (folder / "jazz3.png").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "written"),
    [("../../evil.png", "evil.png"), ("/etc/..", "download"), (".bashrc", "bashrc"), ("a\n\x1b[31m.png", "a[31m.png")],
)
def test_names_do_no_harm(run: Run, folder: Path, name: str, written: str) -> None:
    """Whatever a file is called at the service, it is written into this folder, visibly."""
    link = run("upload", "jazz3.png", "--as", name).stdout.strip()
    assert run("download", link).stdout == f"{written}\n"
    assert {path.name for path in folder.iterdir()} == {"jazz3.png", written}


@pytest.mark.parametrize("arguments", [["absent.png"], ["."], [""], ["jazz3.png/x"], [".", "--as", "a"]])
def test_files_that_can_not_be_read(run: Run, arguments: list[str]) -> None:
    """A FILE that can't be read is exit status 2 and a line that says so."""
    fails(run("upload", *arguments), 2)


def test_places_that_can_not_be_written(run: Run, folder: Path) -> None:
    """A place that can't be written is exit status 2, and nothing is left there."""
    link = run("upload", "jazz3.png").stdout.strip()
    assert "No such file or directory" in fails(run("download", link, "--to", "absent/a.png"), 2)
    assert [path.name for path in folder.iterdir()] == ["jazz3.png"]


def test_links_that_lead_nowhere(run: Run, folder: Path) -> None:
    """A link of no file is exit status 1, of another service than --at names 2, and nothing is written."""
    link = f"/files/{'0' * 32}/{'0' * 32}.png"
    assert "no media file" in fails(run("download", link), 1)
    assert "begin with" in fails(run("download", f"https://example.org{link}"), 2)
    assert "begin with" in fails(run("download", f"https://example.org{link}", "--to", "-"), 2)
    assert "begin with" in fails(run("download", "jazz3.png", "--force"), 2)
    assert (folder / "jazz3.png").read_bytes() == PNG


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[tuple[Service, str, str]]:
    """Return a service, its address with the key, and the link of a picture."""
    with Service(new_storage(tmp_path / "service.db")) as service, background(service) as address:
        location = address.replace("://", f"://{service.accounts.create('tests')}@")
        with cm.open(location) as store:
            yield service, location, store.upload(folder / "jazz3.png", "a.png").url


def test_a_link_needs_no_key(served: tuple[Service, str, str], folder: Path) -> None:
    """An address is enough to get its file: no store has to be named, and none is made."""
    assert CliRunner().invoke(app, ["download", served[2]]).output == "a.png\n"
    assert {path.name for path in folder.iterdir()} == {"a.png", "jazz3.png"}


def test_plain_http_to_another_machine() -> None:
    """A link of plain http to another machine needs --insecure, and one with a key in it is not used, nor shown."""
    link = f"/files/{'0' * 32}/{'0' * 32}.png"
    assert "--insecure" in fails(CliRunner().invoke(app, ["download", f"http://example.org{link}"]), 2)
    assert "SECRET" not in fails(CliRunner().invoke(app, ["download", f"https://SECRET@example.org{link}"]), 2)


def test_passwords(served: tuple[Service, str, str]) -> None:
    """A file with an edit password is replaced by who gives it; before a FILE of - it is the first line."""
    service, location, link = served
    account = service.accounts.named("tests")
    service.media.set_password(account, service.media.named(account, "a.png").id, "édit")
    upload = ["upload", "-", "--as", "a.png", "--at", location]
    fails(CliRunner().invoke(app, upload, input=b"new"), 1)
    wrong = CliRunner().invoke(app, [*upload, "--password", "--json"], input=b"open-sesame\nnew")
    assert (wrong.exit_code, json.loads(wrong.stderr)["error"]) == (1, "LockedError")
    assert "open-sesame" not in wrong.output
    assert CliRunner().invoke(app, [*upload, "--password"], input="édit\nnew\n").stdout == f"{link}\n"
    assert CliRunner().invoke(app, ["download", link, "--to", "-"]).stdout_bytes == b"new\n"


def test_a_limit(served: tuple[Service, str, str]) -> None:
    """What the account may not is exit status 1 and a line that says so."""
    service, location, link = served
    service.accounts.set_limits("tests", max_daily_accesses=1, max_media_bytes=2)
    assert CliRunner().invoke(app, ["download", link]).exit_code == 0
    fails(CliRunner().invoke(app, ["download", link, "--to", "-"]), 1)
    fails(CliRunner().invoke(app, ["upload", "jazz3.png", "--at", location]), 1)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and pseudo-terminals are POSIX's")
def test_real_pipes(served: tuple[Service, str, str], tmp_path: Path) -> None:
    """Between programs the bytes pass as they are, and a file that is added to keeps what it had."""
    _, location, _ = served
    command = [sys.executable, "-m", "cloudstore_mapping"]
    environment = {**os.environ, "CLOUDSTORE_URL": location}
    data = os.urandom(2**20)
    link = subprocess.run(
        [*command, "upload", "-", "--as", "a"], input=data, env=environment, stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    with (tmp_path / "out").open("wb") as out:
        out.write(b"before")
    with (tmp_path / "out").open("ab") as out:
        subprocess.run([*command, "download", link.strip(), "--to", "-"], stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == b"before" + data


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX's")
def test_a_bar_on_a_terminal(served: tuple[Service, str, str], folder: Path) -> None:
    """On a terminal a bar shows how far it is, and is gone in the end; in a pipe there is none."""
    _, location, link = served
    for arguments in (["upload", "jazz3.png", "--at", location], ["download", link, "--force"]):
        status, shown = on_terminal(*arguments)
        assert (status, "100%" in shown) == (0, True)
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, result.stderr) == (0, "")
