"""What `docs/reliability.md` says is shown by tests is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"


def test_every_test_that_is_named_is_there() -> None:
    """Each test that the page names is one, by its file and function."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text("utf-8"))
    assert named
    for file, function in named:
        functions = [
            each.name
            for each in ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
            if isinstance(each, ast.FunctionDef)
        ]
        assert function in functions, f"{file}::{function}"
