"""Python value to stored JSON and back: what comes back equals what went in, or it never went."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from cloudstore_mapping.errors import BadValueError, ProtocolError
from cloudstore_mapping.jsontext import fault_of
from cloudstore_mapping.merge import JSON, path_text
from cloudstore_mapping.wire import decode_value, encode_value

#: Containers within containers that a value may have, whatever the service takes.
MAX_DEPTH: Final = 500

# The decoder reads integers of up to 4,300 characters, their sign counted; the encoder writes some that are longer.
_BELOW_INTEGERS: Final = -(10**4299)
_ABOVE_INTEGERS: Final = 10**4300
_SCALARS: Final = frozenset({type(None), bool, str})  # the encoder itself refuses surrogates
_CONTAINERS: Final = frozenset({dict, list, tuple})


def dump(value: object) -> msgspec.Raw:
    """
    Return the JSON of `value`, made of None, bool, int, finite float, str, list, tuple and dict with str keys.

    A subclass of one of these (StrEnum, OrderedDict, NamedTuple) is written as its plain content. Raises `TypeError`
    for anything else, and `BadValueError` for what JSON can't hold: NaN, infinity, a lone surrogate, an integer of
    more than 4,300 digits (its sign is one), more than `MAX_DEPTH` levels, a value that contains itself; each with the
    path of the part.
    """
    if _is_plain(value):
        try:
            return encode_value(value)
        except (ValueError, RecursionError):
            pass  # only the slow way knows where
    try:
        return encode_value(_plain(_Place(value)))
    except RecursionError as error:
        raise BadValueError("The value is nested deeper than the stack that is left here; flatten it.") from error


def load(raw: msgspec.Raw | bytes) -> Any:
    """Return what the stored JSON `raw` says, made anew at each call; `ProtocolError` for what can't be read."""
    try:
        return decode_value(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"The stored value can't be read: {fault_of(bytes(raw), error)}.") from error


def _is_plain(value: object) -> bool:
    """Whether the encoder may have `value` as it is: exact types, text as names, finite floats, not too deep."""
    todo: list[tuple[Any, int]] = [((value,), 0)]
    while todo:
        container, depth = todo.pop()
        if type(container) is dict:
            for name in container:
                if type(name) is not str:
                    return False
            container = container.values()
        for part in container:
            kind = type(part)
            if kind in _SCALARS:
                continue
            if kind is int:
                if not _BELOW_INTEGERS < part < _ABOVE_INTEGERS:
                    return False
            elif kind is float:
                if not isfinite(part):
                    return False
            elif kind in _CONTAINERS and depth < MAX_DEPTH:
                todo.append((part, depth + 1))
            else:
                return False
    return True


class _Place(NamedTuple):
    """A part of a value, and where it stands: under `name` in `outer`, within `depth` containers."""

    value: Any
    outer: _Place | None = None
    name: str | int = ""
    depth: int = 0

    def inner(self, name: str | int, value: object) -> _Place:
        return _Place(value, self, name, self.depth + 1)

    def trail(self) -> list[_Place]:
        """Return the places on the way here, from the whole value's on."""
        trail = [self]
        while (outer := trail[-1].outer) is not None:
            trail.append(outer)
        return trail[::-1]

    def __str__(self) -> str:
        return path_text(place.name for place in self.trail()[1:])


def _plain(place: _Place) -> JSON:
    """Return a copy of the part at `place` made of exact types, or raise the error that names its first bad part."""
    value = place.value
    kind = type(value)  # not isinstance: a mock that poses as a str is none
    if value is None or kind is bool:
        return value  # type: ignore[no-any-return]  # one of the two
    if issubclass(kind, str):
        return _plain_text(value, place)
    if issubclass(kind, int):
        number = int.__int__(value)
        try:
            decode_value(encode_value(number))
        except (ValueError, msgspec.MsgspecError) as error:
            raise BadValueError(f"{place} is an integer of more than 4,300 digits; store it as text.") from error
        return number
    if issubclass(kind, float):
        real = float.__float__(value)
        if not isfinite(real):
            raise BadValueError(f"{place} is {real}, which JSON can't say; store None or a text.")
        return real
    if not issubclass(kind, dict | list | tuple):
        raise TypeError(f"{place} is of type {kind.__name__}, which JSON can't say; convert it first.")
    if place.depth == MAX_DEPTH:
        _refuse_depth(place)
    # Loops, for a comprehension would take twice the stack.
    if issubclass(kind, dict):
        names: dict[str, JSON] = {}
        for name, part in value.items():
            if not issubclass(type(name), str):
                raise TypeError(f"{place} has a key of type {type(name).__name__}; JSON knows only str.")
            inner = place.inner(str.__str__(name), part)
            names[_plain_text(name, inner)] = _plain(inner)
        return names
    parts: list[JSON] = []
    for index, part in enumerate(value):
        parts.append(_plain(place.inner(index, part)))
    return parts


def _plain_text(value: str, place: _Place) -> str:
    text = str.__str__(value)  # what it holds, whatever a subclass prints
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValueError(f"{place} holds a lone surrogate, which no text in JSON can; take it out.") from error
    return text


def _refuse_depth(deepest: _Place) -> NoReturn:
    seen: set[int] = set()
    for place in deepest.trail():
        if id(place.value) in seen:
            raise BadValueError(f"{place} contains itself; store a copy of the part that is meant.")
        seen.add(id(place.value))
    raise BadValueError(f"{deepest} is nested deeper than {MAX_DEPTH} levels; flatten it.")
