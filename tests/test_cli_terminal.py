"""On a terminal: JSON is indented, control characters are escapes, passwords aren't shown, Ctrl-C is quiet."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cloudstore_mapping as cm

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX's")

COMMAND = [sys.executable, "-m", "cloudstore_mapping"]


def on_terminal(*arguments: str, answers: dict[bytes, bytes] | None = None) -> tuple[int, str]:
    """Run the command on a terminal; type each answer once its question is there; return status and what was shown."""
    waiting = dict(answers or {})
    ours, theirs = os.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env={**environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while piece := os.read(ours, 65536):
                shown += piece
                for question in [question for question in waiting if question in shown]:
                    os.write(ours, waiting.pop(question))
    os.close(ours)
    return process.returncode, shown.decode(errors="replace").replace("\r\n", "\n")


def test_a_terminal_gets_indented_json(tmp_path: Path) -> None:
    """`get` indents on a terminal, with --json not even there, and shows no control character as it is."""
    location = str(tmp_path / "store.db")
    with cm.open(location) as store:
        store["key"] = {"Apples": [8], "\x9b31m": "\x1b]0;title\x07é"}
    shown = '{\n  "Apples": [\n    8\n  ],\n  "\\u009b31m": "\\u001b]0;title\\u0007é"\n}\n'
    assert on_terminal("get", "key", "--at", location) == (0, shown)
    assert on_terminal("get", "key", "--json", "--at", location)[1].count("\n") == 1


def test_a_terminal_gets_no_control_characters_of_keys(tmp_path: Path) -> None:
    """`ls` and error messages write the control characters of keys as escapes on a terminal."""
    location = str(tmp_path / "store.db")
    with cm.open(location) as store:
        store["\x1b[31mred\nkey"] = 0
    assert on_terminal("ls", "--at", location) == (0, "\\u001b[31mred\\nkey\n")
    status, shown = on_terminal("get", "\x1b[31mabsent", "--at", location)
    assert (status, "\x1b" in shown) == (1, False)


def test_a_password_is_asked_for_without_echo(tmp_path: Path) -> None:
    """On a terminal --password asks, and what is typed isn't shown."""
    location = str(tmp_path / "store.db")
    status, shown = on_terminal(
        "set", "key", "1", "--password", "--at", location, answers={b"Password: ": b"open-sesame\n"}
    )
    assert (status, shown) == (0, "Password: \n")


def test_ctrl_c_ends_a_command_quietly() -> None:
    """Ctrl-C is exit status 130 without a word."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*COMMAND, "get", "key", "--password"],
        stdin=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Whoever runs the tests in the background may have it ignored, which a process takes from its parent.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.read(len("Password: ")) == b"Password: "
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == b""
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 130


def test_the_demonstration_is_coloured() -> None:
    """On a terminal `demo` colours what it shows, and changes nothing else."""
    status, coloured = on_terminal("demo")
    plain = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, check=True).stdout
    assert (status, "\x1b[" in coloured) == (0, True)
    without_port = [re.sub(r":\d+/", ":PORT/", re.sub(r"\x1b\[[0-9;]*m", "", text)) for text in (coloured, plain)]
    assert without_port[0] == without_port[1]
