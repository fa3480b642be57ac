"""Keys and names: a bijection between all texts and the names that no listing and no path can break."""

from __future__ import annotations

import enum
import itertools
import pickle

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cloudstore_mapping.client.keys import escape_key, need_no_escape, unescape_name
from cloudstore_mapping.errors import BadNameError

BREAKING = {*map(chr, range(0x20)), "\x7f", ",", "/", "\\"}

# Whatever can meet in an escape, alone and in the pieces that escapes are made of.
pieces = st.sampled_from(
    [
        *"%0123456789ABCDEF ,/\\.acef",
        "%25",
        "25",
        "%20",
        "%2E",
        "%2C",
        "%2F",
        "%5C",
        "%00",
        "%1F",
        "%7F",
        "%%",
        "\0",
        "é",
    ]
)
texts = st.lists(pieces, max_size=8).map("".join) | st.text(max_size=12) | st.text("%25 0E.,", max_size=10)


def is_clean(name: str) -> bool:
    """Whether a name is one that no listing and no path can break."""
    return name.strip(" ") == name and name not in {"", ".", ".."} and BREAKING.isdisjoint(name)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        # Pinned: other programs find the files under these names.
        ("a,b", "a%2Cb"),
        ("a/b", "a%2Fb"),
        ("a\\b", "a%5Cb"),
        ("a\0b\n\x1f\x7f", "a%00b%0A%1F%7F"),
        ("", "%"),
        (".", "%2E"),
        ("..", "%2E."),
        (" ", "%20"),
        ("  ", "%20%20"),
        (" a b ", "%20a b%20"),
        ("../etc", "..%2Fetc"),
        ("%", "%25"),
        ("%25", "%2525"),
        ("%2C", "%252C"),
        ("%252C", "%25252C"),
        ("x%2C%2Fy", "x%252C%252Fy"),
        ("%20", "%2520"),
        ("%20a", "%2520a"),
        ("a%20", "a%2520"),
        ("%20%20", "%2520%2520"),
        ("%2E", "%252E"),
        ("%2E.", "%252E."),
        ("%,", "%%2C"),
        ("%2 ", "%2%20"),
    ],
)
def test_escaped(key: str, name: str) -> None:
    """What could break a listing or a path, or would read as an escape, is written as an escape."""
    assert escape_key(key) == name
    assert unescape_name(name) == key


@pytest.mark.parametrize(
    "key",
    [
        *("Shopping_List", "a b", "steve1", "...", ".a", "a.", "Grüße", "e\u0301", "é", "😀", "\x80\u2028\u202e"),
        *("100%", "%zz", "%41", "a%20b", "%2f", "100%25", "%%", "a%", "a%2E", "%2Ea", "%2e%2e", "%C3%A9", "x" * 10_000),
    ],
)
def test_ordinary_key_is_its_name(key: str) -> None:
    """An ordinary key is its own name, and a percent sign is ordinary where it reads as no escape."""
    assert escape_key(key) == key
    assert unescape_name(key) == key


@pytest.mark.parametrize("name", ["a/b", "a,b%2C", " a", "a ", "\0", "%2C\n", ".", "..", "", " %20"])
def test_foreign_name_is_its_own_key(name: str) -> None:
    """A name that no key has is listed under itself."""
    assert unescape_name(name) == name


@settings(max_examples=1000)
@given(texts)
@example("%2525252C")
@example("%25%25%20")
def test_round_trip(key: str) -> None:
    """Every text is a key: its name leads back to it, and so no two keys share a name."""
    assert unescape_name(escape_key(key)) == key


@settings(max_examples=1000)
@given(texts)
def test_name_is_clean(key: str) -> None:
    """A name holds nothing that could break a listing or a path."""
    assert is_clean(escape_key(key))


@settings(max_examples=1000)
@given(texts)
def test_every_clean_name_has_a_key(name: str) -> None:
    """Every clean name is the name of its key, whoever wrote it."""
    assume(is_clean(name))
    assert escape_key(unescape_name(name)) == name


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="%,/\\ ."), min_size=1))
def test_ordinary_text_is_its_own_name(key: str) -> None:
    """A key of ordinary characters is its own name, both ways."""
    assert escape_key(key) == key == unescape_name(key)


def test_every_short_text() -> None:
    """The laws hold for each text of up to five of the characters that matter."""
    for length in range(6):
        for characters in itertools.product("%250 .,EC", repeat=length):
            text = "".join(characters)
            name = escape_key(text)
            assert unescape_name(name) == text
            assert is_clean(name)
            if is_clean(text):
                assert escape_key(unescape_name(text)) == text


@pytest.mark.parametrize("key", ["\ud800", "a\udfff", "\ud83d\ude00", ",\udc80%"])
def test_lone_surrogate(key: str) -> None:
    """A lone surrogate is a ValueError that carries the key, and can be shown and sent."""
    with pytest.raises(BadNameError) as raised:
        escape_key(key)
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
        assert escape_key(key) == name
        assert type(escape_key(key)) is str


@given(st.lists(texts, max_size=5))
def test_ordinary_names_are_their_own_keys(names: list[str]) -> None:
    """Names that are told of all at once to be ordinary are each the name of itself, and plain words are."""
    if need_no_escape(names):
        assert [unescape_name(name) for name in names] == names == [escape_key(name) for name in names]
    words = [f"word {number} ü" for number in range(len(names))]
    assert need_no_escape(words)
    assert not need_no_escape([*words, "100%", *words])
