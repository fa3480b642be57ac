"""The numbered steps that lead an engine's tables from nothing to today's schema."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache  # as each store that is opened asks
def steps(engine: str) -> tuple[str, ...]:
    """Return the SQL of each step: the files ``schema/{engine}-1.sql`` and so on."""
    folder = resources.files("cloudstore_mapping.service.storage") / "schema"
    numbered = {
        int(file.name.removeprefix(f"{engine}-").removesuffix(".sql")): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.startswith(f"{engine}-")
    }
    return tuple(numbered[number] for number in range(1, len(numbered) + 1))
