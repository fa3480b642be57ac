"""The panel of data files: list, search and pages; values shown and edited as JSON; passwords and deleting."""

from __future__ import annotations

import html
import json
import re
from typing import Any
from urllib.parse import quote, urlsplit

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.embedded import InProcessTransport
from tests.admin_fixtures import api_key, guest, program, visitor
from tests.service_fakes import Asker, ManualClock
from tests.visitor import Visitor, named, shown

__all__ = ["api_key", "guest", "program", "visitor"]  # fixtures, defined beside

STRANGE = ["a/b", "../up", "line\nbreak", "<b>bold</b>", "a&b=c#d?e", "100%25", "émoji 🎈", '"quoted"', " spaces "]


def names(visitor: Visitor, query: str = "") -> list[str]:
    """Return the names in the list."""
    return [html.unescape(name) for name in re.findall(r'class="name">([^<]*)<', visitor.get(query).text)]


def text(visitor: Visitor, query: str) -> tuple[str, str]:
    """Return the value in the editor, and the version that it was read in."""
    page = visitor.get(query).text
    found = re.search(r'name="value"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    version = re.search(r'name="version" value="([^"]*)"', page)
    assert found is not None
    assert version is not None
    return html.unescape(found[1]), version[1]


def test_list_and_search(program: Asker, visitor: Visitor) -> None:
    """Files are listed by name, with their sizes; a search finds a text as it stands, or says that it finds none."""
    for name in ("Pears", "apples", "a%b"):
        program.save(name, [1, 2])
    assert names(visitor) == ["Pears", "a%b", "apples"]
    assert names(visitor, "?search=a") == ["Pears", "a%b", "apples"]
    assert names(visitor, "?search=%25") == ["a%b"]
    assert "5 B" in shown(visitor.get())
    assert "No name contains “PEARS”." in shown(visitor.get("?search=PEARS"))


def test_ten_thousand_files(program: Asker, visitor: Visitor) -> None:
    """10,000 files come by pages of 100, each of which leads to the next."""

    def fill(transaction: object) -> None:
        for number in range(10_000):
            transaction.put(account.id, f"file {number:05}", b"1", 0.0)  # type: ignore[attr-defined]

    account = program.service.accounts.named("owner")
    program.service._storage.submit(fill).result()
    first = visitor.get()
    assert len(first.text) < 150_000
    assert names(visitor) == [f"file {number:05}" for number in range(100)]
    following = re.search(r'id="next-page" href="[^"?]*(\?[^"]*)"', first.text)
    assert following is not None
    assert names(visitor, html.unescape(following[1])) == [f"file {number:05}" for number in range(100, 200)]
    last = visitor.get("?after=file 09899")
    assert "Next page" not in shown(last)
    assert "First page" in shown(last)
    assert names(visitor, "?search=999&after=file 0599") == ["file 05999", "file 06999", "file 07999", "file 08999"] + [
        f"file {number:05}" for number in range(9990, 10_000)
    ]


def test_strange_names(program: Asker, visitor: Visitor) -> None:
    """Names of any characters are listed, opened, locked and deleted, and never become markup."""
    for name in STRANGE:
        program.save(name, 1)
    assert sorted(names(visitor)) == sorted(STRANGE)
    page = visitor.get()
    assert "<b>bold</b>" not in page.text
    links = re.findall(r'class="row" id="[^"]*" href="[^"?]*(\?[^"]*)"', page.text)
    for name, link in zip(sorted(STRANGE), links, strict=True):
        assert " ".join(name.split()) in shown(visitor.get(html.unescape(link) + "&value=1"))
    ticked = re.findall(r'name="name" value="([^"]*)"', page.text)
    assert "Password set: 9." in shown(visitor.post("data/lock", name=ticked, password="pw", what="edit"))
    assert program.merge("line\nbreak", 2).error == "Locked"
    assert "Deleted: 9." in shown(visitor.post("data/delete", name=ticked))
    assert names(visitor) == []


