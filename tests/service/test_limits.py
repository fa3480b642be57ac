"""What an account may use: files, their sizes, accesses, pace; each refusal names its limit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from cloudstore_mapping.cli.accounts import LIMITS
from cloudstore_mapping.errors import BadNameError, BadValueError, TooBigError
from cloudstore_mapping.service.idempotency import REMEMBERED_FOR
from cloudstore_mapping.service.quotas import DRIFT, JITTER
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.records import Counters, Limits
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, encode_value
from tests.media_fakes import write
from tests.service_fakes import Asker, ManualClock, run_for, settle
from tests.storages import new_storage


def limit(service: Service, **limits: float | None) -> None:
    """Give the account of `ask` some limits."""
    service.accounts.set_limits("owner", **limits)  # type: ignore[arg-type]  # mypy takes a limit for the origin
    service.sweeper.wait()


def refused_upload(service: Service, ask: Asker, data: bytes) -> str:
    """Return the refusal of an upload."""
    upload = service.media.begin(name="photo.png", content_type="image/png", api_key=ask.api_key)
    with pytest.raises(TooBigError) as refused:
        write(upload, data)
    upload.abort()
    return str(refused.value)


def test_each_refusal_names_its_limit(service: Service, ask: Asker) -> None:
    """The refusal by each limit has the limit's name of the command line, and its number."""
    ask.save("name", 1)
    refusals: dict[str, Callable[[], str | None]] = {
        "files": lambda: ask.save("new", 1).sentence,
        "file-bytes": lambda: ask.save("name", "xxxx").sentence,
        "media-bytes": lambda: refused_upload(service, ask, b"xxxx"),
        "total-bytes": lambda: ask.save("new", "xxxx").sentence,
        "daily-accesses": lambda: [ask.load("name").sentence for _ in range(9)][-1],
        "interval": lambda: [ask.list().sentence for _ in range(9)][-1],
    }
    assert refusals.keys() == LIMITS.keys()
    for name, refusal in refusals.items():
        number = 1 if name == "files" else 3
        limit(service, **{LIMITS[name]: number})
        sentence = refusal()
        assert sentence is not None
        assert re.search(rf"\b{name}\b", sentence), sentence
        assert str(number) in sentence
        limit(service, **{LIMITS[name]: None})


def test_an_upload_names_the_limit_that_it_exceeds(service: Service, ask: Asker) -> None:
    """The refusal of an upload names the lowest of its limits, and others of the account's files only if they count."""
    ask.save("name", 1)
    limit(service, max_media_bytes=100)
    assert refused_upload(service, ask, b"x" * 101) == (
        "A media file may take 100 bytes at most (the account's media-bytes); send a smaller one."
    )
    limit(service, max_total_bytes=55)
    assert refused_upload(service, ask, b"x" * 51) == (
        "A media file may take 50 bytes at most (the rest of the account's total-bytes, 55); send a smaller one."
    )
    limit(service, max_total_bytes=5)
    assert refused_upload(service, ask, b"x") == (
        "A media file may take 0 bytes at most (the rest of the account's total-bytes, 5); delete something first."
    )
    limit(service, max_total_bytes=2)
    assert refused_upload(service, ask, b"x").endswith("total-bytes, 2); delete more than 3 bytes first.")


def test_how_much_is_to_be_deleted(service: Service, ask: Asker) -> None:
    """A refused save says how many files or bytes to delete for it; just so many deletes make room, and no fewer."""
    for name in "abcd":
        ask.save(name, "x" * 8)

    def delete_until_saved(*names: str) -> None:
        for name in names:
            assert ask.save("new", 1).error is not None
            ask.delete(name)
        assert ask.save("new", 1).error is None
        ask.delete("new")

    limit(service, max_files=2)
    told = "The account holds 4 files and may hold 2 (files, set for it); "
    assert ask.save("new", 1).sentence == f"{told}delete 3 first."
    delete_until_saved("a", "b", "c")
    limit(service, max_files=1)
    assert ask.save("new", 1).sentence.endswith("; delete one first.")
    delete_until_saved("d")
    limit(service, max_files=None)
    for name in "abcd":
        ask.save(name, "x" * 8)
    limit(service, max_total_bytes=20)
    assert "holds 44 bytes and may hold 20 " in ask.save("new", 1).sentence
    assert ask.save("new", 1).sentence.endswith("; delete 28 bytes, or ask for a higher limit.")
    delete_until_saved("a", "b", "c")


