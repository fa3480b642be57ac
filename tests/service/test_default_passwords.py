"""The account's default passwords, given apart from a file's own: `dataPass` of data files, `mediaPass` of media."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from msgspec.structs import replace

from cloudstore_mapping.errors import LockedError, ProtocolError, TooOftenError
from cloudstore_mapping.service.media import UploadRequest
from cloudstore_mapping.service.security import PasswordCheck
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies
from tests.media_fakes import Uploader
from tests.service_fakes import Asker, FakeHasher, ManualClock

OPERATIONS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "load": (None, {}),
    "save": (None, {"value": 1}),
    "merge": ("merge", {"value": 1}),
    "delete": ("delete", {}),
}


def asked(ask: Asker, operation: str, password: str | None, data_password: str | None, name: str = "name") -> Request:
    """Return a request with both passwords."""
    options, value = OPERATIONS[operation]
    return replace(ask.request(options, name, password, **value), data_password=data_password)


def error(ask: Asker, *request: Any) -> str | None:
    """Return the error of the reply to a request with both passwords."""
    return ask.service.handle(asked(ask, *request), address=ask.address).error


@pytest.fixture
def locked(service: Service, ask: Asker) -> Asker:
    """Return somebody with a default password, a file under it, and files with passwords of their own."""
    for name in ("name", "viewed", "edited", "both"):
        ask.save(name, 1)
    service.set_passwords("owner", "viewed", view="own view")
    service.set_passwords("owner", "edited", edit="own edit")
    service.set_passwords("owner", "both", edit="own edit", view="own view")
    service.set_default_passwords("owner", data="default", media="for media")
    ask.address = "192.0.2.1"
    return ask


@pytest.mark.parametrize("password", [None, "", "undefined", "wrong", "default"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["name", "viewed", "new"])
def test_it_opens_what_the_default_opens(locked: Asker, name: str, operation: str, password: str | None) -> None:
    """A right `dataPass` opens all files without an edit password of their own, whatever the `password`."""
    expected = "NoFile" if name == "new" and operation in ("load", "delete") else None
    assert error(locked, operation, password, "default", name) == expected


@pytest.mark.parametrize("data_password", [None, "", "undefined", "wrong", "for media", "own edit", "own view"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_another_opens_nothing(locked: Asker, operation: str, data_password: str | None) -> None:
    """A missing or wrong `dataPass` opens nothing, and takes nothing from a right `password`."""
    is_read = operation == "load"
    assert error(locked, operation, None, data_password) == (None if is_read else "Locked")
    assert error(locked, operation, None, data_password, "viewed") == "Locked"
    if is_read:
        assert error(locked, operation, "own view", data_password, "viewed") is None
    assert error(locked, operation, "default", data_password, "viewed") is None


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_files_own_password_overrides_it(locked: Asker, operation: str) -> None:
    """A file with an edit password of its own is opened by that, not by the default, which isn't even tried."""
    assert error(locked, operation, None, "default", "both") == "Locked"
    assert error(locked, operation, None, "default", "edited") == (None if operation == "load" else "Locked")
    assert error(locked, operation, "own edit", "default", "both") is None


def test_a_file_without_any_password(service: Service, ask: Asker, hasher: FakeHasher) -> None:
    """Where nothing is locked a `dataPass` is passed over, of any length."""
    for operation in ("save", "merge", "load", "delete"):
        assert error(ask, operation, None, "x" * 5000) is None
    assert hasher.checks == 0


def test_lists_and_stat_are_never_locked(locked: Asker) -> None:
    """A list or stat is answered alike with a right, a wrong and no `dataPass`."""
    for options, name in (("list", ""), ("stat", "both")):
        request = locked.request(options, name)
        replies = [
            locked.service.handle(each, address=locked.address)
            for each in (request, *(replace(request, data_password=given) for given in ("default", "wrong", None)))
        ]
        assert [bytes(reply.content) for reply in replies] == [bytes(replies[0].content)] * 4


def test_a_conditional_load(locked: Asker) -> None:
    """A load of what has changed since a version asks for the same passwords."""
    version = locked.service.handle(asked(locked, "save", None, "default", "viewed")).version
    request = replace(asked(locked, "load", None, "wrong", "viewed"), if_not_version=version)
    assert locked.service.handle(request).error == "Locked"
    assert locked.service.handle(replace(request, data_password="default")).unchanged is True


@pytest.mark.parametrize("atomic", [True, False])
def test_items_of_a_batch(locked: Asker, atomic: bool) -> None:
    """Each item of a batch is opened by its own `dataPass` only."""

    def post(*given: str | None) -> Reply:
        items = [replace(asked(locked, "save", None, each), api_key="") for each in given]
        return locked.service.handle(Batch(api_key=locked.api_key, requests=items, atomic=atomic), address="192.0.2.1")

    assert [reply.error for reply in decode_replies(post("default", "default").data)] == [None, None]  # type: ignore[arg-type]  # there always is some
    refused = post("default", None)
    if atomic:
        assert refused.error == "Locked"
    else:
        assert [reply.error for reply in decode_replies(refused.data)] == [None, "Locked"]  # type: ignore[arg-type]  # there always is some