KEYS = ["users/ann", "a,b", "a b", "100%", "%", "%25", "%00", "a%2Fb", "naïve", "..", "😀", " x "]


def test_keys_are_names(program: Asker, visitor: Visitor, api_key: str) -> None:
    """A key typed in the dashboard is the key of every program, and a program's is shown, found and edited as it is."""
    transport = InProcessTransport(program.service)
    store = CloudStoreMapping[Any](api_key, transport=transport)
    for key in KEYS:
        assert "Saved." in shown(visitor.post("data/save", view="new=1", file=key, value="1", version=""))
    assert dict(store) == dict.fromkeys(KEYS, 1)
    assert sorted(names(visitor)) == sorted(KEYS)
    store.clear()
    store.update({key: key for key in [*KEYS, "", "nul\0"]})
    page = visitor.get()
    listed = [html.unescape(name) for name in re.findall(r'class="name">([^<]*)<', page.text)]
    assert sorted(listed) == sorted([*KEYS, "(empty key)", "nul\u2400"])
    links = re.findall(r'class="row" id="[^"]*" href="[^"?]*(\?[^"]*)"', page.text)
    for key, link in zip(listed, links, strict=True):
        opened = html.unescape(link) + "&value=1"
        real = {"(empty key)": "", "nul\u2400": "nul\0"}.get(key, key)
        value, version = text(visitor, opened)
        assert json.loads(value) == real
        (name,) = set(re.findall(r'name="name" value="([^"]*)"', visitor.get(opened).text.split('id="detail"')[1]))
        assert "Saved." in shown(visitor.post("data/save", view=opened[1:], name=name, value="2", version=version))
        assert store[real] == 2
    for key in ("/ann", ",", "00", "%0", "%", "25", "naïve"):
        assert names(visitor, f"?search={quote(key)}") == sorted(name for name in KEYS if key in name)


def test_a_refused_key_is_kept(program: Asker, visitor: Visitor) -> None:
    """What was typed as a key that is there already stands in the form again, as it was typed."""
    for _ in range(2):
        page = visitor.post("data/save", view="new=1", file="%", value="1", version="")
    assert page.status_code == 409
    assert 'name="file" value="%"' in page.text


def test_a_files_own_panel(program: Asker, visitor: Visitor, clock: ManualClock) -> None:
    """A file's panel tells its last reset, accesses today, last access, size and which passwords are set."""
    program.save("list", {"a": 1})
    clock.advance(60)
    program.load("list")
    program.service.set_passwords("owner", "list", view="pw")
    page = shown(visitor.get("?file=list"))
    assert "Last reset 2023-11-14, midnight UTC" in page
    assert "Accesses today 2" in page
    assert "Last accessed 2023-11-14 22:14 UTC" in page
    assert "File size 7 bytes" in page
    assert "Edit password not set View password set" in page
    clock.advance(86_400)
    visitor.sign_in()
    page = shown(visitor.get("?file=list"))
    assert "Last reset 2023-11-15" in page
    assert "Accesses today 0" in page
    assert "Last accessed 2023-11-14 22:14 UTC" in page
    missing = visitor.get("?file=other")
    assert missing.status_code == 404
    assert "There is no such file" in shown(missing)


def test_a_value_is_shown_as_it_was_written(program: Asker, visitor: Visitor) -> None:
    """A value is laid out over lines, its numbers as they were written; the owner is asked no password for it."""
    visitor.post("data/save", view="new=1", file="numbers", value='{"b": [1.0, 1e2, 12345678901234567890123]}')
    program.service.set_passwords("owner", "numbers", edit="pw", view="pw")
    shown_text, _ = text(visitor, "?file=numbers&value=1")
    assert shown_text.split() == ["{", '"b":', "[", "1.0,", "1e2,", "12345678901234567890123", "]", "}"]
    assert program.load("numbers").error == "Locked"


