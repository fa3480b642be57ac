"""The numbered steps that lead an engine's tables from nothing to today's schema."""

from __future__ import annotations

from importlib import resources


def steps(engine: str) -> list[str]:
    """Return the SQL of each step: the files ``schema/{engine}-1.sql`` and so on."""
    folder = resources.files("cloudstore_mapping.service.storage") / "schema"
    numbered = {
        int(file.name.removeprefix(f"{engine}-").removesuffix(".sql")): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.startswith(f"{engine}-")
    }
    return [numbered[number] for number in range(1, len(numbered) + 1)]
