"""Select the tests that depend on the storage engine: their file or fixtures can make a store by `tests.storages`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from tests import storages


def uses_engine(item: pytest.Item) -> bool:
    """Return whether a test's file, or a file that defines one of its fixtures, can reach `tests.storages`."""
    if not isinstance(item, pytest.Function):
        return True
    if _reaches_storages(item.module, set()):
        return True
    fixtures = [fixture.func for found in item._fixtureinfo.name2fixturedefs.values() for fixture in found]
    return any(_fixture_uses_engine(function) for function in fixtures)


def _fixture_uses_engine(function: Any) -> bool:
    module = sys.modules[function.__module__]
    if module.__name__ != "tests.conftest":
        return _reaches_storages(module, set())
    # The fixtures of `conftest.py` share a module, so each is judged by the names that it uses.
    makers = (storages.location, storages.new_storage)
    return any(vars(module).get(name) in makers for name in function.__code__.co_names)


def _reaches_storages(module: ModuleType, seen: set[str]) -> bool:
    """Return whether a test module has something of `tests.storages`, itself or through other test modules."""
    if module is storages:
        return True
    seen |= {module.__name__, __name__, "tests.conftest"}
    used = {_defined_in(value) for value in vars(module).values()} - seen
    return any(_reaches_storages(sys.modules[name], seen) for name in used if name.startswith("tests."))


def _defined_in(value: Any) -> str:
    """Return the name of the module that a value is, or that defines it."""
    if isinstance(value, ModuleType):
        return value.__name__
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else type(value).__module__