def test_looking_is_no_access(program: Asker, visitor: Visitor) -> None:
    """What the owner does in the dashboard counts as no access."""
    program.save("list", 1)
    visitor.get("?file=list&value=1")
    visitor.post("data/save", name="list", value="2", version=text(visitor, "?file=list&value=1")[1])
    assert "Accesses today 1" in shown(visitor.get("?file=list"))


def test_edit_a_value(program: Asker, visitor: Visitor) -> None:
    """A value is saved from the page, keeping the file's passwords, and shown again."""
    program.save("list", {"a": 1})
    program.service.set_passwords("owner", "list", edit="pw")
    _, version = text(visitor, "?file=list&value=1")
    page = visitor.post("data/save", view="file=list&value=1", name="list", value='{"a": [2]}', version=version)
    assert "Saved." in shown(page)
    assert program.value("list") == {"a": [2]}
    assert program.merge("list", {}).error == "Locked"


def test_make_a_file(program: Asker, visitor: Visitor) -> None:
    """A new file is made from the page, but never over one that is there, or without a name."""
    assert "New file" in shown(visitor.get("?new=1"))
    assert "Saved." in shown(visitor.post("data/save", view="new=1", file="list", value="1", version=""))
    refused = visitor.post("data/save", view="new=1", file="list", value='"kept text"', version="")
    assert refused.status_code == 409
    assert "kept text" in html.unescape(refused.text)
    assert program.value("list") == 1
    nameless = visitor.post("data/save", view="new=1", file="", value="1", version="")
    assert nameless.status_code == 422
    assert "name is empty" in shown(nameless)


FAULTS = [
    ("", "There is no value"),
    ('{"a": 1,\r\n "b": }', "line 2, column 7"),
    ('["é", x]', "line 1, column 7"),
    ("[1, 2", "line 1, column 6"),
    ("1, 2", "line 1, column 2"),
    ('1, "file": "other"', "line 1, column 2"),
    ("NaN", "line 1, column 1"),
    ("1e999", "out of range"),
    ("[" * 101 + "]" * 101, "nested deeper"),
    ("9" * 4301, "4,300 digits"),
    ('"\\ud800"', "holds a lone surrogate"),
    ('["\\ud800 and more"]', "holds a lone surrogate"),
]


def test_faults_in_a_value(program: Asker, visitor: Visitor) -> None:
    """What is no JSON, or no value for the service, is refused with its place, and what was typed stays."""
    program.save("list", 1)
    _, version = text(visitor, "?file=list&value=1")
    for typed, fault in FAULTS:
        page = visitor.post("data/save", view="file=list&value=1", name="list", value=typed, version=version)
        assert page.status_code in {400, 422}, typed[:20]
        assert fault in shown(page), typed[:20]
        assert f">\n{typed}</textarea>" in html.unescape(page.text), typed[:20]
    assert program.value("list") == 1


def test_somebody_else_changed_it(program: Asker, visitor: Visitor) -> None:
    """A save on a version that stands no longer shows what is there now beside what was typed; nothing is lost."""
    program.save("list", "old")
    _, version = text(visitor, "?file=list&value=1")
    program.save("list", "theirs")
    page = visitor.post("data/save", view="file=list&value=1", name="list", value='"mine"', version=version)
    assert page.status_code == 409
    assert "Somebody else changed the file meanwhile" in shown(page)
    assert '"theirs"' in html.unescape(page.text)
    assert '"mine"' in html.unescape(page.text)
    assert program.value("list") == "theirs"
    again = re.search(r'name="version" value="([^"]*)"', page.text)
    assert again is not None
    visitor.post("data/save", view="file=list&value=1", name="list", value='"mine"', version=again[1])
    assert program.value("list") == "mine"


def test_somebody_else_deleted_it(program: Asker, visitor: Visitor) -> None:
    """A save on a file that is gone keeps what was typed, and saving again makes the file."""
    program.save("list", "old")
    _, version = text(visitor, "?file=list&value=1")
    program.delete("list")
    page = visitor.post("data/save", view="file=list&value=1", name="list", value='"mine"', version=version)
    assert page.status_code == 409
    assert '"mine"' in html.unescape(page.text)
    assert 'name="version" value=""' in page.text
    visitor.post("data/save", view="file=list&value=1", file="list", value='"mine"', version="")
    assert program.value("list") == "mine"


