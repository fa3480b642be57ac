"""The lines that a mapping is tried with; ``$m`` stands for it, ``$key`` and the like for values, see `program`."""

from __future__ import annotations

from typing import Any, Final

#: What is read of one key.
READS: Final = (
    "$m[$key]",
    "$m.get($key)",
    "$m.get($key, $value)",
    "$key in $m",
    "$key not in $m",
    "$key in $m.keys()",
    "($key, $value) in $m.items()",
)
#: What tells of all that is there, each in a way that doesn't depend on the order.
SURVEYS: Final = (
    "dict($m.items())",
    "dict($m)",
    "{**$m}",
    "dict(zip($m, $m.values()))",
    "set($m)",
    "set($m.keys())",
    "len($m)",
    "len(list($m))",
    "len($m.keys())",
    "len($m.values())",
    "len($m.items())",
    "len(list($m.values()))",
    "bool($m)",
    "list($m) == list($m.keys()) == [key for key, _ in $m.items()]",
)
#: The same of what not every mapping has, by the method that it takes.
FURTHER_SURVEYS: Final = {
    "__reversed__": "list(reversed($m)) == list($m)[::-1]",
    "copy": "dict($m.copy())",
}
COMPARISONS: Final = (
    "$m == $other",
    "$m != $other",
    "$other == $m",
    "$m == MappingProxyType($other)",
    "$m == $pairs",
    "$m == None",
    "$m == $m",
    "$m.items() == $other.items()",
    "$other.items() <= $m.items()",
    "$m.items().isdisjoint($other.items())",
    "[pair for pair in $other.items() if pair in $m.items()]",
    "[value for value in $other.values() if value in $m.values()]",
)
#: What sets and views of keys make of each other.
VIEWS: Final = (
    *(f"set($m.keys() {operator} $some)" for operator in "&|-^"),
    *(f"set($some {operator} $m.keys())" for operator in "&|-^"),
    *(f"$m.keys() {operator} $some" for operator in ("==", "!=", "<=", "<", ">=", ">")),
    "$m.keys().isdisjoint($some)",
    "$m.keys() == $m.keys()",
)
#: The same of pairs, all of which have to be such as a set can hold.
VIEWS_OF_ITEMS: Final = (
    *(f"set($m.items() {operator} $some)" for operator in "&|-^"),
    *(f"set($some {operator} $m.items())" for operator in "&|-^"),
    *(f"$m.items() {operator} $some" for operator in ("==", "!=", "<=", "<", ">=", ">")),
)
UPDATES: Final = (
    "$m.update($other)",
    "$m.update($pairs)",
    "$m.update(MappingProxyType($other))",
    "$m.update(pair for pair in $pairs)",
)
UPDATE_BY_KEYWORDS: Final = "$m.update($pairs, **$other)"

_WHILE = """\
seen = []
with suppress({errors}):
    for {each} in {iterated}:
        if not seen:
            {change}
        seen.append(key)
    assert set(seen) | {{$key}} == $every
assert set(seen) <= $every and len(seen) == len(set(seen))"""
#: A key comes, gets another value or goes during an iteration, which then ends with an error, or misses nothing else.
CHANGES: Final = ("$m[$key] = $value", "del $m[$key]")
ITERATIONS: Final = {
    "$m": ("key", "RuntimeError"),
    "$m.keys()": ("key", "RuntimeError"),
    "$m.items()": ("key, _", "RuntimeError, KeyError"),
}


def while_iterating(iterated: str, change: str) -> str:
    """Return the lines that change a mapping during an iteration."""
    each, errors = ITERATIONS[iterated]
    return _WHILE.format(iterated=iterated, change=change, each=each, errors=errors)


#: The ways of a value into a mapping, and out of it.
WAYS_IN: Final = (
    "$m[$key] = value",
    "$m.update({$key: value})",
    "$m.update([($key, value)])",
    "$m.pop($key, None)\n$m.setdefault($key, value)",
)
WAYS_OUT: Final = (
    "$m[$key]",
    "$m.get($key)",
    "$m.setdefault($key, None)",
    "dict($m.items())[$key]",
    "dict(zip($m, $m.values()))[$key]",
)


def aliasing_in(way: str, change: str) -> str:
    """Return the lines that store a value and change it afterwards."""
    return f"value = $value\n{way}\nvalue{change}\nassert $m[$key] == $value"


def aliasing_out(way: str, change: str) -> str:
    """Return the lines that change a value which was read."""
    return f"value = {way}\nvalue{change}\nassert $m[$key] == $value"


def change_within(value: Any) -> str | None:
    """Return how an innermost list or dictionary of a value is changed in place; None: there is none."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            within = change_within(part)
            if within is not None:
                return f"[{name!a}]".replace("$", "$$") + within
        return ".clear()" if value else _GROWN[isinstance(value, dict)]
    return None


_GROWN: Final = (".append('changed')", ".update(changed=True)")

#: How a key that is there is read, with what that gives.
FAILING_READS: Final = (
    "$m[$key] == $content",
    "$m.get($key) == $content",
    "$m.get($key, $value) == $content",
    "$key in $m",
    "$m.setdefault($key, $value) == $content",
    "$m.pop($key, $value) == $content",
)
#: Reading fails, and says so, or what was kept is right: a failure is no absent key. What `pop` took comes back.
WHILE_FAILING: Final = """\
try:
    with failing($m):
        assert {read}
except (AssertionError, KeyError):
    raise
except Exception:
    pass
$m[$key] = $content"""

#: A key of another type is refused, or is itself afterwards and not its text.
STORING_ANOTHER_TYPE: Final = """\
try:
    $m[$key] = $value
except TypeError:
    pass
else:
    assert $key in list($m)
    del $m[$key]"""

REFUSED_MERGE: Final = """\
try:
    $m |= $other
except Exception:
    pass
else:
    raise AssertionError"""
