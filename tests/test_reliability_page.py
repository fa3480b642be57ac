"""What `docs/reliability.md` says is shown by tests is."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"


@functools.cache
def functions(file: str) -> set[str]:
    """Return the names of a file's functions."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)}


def test_every_test_that_is_named_is_there() -> None:
    """Each test that the page names is one, by its file and function."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text("utf-8"))
    assert named
    for file, function in named:
        assert function in functions(file), f"{file}::{function}"
