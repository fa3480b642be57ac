"""What the store makes of a service that refuses, and of names and passwords that are not its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping.client.files import Client, Password
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.errors import (
    BadKeyError,
    BadNameError,
    BadValueError,
    LockedError,
    TooBigError,
    TransportError,
)
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.wire import encode_value
from tests.storages import new_storage
from tests.support.mapping_fixtures import Connect, MakeStore

Store = CloudStoreMapping[Any]


@pytest.fixture
def service() -> Iterator[Service]:
    """A small service with the account "tests"."""
    settings = Settings(max_value_bytes=1000, max_name_bytes=100)
    with Service(new_storage(), settings) as service:
        yield service


@pytest.fixture
def api_key(service: Service) -> str:
    """The API key of that account."""
    return service.accounts.create("tests")


def over(service: Service, api_key: str, **options: Any) -> Store:
    """Return a store on the service; the service is the test's to close."""
    return CloudStoreMapping(api_key, transport=InProcessTransport(service), **options)


def test_passwords_by_key(service: Service, api_key: str) -> None:
    """Each key's password is looked up at each request, one of its own before the default one."""
    passwords: dict[str, str | Password | None] = {}
    store = over(service, api_key, password="default", passwords=passwords)
    store.update({"open": 0, "edit": 1, "view": 2, "both": 3})
    service.set_passwords("tests", "edit", edit="default")
    service.set_passwords("tests", "view", view="v")
    service.set_passwords("tests", "both", edit="e", view="v")
    assert store["edit"] == 1
    store["edit"] = 10
    with pytest.raises(LockedError) as caught:
        store["view"]
    assert caught.value.key == "view"
    passwords["view"] = "v"
    assert store["view"] == 2
    passwords["both"] = Password(view="v")
    assert store["both"] == 3
    with pytest.raises(LockedError):
        store["both"] = 4
    passwords["both"] = Password(edit="e")
    store["both"] = 5
    assert store["both"] == 5
    assert dict(store) == {"open": 0, "edit": 10, "view": 2, "both": 5}


def test_locked_is_never_absent(service: Service, api_key: str) -> None:
    """A locked key is there: `in` says so, and nothing takes the refusal for a missing key."""
    store = over(service, api_key)
    store["key"] = 1
    service.set_passwords("tests", "key", edit="e", view="v")
    assert "key" in store
    assert list(store) == ["key"]
    acts: Mapping[str, Any] = {
        "read": lambda: store["key"],
        "get": lambda: store.get("key", 5),
        "pop": lambda: store.pop("key", 5),
        "setdefault": lambda: store.setdefault("key", 5),
        "save": lambda: store.__setitem__("key", 5),
        "merge": lambda: store.merge("key", 5),
        "delete": lambda: store.__delitem__("key"),
        "discard": lambda: store.discard("key"),
        "update": lambda: store.update(key=5),
        "items": lambda: list(store.items()),
        "clear": lambda: store.clear(),
    }
    for act in acts.values():
        with pytest.raises(LockedError) as caught:
            act()
        assert not isinstance(caught.value, KeyError)
        assert isinstance(caught.value, PermissionError)


def test_limits_of_the_service(service: Service, api_key: str) -> None:
    """Values, nesting and names over the service's limits are errors of their own, and nothing is written."""
    store = over(service, api_key)
    with pytest.raises(TooBigError):
        store["key"] = "x" * 1000
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(BadValueError, match="100"):
        store["key"] = deep
    with pytest.raises(BadNameError, match="100 bytes"):
        store["x" * 101] = 1
    with pytest.raises(BadNameError):
        "x" * 101 in store  # noqa: B015
    store["key"] = "x" * 500
    with pytest.raises(TooBigError):
        store |= {"key": {"x": "x" * 2000}}
    assert dict(store) == {"key": "x" * 500}


def test_an_unknown_api_key(service: Service, api_key: str) -> None:
    """It is an error of its own for every operation, and never shown."""
    store = over(service, "wrong-key-wrong-key")
    for act in (lambda: store["key"], lambda: "key" in store, lambda: len(store), lambda: store.get("key")):
        with pytest.raises(BadKeyError) as caught:
            act()
        assert "wrong" not in str(caught.value)


def test_a_service_that_is_not_there() -> None:
    """It is `TransportError`, a `ConnectionError` and no `KeyError`, for every operation."""
    with CloudStoreMapping[Any]("key-of-sixteen-chars", "http://127.0.0.1:9/cloudstore", retries=0) as store:
        for act in (lambda: store["key"], lambda: store.get("key"), lambda: "key" in store, lambda: list(store)):
            with pytest.raises(TransportError) as caught:
                act()
            assert not isinstance(caught.value, KeyError)
            assert isinstance(caught.value, ConnectionError)
            assert "key-of-sixteen-chars" not in str(caught.value)


def test_foreign_names(connect: Connect, make_store: MakeStore) -> None:
    """Names of another program are keys, with a listing before or without, whether or not they look escaped."""
    store = make_store()
    transport, api_key = connect()
    names = ("100%", "%zz", "a%20b", "%2f", "a%2Fb", "a/b", "x y", "a\tb", "c/../d", "..")
    with Client(transport, api_key) as other:
        for name in names:
            other.save(name, encode_value(name))
    assert {name: store[name] for name in names} == dict(make_store()) == {name: name for name in names}
    store["a/b"] = store["a\tb"] = "changed"
    transport, api_key = connect()
    with Client(transport, api_key) as other:
        assert sorted(other.list()) == sorted(names)
    assert (dict(store)["a/b"], dict(store)["a\tb"]) == ("changed", "changed")
    store.clear()
    assert len(store) == 0


def test_two_names_are_two_keys(service: Service, api_key: str) -> None:
    """A name that looks like another's escape is a key of its own."""
    store = over(service, api_key)
    store["a/b"] = "ours"
    client = Client(InProcessTransport(service), api_key)
    client.save("a%2Fb", encode_value("theirs"))
    assert list(store.items()) == [("a%2Fb", "theirs"), ("a/b", "ours")]
    assert client.list() == ["a%2Fb", "a/b"]
    del store["a/b"]
    assert list(store.items()) == [("a%2Fb", "theirs")]


def test_a_session_of_the_users_stays_open(tmp_path: Path) -> None:
    """`session` is used for the requests, and is the user's to close."""
    import requests

    from cloudstore_mapping.web.server import background

    with Service(new_storage(tmp_path / "s.db")) as service, background(service) as address:
        seen: list[str] = []
        session = requests.Session()
        session.hooks["response"].append(lambda response, *args, **kwargs: seen.append(response.url))
        with CloudStoreMapping[Any](service.accounts.create("tests"), address, session=session) as store:
            store["key"] = 1
        assert seen == [f"{address}/store/save"]
        assert session.get(f"{address}/health").status_code == 200
        session.close()


def test_bad_options() -> None:
    """An option that makes no sense is refused when the store is made."""
    with pytest.raises(ValueError, match="max_workers"):
        CloudStoreMapping("key", "http://127.0.0.1:9/cloudstore", max_workers=0)
    with pytest.raises(ValueError, match="insecure"):
        CloudStoreMapping("key", "http://example.org/cloudstore")
    with pytest.raises(TypeError):
        CloudStoreMapping("key", "http://127.0.0.1:9/cloudstore", cache_tll=5)  # type: ignore[call-arg]
