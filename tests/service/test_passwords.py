"""File passwords: which request needs which, and what a right one costs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cloudstore_mapping.errors import BadNameError, BadValueError, NoFileError, ProtocolError, UnsupportedError
from cloudstore_mapping.service.security import REMEMBERED_FOR, Argon2Hasher
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.wire import decode_value
from tests.service_fakes import PATIENCE, Asker, FakeHasher, ManualClock
from tests.storages import new_storage


@pytest.mark.parametrize("password", ["password", "123456", "Letmein", "secret123"])
def test_a_common_password(service: Service, ask: Asker, password: str) -> None:
    """A common password is none for a file, nor a default one, and the file keeps the one that it had."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="horse")
    with pytest.raises(BadValueError, match="most common"):
        service.set_passwords("owner", "name", edit=password)
    with pytest.raises(BadValueError, match="most common"):
        service.set_default_passwords("owner", data=password)
    assert ask.save("name", 2, password).error == "Locked"
    assert ask.save("name", 2, "horse").error is None


@pytest.mark.parametrize("password", ["short", "x", "xxxxxxxx", "owner"])
def test_rules_for_owners_do_not_hold_for_files(service: Service, ask: Asker, password: str) -> None:
    """A file's password may be short, repeat one character, and be the user name."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit=password)
    assert ask.save("name", 2).error == "Locked"
    assert ask.save("name", 2, password).error is None


def outcomes(ask: Asker, password: str | None) -> dict[str, str | None]:
    """Return the error of each operation on the file "name", which is there again afterwards."""
    replies = {
        "load": ask.load("name", password),
        "save": ask.save("name", 1, password),
        "merge": ask.merge("name", 1, password),
        "delete": ask.delete("name", password),
    }
    if replies["delete"].error is None:
        ask.save("name", 1)
    return {operation: reply.error for operation, reply in replies.items()}


READS = {"load": None, "save": "Locked", "merge": "Locked", "delete": "Locked"}
WRITES = {"load": "Locked", "save": None, "merge": None, "delete": None}
NOTHING = dict.fromkeys(READS, "Locked")
ALL = dict.fromkeys(READS)


@pytest.mark.parametrize(
    ("edit", "view", "given", "expected"),
    [
        (None, None, None, ALL),
        (None, None, "any", ALL),
        ("edit", None, None, READS),
        ("edit", None, "wrong", READS),
        ("edit", None, "edit", ALL),
        (None, "view", None, {**ALL, "load": "Locked"}),
        (None, "view", "view", ALL),
        ("edit", "view", None, NOTHING),
        ("edit", "view", "", NOTHING),
        ("edit", "view", "wrong", NOTHING),
        ("edit", "view", "EDIT", NOTHING),
        ("edit", "view", "view", READS),
        ("edit", "view", "edit", ALL),
        ("same", "same", "same", ALL),
        ("", "", None, ALL),
    ],
)
def test_which_request_needs_which(
    service: Service, ask: Asker, edit: str | None, view: str | None, given: str | None, expected: dict[str, str | None]
) -> None:
    """The edit password opens for all, the view password for loading; an empty one is none, asked or given."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit=edit, view=view)
    assert outcomes(ask, given) == expected


def test_a_list_is_never_locked(service: Service, ask: Asker) -> None:
    """A list shows the names of locked files without a password."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="edit", view="view")
    assert decode_value(ask.list().content) == ["name"]


def test_locked_says_whether_a_password_was_given(service: Service, ask: Asker) -> None:
    """The sentence tells a missing password from a wrong one, and repeats neither."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="edit")
    assert ask.save("name", 2).sentence == "The file has a password; give it with the request."
    assert ask.save("name", 2, "hunter2").sentence == "The password is wrong."
    assert ask.value("name") == 1


def test_a_new_file_needs_no_password(ask: Asker) -> None:
    """A password that comes with a file which has none, or isn't there, is passed over."""
    assert ask.save("name", 1, "any").error is None
    assert ask.load("name").error is None
    assert ask.load("absent", "any").error == "NoFile"


def test_a_password_goes_with_the_file(service: Service, ask: Asker) -> None:
    """Who deletes a file and saves it anew has one without passwords."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="edit")
    assert ask.delete("name", "edit").error is None
    assert ask.save("name", 2).error is None
    assert ask.save("name", 3).error is None


@pytest.mark.parametrize("password", ["x" * 1025, "é" * 513])
def test_a_very_long_password(service: Service, ask: Asker, hasher: FakeHasher, password: str) -> None:
    """A password over 1 KiB is `BadRequest`, never cut and never hashed; it can't be set either."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="x" * 1024)
    reply = ask.save("name", 2, password)
    assert (reply.error, reply.status) == ("BadRequest", 400)
    assert hasher.checks == 0
    with pytest.raises(ProtocolError, match=r"longer than 1,024 bytes \(the service\'s max_password_bytes\)"):
        service.set_passwords("owner", "name", view=password)
    assert ask.save("name", 2, "x" * 1024).error is None


