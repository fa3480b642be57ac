"""JSON codec of values: encode a value that decodes to an equal value, or raise an error with the path of its fault."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from cloudstore_mapping.errors import BadValueError, ProtocolError
from cloudstore_mapping.merge import JSON, path_text
from cloudstore_mapping.wire import decode_value, encode_value, fault_of

#: Maximum nesting depth of a value, for any service.
MAX_DEPTH: Final = 500

# The decoder reads integers of up to 4,300 characters including the sign; the encoder also writes longer integers.
_BELOW_INTEGERS: Final = -(10**4299)
_ABOVE_INTEGERS: Final = 10**4300
_SCALARS: Final = frozenset({type(None), bool, str})  # the encoder itself refuses surrogates
_CONTAINERS: Final = frozenset({dict, list, tuple})


def encode(value: object) -> msgspec.Raw:
    """
    Return the JSON of `value`, which consists of None, bool, int, finite float, str, list, tuple, dict with str keys.

    Subclasses (StrEnum, OrderedDict, NamedTuple) are written as their plain content. Raises `TypeError` for any other
    type, and `BadValueError` for values JSON can't hold: NaN, infinity, a lone surrogate, an integer of more than
    4,300 digits including the sign, more than `MAX_DEPTH` levels, a value containing itself; each with the path of the
    part.
    """
    if _is_plain(value):
        try:
            return encode_value(value)
        except (ValueError, RecursionError):
            pass  # the slow path below finds the bad part
    try:
        return encode_value(_plain(_Part(value)))
    except RecursionError as error:
        raise BadValueError("The value is nested deeper than the stack that is left here; flatten it.") from error


def decode(raw: msgspec.Raw | bytes) -> Any:
    """Return a new object for the stored JSON `raw`; `ProtocolError` if it can't be read."""
    try:
        return decode_value(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"The stored value can't be read: {fault_of(bytes(raw), error)}.") from error


def _is_plain(value: object) -> bool:
    """Return True if the encoder can take `value` directly: exact types, `str` names, finite floats, not too deep."""
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


class _Part(NamedTuple):
    """Part of a value and its position: `name` in `outer`, nested in `depth` containers."""

    value: Any
    outer: _Part | None = None
    name: str | int = ""
    depth: int = 0

    def inner(self, name: str | int, value: object) -> _Part:
        return _Part(value, self, name, self.depth + 1)

    def trail(self) -> list[_Part]:
        """Return the parts on the path to this part, beginning with the whole value."""
        trail = [self]
        while (outer := trail[-1].outer) is not None:
            trail.append(outer)
        return trail[::-1]

    def __str__(self) -> str:
        return path_text(place.name for place in self.trail()[1:])


def _plain(place: _Part) -> JSON:
    """Return a copy of the part at `place` in exact types, or raise an error with the path of its first bad part."""
    value = place.value
    kind = type(value)  # not isinstance: a mock may pretend to be a str
    if value is None or kind is bool:
        return value  # type: ignore[no-any-return]  # None or bool
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
            raise BadValueError(f"{place} is {real}, which JSON can't represent; store None or a text.")
        return real
    if not issubclass(kind, dict | list | tuple):
        name, remedy = kind.__name__, "convert it first"
        if hasattr(kind, "dtype") and hasattr(kind, "tolist"):  # `numpy.bool` is also called bool
            name, remedy = f"{kind.__module__}.{name}", "store its .tolist()"
        raise TypeError(f"{place} is of type {name}, which JSON can't represent; {remedy}.")
    if place.depth == MAX_DEPTH:
        _refuse_depth(place)
    # Loops, because a comprehension would use twice the stack.
    if issubclass(kind, dict):
        names: dict[str, JSON] = {}
        for name, part in value.items():
            if not issubclass(type(name), str):
                raise TypeError(f"{place} has a key of type {type(name).__name__}; JSON has only str keys.")
            inner = place.inner(str.__str__(name), part)
            names[_plain_text(name, inner)] = _plain(inner)
        return names
    parts: list[JSON] = []
    for index, part in enumerate(value):
        parts.append(_plain(place.inner(index, part)))
    return parts


def _plain_text(value: str, place: _Part) -> str:
    text = str.__str__(value)  # the content of a subclass, not its `__str__`
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValueError(f"{place} holds a lone surrogate, which JSON can't hold; remove it.") from error
    return text


def _refuse_depth(deepest: _Part) -> NoReturn:
    seen: set[int] = set()
    for place in deepest.trail():
        if id(place.value) in seen:
            raise BadValueError(f"{place} contains itself; store a copy of the part that is meant.")
        seen.add(id(place.value))
    raise BadValueError(f"{deepest} is nested deeper than {MAX_DEPTH} levels; flatten it.")
