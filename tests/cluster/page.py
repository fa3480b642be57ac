"""What `docs/scaling.md` tells an operator to write and run, as the tests use it."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Final

PAGE: Final = Path(__file__).parent.parent.parent / "docs" / "scaling.md"


def block(language: str, holding: str) -> str:
    """Return the page's one code block in this language that holds a text."""
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (found,) = (block for block in blocks if holding in block)
    return dedent(found)


def replaced(text: str, by: dict[str, str]) -> str:
    """Return the text with something else in the place of some of it, each of which has to be there."""
    for old, new in by.items():
        assert old in text, old
        text = text.replace(old, new)
    return text