def test_there_are_no_limits_at_first(service: Service, ask: Asker) -> None:
    """An account is unlimited unless it is made under another plan."""
    assert service.accounts.named("owner").limits == Limits()
    service.accounts.create("small", plan="basic")
    account = service.accounts.named("small")
    assert (account.plan, account.limits) == ("basic", Limits(100, 3072, 300, 3.0))


def test_too_many_files(service: Service, ask: Asker) -> None:
    """A new file past the number is refused, a change of one that is there is not, and a deleted one makes room."""
    limit(service, max_files=2)
    assert ask.save("one", 1).error is ask.merge("two", {}).error is None
    for refused in (ask.save("three", 1), ask.merge("three", 1)):
        assert refused.error == "TooManyFiles"
        assert "2 files" in refused.sentence
        assert "set for it" in refused.sentence
    assert ask.save("one", 2).error is ask.merge("two", {"a": 1}).error is None
    ask.delete("one")
    assert ask.save("three", 1).error is None


def test_too_many_files_in_a_batch(service: Service, ask: Asker) -> None:
    """The files of one batch count one after another."""
    limit(service, max_files=2)
    requests = [Request(name=name, value=encode_value(1)) for name in "abc"]
    reply = service.handle(Batch(api_key=ask.api_key, requests=requests))
    assert '"TooManyFiles"' in bytes(reply.content).decode()
    assert ask.list().sentence == "a,b"


@pytest.mark.parametrize("operation", [None, "merge"])
def test_too_big(service: Service, ask: Asker, operation: str | None) -> None:
    """A value past the size is refused, merged or not, and what was there stays."""
    limit(service, max_file_bytes=10)
    assert ask.save("name", "x" * 8).error is None
    request = ask.request(operation, "name", value="y" * 9)
    reply = service.handle(request)
    assert reply.error == "TooBig"
    assert "11 bytes and a file at most 10" in reply.sentence
    assert ask.value("name") == "x" * 8


def test_too_big_after_the_merge(service: Service, ask: Asker) -> None:
    """What counts is what would be stored."""
    limit(service, max_file_bytes=16)
    assert ask.save("name", {"a": 1}).error is None
    assert ask.merge("name", {"b": 1}).error is None
    assert ask.merge("name", {"c": 1}).error == "TooBig"
    assert ask.value("name") == {"a": 1, "b": 1}


def test_a_quota_is_never_looked_at_on_a_read(service: Service, ask: Asker) -> None:
    """Files that are more or larger than a new limit allows are still read and deleted."""
    for name in ("one", "two"):
        ask.save(name, "x" * 100)
    limit(service, max_files=1, max_file_bytes=1)
    assert ask.value("one") == "x" * 100
    assert ask.save("one", "x").error == "TooBig"
    assert ask.delete("one").error is ask.delete("two").error is None


def test_accesses_a_day(service: Service, ask: Asker) -> None:
    """Loads, saves and merges of a file count together and for each file; the refusal comes before a write is done."""
    limit(service, max_daily_accesses=3)
    assert ask.save("name", 1).error is ask.load("name").error is ask.merge("name", 2).error is None
    for refused in (ask.load("name"), ask.save("name", 3), ask.merge("name", 3)):
        assert refused.error == "DailyLimit"
        assert "allows 3" in refused.sentence
    assert ask.save("other", 1).error is None
    assert ask.list().error is None
    assert stat(ask).error is None
    assert ask.delete("name").error is None
    assert ask.save("name", 1).error == "DailyLimit"  # made anew it is still the same name


def stat(ask: Asker) -> Reply:
    """Return what the service knows of the file."""
    return ask.service.handle(ask.request("stat", "name"))


def test_a_locked_file_is_not_used_up_by_strangers(service: Service, ask: Asker) -> None:
    """Who has no password uses nothing of what the file's owner may."""
    limit(service, max_daily_accesses=2)
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="e", view="v")
    for _ in range(5):
        assert ask.load("name").error == ask.save("name", 2).error == "Locked"
    assert ask.value("name", "v") == 1


