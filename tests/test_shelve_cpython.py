"""Python's own tests of `shelve` pass with ours: over dictionaries, in memory, in files and at a service."""

from __future__ import annotations

import importlib.util
import os
import sys
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from cloudstore_mapping import shelve
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage

SECRET = "a secret of the tests"


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return Python's test module, newly loaded with our `shelve` in the place of the standard library's."""
    try:
        found = importlib.util.find_spec("test.test_shelve")
    except ImportError:
        found = None
    if found is None or found.loader is None:
        pytest.skip("needs the tests of the standard library, which this Python lacks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = importlib.util.module_from_spec(found)
    with mock.patch.dict(sys.modules, {"shelve": shelve}):
        found.loader.exec_module(module)
    assert module.shelve is shelve
    return module


def failures(module: ModuleType, name: Callable[[str], bool] = lambda _: True) -> tuple[int, list[str]]:
    """Return how many tests of a module's classes of these names ran, and what failed."""
    suite = unittest.TestSuite()
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, unittest.TestCase) and name(kind.__name__):
            suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(kind))
    result = unittest.TestResult()
    suite.run(result)
    return result.testsRun, [text for _, text in result.failures + result.errors]


@pytest.fixture
def address() -> Iterator[str]:
    """Return the address of a service."""
    with Service(new_storage()) as service, background(service) as address:
        yield address.replace("://", f"://{service.accounts.create('owner')}@")


def is_of_default_protocol(name: str) -> bool:
    """Return True for a class of tests that is not repeated for each protocol and module of dbm."""
    return "Shelve" not in name or "Proto4" in name


def test_in_files_and_over_dictionaries(cases: ModuleType) -> None:
    """`shelve.open` and `Shelf` do in files and over dictionaries whatever Python's tests ask for."""
    count, failed = failures(cases, is_of_default_protocol)
    assert failed == []
    assert count > 40


@pytest.mark.slow
def test_each_protocol(cases: ModuleType) -> None:
    """The same with each protocol of pickle."""
    assert failures(cases)[1] == []


@pytest.mark.parametrize("place", ["memory", "http"])
def test_elsewhere(place: str, cases: ModuleType, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with shelves in memory, and at a service, where each file name is a shelf of its own."""
    ours = shelve.open
    opened: list[Any] = []

    def elsewhere(filename: Any, flag: str = "c", **options: Any) -> Any:
        if place == "memory":
            return ours("memory:", flag, **options)
        # Other tests open files of the same name, which their ends remove.
        prefix = f"{os.fsdecode(filename)}.{len(opened)}"
        opened.append(ours(address, flag, prefix=prefix, secret=SECRET, **options))
        return opened[-1]

    monkeypatch.setattr(shelve, "open", elsewhere)
    kinds = [name for name in vars(cases) if "Proto4File" in name]
    count, failed = failures(cases, lambda name: name == "TestCase" or name in kinds[:1])
    assert failed == []
    assert count > 20
    assert bool(opened) == (place == "http")
