"""Configuration: load settings from command line, environment variables and a TOML file; parse sizes."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, Union, get_args, get_origin, get_type_hints

import msgspec

from cloudstore_mapping.storefiles import read_file

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) *([A-Za-z]*)", re.ASCII)

#: Examples for error messages.
EXAMPLES: Final = "3072, 3KiB or '1.5 GiB'"


def parse_size(text: str) -> int:
    """
    Return the number of bytes in a size such as 3072, 3kB or '1.5 GiB'.

    Units are B, kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024), in upper or lower case. Raises
    `ValueError` for any other text and for a fraction of a byte.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size; write it as {EXAMPLES}.")
    size = Decimal(match[1]) * unit
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes; write it as {EXAMPLES}.")
    return int(size)


#: Prefix of environment variables; the rest is the setting's name in upper case.
PREFIX: Final = "CLOUDSTORE_SERVICE_"
#: Environment variable with the path of the TOML file.
FILE_VARIABLE: Final = f"{PREFIX}CONFIG"
#: `msgspec.Meta.extra` of a setting in bytes.
BYTES: Final = {"unit": "bytes"}
#: `msgspec.Meta.extra` of a secret setting: its value is never shown.
SECRET: Final = {"secret": True}
#: Type of a setting with a file's name.
FileName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, description="the name of a file")]

_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)


class _Given(NamedTuple):
    """Given value and its source, for error messages; with `is_text`, a string may be converted to a number."""

    source: str
    value: object
    is_text: bool


def load(
    kinds: tuple[type, ...], environ: Mapping[str, str], given: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """
    Load settings: return the checked values of the fields of the dataclasses `kinds`, by field name.

    The command line (`given`; None for an absent option) takes precedence over the environment, and the environment
    over the TOML file named by ``config`` or ``CLOUDSTORE_SERVICE_CONFIG``. Settings without a value are left out. An
    empty value doesn't select the default: it is an error unless the setting's type allows it. Raises `ValueError`,
    naming the option, variable or file and the allowed values, and `OSError` if the file can't be read.
    """
    options = {name: value for name, value in (given or {}).items() if value is not None}
    types = {name: type_ for kind in kinds for name, type_ in get_type_hints(kind, include_extras=True).items()}
    file = _Given("--config", options.pop("config", None), False)
    if file.value is None:
        file = _Given(f"The environment's {FILE_VARIABLE}", environ.get(FILE_VARIABLE), True)
    settings = {} if file.value is None else dict(_from_file(Path(_check(file, FileName)), types))
    settings |= dict(_from_environment(environ, types))
    settings |= {name: _Given(f"--{name.replace('_', '-')}", value, False) for name, value in options.items()}
    return {name: _check(setting, types[name]) for name, setting in settings.items()}


def _from_file(file: Path, types: Mapping[str, Any]) -> Iterator[tuple[str, _Given]]:
    try:
        values = tomllib.loads(read_file(file, pipe=True).decode())
    except OSError as error:
        raise type(error)(f"{file} can't be read ({error.strerror}); check its name and permissions.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a TOML file: it is not UTF-8 at byte {error.start}.") from error
    except ValueError as error:
        raise ValueError(f"{file} is not a TOML file: {error}.") from error
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"{file}: there is no setting {name!r}; {_suggest(name, types)}")
        yield name, _Given(f"{file}: {name}", value, False)


def _from_environment(environ: Mapping[str, str], types: Mapping[str, Any]) -> Iterator[tuple[str, _Given]]:
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in types or variable != variable.upper():
            advice = _suggest(name, types, lambda name: PREFIX + name.upper())
            raise ValueError(f"The environment's {variable} is not a setting; {advice}")
        yield name, _Given(f"The environment's {variable}", value, True)


def _suggest(name: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {shown(close[0])}?" if close else "remove it."


def _check(setting: _Given, type_: Any) -> Any:
    """Return a setting's value converted to its type; raise `ValueError` with its source if it is wrong."""
    value = setting.value
    if isinstance(value, str) and (value != value.strip() or "\0" in value):
        raise ValueError(f"{setting.source} has white space or a NUL around its value; remove it.")
    try:
        return _convert(value, type_, is_text=setting.is_text)
    except (msgspec.ValidationError, ValueError):
        _, meta = _split(type_)
        shown = "" if meta.extra == SECRET and value else f"is {value!r}, but "
        raise ValueError(f"{setting.source} {shown}has to be {_describe(type_)}.") from None


def _convert(value: object, type_: Any, *, is_text: bool) -> Any:
    plain, meta = _split(type_)
    is_number = plain in (int, float)
    if isinstance(value, str) and meta.extra == BYTES:
        value = parse_size(value)
    converted = msgspec.convert(value, type_, strict=not is_text)
    if is_number and isinstance(value, str) and _NUMBER.fullmatch(value) is None:
        raise ValueError("not a number")
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError("not a finite number")
    for check in (meta.extra or {}).get("checks", ()):
        check(converted)
    return converted


def _split(type_: Any) -> tuple[Any, msgspec.Meta]:
    """Return a setting's type, without None, and its constraints."""
    if get_origin(type_) in (Union, UnionType):
        (type_,) = (part for part in get_args(type_) if part is not NoneType)
    plain, *metas = get_args(type_) if get_origin(type_) is Annotated else (type_,)
    return plain, metas[0] if metas else msgspec.Meta()


def _describe(type_: Any) -> str:
    plain, meta = _split(type_)
    if meta.description:
        return str(meta.description)
    if plain is bool:
        return "true or false"
    if meta.extra == BYTES:
        return f"a size above 0, such as {EXAMPLES}"
    if plain not in (int, float):
        return "a text"
    number = "a whole number" if plain is int else "a number"
    if meta.gt is not None:
        return f"{number} above {meta.gt}, up to {meta.le:,}"
    return f"{number} from {meta.ge} to {meta.le}"