def test_a_right_password_is_hashed_once(service: Service, ask: Asker, hasher: FakeHasher, clock: ManualClock) -> None:
    """A password that was right is remembered for a while, for every operation that it opens."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="edit", view="view")
    for _ in range(3):
        assert ask.save("name", 2, "edit").error is None
        assert ask.load("name", "edit").error is None
    assert hasher.checks == 1
    clock.advance(REMEMBERED_FOR)
    assert ask.save("name", 2, "edit").error is None
    assert hasher.checks == 2


def test_a_wrong_password_is_not_remembered(service: Service, ask: Asker, hasher: FakeHasher) -> None:
    """A wrong password is hashed each time, and opens nothing after the right one was given."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="edit")
    for password in ("wrong", "edit", "wrong", "wrong"):
        assert ask.save("name", 2, password).error == (None if password == "edit" else "Locked")
    assert hasher.checks == 4


def test_a_right_password_is_right_for_its_file_only(service: Service, ask: Asker) -> None:
    """A password that was right for one file says nothing of another, though both have a password."""
    for name in ("one", "two"):
        ask.save(name, 1)
        service.set_passwords("owner", name, edit=name)
    assert ask.save("one", 2, "one").error is None
    assert ask.save("two", 2, "one").error == "Locked"


def test_a_revoked_password_is_refused_at_once(service: Service, ask: Asker) -> None:
    """A change of a password is in force at the next request, remembered or not, though it is set to the same again."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="old", view="old")
    assert ask.value("name", "old") == 1
    service.set_passwords("owner", "name", edit="new", view="new")
    assert ask.load("name", "old").error == "Locked"
    assert ask.value("name", "new") == 1
    service.set_passwords("owner", "name", edit="newer")
    assert ask.load("name").error == "Locked"
    service.set_passwords("owner", "name", edit=None, view="")
    assert ask.value("name") == 1


def test_a_revoked_password_is_refused_by_every_service(tmp_path: Path, hasher: FakeHasher) -> None:
    """A change that another service on the same storage makes is in force here as well."""
    path = tmp_path / "store.db"
    with Service(new_storage(path), hasher=hasher) as here, Service(new_storage(path), hasher=hasher) as there:
        ask = Asker(here, here.accounts.create("owner"))
        ask.save("name", 1)
        there.set_passwords("owner", "name", edit="old")
        assert ask.save("name", 2, "old").error is None
        there.set_passwords("owner", "name", edit="new")
        assert ask.save("name", 3, "old").error == "Locked"


@pytest.mark.sqlite("requests are begun in their order where no network is waited for")
@pytest.mark.parametrize(("new", "error"), [("new", "Locked"), ("old", None), (None, None)])
def test_a_password_that_changes_while_it_is_hashed(
    service: Service, ask: Asker, hasher: FakeHasher, new: str | None, error: str | None
) -> None:
    """A request is answered by the password that stands when it is done, not by the one that it came for."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="old", view="old")
    hasher.gate.clear()
    futures = [
        ask.service.submit(ask.request(None, "name", "old", value=2)),
        ask.service.submit(ask.request(None, "name", "old")),
    ]
    assert hasher.begun.acquire(timeout=PATIENCE)
    service.set_passwords("owner", "name", edit=new, view=new)
    hasher.gate.set()
    assert [future.result(PATIENCE).error for future in futures] == [error] * 2
    assert ask.value("name", new) == (1 if error else 2)


def test_a_file_that_goes_while_its_password_is_hashed(service: Service, ask: Asker, hasher: FakeHasher) -> None:
    """All rules are asked again after the hashing: a file that is gone by then is `NoFile`."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", view="view")
    hasher.gate.clear()
    future = service.submit(ask.request(None, "name", "view"))
    assert hasher.begun.acquire(timeout=PATIENCE)
    ask.delete("name")
    hasher.gate.set()
    assert future.result(PATIENCE).error == "NoFile"


@pytest.mark.parametrize(("account", "name"), [("owner", "absent"), ("nobody", "name")])
def test_passwords_of_nothing(service: Service, ask: Asker, account: str, name: str) -> None:
    """Passwords for a file that isn't there are `NoFileError`, for an account that isn't `BadNameError`."""
    ask.save("name", 1)
    with pytest.raises(NoFileError if account == "owner" else BadNameError) as caught:
        service.set_passwords(account, name, edit="edit")
    assert caught.value.key == (name if account == "owner" else account)
    assert ask.save("name", 2).error is None


@pytest.mark.sqlite("reads its file")
def test_passwords_are_hashed_with_argon2id(tmp_path: Path) -> None:
    """What is stored is argon2id with the parameters that OWASP's cheat sheet puts first, salted anew each time."""
    with Service(new_storage(tmp_path / "store.db")) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("name", 1)
        service.set_passwords("owner", "name", edit="hunter2", view="hunter2")
        assert ask.save("name", 2, "hunter2").error is None
        assert ask.save("name", 3, "hunter3").error == "Locked"
    content = (tmp_path / "store.db").read_bytes()
    assert content.count(b"$argon2id$v=19$m=19456,t=2,p=1$") == 2
    assert b"hunter2" not in content


def test_argon2_tells_right_from_wrong() -> None:
    """A hash fits its own password only, in any alphabet, and no two are equal."""
    hasher = Argon2Hasher()
    hashes = [hasher.hash("pässwörd😀") for _ in range(2)]
    assert hashes[0] != hashes[1]
    assert hasher.fits(hashes[0], "pässwörd😀")
    assert not hasher.fits(hashes[0], "password")


def test_argon2_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says which one to install."""
    monkeypatch.setitem(sys.modules, "argon2", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'cloudstore-mapping\[server\]'"):
        Argon2Hasher().hash("password")
