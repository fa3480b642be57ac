"""Versions, stat, pages and short replies: what a service can do beyond the vendor's."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from cloudstore_mapping.service.listings import MAX_LISTED
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sql import after_prefix
from cloudstore_mapping.service.storage.sqlite import SQLiteSession
from cloudstore_mapping.wire import Reply, Request, decode_value, encode_value
from tests.service_fakes import Asker, ManualClock
from tests.storages import new_storage


def send(service: Service, ask: Asker, operation: str | None, name: str, **fields: Any) -> Reply:
    """Return the reply to a request with fields of the extensions."""
    if "value" in fields:
        fields["value"] = encode_value(fields["value"])
    return service.handle(Request(api_key=ask.api_key, name=name, options=operation, **fields))  # type: ignore[arg-type]


def test_versions_change_with_every_write(service: Service, ask: Asker) -> None:
    """Each save and merge gives a version of its own, which a load tells, and none comes twice after a delete."""
    seen = []
    for _ in range(3):
        for operation in (None, "merge"):
            reply = send(service, ask, operation, "name", value={"a": 1})
            assert send(service, ask, None, "name").version == reply.version
            seen.append(reply.version)
        assert send(service, ask, "delete", "name").version is UNSET
    assert len({*seen}) == 6
    assert all(isinstance(version, str) and version for version in seen)


@pytest.mark.parametrize("operation", [None, "merge", "delete"])
def test_if_version(service: Service, ask: Asker, operation: str | None) -> None:
    """A write on a version that no longer stands writes nothing, and tells the one that stands."""
    first = send(service, ask, None, "name", value=1).version
    second = send(service, ask, None, "name", value=2).version
    value = {} if operation == "delete" else {"value": 3}
    for wrong in (first, None, "other"):
        refused = send(service, ask, operation, "name", if_version=wrong, **value)
        assert (refused.error, refused.version, refused.status) == ("Changed", second, 200)
    assert ask.value("name") == 2
    assert send(service, ask, operation, "name", if_version=second, **value).error is None
    assert ask.load("name").error == ("NoFile" if operation == "delete" else None)


def test_if_version_where_nothing_is(service: Service, ask: Asker) -> None:
    """None means: only if there is no file; any other version doesn't fit an absent one."""
    refused = send(service, ask, None, "name", value=1, if_version="v")
    assert (refused.error, refused.version) == ("Changed", None)
    assert send(service, ask, "delete", "name", if_version="v").error == "NoFile"
    assert send(service, ask, "merge", "name", value=1, if_version=None).error is None
    assert send(service, ask, None, "name", value=2, if_version=None).error == "Changed"


def test_the_password_is_asked_before_the_version(service: Service, ask: Asker) -> None:
    """Who may not write or look learns no version."""
    version = send(service, ask, None, "name", value=1).version
    service.set_passwords("owner", "name", edit="e", view="v")
    refused = send(service, ask, None, "name", value=2, if_version="other")
    assert (refused.error, refused.version) == ("Locked", UNSET)
    refused = send(service, ask, None, "name", if_not_version=version)
    assert (refused.error, refused.version) == ("Locked", UNSET)
    assert send(service, ask, None, "name", if_not_version=version, password="v").unchanged is True


def test_if_not_version(service: Service, ask: Asker) -> None:
    """A load on a version that still stands is answered without the value."""
    version = send(service, ask, None, "name", value="text").version
    reply = send(service, ask, None, "name", if_not_version=version)
    assert (reply.unchanged, reply.version, reply.data) == (True, version, UNSET)
    assert b"text" not in bytes(reply.message)
    other = send(service, ask, None, "name", if_not_version="other")
    assert (other.unchanged, other.version, decode_value(other.content)) == (UNSET, version, "text")


