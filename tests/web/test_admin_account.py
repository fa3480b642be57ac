"""The panels of the account and of its activity: limits, keys, default passwords, pictures and events."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from cloudstore_mapping.service.quotas import day_of
from cloudstore_mapping.service.storage.base import NoSpaceError
from cloudstore_mapping.service.storage.records import AccessDelta
from cloudstore_mapping.web.admin.charts import accesses_chart, format_size, sizes_chart
from tests.admin_fixtures import api_key, guest, program, visitor
from tests.service_fakes import Asker, ManualClock
from tests.visitor import Visitor, named, shown

__all__ = ["api_key", "guest", "program", "visitor"]  # fixtures, defined beside


def user(visitor: Visitor) -> str:
    """Return what the panel of the account says."""
    return shown(visitor.get("?panel=user"))


def test_the_account(program: Asker, visitor: Visitor) -> None:
    """The panel tells the user name, the plan, its limits and the media path."""
    assert "Plan unlimited Files 0 Max number of files no limit" in user(visitor)
    program.service.accounts.set_plan("owner", "basic")
    page = user(visitor)
    assert "User name owner" in page
    assert "Plan basic" in page
    limits = "Max number of files 100 Max file size 3,072 bytes Max daily accesses 300 per file Max rate 3,000 ms"
    assert limits in page
    folder = program.service.accounts.named("owner").folder
    assert f"Media path /cloudstore/files/{folder}/" in page


def test_rotate_the_key(program: Asker, visitor: Visitor) -> None:
    """A new key is shown once, in whole; the one before works on until it is ended; else four characters are shown."""
    old = program.api_key
    assert f"{old[:4]}…" in user(visitor)
    assert "End the old key" not in user(visitor)
    page = visitor.post("key/rotate", view="panel=user")
    found = re.search(r'id="new-key"[^>]* value="(\w{32})"', page.text)
    assert found is not None
    new = found[1]
    assert new not in visitor.get("?panel=user").text
    assert f"{new[:4]}…" in user(visitor)
    assert program.save("a", 1).error is None
    program.api_key = new
    assert program.save("a", 1).error is None
    assert "The old keys no longer work." in shown(visitor.post("key/end", view="panel=user"))
    program.api_key = old
    assert program.save("a", 1).error == "BadKey"
    assert "End the old key" not in user(visitor)


def test_default_passwords(program: Asker, visitor: Visitor) -> None:
    """The default passwords are set and cleared, each for itself, and files without their own ask for them."""
    program.save("a", {})
    visitor.post("defaults", view="panel=user", kind="data", password="pw")
    assert "Data files: set" in user(visitor)
    assert "Media files: not set" in user(visitor)
    assert program.merge("a", {}).error == "Locked"
    assert program.merge("a", {}, "pw").error is None
    assert "Edit password the default one" in shown(visitor.get("?file=a"))
    visitor.post("defaults", view="panel=user", kind="media", password="pw")
    said = visitor.post("defaults", view="panel=user", kind="data", password="")
    assert "Default password cleared." in shown(said)
    assert "Media files: set" in user(visitor)
    assert program.merge("a", {}).error is None


def test_events(program: Asker, visitor: Visitor) -> None:
    """What changed is listed with the file and from where it was done, the latest first, and never a password."""
    program.save("a", 1)
    visitor.post("data/lock", name=named("a"), password="topsecret", what="view")
    visitor.post("data/lock", name=named("a"), password="topsecret", what="edit")
    visitor.post("data/lock", name=named("a"), password="", what="edit")
    visitor.post("data/save", view="new=1", file="b", value="1", version="")
    visitor.post("data/delete", name=named("a", "b"))
    visitor.post("key/rotate")
    visitor.post("defaults", kind="media", password="topsecret")
    page = visitor.get("?panel=activity")
    rows = re.findall(r"<td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>", page.text)[:9]
    here = "127.0.0.1"
    assert rows == [
        ("default password of media files set", "", here),
        ("API key made", "", here),
        ("file deleted", "b", here),
        ("file deleted", "a", here),
        ("file made", "b", here),
        ("edit password cleared", "a", here),
        ("edit password set", "a", here),
        ("view password set", "a", here),
        ("signed in", "", here),
    ]
    assert "topsecret" not in page.text


def test_accesses_a_day(program: Asker, visitor: Visitor, clock: ManualClock) -> None:
    """The picture of accesses has a bar for each of 30 days, and its figures stand in a table as well."""
    account = program.service.accounts.named("owner")
    program.save("a", 1)
    program.service.usage.flush()
    today = day_of(clock.wall())
    used = [AccessDelta(account.id, "data", "a", today - 2, 5, 0.0)]
    program.service._storage.submit(lambda transaction: transaction.add_accesses(used)).result()
    page = visitor.get("?panel=activity")
    picture = re.search(r'<svg class="picture days".*?</svg>', page.text, re.DOTALL)
    assert picture is not None
    assert picture[0].count("<rect") == 30
    assert "<title>2023-11-14:" in picture[0]
    assert "As a table Day (UTC) Accesses 2023-11-14" in shown(page)
    assert "Largest data files a 1 B" in re.sub("The largest data files a: 1 B ", "", shown(page))


def test_pictures_are_well_formed() -> None:
    """Pictures are XML whatever the names are, each with a title; of nothing as well as of much."""
    pictures = [
        accesses_chart(19_000, [0] * 30),
        accesses_chart(19_000, [10**12, *range(29)]),
        sizes_chart("a", "Sizes", []),
        sizes_chart("a", "Sizes", [("<script>&", 10**15), ("x" * 1000, 0)]),
    ]
    for picture in pictures:
        root = ET.fromstring(str(picture))
        assert root.attrib["role"] == "img"
        assert root[0].tag == "title"
        assert root[0].text
        assert root.attrib["aria-labelledby"] == root[0].attrib["id"]


def test_sizes_as_text() -> None:
    """Sizes are short texts in powers of 1,024."""
    sizes = [0, 1023, 1024, 1536, 10**6, 5 * 2**30, 2**50]
    assert [format_size(size) for size in sizes] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "977 KiB",
        "5.0 GiB",
        "1024.0 TiB",
    ]


def test_a_full_disk(program: Asker, visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner reads of a full disk that the service's operator has to free space, in a form's alert and on a page."""

    def fail(*_: object, **__: object) -> None:
        raise NoSpaceError("The store's disk is full; free at least 1 MiB, then try again.")

    monkeypatch.setattr(program.service.owners, "change_password", fail)
    alert = shown(visitor.post("password", old="a", new="a-long-passphrase", again="a-long-passphrase"))
    monkeypatch.setattr(program.service.owners, "session", fail)
    for page in (alert, shown(visitor.get())):
        assert NoSpaceError.for_clients in page
        assert "1 MiB" not in page
