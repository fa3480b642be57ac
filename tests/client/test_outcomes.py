"""Outcomes of a write: each cell of the table in docs/errors.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Raw

import cloudstore_mapping as cm
from cloudstore_mapping.client.files import Client
from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    CloudStoreError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TransportError,
)
from cloudstore_mapping.testing.faults import SIGN_IN_PAGE
from cloudstore_mapping.wire import Reply, decode_reply, encode_value
from tests.support.matrix import spread
from tests.support.scripted import ALL, DONE, Outcome, Script, told

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ROW = re.compile(r"^\| (?!the last|---)(.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
TABLE = {row[0]: row[1:] for row in ROW.findall(PAGE.read_text("utf-8"))}

COLUMNS = ("nothing applied before", "maybe applied before", "maybe applied, with an id")
WRITES: dict[str, Callable[[Client], object]] = {
    "save": lambda client: client.save("a", Raw(b"1")),
    "merge": lambda client: client.merge("a", Raw(b"1")),
    "delete": lambda client: client.delete("a"),
}


def gateway(status: int) -> Reply:
    """Return the answer of a gateway."""
    return Reply(error="Http error", message=encode_value("Reason"), status=status)


def unreadable() -> CloudStoreError:
    """Return the error of a sign-in page."""
    with pytest.raises(ProtocolError) as caught:
        decode_reply(SIGN_IN_PAGE)
    return caught.value


SPECIAL: dict[str, Callable[[], Outcome]] = {
    "success": lambda: DONE,
    "no connection": lambda: TransportError("refused", sent=False),
    "no connection in time": lambda: TimedOutError("not connected", sent=False),
    "a broken connection": lambda: TransportError("broke", sent=True),
    "no answer in time": lambda: TimedOutError("slow", sent=True),
    "a sign-in page": unreadable,
}


def outcome_of(name: str) -> Outcome:
    """Return the outcome of an attempt called so in the table."""
    if name in SPECIAL:
        return SPECIAL[name]()
    if name.endswith(" of a gateway"):
        return gateway(int(name.split()[0]))
    return Reply(error=name, message=encode_value("No."), status=REPLY_ERRORS[name][0])


def expected(cell: str, write: str) -> type[CloudStoreError] | None:
    """Return the error in a cell, None for success."""
    if cell == "success" or (write == "delete" and "a delete: success" in cell):
        return None
    error: type[CloudStoreError] = getattr(cm, cell.split("`")[1])
    return error


@pytest.mark.parametrize(
    ("first", "last", "column", "write"),
    spread(
        [["a broken connection", "502 of a gateway", "504 of a gateway", "OutcomeUnknown"], TABLE, COLUMNS, WRITES], 3
    ),
)
def test_cell(first: str, last: str, column: str, write: str) -> None:
    """A write raises `OutcomeUnknownError` whenever an attempt may have been applied and the last doesn't tell."""
    number = COLUMNS.index(column)
    before = outcome_of("no connection" if number == 0 else first)
    extensions = ALL if number == 2 else frozenset[str]()
    client, script = told(extensions, before, *[outcome_of(last) for _ in range(3)])
    client._retries = 1
    error = expected(TABLE[last][number], write)
    if error is None:
        WRITES[write](client)
    else:
        with pytest.raises(CloudStoreError) as caught:
            WRITES[write](client)
        assert type(caught.value) is error
        if isinstance(caught.value, OutcomeUnknownError):
            assert "it may have been done or not" in str(caught.value) or last == "OutcomeUnknown"
            assert caught.value.key == "a"
    assert len(script.requests) == 2


def test_the_table_is_whole() -> None:
    """The table has every error of a reply to a write, and every failure without a reply."""
    about_others = {"BadRequest", "BadMethod", "BodyTooBig", "BadType"}  # about the form of a request, like NoPath
    assert REPLY_ERRORS.keys() - about_others <= TABLE.keys()
    assert SPECIAL.keys() <= TABLE.keys()


@pytest.mark.parametrize("error", ["BadRequest", "BadMethod", "BodyTooBig", "BadType"])
def test_other_refusals(error: str) -> None:
    """Any other refusal tells nothing of the attempts before it."""
    client, _ = told(ALL, outcome_of("a broken connection"), outcome_of(error))
    with pytest.raises(OutcomeUnknownError):
        client.save("a", Raw(b"1"))


@pytest.mark.parametrize("write", WRITES)
def test_an_unreadable_answer_says_that_the_outcome_is_unknown(write: str) -> None:
    """A single answer that can't be read is `ProtocolError`, whose message says that the outcome is unknown."""
    with pytest.raises(ProtocolError, match=f"The outcome of the {write} of 'a' is unknown"):
        WRITES[write](Script(unreadable()).client())


@pytest.mark.parametrize("last", [name for name in TABLE if name != "success"])
def test_reads_raise_the_last_error(last: str) -> None:
    """A read never has an unknown outcome of its own."""
    with pytest.raises(CloudStoreError) as caught:
        Script(outcome_of("a broken connection"), outcome_of(last)).client(retries=1).load("a")
    assert isinstance(caught.value, OutcomeUnknownError) is (last == "OutcomeUnknown")