def test_the_pace(service: Service, ask: Asker, clock: ManualClock) -> None:
    """A request that comes too early is told how long to wait, and doesn't begin the wait anew."""
    limit(service, min_interval=60)
    assert ask.save("name", 1).error is None
    clock.advance(40)
    for refused in (ask.load("name"), ask.list(), ask.save("name", 2), stat(ask)):
        assert (refused.error, refused.status) == ("TooOften", 429)
        assert refused.retry_after == pytest.approx(20 - JITTER - 60 * DRIFT)
        assert refused.sentence.endswith("every 60 seconds (interval); send the next one in 5.0 seconds.")
    clock.advance(20)
    assert ask.value("name") == 1
    assert ask.list().error == "TooOften"
    clock.advance(60)
    assert ask.list().error is None


def test_the_pace_comes_before_name_and_password(service: Service, ask: Asker, clock: ManualClock) -> None:
    """A wrong name or password takes a turn, so nothing can be tried faster than the pace; a wrong key takes none."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", view="v")
    limit(service, min_interval=60)
    assert Asker(service, "no such key of anybody").load("name").error == "BadKey"
    assert ask.load("name", "w").error == "Locked"
    assert ask.load("name", "v").error == "TooOften"
    clock.advance(60)
    assert ask.load("").error == "BadName"
    assert ask.load("name", "v").error == "TooOften"
    clock.advance(60)
    assert ask.value("name", "v") == 1


def test_a_batch_is_one_request(service: Service, ask: Asker) -> None:
    """The pace is one of requests, whatever they hold."""
    limit(service, min_interval=1)
    requests = [Request(name=name, value=encode_value(1)) for name in "abc"]
    assert service.handle(Batch(api_key=ask.api_key, requests=requests)).error is None


def test_the_pace_is_one_for_all_processes(tmp_path: Path, clock: ManualClock) -> None:
    """What one service let pass the other knows at once."""
    with (
        Service(new_storage(tmp_path / "s.db"), clock=clock) as here,
        Service(new_storage(tmp_path / "s.db"), clock=clock) as there,
    ):
        key = here.accounts.create("owner")
        here.accounts.set_limits("owner", min_interval=60)
        assert Asker(here, key).list().error is None
        assert Asker(there, key).list().error == "TooOften"
        clock.advance(60)
        assert Asker(there, key).list().error is None
        assert Asker(here, key).list().error == "TooOften"


def test_two_at_once_are_one_and_one_too_many(service: Service, ask: Asker) -> None:
    """Of requests that are asked at the same moment a pace longer than any delay lets pass one."""
    limit(service, min_interval=60)
    answers = [service.submit(ask.request("list", "")) for _ in range(8)]
    errors = [answer.result().error for answer in answers]
    assert sorted(errors, key=str) == [None, *["TooOften"] * 7]


def test_a_clock_that_is_set_back_locks_nobody_out(service: Service, ask: Asker, clock: ManualClock) -> None:
    """A turn that lies further ahead than the pace and the delays allow is none."""
    limit(service, min_interval=60)
    assert ask.list().error is None
    clock.advance(-3600)
    assert ask.list().error is None
    assert ask.list().error == "TooOften"


def test_the_owner_is_not_slowed(service: Service, ask: Asker) -> None:
    """Who is signed in needs no key, no password and no turn, but the account's sizes and numbers hold."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="e", view="v")
    limit(service, min_interval=100, max_daily_accesses=1, max_files=1, max_file_bytes=10)
    owner = service.accounts.named("owner")

    def own(operation: str | None, name: str, **value: object) -> str | None:
        request = replace(ask.request(operation, name, **value), api_key="")  # type: ignore[arg-type]  # for a password
        return service.submit(request, owner=owner).result().error

    for _ in range(3):
        assert own(None, "name") is own(None, "name", value=2) is own("list", "") is None
    assert own(None, "other", value=1) == "TooManyFiles"
    assert own(None, "name", value="x" * 20) == "TooBig"
    assert own("delete", "name") is None
    service.accounts.delete("owner")
    assert own("list", "") == "BadKey"


