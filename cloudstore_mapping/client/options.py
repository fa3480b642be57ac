"""Options of a store: check each when it is given, mask the secrets among them, choose those to pickle."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from cloudstore_mapping.errors import shorten
from cloudstore_mapping.masking import mask, type_of

#: Returns True for an allowed value.
Check: TypeAlias = Callable[[Any], bool]

#: Options with secrets: an error about them shows the type in place of the value.
SECRET: Final = frozenset({"passwords", "password", "media_password"})
# Functions and objects of the process, which a pickle can't hold.
_NOT_PICKLED: Final = frozenset({"progress", "session", "clock", "transport"})


def check_options(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a value that is not allowed, `TypeError` for an unknown option."""
    for name, value in given.items():
        if name not in _CHECKS:
            near = difflib.get_close_matches(name, _CHECKS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(_CHECKS)}."
            raise TypeError(f"A store has no option {shorten(name)}; {hint}")
        is_allowed, allowed = _CHECKS[name]
        if not is_allowed(value):
            shown = f"of type {type_of(value).__name__}" if name in SECRET else shorten(value)
            raise ValueError(f"{name} must be {allowed}, not {shown}.")


def masked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with masked secrets; a value under an unknown name may be one, too."""
    return {name: mask(value) if name in SECRET or name not in _CHECKS else value for name, value in given.items()}


def pickled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for a pickle: secrets only with `pickle_secrets`, and no objects of the process."""
    left_out = _NOT_PICKLED if options["pickle_secrets"] else _NOT_PICKLED | SECRET | {"pickle_secrets"}
    return {name: value for name, value in options.items() if name not in left_out}


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_lookup(kind: type) -> bool:
    return hasattr(kind, "__getitem__") and not issubclass(kind, str | bytes | list | tuple)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_positive_or_none(value: Any) -> bool:
    return value is None or _is_positive(value)


def _is_timeout(value: Any) -> bool:
    return _is_positive(value) or (isinstance(value, tuple) and len(value) == 2 and all(map(_is_positive, value)))


def _is_count(least: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _has(*methods: str) -> Check:
    return lambda value: value is None or all(callable(getattr(value, method, None)) for method in methods)


_SECONDS: Final = "a number of seconds above 0, or None"
_FLAG: Final = (_is_flag, "True or False")

#: For each option its check, and the allowed values.
_CHECKS: Final[Mapping[str, tuple[Check, str]]] = {
    "passwords": (
        lambda value: value is None or _is_lookup(type_of(value)),
        "a mapping from key to password, or None",
    ),
    "password": (_is_text, "a text, or None"),
    "media_password": (_is_text, "a text, or None"),
    "cache_ttl": (_is_positive_or_none, _SECONDS),
    "cache_size": (_is_count(1), "a whole number above 0"),
    "cache_bytes": (_is_count(1), "a whole number above 0"),
    "cache_absent_ttl": (_is_positive_or_none, _SECONDS),
    "timeout": (_is_timeout, "a number of seconds above 0, or two: for the connection and for the answer"),
    "deadline": (_is_positive_or_none, _SECONDS),
    "retries": (_is_count(0), "a whole number, 0 or above"),
    "min_interval": (
        lambda value: value is None or (_is_number(value) and value >= 0),
        "a number of seconds, 0 or above, or None for the service's default",
    ),
    "max_workers": (_is_count(1), "a whole number above 0"),
    "progress": (
        lambda value: value is None or value is True or callable(value),
        "a function of the keys done and their total, True for a bar, or None",
    ),
    "session": (_has("get", "post"), "a requests.Session, or None"),
    "insecure": _FLAG,
    "readonly": _FLAG,
    "pickle_secrets": _FLAG,
    "clock": (callable, "a function that returns monotonic seconds"),
    "transport": (_has("send", "close"), "an object with the methods send and close, or None"),
}