def test_large_values(program: Asker, visitor: Visitor) -> None:
    """A value over 1 MiB is not put into a page; it can be downloaded."""
    program.save("large", "x" * 2**20)
    page = visitor.get("?file=large&value=1")
    assert "is larger than 1.0 MiB" in shown(page)
    assert len(page.text) < 100_000
    answer = visitor.session.get(f"{visitor.address}/admin/data/value?name=large", timeout=30)
    assert answer.json() == "x" * 2**20
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="large.json"')


def test_limits_hold_for_the_owner(program: Asker, visitor: Visitor) -> None:
    """The account's numbers and sizes of files hold in the dashboard as well, and the page says which one."""
    program.service.accounts.set_plan("owner", "basic")
    refused = visitor.post("data/save", view="new=1", file="large", value=json.dumps("x" * 4000), version="")
    assert refused.status_code == 422
    assert "at most 3,072" in shown(refused)


def test_passwords_of_ticked_files(program: Asker, visitor: Visitor) -> None:
    """The padlock asks for one password, sets it on all ticked files, and an empty one clears it."""
    for name in ("a", "b", "c"):
        program.save(name, {})
    dialog = shown(visitor.post("data/ask", do="lock", name=named("a", "b")))
    assert "Password of 2 files" in dialog
    assert "Leave it empty to clear" in dialog
    assert "Password set: 2." in shown(visitor.post("data/lock", name=named("a", "b"), password="pw", what="edit"))
    assert [program.merge(name, {"x": 1}).error for name in ("a", "b", "c")] == ["Locked", "Locked", None]
    assert program.merge("a", {"x": 1}, "pw").sentence == "Entry saved"
    visitor.post("data/lock", name=named("a"), password="seen", what="view")
    assert [program.load("a").error, program.load("a", "seen").error, program.load("b").error] == ["Locked", None, None]
    assert "Password cleared: 2." in shown(visitor.post("data/lock", name=named("a", "b"), password="", what="edit"))
    assert program.merge("a", {}).error is None
    assert program.load("a").error == "Locked"


def test_delete_asks_first(program: Asker, visitor: Visitor) -> None:
    """Deleting asks first and names the files; one that is gone already is no trouble."""
    for name in ("a", "b"):
        program.save(name, 1)
    dialog = shown(visitor.post("data/ask", do="delete", name=named("a", "b")))
    assert "Delete 2 files? a b This can't be undone." in dialog
    assert names(visitor) == ["a", "b"]
    program.delete("b")
    assert "Some files were already deleted. Done: 1." in shown(visitor.post("data/delete", name=named("a", "b")))
    assert names(visitor) == []
    assert "No file is selected" in shown(visitor.post("data/ask", do="delete"))


def test_no_password_is_told(program: Asker, visitor: Visitor) -> None:
    """No page shows a password that is set, or its hash."""
    program.save("a", 1)
    visitor.post("data/lock", name=named("a"), password="topsecret", what="edit")
    visitor.post("defaults", kind="data", password="topsecret")
    for query in ("", "?file=a&value=1", "?panel=user", "?panel=activity"):
        assert "topsecret" not in visitor.get(query).text


def test_what_is_said_is_said_once(program: Asker, visitor: Visitor) -> None:
    """What was done is said on the next page only, and a made-up message is not repeated."""
    program.save("a", 1)
    assert "Deleted: 1." in shown(visitor.post("data/delete", name=named("a")))
    assert "Deleted" not in shown(visitor.get())
    visitor.session.cookies.set(
        f"cloudstore-said-{urlsplit(visitor.address).port}+cloudstore", "You won.1", domain="127.0.0.1", path="/"
    )
    assert "You won" not in visitor.get().text