def test_a_plan_can_be_changed(service: Service, ask: Asker) -> None:
    """A plan sets all limits at once, and one that is changed by hand is called custom."""
    service.accounts.set_plan("owner", "basic")
    assert service.accounts.named("owner").plan == "basic"
    limit(service, max_files=500)
    account = service.accounts.named("owner")
    assert (account.plan, account.limits) == ("custom", Limits(500, 3072, 300, 3.0))
    limit(service, max_files=100)
    assert service.accounts.named("owner").plan == "basic"
    with pytest.raises(BadValueError, match="unlimited and basic"):
        service.accounts.set_plan("owner", "gold")
    with pytest.raises(BadValueError, match="unlimited and basic"):
        service.accounts.create("other", plan="gold")
    with pytest.raises(BadNameError, match="account list"):
        service.accounts.set_plan("nobody", "basic")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_files", value) for value in (0, -1, 1.5, True, "3", 2**63)],
        *[("min_interval", value) for value in (0, float("nan"), float("inf"))],
        ("plan", 1),
    ],
)
def test_what_is_no_limit(service: Service, ask: Asker, name: str, value: object) -> None:
    """A limit that can't hold is refused, and nothing is changed."""
    with pytest.raises(BadValueError):
        service.accounts.set_limits("owner", max_file_bytes=1, **{name: value})  # type: ignore[arg-type]
    assert service.accounts.named("owner").limits == Limits()


def test_every_operation_has_its_rule() -> None:
    """The operations are those that this file knows of."""
    assert {operation.value for operation in Operation} == {"save", "merge", "delete", "load", "list", "stat", "batch"}


def held(service: Service) -> Counters:
    """Return what the account of `ask` holds, as it is counted."""
    with service._storage.read() as transaction:
        account = transaction.account_named("owner")
        assert account is not None
        counted = transaction.counters(account.id)
        assert counted is not None
        assert counted == transaction.recounted(account.id)
        return counted


def test_all_bytes_of_an_account(service: Service, ask: Asker) -> None:
    """Names and values of all files together may take so many bytes; a smaller value and a delete always go."""
    limit(service, max_total_bytes=100)
    assert ask.save("a", "x" * 40).error is None
    assert ask.save("b", "x" * 40).error is None
    refused = ask.save("c", "x" * 20)
    assert refused.error == "TooBig"
    assert "holds 86 bytes and may hold 100 (total-bytes)" in refused.sentence
    assert ask.merge("a", {"more": "x" * 80}).error == "TooBig"
    assert ask.save("a", "x" * 50).error is None
    limit(service, max_total_bytes=10)
    assert ask.save("a", "x" * 60).error == "TooBig"
    assert ask.save("a", "x" * 10).error is None
    assert ask.delete("b").error is None
    assert held(service).bytes == len("a") + 12


@pytest.mark.sqlite("counts its statements")
def test_the_number_of_files_is_not_counted_by_each_save(service: Service, ask: Asker) -> None:
    """A new file of an account with a limit asks for a counter, and reads no other file."""
    limit(service, max_files=10)
    asked: list[str] = []
    connection = service._storage._session.connection  # type: ignore[attr-defined]  # SQLite's
    connection.set_trace_callback(asked.append)
    assert ask.save("name", 1).error is None
    connection.set_trace_callback(None)
    assert any("FROM counters" in statement for statement in asked)
    assert not [statement for statement in asked if "LIMIT" in statement]
    assert [statement.count("name = ") for statement in asked if "count(*)" in statement] == [2]


def saved_once(service: Service, ask: Asker, name: str, request: str, value: object = 1) -> Reply:
    """Return the reply to a save with an id."""
    return service.handle(Request(api_key=ask.api_key, name=name, value=encode_value(value), once=request))


def test_stored_replies_take_space(service: Service, ask: Asker) -> None:
    """A full account stores no further reply but to deletes, and what was answered before is answered again."""
    assert ask.save("name", 1).error is None
    limit(service, max_total_bytes=10_000)
    for number in range(1000):
        if (reply := saved_once(service, ask, "name", f"request {number}")).error is not None:
            break
    assert reply.error == "TooBig"
    assert held(service).replies < held(service).bytes < 10_000 + 500
    assert number > 10
    assert saved_once(service, ask, "name", "request 0").error is None
    assert ask.save("name", 2).error is None
    deleting = Request(api_key=ask.api_key, name="name", options="delete", once="delete")
    assert service.handle(deleting).error is None
    batch = Batch(api_key=ask.api_key, requests=[Request(name="name", value=encode_value(1))], once="batch")
    assert service.handle(batch).error == "TooBig"


