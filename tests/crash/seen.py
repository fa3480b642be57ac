"""Whether what commands said, wrote and made beside others is right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage.maintenance import check_file
from cloudstore_mapping.testing.linearizability import Call, History
from cloudstore_mapping.transfer import import_store
from cloudstore_mapping.transfer.dbmfiles import is_dbm
from tests.crash.beside import Ran
from tests.crash.commands import OWN, value_of
from tests.crash.script import Contents, contents

#: What SQLite's header says of a file that needs no log beside it: the versions to write and read it.
ROLLBACK: Final = b"\1\1"


def check_answer(ran: Ran, *, has_room: bool = True) -> None:
    """Check that a command succeeded, was killed, or was refused with a sentence where it may be."""
    if ran.status == 0:
        assert ran.errors == "", ran
        if ran.command.way == "check":
            assert json.loads(ran.output)["faults"] == [], ran
    elif ran.status is not None:
        assert ran.command.may_fail or not has_room, ran
        assert ran.errors.splitlines()[-1].startswith(("cloudstore: ", '{"error":')), ran
        assert "Traceback" not in ran.errors, ran


def check_written(ran: Ran, own: set[str]) -> None:
    """Check that all is there of what a command wrote that succeeded."""
    if ran.status == 0:
        assert own.issuperset(ran.command.writes), ran


def split(found: Contents) -> tuple[Contents, set[str]]:
    """Return what others wrote, and the keys that commands wrote, each of which has its whole value."""
    own = {key for key in found if key.startswith(OWN)}
    assert {key: found[key] for key in own} == {key: value_of(key) for key in own}
    return {key: value for key, value in found.items() if key not in own}, own


def made_by(ran: Ran) -> Contents | None:
    """Return what others had written that is in the export or backup of a command, None where it made none."""
    target = ran.command.target
    if target is None:
        return None
    if not (target.exists() or is_dbm(target)):
        assert ran.status != 0, ran
        return None
    if ran.status != 0 and (ran.command.may_fail or target.suffix == ".db"):
        return None  # of a service it is what could be read; and another store gets one key after another
    if ran.command.way == "backup":
        assert target.read_bytes()[18:20] == ROLLBACK, ran
        assert check_file(target).faults == [], ran
    with cm.open("memory:") as store:
        try:
            import_store(store, target, trust=True)
        except cm.UnsupportedError:  # a sentence says that it is not whole
            assert ran.status != 0, ran
            return None
        return split(contents(store))[0]


def check_seen(ran: Ran, allowed: Sequence[Contents]) -> None:
    """
    Check that what a command saw is what was there meanwhile.

    Of a backup that is all that was there at one moment; of an export and a listing it holds for each key.
    """
    made = made_by(ran)
    if made is not None and ran.command.way == "backup":
        assert made in allowed, ran
    elif made is not None:
        for key in {*made, *chain.from_iterable(allowed)}:
            assert any(_same_at(key, made, each) for each in allowed), (ran, key)
    elif ran.status == 0 and ran.command.way == "ls":
        listed = set(json.loads(ran.output))
        for key in {*listed, *chain.from_iterable(allowed)}:
            is_of_others = not key.startswith((OWN, "media/"))
            assert not is_of_others or any((key in listed) == (key in each) for each in allowed), (ran, key)
    elif ran.status == 0 and ran.command.way == "get":
        assert any(each.get(ran.command.arguments[1]) == json.loads(ran.output) for each in allowed), ran


def _same_at(key: str, one: Contents, other: Contents) -> bool:
    return (key in one) == (key in other) and one.get(key) == other.get(key)


def add_to(histories: Mapping[str, History], ran: Ran) -> None:
    """Have a command be one more client, which loaded what it saw."""
    made = made_by(ran)
    seen = {} if made is None else {key: made.get(key, KeyError) for key in histories}
    if ran.status == 0 and ran.command.way == "get":
        seen = {ran.command.arguments[1]: json.loads(ran.output)}
    for key, result in seen.items():
        histories[key].calls.append(Call(-1, "load", None, ran.called, ran.returned, result))
