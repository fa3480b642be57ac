"""Options are checked when they are given, wherever they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.client import options
from cloudstore_mapping.embedded import open_service

#: Values of each option that are not allowed.
BAD: dict[str, list[Any]] = {
    "passwords": [5, object()],
    "password": [5, b"p"],
    "media_password": [5, ["p"]],
    "cache_ttl": [0, -1, math.inf, math.nan, "5", True],
    "cache_size": [0, -1, 1.5, None, True],
    "cache_bytes": [0, 1e6, "1"],
    "cache_absent_ttl": [0, -1, "5"],
    "timeout": [0, -1, None, math.nan, (1,), (1, 0), (1, 2, 3), "5", [1, 2]],
    "deadline": [0, -1, math.inf, "5"],
    "retries": [-1, 1.5, None, "3", True],
    "min_interval": [-1, math.nan, math.inf, "3"],
    "max_workers": [0, -1, 2.0, None],
    "progress": [5, "bar", False],
    "session": [5, object()],
    "insecure": [None, 1, "yes"],
    "readonly": [None, 1, "yes"],
    "pickle_secrets": [None, 1],
    "clock": [5, None],
    "transport": [5, object()],
}

OPENERS: dict[str, Callable[..., Any]] = {
    "open": lambda **given: cm.open("http://SOME-API-KEY@127.0.0.1:9/cloudstore", **given),
    "a file": lambda **given: cm.open("store.db", **given),
    "mapping": lambda **given: cm.CloudStoreMapping("SOME-API-KEY", **given),
    "shelve": lambda **given: shelve.open("store.db", **given),
}


def test_every_option_is_listed() -> None:
    """Every option has values to refuse here."""
    assert set(BAD) == set(options._CHECKS)


CASES = [(opener, name, value) for opener in OPENERS for name, values in BAD.items() for value in values]


@pytest.mark.parametrize(("opener", "name", "value"), CASES)
def test_a_bad_value(opener: str, name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is not allowed is an error at once that names the option and the value; no store is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^{name} must be .*, not ") as caught:
        OPENERS[opener](**{name: value})
    shown = f"of type {type(value).__name__}" if name in options.SECRET else repr(value)
    assert str(caught.value).endswith(f", not {shown}.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [
        {"passwords": {}, "password": "p", "media_password": None},
        {"cache_ttl": 1, "cache_size": 1, "cache_bytes": 1, "cache_absent_ttl": 0.5},
        {"timeout": 5, "retries": 0, "min_interval": 0, "max_workers": 1},
        {"timeout": (1, 2.5), "min_interval": 0.5, "progress": print, "session": requests.Session()},
        {"progress": True, "insecure": True, "readonly": True, "pickle_secrets": True, "clock": lambda: 0.0},
    ],
)
def test_good_values(given: dict[str, Any]) -> None:
    """Allowed values open a store."""
    cm.CloudStoreMapping[Any]("SOME-API-KEY", **given).close()
    cm.open("memory:", **{**given, "readonly": False}).close()


def test_an_unknown_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in an option's name is an error with the right name, and no store is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="no option 'cache_tll'; did you mean 'cache_ttl'"):
        cm.open("store.db", cache_tll=1)
    with pytest.raises(TypeError, match="no option 'x'; the options are passwords, "):
        cm.open("store.db", x=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [-1, 2.5, True])
def test_options_of_the_callback_client(value: Any) -> None:
    """The callback client's options have the same checks."""
    with pytest.raises(ValueError, match=f"^retries must be a whole number, 0 or above, not {value}"):
        cm.CloudStore("SOME-API-KEY", retries=value)


def test_passwords_of_another_type() -> None:
    """A mapping of passwords may be lazy, so its values are checked at their use, and never shown."""
    transport, api_key = open_service(None)
    passwords: Any = {"key": ["swordfish"]}
    with (
        cm.CloudStoreMapping[Any](api_key, transport=transport, passwords=passwords) as store,
        pytest.raises(TypeError, match="passwords has a list for 'key'") as caught,
    ):
        store["key"] = 1
    assert "swordfish" not in str(caught.value)
    wrong: Any = 5
    with pytest.raises(TypeError, match="edit must be a text or None, not int"):
        cm.Password(edit=wrong)


# Read-only

WRITES: dict[str, Callable[[cm.CloudStoreMapping[Any]], object]] = {
    "store[k] = v": lambda store: store.__setitem__("key", 1),
    "del store[k]": lambda store: store.__delitem__("key"),
    "discard": lambda store: store.discard("key"),
    "pop": lambda store: store.pop("key"),
    "pop with a default": lambda store: store.pop("absent", None),
    "popitem": lambda store: store.popitem(),
    "setdefault": lambda store: store.setdefault("key", 1),
    "update": lambda store: store.update(key=1, more=2),
    "update with nothing": lambda store: store.update(),
    "|=": lambda store: store.__ior__({"key": 1}),
    "merge": lambda store: store.merge("key", 1),
    "delete_many": lambda store: store.delete_many(["key", "more"]),
    "clear": lambda store: store.clear(),
    "edit": lambda store: store.edit("key").__enter__(),
    "transform": lambda store: store.transform("key", str),
    "upload": lambda store: store.upload(b"x", "x.bin"),
    "store[k] = v, with two possible names": lambda store: store.__setitem__("a,b", 1),
    "del store[k], with two possible names": lambda store: store.__delitem__("a,b"),
    "merge, with two possible names": lambda store: store.merge("a,b", 1),
    "update, with two possible names": lambda store: store.update({"a,b": 1}),
    "upload, with two possible names": lambda store: store.upload(b"x", "a,b"),
    "a write through a view": lambda store: store.view("k").__setitem__("ey", 1),
}


@pytest.mark.parametrize("name", WRITES)
def test_readonly(name: str) -> None:
    """A read-only store refuses every write before any request, and reads."""
    from cloudstore_mapping.testing.transports import CountingTransport

    inner, api_key = open_service(None)
    with cm.CloudStoreMapping[Any](api_key, transport=inner) as writer:
        writer["key"] = {"a": 1}
        counting = CountingTransport(inner)
        store = cm.CloudStoreMapping[Any](api_key, transport=counting, readonly=True)
        with pytest.raises(cm.ForbiddenError, match=r"read-only.*without readonly=True") as caught:
            WRITES[name](store)
        assert isinstance(caught.value, PermissionError)
        assert not counting.counts
        assert dict(store) == dict(writer) == {"key": {"a": 1}}


def test_a_readonly_file(tmp_path: Path) -> None:
    """A read-only store makes no file, and leaves an existing file's bytes as they are."""
    file = tmp_path / "store.db"
    with pytest.raises(FileNotFoundError, match="There is no store"):
        cm.open(file, readonly=True)
    assert not list(tmp_path.iterdir())
    with cm.open(file) as store:
        store["key"] = 1
    before = file.read_bytes()
    with cm.open(file, readonly=True) as store:
        assert dict(store) == {"key": 1}
        with pytest.raises(cm.ForbiddenError):
            store["key"] = 2
    assert file.read_bytes() == before


def test_a_readonly_store_by_its_inner_client() -> None:
    """No part of the package writes through a read-only store, whichever way it takes."""
    from cloudstore_mapping.client.mapping import files_of
    from cloudstore_mapping.wire import encode_value

    with cm.open("memory:", readonly=True) as store:
        files = files_of(store)
        for act in (
            lambda: files.save("key", encode_value(1)),
            lambda: files.client.merge("key", encode_value(1)),
            lambda: files.client.upload("name", b"", "text/plain"),
        ):
            with pytest.raises(cm.ForbiddenError):
                act()
