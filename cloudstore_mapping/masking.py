"""Masking of secrets: text and bytes whose repr is `…`, for tracebacks with local variables and for debuggers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")


class SecretText(str):
    """Text with a masked repr; `str` and formatting show the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"

    def __rich_repr__(self) -> Iterator[object]:
        yield from ()  # rich would cut a long text before it calls its repr


class SecretBytes(bytes):
    """Bytes with a masked repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'…'"

    def __rich_repr__(self) -> Iterator[object]:
        yield from ()


class SecretObject:
    """Wrapper of a user's object with secrets, such as a mapping, that hides it from repr and attributes."""

    def __init__(self, inner: Any) -> None:
        self._inner: Any = lambda: inner  # a closure, as debuggers show attributes

    def __repr__(self) -> str:
        return "{…}"

    def __getitem__(self, key: str) -> Any:
        return hide(self._inner()[key])

    def __reduce__(self) -> tuple[Any, ...]:
        return SecretObject, (self._inner(),)

    @property
    def kind(self) -> type:
        """The object's type."""
        return type(self._inner())


@overload
def hide(secret: str) -> SecretText: ...
@overload
def hide(secret: bytes) -> SecretBytes: ...
@overload
def hide(secret: T) -> T: ...
def hide(secret: object) -> object:
    """Return a text or bytes with a masked repr, and any other object unchanged."""
    if isinstance(secret, SecretText | SecretBytes):
        return secret
    if isinstance(secret, str):
        return SecretText(str.__str__(secret))
    return SecretBytes(secret) if isinstance(secret, bytes) else secret


Masked: Final = (SecretText, SecretBytes, SecretObject)


def mask(secret: Any) -> Any:
    """Return any secret with a masked repr; None unchanged."""
    hidden = hide(secret)
    return hidden if hidden is None or isinstance(hidden, Masked) else SecretObject(hidden)


def type_of(secret: object) -> type:
    """Return the type that an object had before it was masked."""
    if isinstance(secret, SecretObject):
        return secret.kind
    return str if isinstance(secret, SecretText) else bytes if isinstance(secret, SecretBytes) else type(secret)
