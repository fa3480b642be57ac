"""The error tree: as it is drawn, what each error carries, and what of it travels."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping
from cloudstore_mapping import errors
from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    BulkError,
    ChangedError,
    CloudStoreError,
    LimitError,
    NoFileError,
    OutcomeUnknownError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)

TREE: list[type[CloudStoreError]] = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CloudStoreError)
]
FACTS: dict[str, Any] = {"key": "k", "error": "Odd", "status": 418, "response": object()}

# What a reply may say beside success, and the HTTP status that it travels under: part of the protocol.
STATUSES = {
    **dict.fromkeys(["NoFile", "Locked", "TooBig", "TooManyFiles", "DailyLimit"], 200),
    **dict.fromkeys(["BadName", "BadValue", "BadMerge", "Disabled", "Changed", "Forbidden"], 200),
    "BadRequest": 400,
    "BadKey": 401,
    "NoPath": 404,
    "BadMethod": 405,
    "BodyTooBig": 413,
    "BadType": 415,
    "IdMismatch": 422,
    "TooOften": 429,
    "ServerError": 500,
    "Unavailable": 503,
    "OutcomeUnknown": 504,
}


def drawn() -> dict[str, tuple[str, ...]]:
    """Return the names of each error's bases, as the drawing in the docstring has them."""
    assert errors.__doc__ is not None
    lines = errors.__doc__.splitlines()
    way: list[str] = []
    bases = {}
    for line in lines[lines.index("CloudStoreError") :]:
        stem = len(line) - len(line.lstrip("│├└─ "))
        assert stem % 4 == 0
        name, _, builtin = line[stem:].partition(" ")
        way[stem // 4 :] = [name]
        bases[name] = (*(way[-2:-1] or ["Exception"]), *filter(None, [builtin.strip("()")]))
    return bases


def test_tree() -> None:
    """The tree that is drawn is the tree of the classes."""
    assert {kind.__name__: tuple(base.__name__ for base in kind.__bases__) for kind in TREE} == drawn()


def test_base_is_never_raised() -> None:
    """Nothing in the package raises an error that only stands for others."""
    for path in Path(cloudstore_mapping.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                assert ast.unparse(node.exc.func) not in {CloudStoreError.__name__, LimitError.__name__}, path


@pytest.mark.parametrize("kind", TREE)
def test_str_is_the_sentence(kind: type[CloudStoreError]) -> None:
    """An error prints as its sentence, and its facts are attributes."""
    error = kind("It is so; do this.", **FACTS)
    assert str(error) == error.message == "It is so; do this."
    assert {name: getattr(error, name) for name in FACTS} == FACTS


@pytest.mark.parametrize("kind", TREE)
def test_facts_may_be_unknown(kind: type[CloudStoreError]) -> None:
    """An error needs only its sentence."""
    error = kind("It is so.")
    assert (error.key, error.status, error.response) == (None, None, None)
    assert error.error == kind.error


@pytest.mark.parametrize("kind", TREE)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(kind: type[CloudStoreError], protocol: int) -> None:
    """A pickled error keeps its facts and leaves the response behind."""
    error = kind("It is so.", **FACTS)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert vars(again) == {**vars(error), "response": None}
    assert (str(again), again.args) == (str(error), error.args)
    assert error.response is FACTS["response"]


@pytest.mark.parametrize(
    ("error", "fact", "value"),
    [
        (TooOftenError("Wait.", retry_after=2.5), "retry_after", 2.5),
        (UnavailableError("Wait.", retry_after=1.0), "retry_after", 1.0),
        (ChangedError("Load it again.", version="v1"), "version", "v1"),
        (TransportError("Not reached.", sent=True), "sent", True),
        (OutcomeUnknownError("It may be done.", sent=False), "sent", False),
        (TimedOutError("Too late.", sent=False), "sent", False),
        (BulkError("In part.", succeeded=["a"]), "succeeded", ["a"]),
        (BulkError("In part."), "failed", {}),
    ],
)
def test_facts_of_its_own(error: CloudStoreError, fact: str, value: object) -> None:
    """An error's own facts are attributes, and travel with it."""
    for each in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert getattr(each, fact) == value


def test_errors_within_a_bulk_error() -> None:
    """The errors of bulk work travel within its own, and leave their responses behind as well."""
    error = BulkError("In part.", succeeded=["a"], failed={"b": TooOftenError("Wait.", retry_after=3.0, **FACTS)})
    failed = pickle.loads(pickle.dumps(error)).failed
    assert list(failed) == ["b"]
    assert (type(failed["b"]), failed["b"].retry_after, failed["b"].response) == (TooOftenError, 3.0, None)


def test_what_is_known_to_be_sent() -> None:
    """Where it isn't said otherwise, only a service that was not reached never saw the request."""
    assert not TransportError("Not reached.").sent
    assert OutcomeUnknownError("Cut off.").sent
    assert UnavailableError("Later.").sent
    assert TimedOutError("Too late.").sent


def test_no_file_is_the_key_error_of_a_dict() -> None:
    """An absent key's error holds the key alone, as that of a dict does, and still prints a sentence."""
    error = NoFileError("There is nothing under 'k'.", key="k")
    assert error.args == ("k",)
    assert str(error) == "There is nothing under 'k'."
    assert NoFileError("There is nothing.", key="").args == ("",)
    assert NoFileError("There is nothing.").args == ("There is nothing.",)
    assert pickle.loads(pickle.dumps(error)).args == ("k",)


def test_only_no_file_is_a_key_error() -> None:
    """No other error can be taken for an absent key."""
    assert {kind.__name__ for kind in TREE if issubclass(kind, KeyError)} == {NoFileError.__name__}


def test_reply_errors() -> None:
    """Each name that a service replies with is there, under the status that the protocol gives it."""
    assert {name: status for name, (status, _) in REPLY_ERRORS.items()} == STATUSES


def test_names_lead_back() -> None:
    """An error that has a name of its own is the one that this name stands for."""
    for kind in TREE:
        if "error" in vars(kind) and kind.error is not None:
            assert REPLY_ERRORS[kind.error][1] is kind


LONG = "k" * 3000


@pytest.mark.parametrize("key", [LONG, "é" * 3000, 10**2000, b"k" * 3000])
def test_long_keys_are_cut(key: object) -> None:
    """An error shows no more than 100 characters of a key, and a sign that there are more."""
    assert len(errors.shorten(key)) <= 103
    assert "…" in errors.shorten(key)
    assert errors.shorten("it's") == repr("it's")


def test_operations_cut_long_keys() -> None:
    """Whatever operation fails, its sentence and repr stay short, while the error's `key` is the whole key."""
    with cloudstore_mapping.open("memory:") as store:
        store["list"] = [1]
        no_text: Any = LONG.encode()
        too_long = "k" * 2**21
        acts: list[Any] = [
            lambda: store[LONG],
            lambda: store.pop(LONG),
            lambda: store.transform(LONG, str),
            lambda: store.__delitem__(LONG),
            lambda: store.stat(LONG),
            lambda: store.__setitem__(no_text, 1),
            lambda: store.__setitem__(too_long, 1),
            lambda: store.update({too_long: 1, "a": 2}),
            lambda: store.delete_many([LONG, "absent"]),
            lambda: store.merge("list", {LONG: 1}),
            lambda: store.__setitem__("a", {LONG: object()}),
        ]
        for act in acts:
            with pytest.raises((CloudStoreError, TypeError)) as caught:
                act()
            assert len(str(caught.value)) < 400
            assert len(repr(caught.value)) < 400
        with pytest.raises(NoFileError) as missing:
            store[LONG]
        assert missing.value.key == LONG
        assert missing.value.args == (LONG,)
