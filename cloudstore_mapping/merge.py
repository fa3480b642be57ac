"""Recursive JSON merge (objects, arrays), as lodash's `_.merge`; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from cloudstore_mapping.errors import MAX_SHOWN, BadMergeError

#: JSON value, as returned by `json.loads` and `msgspec`; `merge` takes no subclasses of these types.
JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None

# Index in JavaScript's notation, no longer than the length of a list can be: int() refuses 4,301 digits.
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,18}")


def merge(stored: JSON, value: JSON) -> JSON:
    """
    Return the result of merging `value` into `stored`, None for an absent value.

    An object is merged into an object name by name, and into an array index by index; an array is merged into an array
    position by position. Any other value replaces the stored value. Nothing is ever removed. Neither argument is
    changed, and the result shares no mutable part with them. Stored names keep their place; new names follow in the
    order of `value`.

    Merging is idempotent but not associative, so two merges may never be folded into one.

    Raises
    ------
    BadMergeError
        An object to merge into an array has a name that is not the index of an element; the message shows its path.
    """
    return _merged(stored, value, _copied)


def merge_in_place(stored: JSON, value: JSON) -> JSON:
    """Return the result of `merge`, made of the parts of both arguments: `stored` is changed, and nothing copied."""
    return _merged(stored, value, lambda part: part)


def _merged(stored: JSON, value: JSON, copied: Callable[[JSON], JSON]) -> JSON:
    if not _mergeable(stored, value):
        return copied(value)
    result = copied(stored)
    _lengthen(result, value)
    # No recursion: a merge at a service's depth limit must not depend on the stack left here. And no list of all parts
    # still to be merged: for a list of a million empty lists it would take a hundred times the memory of the JSON.
    steps: list[tuple[Any, Iterator[tuple[Any, Any]], tuple[str | int, ...]]] = [(result, _parts(value), ())]
    while steps:
        into, parts, path = steps[-1]
        for name, part in parts:
            place = name if isinstance(into, dict) else _index(into, name, path)
            present = into.get(place) if isinstance(into, dict) else into[place]
            if _mergeable(present, part):
                if not part:  # nothing to merge, as in each element of `[[], [], …]`
                    continue
                _lengthen(present, part)
                steps.append((present, _parts(part), (*path, name)))
                break
            into[place] = copied(part)
        else:
            steps.pop()
    return result


def path_text(path: Iterable[str | int]) -> str:
    """Return the path of a part of a value for error messages: ``$.items[3]["a b"]``; always printable."""
    return "$" + "".join(f"[{name}]" if isinstance(name, int) else _name_text(name) for name in path)


def _name_text(name: str) -> str:
    cut, end = name[:MAX_SHOWN], "…" if len(name) > MAX_SHOWN else ""
    return f".{cut}{end}" if name.isidentifier() else f"[{json.dumps(cut)}{end}]"


def _mergeable(stored: JSON, value: JSON) -> bool:
    return isinstance(stored, dict | list) and isinstance(value, dict if isinstance(stored, dict) else dict | list)


def _lengthen(into: Any, source: Any) -> None:
    if isinstance(source, list):
        into += [None] * (len(source) - len(into))


def _parts(container: Any) -> Iterator[tuple[Any, Any]]:
    return iter(container.items()) if isinstance(container, dict) else enumerate(container)


def _index(array: list[JSON], name: str | int, path: tuple[str | int, ...]) -> int:
    if isinstance(name, int):
        return name
    if _INDEX.fullmatch(name) and int(name) < len(array):
        return int(name)
    raise BadMergeError(
        f"{path_text((*path, name))} is no element of the array there, which has {len(array)}; "
        "merge an object onto it with the indexes of its elements as names, or an array."
    )


def _copied(value: JSON) -> JSON:
    if not isinstance(value, dict | list):
        return value
    result = value.copy()
    steps: list[tuple[Any, Iterator[tuple[Any, Any]]]] = [(result, _parts(value))]
    while steps:
        container, parts = steps[-1]
        for place, part in parts:
            if isinstance(part, dict | list):
                container[place] = part.copy()
                if part:
                    steps.append((container[place], _parts(part)))
                    break
        else:
            steps.pop()
    return result
