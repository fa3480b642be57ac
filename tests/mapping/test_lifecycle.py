"""Stores in other threads, processes and pickles."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.mapping_fixtures import Connect, MakeStore

SECRETS = ("swordfish", "tuna")


def pickled(store: object) -> bytes:
    """Return the pickle of a store, and close it."""
    return pickle.dumps(store)


def test_pickling_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in a file comes back as one on the same file, wherever it is unpickled, with its options."""
    monkeypatch.chdir(tmp_path)
    with cm.open("store.db", cache_ttl=5.0, password="swordfish") as store:
        store["key"] = 1
        data = pickled(store)
    assert b"swordfish" not in data
    monkeypatch.chdir("/")
    with pickle.loads(data) as again:
        assert again["key"] == again["key"] == 1
        assert again.stats.hits == 1


def test_pickling_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """API key and passwords stay behind; who unpickles it needs the environment to have the key."""
    with Service(new_storage(tmp_path / "s.db")) as service, background(service) as address:
        api_key = service.accounts.create("tests")
        location = address.replace("://", f"://{api_key}@")
        with cm.open(location, password="swordfish", passwords={"key": "tuna"}, retries=1) as store:
            store["key"] = 1
            data = pickled(store)
            view = pickled(store.view("k"))
        for secret in (*SECRETS, api_key):
            assert secret.encode() not in data
        monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
        with pytest.raises(ValueError, match="CLOUDSTORE_URL"):
            pickle.loads(data)
        monkeypatch.setenv("CLOUDSTORE_URL", "http://another-key-of-16@127.0.0.1:9/cloudstore")
        with pytest.raises(ValueError, match="CLOUDSTORE_URL"):
            pickle.loads(data)
        monkeypatch.setenv("CLOUDSTORE_URL", location)
        with pickle.loads(data) as again:
            assert dict(again) == {"key": 1}
        again_view = pickle.loads(view)
        assert dict(again_view) == {"ey": 1}
        again_view._store.close()


def test_pickling_with_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was asked for, secrets come along."""
    monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
    with Service(new_storage(tmp_path / "s.db")) as service, background(service) as address:
        location = address.replace("://", f"://{service.accounts.create('tests')}@")
        with cm.open(location, pickle_secrets=True, password="swordfish") as store:
            store["key"] = 1
            service.set_passwords("tests", "key", edit="swordfish")
            data = pickled(store)
        with pickle.loads(data) as again:
            again["key"] = 2
            assert again["key"] == 2


def test_what_can_not_be_pickled(connect: Connect) -> None:
    """A store in memory, or over a transport of the user's, says so."""
    with cm.open("memory:") as store, pytest.raises(TypeError, match="memory"):
        pickled(store)
    transport, api_key = connect()
    with cm.CloudStoreMapping[Any](api_key, transport=transport) as own, pytest.raises(TypeError, match="transport"):
        pickled(own)


@pytest.mark.parametrize("connect", ["file", "http", "vendor"], indirect=True)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork(make_store: MakeStore, tmp_path: Path) -> None:
    """A child opens its own connections, and both go on."""
    store = make_store(cache_ttl=1000.0)
    store.update({"a": 1, "b": 2})
    assert dict(store) == {"a": 1, "b": 2}
    child = os.fork()
    if child == 0:
        try:
            store.cache_clear()
            store["child"] = dict(store.items())
            store.update({"c": 3, "d": 4})
        except BaseException as error:  # noqa: BLE001 - whatever it is, the child ends here
            (tmp_path / "complaint").write_text(repr(error))
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    complaint = tmp_path / "complaint"
    assert (os.waitstatus_to_exitcode(status), complaint.read_text() if complaint.exists() else "") == (0, "")
    store["parent"] = 5
    store.cache_clear()
    assert dict(store) == {"a": 1, "b": 2, "c": 3, "child": {"a": 1, "b": 2}, "d": 4, "parent": 5}
