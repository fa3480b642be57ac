"""Keys and names: bijections between all texts and the names that each kind of service can keep."""

from __future__ import annotations

import enum
import itertools
import pickle
import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cloudstore_mapping.errors import BadNameError
from cloudstore_mapping.keys import (
    are_plain,
    escape_key,
    is_plain,
    literal_part,
    literal_prefix,
    unescape_name,
)

# Whatever can meet in an escape, alone and in the pieces that escapes are made of.
pieces = st.sampled_from(
    [*"%0123456789ABCDEF ,/\\.acef\n", "%25", "25", "%2E", "%2C", "%00", "%1F", "%7F", "%%", "\0", "é", "😀"]
)
texts = st.lists(pieces, max_size=8).map("".join) | st.text(max_size=12) | st.text("%25 0E.,/", max_size=10)
kinds = st.booleans()
#: Examples of each rule; `tests/fuzz/keys.py` tries many thousands, when slow.
TRIES = 200


def can_keep(name: str, *, joined: bool) -> bool:
    """Whether a service of the kind can keep a file of this name, and tell it in a listing."""
    if not joined:
        return name != "" and "\0" not in name
    return name != "" and not re.search(r"[\x00-\x1f\x7f,]", name) and not {".", ".."} & {*name.split("/")}


@pytest.mark.parametrize(
    ("key", "exact", "joined"),
    [
        # Pinned: other programs find the files under these names.
        ("users/ann", "users/ann", "users/ann"),
        ("a b", "a b", "a b"),
        (" a ", " a ", " a "),
        ("a\\b", "a\\b", "a\\b"),
        ("100%", "100%", "100%"),
        ("naïve", "naïve", "naïve"),
        ("a%2Fb", "a%2Fb", "a%2Fb"),
        ("a,b", "a,b", "a%2Cb"),
        ("a\tb\x7f", "a\tb\x7f", "a%09b%7F"),
        ("..", "..", "%2E%2E"),
        (".", ".", "%2E"),
        ("../etc/.", "../etc/.", "%2E%2E/etc/%2E"),
        (".a/b..c/...", ".a/b..c/...", ".a/b..c/..."),
        ("%2C", "%2C", "%252C"),
        ("%252C", "%252C", "%25252C"),
        ("a/%2E%2E/b", "a/%2E%2E/b", "a/%252E%2E/b"),
        ("a%2E", "a%2E", "a%2E"),
        ("", "%", "%"),
        ("%", "%25", "%25"),
        ("%25", "%2525", "%2525"),
        ("a\0", "a%00", "a%00"),
        ("%00", "%2500", "%2500"),
        ("%2500", "%252500", "%252500"),
    ],
)
def test_spellings(key: str, exact: str, joined: str) -> None:
    """A key is its own name, except for the texts that the service can't keep and the escapes of these."""
    assert escape_key(key) == exact
    assert escape_key(key, joined=True) == joined
    assert unescape_name(exact) == key
    assert unescape_name(joined, joined=True) == key


@settings(max_examples=TRIES)
@given(texts, kinds)
@example("%2525252C", True)
@example("%25%25%20", False)
def test_round_trip(key: str, joined: bool) -> None:
    """Every text is a key: its name leads back to it, and so no two keys share a name."""
    assert unescape_name(escape_key(key, joined=joined), joined=joined) == key


@settings(max_examples=TRIES)
@given(texts, texts, kinds)
def test_two_keys_have_two_names(key: str, other: str, joined: bool) -> None:
    """Two different keys have different names."""
    assume(key != other)
    assert escape_key(key, joined=joined) != escape_key(other, joined=joined)


@settings(max_examples=TRIES)
@given(texts, kinds)
def test_services_can_keep_names(key: str, joined: bool) -> None:
    """A key's name is one that the service can keep; a key that it can keep differs only for a percent sign."""
    name = escape_key(key, joined=joined)
    assert can_keep(name, joined=joined)
    if can_keep(key, joined=joined) and "%" not in key:
        assert name == key


