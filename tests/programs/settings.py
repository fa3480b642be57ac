"""Settings with defaults: `settings.py SHELF [NAME=VALUE…]`, which shows all; and a history of what was typed."""

import shelve
import sys
from pathlib import PurePosixPath
from typing import Any

DEFAULTS: dict[str, Any] = {"colour": "red", "size": (80, 25), "home": PurePosixPath("/home"), "ratio": 1.5, "on": True}


class Settings:
    """Attributes kept in a shelf."""

    def __init__(self, filename: str) -> None:
        vars(self)["db"] = shelve.open(filename)  # noqa: SIM115 - closed by `close`

    def __getattr__(self, name: str) -> Any:
        try:
            return vars(self)["db"][name]
        except KeyError:
            return DEFAULTS[name]

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)["db"][name] = value

    def close(self) -> None:
        """Close the shelf."""
        vars(self)["db"].close()


def main(filename: str, *changes: str) -> None:
    """Make the changes, and show all settings."""
    settings = Settings(filename)
    for change in changes:
        name, _, value = change.partition("=")
        setattr(settings, name, type(DEFAULTS[name])(value))
    settings.history = list(changes)
    print({name: getattr(settings, name) for name in [*DEFAULTS, "history"]})
    settings.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
