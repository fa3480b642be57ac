"""Which password goes with which key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Password:
    """The two passwords of a file: `view` is asked for by a load, `edit` by a change; None is none."""

    view: str | None = None
    edit: str | None = None

    def __repr__(self) -> str:
        states = (f"{name}={'not set' if text is None else 'set'}" for name, text in vars(self).items())
        return f"Password({', '.join(states)})"


class Passwords:
    """
    The passwords of a store, looked up anew at each request.

    Parameters
    ----------
    passwords
        From key to password; a text serves for both purposes, None means that this key has none. Only
        ``passwords[key]`` is asked, so it may change, or be lazy; its `KeyError` means the default.
    default
        The password of every other key.

    Notes
    -----
    May be used by many threads if the mapping may.
    """

    def __init__(self, passwords: Mapping[str, str | Password | None] | None, default: str | None) -> None:
        self._passwords = passwords
        self._default = default

    def __repr__(self) -> str:
        return f"<Passwords, {'without' if self._default is None else 'with'} a default>"

    def for_view(self, key: str) -> str | None:
        """Return what to present when `key` is read; the edit password where no view one is given."""
        password = self._find(key)
        if isinstance(password, Password):
            return password.edit if password.view is None else password.view
        return password

    def for_edit(self, key: str) -> str | None:
        """Return what to present when `key` is changed."""
        password = self._find(key)
        return password.edit if isinstance(password, Password) else password

    def _find(self, key: str) -> str | Password | None:
        if self._passwords is None:
            return self._default
        try:
            return self._passwords[key]
        except KeyError:
            return self._default
