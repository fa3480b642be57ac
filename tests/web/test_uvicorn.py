"""Private names of uvicorn: only one file uses them, and each version that setup.cfg allows has them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.server import ServerState

import cloudstore_mapping

PACKAGE = Path(cloudstore_mapping.__file__).parent
#: What `web/protocol.py` calls or overrides, by the class that has it.
METHODS: dict[type[Any], list[str]] = {
    httptools_impl.HttpToolsProtocol: [
        "_start_asgi_task",
        "_unset_keepalive_if_required",
        "connection_lost",
        "connection_made",
        "data_received",
        "eof_received",
        "on_body",
        "on_headers_complete",
        "on_message_complete",
        "on_response_complete",
        "pause_writing",
        "resume_writing",
        "send_400_response",
        "shutdown",
    ],
    httptools_impl.RequestResponseCycle: ["receive", "send"],
    flow_control.FlowControl: ["pause_reading", "resume_reading"],
    uvicorn.Server: ["handle_exit", "on_tick", "run", "shutdown", "startup"],
}
#: The same of values, which are set where an instance is made.
VALUES: dict[type[Any], list[str]] = {
    httptools_impl.HttpToolsProtocol: [
        "app", "client", "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline", "scheme",
        "server_state", "tasks", "transport",
    ],
    httptools_impl.RequestResponseCycle: [
        "body", "disconnected", "keep_alive", "message_event", "more_body", "on_response", "response_complete",
        "response_started", "scope", "waiting_for_100_continue",
    ],
    flow_control.FlowControl: ["read_paused", "write_paused"],
    ServerState: ["connections", "default_headers", "tasks"],
    uvicorn.Server: ["force_exit", "server_state", "should_exit"],
}  # fmt: skip


@pytest.mark.parametrize("of", METHODS, ids=lambda of: of.__name__)
def test_methods(of: type[Any]) -> None:
    """Each method that we call or override is there."""
    assert [name for name in METHODS[of] if not callable(getattr(of, name, None))] == []


@pytest.mark.parametrize("of", VALUES, ids=lambda of: of.__name__)
def test_values(of: type[Any]) -> None:
    """Each value that we read or set is set by the class itself."""
    source = inspect.getsource(of.__init__)
    assert [name for name in VALUES[of] if not re.search(rf"self\.{name}\b[^=\n]*=", source)] == []


def test_one_file_uses_them() -> None:
    """Only `web/protocol.py` imports anything of uvicorn that its documentation doesn't name."""
    private = re.compile(r"^\s*(?:from|import) uvicorn\.(?!middleware\.proxy_headers)", re.MULTILINE)
    users = [path.name for path in PACKAGE.rglob("*.py") if private.search(path.read_text("utf-8"))]
    assert users == ["protocol.py"]
