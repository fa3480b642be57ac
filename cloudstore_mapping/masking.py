"""Masking of secrets: text and bytes whose repr is `…`, for tracebacks with local variables and for debuggers."""

from __future__ import annotations

from typing import Any, Final

from cloudstore_mapping.callback_client import SecretBytes, SecretText, hide

__all__ = ["Masked", "SecretBytes", "SecretObject", "SecretText", "hide", "mask", "type_of"]


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
