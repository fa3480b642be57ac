"""The recursive merge of two JSON values, as lodash's `_.merge` does it; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

from cloudstore_mapping.errors import MAX_SHOWN, BadMergeError

#: What JSON can say, as `json.loads` and `msgspec` give it; `merge` takes no subclasses of these.
JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None

# An index as JavaScript writes it, no longer than the length of a list can be: int() refuses 4,301 digits.
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,18}")


def merge(stored: JSON, value: JSON) -> JSON:
    """
    Return what a merge of `value` leaves where `stored` stands; an absent one is None.

    An object goes name by name onto an object and index by index onto an array, an array position by position onto an
    array; anything else takes the place of what is stored. Nothing is ever removed. Neither argument is changed, and
    the result shares no mutable part with them; stored names keep their place, new ones follow in the value's order.

    Merging is idempotent but not associative, so two merges may never be folded into one.

    Raises
    ------
    BadMergeError
        An object was merged onto an array under a name that is no index of an element; the sentence shows its path.
    """
    if not _mergeable(stored, value):
        return _copied(value)
    result = _copied(stored)
    _lengthen(result, value)
    # No recursion: what a service took at its depth limit must not depend on the stack that is left here. Nor is all
    # that is yet to be merged held at once: a list of a million empty ones would take a hundred times its JSON.
    steps: list[tuple[Any, Iterator[tuple[Any, Any]], tuple[str | int, ...]]] = [(result, _parts(value), ())]
    while steps:
        into, parts, path = steps[-1]
        for name, part in parts:
            place = name if isinstance(into, dict) else _index(into, name, path)
            present = into.get(place) if isinstance(into, dict) else into[place]
            if _mergeable(present, part):
                _lengthen(present, part)
                steps.append((present, _parts(part), (*path, name)))
                break
            into[place] = _copied(part)
        else:
            steps.pop()
    return result


def path_text(path: Iterable[str | int]) -> str:
    """Return how errors write the place of a part in a value: ``$.items[3]["a b"]``; always printable."""
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
