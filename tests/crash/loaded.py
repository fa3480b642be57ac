"""What commands load, loaded once for all processes that run them: by one that opens no file."""

from __future__ import annotations

import tests.crash.program  # noqa: F401 - it is loaded, too
from tests.crash.beside import run_here
from tests.crash.commands import Command

run_here(Command("ls", ["ls", "--at", "memory:"]))