def test_a_full_account_makes_room_with_an_id(service: Service, ask: Asker) -> None:
    """A full account shortens a value with an id too, if that frees more than the stored reply takes."""
    assert ask.save("name", "x" * 1000).error is None
    limit(service, max_total_bytes=1_000)
    full = held(service)
    assert saved_once(service, ask, "name", "small change", "x" * 990).error == "TooBig"
    assert held(service) == full
    assert saved_once(service, ask, "name", "large change", "x").error is None
    assert held(service).bytes < full.bytes
    assert saved_once(service, ask, "name", "large change", "x").error is None


def test_stored_replies_of_an_account_with_few_files(
    service: Service, ask: Asker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account with a limit on files alone stores so many bytes of replies; when they are forgotten it goes on."""
    monkeypatch.setattr("cloudstore_mapping.service.quotas.MAX_REPLIES", 1000)
    limit(service, max_files=1)
    for number in range(1000):
        if (reply := saved_once(service, ask, "name", f"request {number}")).error is not None:
            break
    assert (reply.error, reply.retry_after) == ("TooOften", 60.0)
    assert held(service).replies < 1500
    run_for(REMEMBERED_FOR + 120, service, clock)
    assert held(service).replies == 0
    assert saved_once(service, ask, "name", "later").error is None


def test_stored_replies_dated_ahead(
    service: Service, ask: Asker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account full of replies of a clock that was ahead can write with ids 17 minutes later."""
    monkeypatch.setattr("cloudstore_mapping.service.quotas.MAX_REPLIES", 1000)
    limit(service, max_files=1)
    clock.ahead = 60 * 86_400.0
    for number in range(1000):
        if saved_once(service, ask, "name", f"request {number}").error is not None:
            break
    clock.ahead = 0.0
    service.sweeper.look()
    settle(service._storage)
    assert saved_once(service, ask, "name", "soon").error == "TooOften"
    run_for(REMEMBERED_FOR + 120, service, clock)
    assert held(service).replies == 0
    assert saved_once(service, ask, "name", "later").error is None


def test_a_refusal_for_a_limit_takes_no_room(service: Service, ask: Asker) -> None:
    """Its reply isn't stored, so many of them fill no account, and the same request goes once there is room."""
    ask.save("a", "x" * 100)
    limit(service, max_total_bytes=200, max_files=2)
    before = held(service)
    for number in range(10):
        assert saved_once(service, ask, "b", f"r{number}", "x" * 100).error == "TooBig"
    assert held(service) == before
    ask.save("a", "x")
    assert saved_once(service, ask, "b", "r0", "x" * 100).error is None
    limit(service, max_files=2)
    before = held(service)
    assert saved_once(service, ask, "c", "s1", "x").error == "TooManyFiles"
    assert held(service) == before


def test_a_value_larger_than_its_account(service: Service, ask: Asker) -> None:
    """Nothing that is deleted makes room for it, so its refusal doesn't tell to delete something."""
    ask.save("a", "x")
    limit(service, max_total_bytes=100)
    assert "so send a smaller value, or ask for a higher limit." in ask.save("b", "x" * 200).sentence


def test_an_account_full_of_replies(service: Service, ask: Asker) -> None:
    """If nothing that can be deleted makes room for a request, its refusal doesn't tell to delete something."""
    limit(service, max_total_bytes=2000)
    replies = (saved_once(service, ask, "n", f"r{number}") for number in itertools.count())
    refused = next(reply for reply in replies if reply.error is not None)
    assert refused.error == "TooBig"
    assert refused.sentence.endswith("; wait until the replies expire, or ask for a higher limit.")
    ask.save("large", "x" * 10_000)
    limit(service, max_total_bytes=None)
    ask.save("large", "x" * 1_000)
    limit(service, max_total_bytes=100)
    sentence = ask.save("n", 12345).sentence
    assert re.search(r"; delete [\d,]+ bytes and wait until the replies expire, or ask for a higher limit\.$", sentence)
