"""The command doctor prints a report for a bug report, and leaves no file behind, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudstore_mapping import doctor
from cloudstore_mapping.cli import app
from cloudstore_mapping.doctor import CHECKS
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.service_fakes import PATIENCE
from tests.storages import new_storage
from tests.support.command_line import CliRunner, Result
from tests.vendor import Fault, Recorded, Vendor

API_KEY = "Sup3rS3cretSup3rS3cret"


@pytest.fixture
def vendor(vendor: Vendor) -> Vendor:
    """Return a vendor's service that knows one API key."""
    vendor.checks_keys = True
    return vendor


@pytest.fixture
def ours() -> Iterator[str]:
    """The address of a service of ours, with its API key."""
    with Service(new_storage()) as service, background(service) as address:
        yield address.replace("://", f"://{service.accounts.create('owner', API_KEY)}@")


def theirs(vendor: Vendor, api_key: str = Vendor.api_key) -> str:
    """Return the address of a vendor's service, with an API key."""
    return vendor.address.replace("://", f"://{api_key}@")


def run(*arguments: str, **environment: str) -> Result:
    """Run the command, with these variables."""
    return CliRunner().invoke(app, ["doctor", *arguments], env={"CLOUDSTORE_URL": "", **environment})


def test_our_service(ours: str) -> None:
    """On our service the report says that nothing is different; the exit status is 0, and stderr is empty."""
    result = run(ours)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "59 as expected, 0 different, 9 not tested"
    assert f"server:     {ours.replace(f'{API_KEY}@', '')}\n" in result.stdout
    assert API_KEY not in result.output


def test_the_address_of_the_environment(ours: str) -> None:
    """Without a location it is that of CLOUDSTORE_URL."""
    assert run(CLOUDSTORE_URL=ours).exit_code == 0


def test_a_difference(vendor: Vendor) -> None:
    """A difference is exit status 1, and the report names it with its consequence."""
    vendor.merges_whole_values = True
    result = run(theirs(vendor))
    assert (result.exit_code, result.stderr, vendor.files) == (1, "", {})
    assert "\nmerge: DIFFERENT\n  assumed: " in result.stdout
    assert re.search(r"merge: DIFFERENT\n(  .*\n)+  consequence: store |=", result.stdout)
    assert "\nmerge-objects: not tested\n" in result.stdout
    assert ", 1 different, " in result.stdout.splitlines()[-1]
    assert vendor.api_key not in result.output


def test_a_report_for_programs(vendor: Vendor) -> None:
    """With --json the report is one object on one line; its checks are those of the text."""
    vendor.refuses_commas = True
    result = run(theirs(vendor), "--json")
    assert (result.exit_code, result.stderr, result.stdout.count("\n")) == (1, "", 1)
    told = json.loads(result.stdout)
    assert [check["check"] for check in told["checks"]] == list(CHECKS)
    assert [check["check"] for check in told["checks"] if check["outcome"] == "different"] == ["comma"]
    assert (told["counts"]["different"], told["left"], told["failure"]) == (1, [], None)


def test_media_and_files(vendor: Vendor) -> None:
    """--media tests uploads, and tells how to delete the file, which is no error; --files saves more files."""
    result = run(theirs(vendor), "--media", "--files", "3")
    assert (result.exit_code, result.stderr, vendor.files) == (0, "", {})
    (name,) = vendor.media
    assert (
        f'Left behind: media file "{name}"\n  Delete it in the dashboard, {vendor.address}/admin.html.' in result.stdout
    )
    assert "3 files were saved, none refused" in result.stdout