def test_two_threads_comparing_versions() -> None:
    """Increments that are saved only on the version they were read at lose nothing."""
    with Service(new_storage()) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("count", 0)

        def increment() -> None:
            for _ in range(100):
                done = False
                while not done:
                    loaded = send(service, ask, None, "count")
                    value = decode_value(loaded.content) + 1
                    done = send(service, ask, None, "count", value=value, if_version=loaded.version).error is None

        threads = [threading.Thread(target=increment) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ask.value("count") == 200


def test_stat(service: Service, ask: Asker, clock: ManualClock) -> None:
    """Size, version, times and whether there are passwords are told, never the value, and never refused."""
    began = clock.wall()
    ask.save("name", "é")
    clock.advance(5)
    version = send(service, ask, None, "name", value="éé").version
    service.set_passwords("owner", "name", view="v")
    reply = send(service, ask, "stat", "name")
    assert decode_value(reply.content) == {
        "size": 6,
        "version": version,
        "created": began,
        "updated": began + 5,
        "passwords": {"edit": False, "view": True},
    }
    assert send(service, ask, "stat", "absent").error == "NoFile"
    assert send(service, ask, "stat", "").error == "BadName"


def test_brief(service: Service, ask: Asker) -> None:
    """A short reply holds the value or the names once."""
    ask.save("name", [1])
    for operation, name, content in ((None, "name", b"[1]"), ("list", "", b'["name"]')):
        reply = send(service, ask, operation, name, brief=True)
        assert (bytes(reply.message), bytes(reply.content)) == (b'""', content)
        long = send(service, ask, operation, name, brief=False)
        assert bytes(long.message) != b'""'


NAMES = ["", "a", "aa", "ab", "b", "%", "_", "é", "\ud7ff", "\ue000", "\U0010ffff", "\U0010ffffx", "a\U0010ffff", "A"]


@given(st.text(alphabet=st.sampled_from("ab\ud7ff\ue000\U0010ffff"), max_size=3))
def test_the_end_of_a_prefix(prefix: str) -> None:
    """What comes behind all names with a prefix is behind each of them, and before everything else that is."""
    end = after_prefix(prefix)
    for name in NAMES:
        for text in (prefix + name, name):
            assert text.startswith(prefix) == (text >= prefix and (end is None or text < end))


def pages(service: Service, ask: Asker, limit: int) -> list[list[str]]:
    """Return all pages of a listing."""
    found: list[list[str]] = []
    after: Any = None
    while True:
        reply = send(service, ask, "list", "", limit=limit, after=after)
        assert bytes(reply.message) == b'""'
        found.append(decode_value(reply.content))
        after = reply.next
        if after is None:
            return found
        assert after == found[-1][-1]


def test_pages(service: Service, ask: Asker) -> None:
    """Pages hold the names in their order, each of them once, and the last one says so."""
    names = sorted(f"name {number}" for number in range(10))
    for name in names:
        ask.save(name, 1)
    assert pages(service, ask, 3) == [names[:3], names[3:6], names[6:9], names[9:]]
    assert pages(service, ask, 5) == [names[:5], names[5:]]
    assert pages(service, ask, 100) == [names]
    assert decode_value(send(service, ask, "list", "", after="name 7").content) == ["name 8", "name 9"]


def test_pages_while_names_go(service: Service, ask: Asker) -> None:
    """A name that stays is neither skipped nor repeated, whatever is deleted or added between two pages."""
    for number in range(6):
        ask.save(str(number), 1)
    first = send(service, ask, "list", "", limit=2)
    ask.delete("1")
    ask.delete("2")
    ask.save("11", 1)
    rest = send(service, ask, "list", "", after=first.next)
    assert decode_value(first.content) + decode_value(rest.content) == ["0", "1", "11", "3", "4", "5"]


def test_prefixes(service: Service, ask: Asker) -> None:
    """A prefix is literal, letters' case told apart, whatever characters it has."""
    names = [name for name in NAMES if name]
    for name in names:
        ask.save(name, 1)
    for prefix in NAMES:
        reply = send(service, ask, "list", prefix, match="prefix")
        wanted = sorted(name for name in names if name.startswith(prefix))
        assert decode_value(reply.content) == wanted
        assert decode_value(reply.message) == ",".join(wanted)
        page = send(service, ask, "list", prefix, match="prefix", limit=1)
        assert decode_value(page.content) == wanted[:1]
        assert page.next == (wanted[0] if len(wanted) > 1 else None)


def test_a_page_has_its_limit(service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names are asked for, or none are said, a page holds no more than the service gives."""
    monkeypatch.setattr("cloudstore_mapping.service.listings.MAX_PAGE", 2)
    for name in "abc":
        ask.save(name, 1)
    for fields in ({"limit": 10**9}, {"after": None}, {"after": "", "brief": True}):
        page = send(service, ask, "list", "", **fields)
        assert (decode_value(page.content), page.next) == (["a", "b"], "b")
    assert decode_value(ask.list().content) == ["a", "b", "c"]


def values(reply: Reply) -> dict[str, Any]:
    """Return what a page of values holds."""
    assert (reply.error, bytes(reply.message)) == (None, b'""')
    return {name: value for name, _, value in decode_value(reply.content)}


def test_pages_of_values(service: Service, ask: Asker) -> None:
    """A list with values is a page of names, versions and values, by text, prefix and place like any page."""
    for number, name in enumerate(["ab", "abc", "b", "ba"]):
        ask.save(name, [number])
    whole = send(service, ask, "list", "", values=True)
    assert decode_value(whole.content) == [
        [name, send(service, ask, None, name).version, ask.value(name)] for name in ("ab", "abc", "b", "ba")
    ]
    assert whole.next is None
    assert values(send(service, ask, "list", "a", values=True)) == {"ab": [0], "abc": [1], "ba": [3]}
    assert values(send(service, ask, "list", "ab", values=True, match="prefix")) == {"ab": [0], "abc": [1]}
    page = send(service, ask, "list", "", values=True, after="ab", limit=2)
    assert (values(page), page.next) == ({"abc": [1], "b": [2]}, "b")
    assert values(send(service, ask, "list", "nowhere", values=True)) == {}
    assert decode_value(send(service, ask, "list", "", values=False).content) == ["ab", "abc", "b", "ba"]


def test_what_is_in_no_page_of_values(service: Service, ask: Asker) -> None:
    """A file that needs a password, or is large, is passed over; what may be edited with a password only is not."""
    for name, value in {"edit": 1, "large": "x" * MAX_LISTED, "small": "x" * (MAX_LISTED - 2), "view": 2}.items():
        ask.save(name, value)
    service.set_passwords("owner", "edit", edit="edit")
    service.set_passwords("owner", "view", view="view")
    assert [*values(send(service, ask, "list", "", values=True))] == ["edit", "small"]
    page = send(service, ask, "list", "", values=True, limit=2)
    assert ([*values(page)], page.next) == (["edit"], "large")
    assert values(send(service, ask, "list", "", values=True, after="large", limit=1)).keys() == {"small"}
    account = service.accounts.named("owner")
    reply = service.submit(Request(name="", options="list", values=True), owner=account).result()
    assert values(reply).keys() == {"edit", "small", "view"}  # whom no password keeps out


def test_pages_of_values_are_accesses(clock: ManualClock) -> None:
    """Each value that is shown counts, and one that was used as often as it may be is passed over."""
    with Service(new_storage(), clock=clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        for name in ("a", "b"):
            ask.save(name, 1)
        service.accounts.set_limits("owner", max_daily_accesses=3)
        ask.load("a")
        service.usage.flush()
        shown = [[*values(send(service, ask, "list", "", values=True))] for _ in range(3)]
        assert shown == [["a", "b"], ["b"], []]
        assert (ask.load("a").error, ask.load("b").error) == ("DailyLimit", "DailyLimit")


def test_pages_of_values_have_their_limit(service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many values are asked for, a page holds no more than the service gives."""
    monkeypatch.setattr("cloudstore_mapping.service.listings.MAX_BATCH", 2)
    for name in "abc":
        ask.save(name, 1)
    for fields in ({}, {"limit": 10**9}):
        page = send(service, ask, "list", "", values=True, **fields)
        assert (values(page), page.next) == ({"a": 1, "b": 1}, "b")


def test_pages_while_others_delete(service: Service, ask: Asker) -> None:
    """While another thread deletes and adds, each name that stays is in the pages once, and none comes twice."""
    staying = [f"{number:03} stays" for number in range(60)]
    for number, name in enumerate(staying):
        ask.save(name, 1)
        ask.save(f"{number:03} goes", 1)

    def delete() -> None:
        for number in reversed(range(60)):
            ask.delete(f"{number:03} goes")
            ask.save(f"{number:03} new", 1)

    thread = threading.Thread(target=delete)
    thread.start()
    names = [name for page in pages(service, ask, 7) for name in page]
    thread.join()
    assert names == sorted({*names})
    assert [name for name in names if name.endswith("stays")] == staying


def test_what_is_not_wanted_is_not_read(service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save, a delete, a stat and a load of a version that still stands never read the value."""
    version = send(service, ask, None, "name", value=1).version
    monkeypatch.setattr(SQLiteSession, "get", lambda *_: 1 / 0)
    assert send(service, ask, None, "name", if_not_version=version).unchanged is True
    assert send(service, ask, "stat", "name").error is None
    assert send(service, ask, None, "name", value=2).error is None
    assert send(service, ask, "delete", "name").error is None


@pytest.mark.parametrize(("password", "error"), [("e", None), ("v", None), ("wrong", "Locked"), (None, "Locked")])
def test_unchanged_needs_the_password(service: Service, ask: Asker, password: str | None, error: str | None) -> None:
    """A version is confirmed to those only who may look."""
    version = send(service, ask, None, "name", value=1).version
    service.set_passwords("owner", "name", edit="e", view="v")
    for known in (version, "other"):
        reply = send(service, ask, None, "name", if_not_version=known, password=password)
        assert (reply.error, reply.version) == (error, UNSET if error else version)
    assert send(service, ask, None, "absent", if_not_version=version).error == "NoFile"
