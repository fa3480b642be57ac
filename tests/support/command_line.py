"""typer's runner of commands, with the commands made once instead of at each call, which takes longer than most."""

from __future__ import annotations

import functools

from typer import testing
from typer.testing import CliRunner, Result

__all__ = ["CliRunner", "Result"]

_typer = vars(testing)
_typer["_get_command"] = functools.cache(_typer["_get_command"])