@settings(max_examples=TRIES)
@given(texts, kinds)
def test_every_name_has_a_key(name: str, joined: bool) -> None:
    """Every name that the service can keep is the name of its key, whoever wrote it."""
    assume(can_keep(name, joined=joined))
    assert escape_key(unescape_name(name, joined=joined), joined=joined) == name


@given(st.text(st.characters(codec="utf-8", exclude_characters="%,\x7f", exclude_categories=["Cc"]), min_size=1))
def test_ordinary_text_is_its_own_name(key: str) -> None:
    """A key without commas, control characters, percent signs and dot segments is its own name everywhere."""
    assume(not {".", ".."} & {*key.split("/")})
    assert is_plain(key)
    assert escape_key(key) == escape_key(key, joined=True) == key == unescape_name(key)


def test_every_short_text() -> None:
    """The laws hold for each text of up to five of the characters that matter."""
    for length in range(6):
        for characters in itertools.product(["%", "25", "0", ".", ",", "/", "2E", "C", "\0"], repeat=length):
            text = "".join(characters)
            for joined in (False, True):
                name = escape_key(text, joined=joined)
                assert unescape_name(name, joined=joined) == text
                assert can_keep(name, joined=joined)
                if can_keep(text, joined=joined):
                    assert escape_key(unescape_name(text, joined=joined), joined=joined) == text


@pytest.mark.parametrize("key", ["\ud800", "a\udfff", "\ud83d\ude00", ",\udc80%"])
@pytest.mark.parametrize("joined", [False, True])
def test_lone_surrogate(key: str, joined: bool) -> None:
    """A lone surrogate is a ValueError that carries the key, and can be shown and sent."""
    with pytest.raises(BadNameError) as raised:
        escape_key(key, joined=joined)
    assert isinstance(raised.value, ValueError)
    assert raised.value.key == key
    assert str(raised.value).isascii()
    assert pickle.loads(pickle.dumps(raised.value)).key == key


def test_str_subclass() -> None:
    """A str subclass counts as its text, whatever it prints."""

    class Fruit(enum.StrEnum):
        APPLE = "apple,red"

    class Loud(str):
        __slots__ = ()

        def __str__(self) -> str:
            return self.upper()

    for key, name in [(Fruit.APPLE, "apple%2Cred"), (Loud("apple"), "apple"), (Loud(""), "%")]:
        assert escape_key(key, joined=True) == name
        assert type(escape_key(key, joined=True)) is str


@given(st.lists(texts, max_size=5))
def test_plain_names_are_their_own_keys(names: list[str]) -> None:
    """Names that are told of all at once to be plain are each plain, and so are plain words."""
    if are_plain(names):
        assert all(map(is_plain, names))
        assert [unescape_name(name, joined=True) for name in names] == names
        assert [escape_key(name) for name in names] == names == [escape_key(name, joined=True) for name in names]
    words = [f"word {number} ü/x" for number in range(len(names))]
    assert are_plain(words)
    assert not are_plain([*words, "100%", *words])
    assert not are_plain([*words, "", *words])
    assert not are_plain([*words, "a/..", *words])


@settings(max_examples=TRIES)
@given(texts, texts, texts, kinds)
def test_a_filter_finds_every_key(before: str, text: str, behind: str, joined: bool) -> None:
    """The name of every key that contains or begins with a text contains or begins with its literal part."""
    for both in {True, joined}:  # the part for both kinds, and that for this one
        assert literal_part(text, joined=both) in escape_key(before + text + behind, joined=joined)
        assert escape_key(text + behind, joined=joined).startswith(literal_prefix(text, joined=both))


@pytest.mark.parametrize(
    ("text", "part", "prefix"),
    [
        ("users/", "users/", "users/"),
        ("a.json", "a.json", "a.json"),
        ("log,2024", "2024", "log"),
        ("x/..", "x/", "x/"),
        (".", "", ""),
        ("50%", "50", "50"),
    ],
)
def test_filters_are_long(text: str, part: str, prefix: str) -> None:
    """A filter is as long as both kinds of services allow, so that they list no more than need be."""
    assert (literal_part(text), literal_prefix(text)) == (part, prefix)
    assert literal_part(text, joined=False) == literal_prefix(text, joined=False) == text
