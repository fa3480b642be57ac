"""What is done to a mapping in a test, and to a `dict` beside it, written down as a program that can be pasted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from string import Template
from types import CodeType, MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

from cloudstore_mapping.testing.exact import same

#: What programs use beside what is built in, and where it is from.
_IMPORTS: Final = {
    "MappingProxyType": "from types import MappingProxyType",
    "same": "from cloudstore_mapping.testing import same",
    "suppress": "from contextlib import suppress",
}
_FILE: Final = "<program>"
#: A character that comes very often.
_RUN: Final = re.compile(r"(.??)((.)\3{40,})", re.DOTALL)


class Program:
    """
    The lines so far, the names that they use, and the `dict` that says what each has to give.

    Lines are templates: ``$m`` stands for the mapping, ``$name`` for a value, of which each place gets a copy. Whatever
    fails is raised with the program as a note, up to the line that failed.

    Parameters
    ----------
    names
        What the lines may call, by name.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.model: dict[Any, Any] = {}
        self.has_failed = False
        self._names = {"MappingProxyType": MappingProxyType, "same": same, "suppress": suppress, **names}
        self._lines: list[str] = []

    def __str__(self) -> str:
        text = "\n".join(self._lines)
        return "\n".join([*(line for name, line in _IMPORTS.items() if re.search(rf"\b{name}\(", text)), text])

    def mapping(self, handle: str = "m") -> Any:
        """Return the mapping of this name."""
        return self._names[handle]

    def do(self, source: str, handle: str = "m", sentence: str = "", **values: Any) -> None:
        """Execute lines on the mapping alone; `sentence` says what it means when an assertion of theirs fails."""
        text = _written(source, handle, values)
        names = _filled(self._names, values)
        try:
            exec(_compiled(_executable(source, handle)).code, names)  # noqa: S102 - what programs are for
        except Exception as error:  # noqa: BLE001 - it is raised again, with the program
            self.fail(text, AssertionError(sentence) if isinstance(error, AssertionError) else error)
        self._names[handle] = names[handle]
        self._lines.append(text)

    def both(self, source: str, handle: str = "m", **values: Any) -> None:
        """Execute a statement on the mapping and on the `dict`; what the one raises the other has to raise."""
        self._compare(source, handle, values, is_statement=True)

    def same(self, source: str, handle: str = "m", *, or_raises: type[Exception] | None = None, **values: Any) -> None:
        """
        Check that an expression gives, or raises, the same on the mapping as on the `dict`.

        `or_raises` is an error that the mapping may raise in any case.
        """
        self._compare(source, handle, values, or_raises=or_raises)

    def _compare(
        self,
        source: str,
        handle: str,
        values: dict[str, Any],
        *,
        or_raises: type[Exception] | None = None,
        is_statement: bool = False,
    ) -> None:
        text = _written(source, handle, values)
        code = _executable(source, "m")
        expected = _outcome(code, {**_filled(self._names, values), "m": self.model})
        got = _outcome(code, {**_filled(self._names, values), "m": self._names[handle]})
        allowed: tuple[type[Exception], ...] = () if or_raises is None else (or_raises,)
        if expected.error is not None:
            allowed = (type(expected.error), *allowed)
        if got.error is not None:
            if not isinstance(got.error, allowed):
                self.fail(text, got.error)
            self._lines.append(_suppressing(allowed, text))
        elif expected.error is not None:
            sentence = f"{text} did not raise {_names_of(allowed)}"
            self.fail(_suppressing(allowed, f"{text}\nraise AssertionError({sentence!a})"), AssertionError(sentence))
        elif is_statement:
            self._lines.append(text)
        else:
            self.check(text, got.value, expected.value)

    def check(self, text: str, got: object, expected: object) -> None:
        """Check what an expression gave."""
        if same(got, expected):
            self._lines.append(_claim(text, expected))
            return
        is_equal = False
        with suppress(Exception):
            is_equal = bool(got == expected)
        claim = f"assert same({text}, {shown(expected)})" if is_equal else _claim(text, expected)
        self.fail(claim, AssertionError(f"{text} is {shown(got)} in the place of {shown(expected)}"))

    def matches(self, source: str, expected: object, handle: str = "m", **values: Any) -> None:
        """Check that an expression on the mapping gives something."""
        self.check(_written(source, handle, values), self.gives(source, handle, **values), expected)

    def gives(self, source: str, handle: str = "m", **values: Any) -> Any:
        """Return what an expression gives on the mapping; it is for the caller to `check` or to `fail`."""
        got = _outcome(_executable(source, handle), _filled(self._names, values))
        if got.error is not None:
            self.fail(_written(source, handle, values), got.error)
        return got.value

    def fail(self, text: str, error: Exception) -> NoReturn:
        """Raise an error, with the program that ends with this text as a note."""
        self.has_failed = True
        self._lines.append(text)
        error.add_note(f"As a program:\n\n{self}\n")
        raise error


class _Outcome(NamedTuple):
    value: Any = None
    error: Exception | None = None


def _outcome(source: str, names: dict[str, Any]) -> _Outcome:
    compiled = _compiled(source)
    try:
        if compiled.is_statement:
            exec(compiled.code, names)  # noqa: S102 - what programs are for
            return _Outcome()
        return _Outcome(eval(compiled.code, names))  # noqa: S307 - what programs are for
    except Exception as error:  # noqa: BLE001 - whatever it is
        return _Outcome(error=error)


class _Compiled(NamedTuple):
    code: CodeType
    is_statement: bool


@lru_cache(maxsize=1000)
def _compiled(source: str) -> _Compiled:
    with suppress(SyntaxError):
        return _Compiled(compile(source, _FILE, "eval"), False)
    return _Compiled(compile(source, _FILE, "exec", optimize=0), True)  # assertions hold under -O as well


@lru_cache(maxsize=1000)
def _executable(source: str, handle: str) -> str:
    template = Template(source)
    places = {name: f"_copy(_{name})" for name in template.get_identifiers()}
    return template.substitute({**places, "m": handle})


def _filled(names: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {**names, "_copy": deepcopy, **{f"_{name}": value for name, value in values.items()}}


def _written(source: str, handle: str, values: Mapping[str, Any]) -> str:
    return Template(source).substitute({name: shown(value) for name, value in values.items()}, m=handle)


def _claim(text: str, expected: object) -> str:
    if expected is None:
        return f"assert {text} is None"
    if isinstance(expected, bool):
        return f"assert {text}" if expected else f"assert not ({text})"
    return f"assert {text} == {shown(expected)}"


def _suppressing(errors: tuple[type[Exception], ...], text: str) -> str:
    return f"with suppress({_names_of(errors)}):\n    " + text.replace("\n", "\n    ")


def _names_of(errors: tuple[type[Exception], ...]) -> str:
    return ", ".join(dict.fromkeys(error.__name__ for error in errors))


def shown(value: object) -> str:
    """Return a value as an expression, in ASCII and the same each time."""
    if type(value) is str and (run := _RUN.fullmatch(value)):
        return f"{run[1]!a} + {run[3]!a} * {len(run[2])}" if run[1] else f"{run[3]!a} * {len(run[2])}"
    if type(value) is set and value:
        return f"{{{', '.join(sorted(map(shown, value)))}}}"
    return ascii(value)