@pytest.mark.parametrize("location", ["memory:", "store.db", "sqlite:///store.db", None])
def test_no_service(location: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a store in memory, or no location at all is exit status 2, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    result = run(*([] if location is None else [location]))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "give an address such as https://…@host/path, or set CLOUDSTORE_URL" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [f"http://{API_KEY}@example.com/cloudstore"],
        ["https://example.com/cloudstore"],
        [f"{API_KEY}@example.com/cloudstore"],
        [f"https://{API_KEY}@example.com/cloudstore", "--interval", "nan"],
        [f"https://{API_KEY}@example.com/cloudstore", "--interval", "-1"],
        [f"https://{API_KEY}@example.com/cloudstore", "--files", "-1"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    """A location or option that can't be is exit status 2 and one line without the API key."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert API_KEY not in result.stderr


def test_a_wrong_key(ours: str) -> None:
    """A wrong API key is exit status 1 and the usual error, without the key."""
    result = run(ours.replace(API_KEY, f"not{API_KEY}"))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "API key" in result.stderr
    assert API_KEY not in result.stderr


def test_a_service_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that isn't reached is exit status 3 and one line."""
    monkeypatch.setattr(doctor, "_TRIES", 1)
    result = run(f"http://{API_KEY}@127.0.0.1:1/cloudstore")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert "was not reached" in result.stderr


def test_a_service_that_goes_away(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that goes away is exit status 3, and the report names the files that may be left."""
    monkeypatch.setattr(doctor, "_TRIES", 1)
    answer = vendor.answer

    def answer_some(request: Recorded) -> object:
        if len(vendor.requests) == 20:
            vendor.faults.extend([Fault(drop="before")] * 100)
        return answer(request)

    monkeypatch.setattr(vendor, "answer", answer_some)
    result = run(theirs(vendor))
    assert (result.exit_code, result.stderr) == (3, "")
    assert "\nNot all was tested: " in result.stdout
    (name,) = vendor.files
    assert f'Left behind: "{name}"\n' in result.stdout
    assert f"or: cloudstore rm -- {name}\n" in result.stdout


@pytest.mark.parametrize(
    ("number", "status", "at"),
    [
        (signal.SIGINT, 130, 40),
        (signal.SIGTERM, 143, 40),
        pytest.param(signal.SIGHUP, 129, 40, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 95, marks=pytest.mark.slow),
    ],
)
def test_a_signal(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, number: int, status: int, at: int) -> None:
    """Ctrl-C, SIGTERM or a closed terminal ends the command, which deletes its files and prints what it found."""
    answer = vendor.answer
    command: list[subprocess.Popen[str]] = []

    def answer_and_signal(request: Recorded) -> object:
        if len(vendor.requests) == at:
            command[0].send_signal(number)
        return answer(request)

    monkeypatch.setattr(vendor, "answer", answer_and_signal)
    vendor.files = {"mine": 1}
    with vendor.lock:  # no request is answered before the process is known here
        command.append(
            subprocess.Popen(
                [sys.executable, "-m", "cloudstore_mapping", "doctor"],
                env={**os.environ, "CLOUDSTORE_URL": theirs(vendor)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # Whoever runs the tests in the background may have them ignored, which a process takes from its parent.
                preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
            )
        )
    output, errors = command[0].communicate(timeout=PATIENCE)
    assert (command[0].returncode, errors) == (status, "")
    assert "\nsave: as expected\n" in output
    assert "\nNot all was tested: it was interrupted.\n" in output
    assert vendor.api_key not in output
    assert (vendor.files, len(vendor.requests) > at) == ({"mine": 1}, True)


def test_the_announcement_on_a_terminal(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the number of requests, and the minutes that they take, are told before the first."""
    from cloudstore_mapping.cli import doctor as command

    told: list[str] = []

    class Terminal:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            assert told or vendor.requests == []
            told.append(text)

        def flush(self) -> None:
            """Do nothing."""

    examination = doctor.Doctor(vendor.api_key, vendor.address, interval=0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    command.examine(examination)
    assert told[0] == "About 105 requests.\n"
    monkeypatch.setattr(type(examination), "expected_seconds", 301.0)
    told.clear()
    vendor.requests.clear()
    command.examine(doctor.Doctor(vendor.api_key, vendor.address))
    assert told[0] == "About 105 requests, 6 minutes.\n"


@pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX closes standard output")
def test_a_closed_output(vendor: Vendor) -> None:
    """Where nobody can read the report, no request is sent; the exit status is 2."""
    command = f"{sys.executable} -m cloudstore_mapping doctor >&-"
    environment = {**os.environ, "CLOUDSTORE_URL": theirs(vendor)}
    done = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr.count("\n"), vendor.requests) == (2, 1, [])


def test_a_second_signal(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second SIGTERM ends the deleting, and one line names the files that may be left, without the API key."""
    answer = vendor.answer

    def answer_and_exit(request: Recorded) -> object:
        done = answer(request)
        if len(vendor.requests) in (40, 42):
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(vendor, "answer", answer_and_exit)
    result = run(theirs(vendor))
    assert (result.exit_code, result.stderr.count("\n")) == (143, 1)
    assert "\nNot all was tested: it was interrupted.\n" in result.stdout
    assert "These files of the doctor may still be there: " in result.stderr
    assert vendor.files
    assert all(json.dumps(name, ensure_ascii=False) in result.stderr for name in vendor.files)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
