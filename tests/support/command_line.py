"""typer's runner of commands, with the commands made once instead of at each call, which takes longer than most."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from typer import Typer, testing
from typer.main import get_command
from typer.testing import CliRunner, Result

__all__ = ["CliRunner", "Result", "command_of"]

#: The commands of an application.
command_of: Callable[[Typer], Any] = functools.cache(get_command)

vars(testing)["_get_command"] = command_of
