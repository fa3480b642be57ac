"""Keys and file names: one escape for client, command line, service, dashboard and exports."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from cloudstore_mapping.errors import BadNameError

# A "%" reads as an escape before a code, or before a code whose "%" is itself escaped, any number of times. No code
# begins with 25, so the repetition matches in one way only. The empty key is a "%" alone. (No possessive quantifier and
# no atomic group stands here: Python 3.11.0 to 3.11.4 match them wrongly, https://github.com/python/cpython/issues/106052.)
_EMPTY: Final = r"\A%(?=(?:25)*\Z)"
_EXACT_PERCENT: Final = rf"%(?=(?:25)*00)|{_EMPTY}"
_JOINED_PERCENT: Final = rf"%(?=(?:25)*(?:[01][0-9A-F]|7F|2C))|{_EMPTY}"
# The dots of the segments "." and "..", and their escapes, of which the first may be escaped itself.
_DOTS: Final = r"(?:(?<=/)|\A)\.(?=\.?(?:/|\Z))|(?:(?<=/\.)|(?<=\A\.))\.(?=/|\Z)"
_DOTS_PERCENT: Final = r"(?:(?<=/)|\A)%(?=(?:25)*2E(?:%2E)?(?:/|\Z))"
_SURROGATE: Final = "[\ud800-\udfff]"

_EXACT: Final = re.compile(rf"\x00|{_EXACT_PERCENT}|{_SURROGATE}")
_JOINED: Final = re.compile(rf"[\x00-\x1f\x7f,]|{_DOTS}|{_JOINED_PERCENT}|{_DOTS_PERCENT}|{_SURROGATE}")
_EXACT_ESCAPE: Final = re.compile(rf"(?:{_EXACT_PERCENT})([0-9A-F]{{2}})?")
_JOINED_ESCAPE: Final = re.compile(
    rf"(?:(?<=/)|\A)(?P<dots>%2E(?:%2E)?)(?=/|\Z)|(?:{_JOINED_PERCENT}|{_DOTS_PERCENT})(?P<code>[0-9A-F]{{2}})?"
)
# Most keys are their own name everywhere, and match this.
_PLAIN: Final = re.compile(
    r"(?!\Z|\.{1,2}(?:/|\Z))[^\x00-\x1f\x7f,%/\ud800-\udfff]*"  # the first segment of a key that is not empty
    r"(?:/(?!\.{1,2}(?:/|\Z))[^\x00-\x1f\x7f,%/\ud800-\udfff]*)*"
)
# Texts found in no plain key, to check many keys joined by line feeds.
_NOT_PLAIN: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f,%\ud800-\udfff]|[\n/]\.{1,2}[\n/]|\n\n")
# Parts of a text found in the name of every key that contains the text, on a service with comma-joined lists.
_LITERAL: Final = re.compile(
    r"(?:[^\x00-\x1f\x7f,%.\ud800-\udfff]|(?<=[^\x00-\x1f\x7f,%./])\.+|\.+(?=[^\x00-\x1f\x7f,%./\ud800-\udfff])|\.{3,})+"
)
# Separators of these parts on an exact service: NUL, and a "%" that may begin an escape.
_BREAK: Final = re.compile(r"\x00|%(?=(?:25)*0)")


def is_plain(key: str) -> bool:
    """Return True if the text is its own name on both kinds of services."""
    return _PLAIN.fullmatch(key) is not None


def escape_key(key: str, *, joined: bool = False) -> str:
    """
    Return the file name of `key` on an exact service, or on a service with comma-joined lists if `joined`.

    Of a `str` subclass only the text counts. Raises `BadNameError` for a lone surrogate.
    """
    key = str.__str__(key)
    if _PLAIN.fullmatch(key):
        return key
    return (_JOINED if joined else _EXACT).sub(_escaped, key) or "%"


def unescape_name(name: str, *, joined: bool = False) -> str:
    """Return the key with this file name; on a service with comma-joined lists some names belong to no key."""
    if "%" not in name:
        return name
    return _JOINED_ESCAPE.sub(_joined_unescaped, name) if joined else _EXACT_ESCAPE.sub(_unescaped, name)


def are_plain(keys: Sequence[str]) -> bool:
    """Return True if every text is its own name on both kinds of services; much faster than checking each."""
    text = "\n".join(("", *keys, ""))
    return text.count("\n") == len(keys) + 1 and not (keys and _NOT_PLAIN.search(text))


def literal_part(text: str, *, joined: bool = True) -> str:
    """
    Return the longest part of `text` that is in the name of every key containing `text`.

    If `joined` this holds on both kinds of services, otherwise on an exact one.
    """
    return max(_LITERAL.findall(text) if joined else _BREAK.split(text), key=len, default="")


def literal_prefix(prefix: str, *, joined: bool = True) -> str:
    """Return the longest text with which the name of every key beginning with `prefix` begins."""
    if not joined:
        return _BREAK.split(prefix)[0]
    found = _LITERAL.match(prefix)
    return found[0] if found else ""


def _escaped(match: re.Match[str]) -> str:
    if match[0] >= "\ud800":
        raise BadNameError("A key can't hold a lone surrogate, because it can't be sent; remove it.", key=match.string)
    return f"%{ord(match[0]):02X}"


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else ""


def _joined_unescaped(match: re.Match[str]) -> str:
    if match["dots"]:
        return "." * match["dots"].count("%")
    return chr(int(match["code"], 16)) if match["code"] else ""


# Filters that would list nearly everything; a service with comma-joined lists can't keep these keys as names anyway.
_TOO_COMMON: Final = frozenset({".", ","})


class FileNames:
    """
    File names of a store's keys, and back.

    Parameters
    ----------
    is_exact
        Returns True if the last list reply was an exact service's, False if another's, None before the first.
    ask
        Sends a list filtered by a text, in as few bytes as possible, and returns the names; None: a filter that
        matches nothing.
    list_all
        Lists all names.

    Notes
    -----
    Thread safe. On a service with comma-joined lists, other programs may have made files with names that the mapping
    would escape. Such a name is used literally once it was seen, in a listing or in the list before a key's first use.
    """

    def __init__(
        self,
        is_exact: Callable[[], bool | None],
        ask: Callable[[str | None], list[str]],
        list_all: Callable[[], list[str]],
    ) -> None:
        self._is_exact = is_exact
        self._ask = ask
        self._list_all = list_all
        self._literal: frozenset[str] = frozenset()
        self._asked: set[str] = set()
        self._has_listed = False

    def name(self, key: str) -> str:
        """Return the file name of `key`, after asking if needed; `BadNameError` for a lone surrogate."""
        if is_plain(key):
            return key
        exact, joined = escape_key(key), escape_key(key, joined=True)
        if exact != joined and self._must_ask(key):
            self._settle(key)
        if self._is_exact():
            return exact
        return key if key in self._literal else joined

    def names(self, keys: Sequence[str]) -> list[str]:
        """Return the file names of many keys; asks twice at most."""
        if are_plain(keys):
            return [*keys]
        self.settle(keys)
        return [self.name(key) for key in keys]

    def settle(self, keys: Sequence[str]) -> None:
        """Ask for the spelling of these keys, in two requests at most; `name` raises the error of an invalid key."""
        if are_plain(keys):
            return
        unsettled = []
        for key in keys:
            try:
                if escape_key(key) != escape_key(key, joined=True) and self._must_ask(key):
                    unsettled.append(key)
            except BadNameError:
                continue
        if unsettled:
            self._settle(unsettled[0])
            rest = [key for key in unsettled[1:] if self._must_ask(key)]
            if len(rest) > 1:
                self.keys(self._list_all(), is_complete=True)
            elif rest:
                self._settle(rest[0])

    def keys(self, names: list[str], *, is_complete: bool) -> dict[str, None]:
        """Return the keys of names just listed, in their order; `is_complete` for a listing of all names."""
        if self._is_exact():
            self._literal = frozenset()
            return dict.fromkeys(names if are_plain(names) else map(unescape_name, names))
        known = frozenset() if is_complete else self._literal
        if not are_plain(names):
            keys = {name: unescape_name(name, joined=True) for name in names}
            known |= {name for name, key in keys.items() if escape_key(key, joined=True) != name}
            # If a name's key is also another file's literal name, the name is used literally: no file hides another.
            while hidden := {name for name, key in keys.items() if key != name and key in known and name not in known}:
                known |= hidden
            names = [name if name in known else key for name, key in keys.items()]
        self._literal = known
        self._has_listed = self._has_listed or is_complete
        return dict.fromkeys(names)

    def filter(self, text: str) -> str:
        """Return the longest filter matching the name of every key that contains `text`."""
        return literal_part(text, joined=not self._is_exact())

    def prefix(self, text: str) -> str:
        """Return the longest text with which the name of every key beginning with `text` begins."""
        return literal_prefix(text, joined=not self._is_exact())

    def _must_ask(self, key: str) -> bool:
        """Return True if the service has to be asked before the key's first use."""
        exact = self._is_exact()
        return exact is None or (not exact and not self._has_listed and key not in self._asked)

    def _settle(self, key: str) -> None:
        names = self._ask(None if key in _TOO_COMMON else key)
        if not self._is_exact():
            self._asked.add(key)
            # A name with a comma is split in such a list.
            if f",{key}," in f",{','.join(names)},":
                self._literal |= {key}
