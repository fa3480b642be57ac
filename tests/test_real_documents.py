"""Thousands of JSON documents that nobody here wrote come back as they were."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pycountry
import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.merge import merge
from tests.support.mapping_fixtures import Connect


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    """The metadata of all installed distributions and of their files, and the records of pycountry's ISO tables."""
    found: dict[str, Any] = {}
    for distribution in metadata.distributions():
        found[f"distribution {distribution.name}"] = distribution.metadata.json
        for file in list(distribution.files or ())[:20]:
            found[f"{distribution.name}/{file}"] = {"path": file.as_posix(), "size": file.size, "hash": str(file.hash)}
    for table in (Path(pycountry.__file__).parent / "databases").glob("iso3166*.json"):
        for rows in json.loads(table.read_text("utf-8")).values():
            found.update({f"{table.stem}, {row.get('code') or row['alpha_2']}": row for row in rows})
    return found


@pytest.mark.parametrize("connect", ["file", pytest.param("http", marks=pytest.mark.slow)], indirect=True)
def test_real_documents(connect: Connect, documents: dict[str, Any]) -> None:
    """Saved, listed, read back, and merged with each other, they are what a `dict` would hold."""
    transport, api_key = connect()
    assert len(documents) > 5000
    with CloudStoreMapping[Any](api_key, transport=transport, max_workers=16) as store:
        store.update(documents)
        assert store == documents
        assert sorted(store) == sorted(documents)
        keys = list(documents)[:300]
        patches = {key: documents[other] for key, other in zip(keys, reversed(keys), strict=True)}
        merged = {key: merge(documents[key], patch) for key, patch in patches.items()}
        store |= patches
        assert {key: store[key] for key in keys} == merged
