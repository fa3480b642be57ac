"""What a store is to be tried with: hostile keys, JSON values, documents and merges into them, operations on a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from functools import cache
from typing import Any, Final, NamedTuple

import hypothesis.strategies as st

from cloudstore_mapping.merge import JSON

__all__ = ["Operation", "documents", "json_values", "keys", "operations", "patches"]

_text: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
#: The values that are false, and those that are equal to others of another type.
_tricky: Final[st.SearchStrategy[JSON]] = st.sampled_from([None, False, 0, "", 0.0, True, 1, 1.0, "1", "0", -0.0])
_numbers: Final[st.SearchStrategy[JSON]] = (
    st.integers(-3, 300)
    | st.sampled_from([2**53 + 1, -(2**63) - 1, 10**40, 1e-300, 1.7976931348623157e308])
    | st.floats(allow_nan=False, allow_infinity=False)
)
# Few names, so that two documents share some; and those that a program may take for something else.
_names: Final = st.sampled_from(["a", "b", "c", "", "0", "1", "a.b", "$ref", "length", "__proto__", "_data", "é"])


@cache
def json_values(*, max_leaves: int = 6) -> st.SearchStrategy[Any]:
    """Return JSON values of all kinds; often empty or false ones, and such as are equal to one of another type."""
    return st.recursive(
        _tricky | st.builds(list) | st.builds(dict) | _numbers | _text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
        max_leaves=max_leaves,
    )


@cache
def documents(*, max_leaves: int = 6) -> st.SearchStrategy[dict[str, Any]]:
    """Return JSON objects, whose names they often share."""
    return st.dictionaries(_names, json_values(max_leaves=max_leaves), max_size=4)


def patches(document: Any) -> st.SearchStrategy[Any]:
    """
    Return values to merge into a document, or any JSON value, that touch what is there.

    Names and positions that exist, at any depth, get new parts or other values, and now and then a new name comes; all
    are merges that the service takes.
    """
    if isinstance(document, dict) and document:
        inner = st.fixed_dictionaries({}, optional={name: patches(part) for name, part in document.items()})
        new = st.dictionaries(_names.filter(lambda name: name not in document), json_values(max_leaves=3), max_size=1)
        return st.builds(lambda changed, added: {**changed, **added}, inner, new) | _other_than(dict)
    if isinstance(document, list) and document:
        by_position = st.tuples(*map(patches, document)).flatmap(
            lambda parts: st.integers(0, len(parts)).map(lambda length: list(parts[:length]))
        )
        by_index = st.fixed_dictionaries({}, optional={str(i): patches(part) for i, part in enumerate(document)})
        return by_position | by_index | _other_than(dict, list)
    return json_values(max_leaves=3) if not isinstance(document, list) else _other_than(dict)


def _other_than(*kinds: type) -> st.SearchStrategy[Any]:
    return json_values(max_leaves=3).filter(lambda value: not isinstance(value, kinds))


#: The hostile keys by what is hostile in them; two of a kind are often what a store could take for one.
KINDS: Final[Mapping[str, Callable[[int], st.SearchStrategy[str]]]] = {
    "ordinary": lambda _: st.sampled_from(["a", "b", "key", "A"]),
    "empty": lambda _: st.just(""),
    "comma": lambda _: st.sampled_from([",", "a,b", "a,", ",a", "a,b,c"]),
    "slash": lambda _: st.sampled_from(["/", "a/b", "a/", "/a", "..", ".", "../a", "a\\b", "C:a", "a/../b", "./a"]),
    "percent": lambda _: st.sampled_from(["%", "%%", "100%", "%s", "%zz"]),
    "looks escaped": lambda _: st.sampled_from(
        ["%2C", "%2c", "%252C", "%00", "a%20b", "&amp;", "\\n", "\\u0041", "+", "a%2Fb", "%2E%2E", "%25"]
    ),
    "NUL": lambda _: st.sampled_from(["\0", "a\0b"]),
    "control": lambda _: st.sampled_from(["a\nb", "\r\n", "\t", "\x7f", "\ufeff"]),
    "space": lambda _: st.sampled_from([" ", "a ", " a", "\u00a0"]),
    "twins": lambda _: st.sampled_from(["é", "e\u0301", "\u212b", "A\u030a", "\ufb01", "fi"]),
    "astral": lambda _: st.sampled_from(["😀", "😀a", "\U0010ffff", "\uffff", "👩\u200d🚀"]),
    "prefixes": lambda _: st.integers(1, 6).map(lambda length: "prefix"[:length]),
    "looks like another type": lambda _: st.sampled_from(["1", "0", "1.0", "None", "True", "null", "[]", "b'a'"]),
    "special name": lambda _: st.sampled_from(["__class__", "self", "keys", "_data", "CON", "-rf", "'", '"', ";"]),
    "very long": lambda longest: st.sampled_from(["a" * longest, "a" * (longest - 1), "b" + "a" * (longest - 1)]),
    "any text": lambda _: _text,
}


@cache
def keys(*, longest: int = 250) -> st.SearchStrategy[str]:
    """Return text that stores are known to break on, each of `KINDS` as often as the others; none longer than this."""
    return st.one_of([kind(longest) for kind in KINDS.values()])


class Operation(NamedTuple):
    """An operation on a key, with an argument where it takes one; the names are those of `register_step`."""

    operation: str
    key: str
    argument: Any = None

    def perform(self, mapping: MutableMapping[str, Any]) -> Any:
        """Do it to a mapping, and return what it gives; ``merge`` and ``increment`` need a store of ours."""
        return PERFORMED[self.operation](mapping, self.key, self.argument)


#: How each operation is done.
PERFORMED: Final[Mapping[str, Callable[[Any, str, Any], Any]]] = {
    "save": lambda mapping, key, value: mapping.__setitem__(key, value),
    "merge": lambda mapping, key, value: mapping.merge(key, value),
    "load": lambda mapping, key, _: mapping[key],
    "contains": lambda mapping, key, _: key in mapping,
    "delete": lambda mapping, key, _: mapping.__delitem__(key),
    "pop": lambda mapping, key, _: mapping.pop(key),
    "setdefault": lambda mapping, key, value: mapping.setdefault(key, value),
    "increment": lambda mapping, key, number: mapping.transform(key, lambda value: value + number, default=0),
}


def operations(
    *, keys: st.SearchStrategy[str] | None = None, values: st.SearchStrategy[Any] | None = None
) -> st.SearchStrategy[Operation]:
    """Return operations on few keys, so that they meet; `keys` are of another strategy, `values` those they write."""
    some_keys = st.sampled_from("abc") if keys is None else keys
    some_values = json_values() if values is None else values
    arguments = {
        "save": some_values,
        "merge": some_values,
        "setdefault": some_values,
        "increment": st.integers(-2, 2),
    }
    return st.one_of(
        [st.builds(Operation, st.just(name), some_keys, arguments.get(name, st.none())) for name in PERFORMED]
    )
