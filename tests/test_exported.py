"""The public names of the package."""

from __future__ import annotations

import inspect

import cloudstore_mapping
from cloudstore_mapping import errors, testing


def test_every_error_is_exported() -> None:
    """Each class of `errors` is a public name of the package."""
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert defined <= set(cloudstore_mapping.__all__)


def test_all_names_are_there_and_no_others() -> None:
    """`__all__` is what the package has, apart from its modules."""
    public = {
        name for name, value in vars(cloudstore_mapping).items() if name[0] != "_" and not inspect.ismodule(value)
    }
    assert public == set(cloudstore_mapping.__all__) - {"__version__"}


def test_public_names_have_docstrings() -> None:
    """Everything public says what it is, its own methods too."""
    for name in cloudstore_mapping.__all__:
        value = getattr(cloudstore_mapping, name)
        if not callable(value):
            continue
        assert inspect.getdoc(value), name
        for member, method in vars(value).items() if inspect.isclass(value) else ():
            if member[0] != "_" and callable(method):
                assert inspect.getdoc(method), f"{name}.{member}"


def test_names_of_the_test_kit() -> None:
    """`__all__` of the kit names what it has, and each says what it is."""
    for name in testing.__all__:
        value = getattr(testing, name)
        assert inspect.getdoc(value), name
        for member, method in vars(value).items() if inspect.isclass(value) else ():
            if member[0] != "_" and callable(method):
                assert inspect.getdoc(method), f"{name}.{member}"
    public = {name for name, value in vars(testing).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public - {"find_spec", "UnsupportedError"} == set(testing.__all__) - {"faults", "strategies"}