@pytest.mark.parametrize("how", ["data_password", "both"])
def test_guesses_are_slowed(locked: Asker, hasher: FakeHasher, clock: ManualClock, how: str) -> None:
    """Five wrong guesses at the default from one address, in either field or at any file, and the next waits."""
    for number in range(5):
        password = f"guess {number}" if how == "both" and number % 2 else None
        given = None if password else f"guess {number}"
        assert error(locked, "save", password, given, f"file {number}") == "Locked"
    assert hasher.checks == 5
    assert error(locked, "save", None, "default") == error(locked, "save", "default", None) == "TooOften"
    assert hasher.checks == 5
    locked.address = "192.0.2.2"
    assert error(locked, "save", None, "default") is None
    locked.address = "192.0.2.1"
    clock.advance(300)
    assert error(locked, "save", None, "default") is None


def test_two_guesses_at_once_are_two(locked: Asker, hasher: FakeHasher) -> None:
    """A request with two wrong passwords counts twice, one with the same in both fields once."""
    assert [error(locked, "save", f"a {number}", f"b {number}") for number in range(3)] == [
        "Locked",
        "Locked",
        "TooOften",
    ]
    assert hasher.checks == 5
    locked.address = "192.0.2.2"
    assert [error(locked, "save", str(number), str(number)) for number in range(6)] == ["Locked"] * 5 + ["TooOften"]
    assert hasher.checks == 10


def test_a_right_one_takes_back_the_wrong_one_beside_it(locked: Asker, hasher: FakeHasher) -> None:
    """Who has the default is never slowed for the passwords beside it, also where it was just changed."""
    for number in range(20):
        assert error(locked, "save", f"of another file {number}", "default") is None
    assert hasher.checks == 2
    for number in range(10):
        locked.service.set_default_passwords("owner", data="default")
        assert error(locked, "save", f"of another file {number}", "default") is None


def test_undefined_is_no_guess(locked: Asker, hasher: FakeHasher) -> None:
    """The word that the vendor's browser client sends for no password is never hashed or counted."""
    assert {error(locked, "save", given, "undefined") for given in (None, "undefined") for _ in range(6)} == {"Locked"}
    assert hasher.checks == 0


def test_a_very_long_one(locked: Asker, hasher: FakeHasher) -> None:
    """A `dataPass` over 1 KiB is `BadRequest`, and never hashed, also beside a password of the file's own."""
    for name in ("name", "both"):
        reply = locked.service.handle(asked(locked, "save", "own edit", "x" * 1025, name))
        assert (reply.error, reply.status) == ("BadRequest", 400)
    assert hasher.checks == 0


def test_it_is_never_shown(locked: Asker, caplog: pytest.LogCaptureFixture) -> None:
    """No log, reply or repr holds it."""
    caplog.set_level(logging.DEBUG)
    request = asked(locked, "save", None, "hunter2")
    replies = [locked.service.handle(each) for each in (request, replace(request, data_password="hunter2" * 200))]
    assert [reply.error for reply in replies] == ["Locked", "BadRequest"]
    sender = UploadRequest("name", "a/b", "key", None, "hunter2", "", None, only_new=False)
    told = [repr(request), repr(PasswordCheck(("name",), (("hunter2", ("hash",)),))), repr(sender), caplog.text]
    assert "hunter2" not in "".join(told + [reply.sentence for reply in replies])


@pytest.fixture
def uploader(service: Service) -> Uploader:
    """Return somebody who uploads to an account with default passwords."""
    uploader = Uploader(service)
    service.set_default_passwords("owner", data="default", media="for media")
    return uploader


def test_uploads(uploader: Uploader) -> None:
    """A right `mediaPass` opens uploads of new files and of such without their own password, and no other."""
    for password in (None, "undefined", "wrong"):
        uploader.upload(b"data", password=password, media_password="for media")
    facts = uploader.upload(b"data", "own.png", media_password="for media")
    uploader.service.media.set_password(uploader.account, facts["id"], "own")
    refused: list[tuple[str | None, str]] = [(None, "for media"), ("wrong", "for media"), (None, "own")]
    for own, media_password in refused:
        with pytest.raises(LockedError):
            uploader.begin("own.png", password=own, media_password=media_password)
    uploader.upload(b"data", "own.png", password="own", media_password="for media")
    for given in (None, "", "undefined", "wrong", "default"):
        with pytest.raises(LockedError):
            uploader.begin("new.png", media_password=given)
    with pytest.raises(ProtocolError, match="longer than"):
        uploader.begin("new.png", media_password="x" * 1025)


def test_guesses_at_uploads_are_slowed(uploader: Uploader) -> None:
    """Five wrong ones from one address, and it has to wait."""
    for number in range(5):
        with pytest.raises(LockedError):
            uploader.begin("new.png", media_password=f"guess {number}", address="192.0.2.1")
    with pytest.raises(TooOftenError):
        uploader.begin("new.png", media_password="for media", address="192.0.2.1")
    uploader.upload(b"data", "new.png", media_password="for media", address="192.0.2.2")
    with pytest.raises(TooOftenError):  # also once another address has used it
        uploader.begin("new.png", media_password="for media", address="192.0.2.1")
