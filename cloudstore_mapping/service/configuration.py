"""Configuration: read settings from the command line, the environment and a TOML file."""

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

#: What a sentence names as an example.
EXAMPLES: Final = "3072, 3KiB or '1.5 GiB'"


def parse_size(text: str) -> int:
    """
    Return the bytes that `text` says: a number alone or of B, kB, MB, GB, TB (thousands) or KiB, MiB, GiB, TiB (1024s).

    Raises `ValueError` for what is no size, or no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise ValueError(f"{text!r} is no size; write it as {EXAMPLES}.")
    size = Decimal(match[1]) * unit
    if size != int(size):
        raise ValueError(f"{text!r} is no whole number of bytes; write it as {EXAMPLES}.")
    return int(size)


#: What the environment's variables begin with; the rest is the setting's name in upper case.
PREFIX: Final = "CLOUDSTORE_SERVICE_"
#: The variable that names the file.
FILE_VARIABLE: Final = f"{PREFIX}CONFIG"
#: What `msgspec.Meta.extra` of a setting says that is a size in bytes.
BYTES: Final = {"unit": "bytes"}
#: And of one whose value is never shown.
SECRET: Final = {"secret": True}
#: The type of a setting that is the name of a file.
FileName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, description="the name of a file")]

_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)


class _Said(NamedTuple):
    """A value, the place where it stands, and whether it is text that may mean a number."""

    place: str
    value: object
    is_text: bool


def load(
    kinds: tuple[type, ...], environ: Mapping[str, str], given: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """
    Return the checked values of those fields of the dataclasses `kinds` that somebody gave, by the field's name.

    What is `given` on a command line, None meaning that it isn't, wins over the environment, and that over the TOML
    file which the environment's ``CLOUDSTORE_SERVICE_CONFIG``, or a given ``config``, names. An empty value is no
    default: it is wrong unless the setting's type admits it. Raises `ValueError` with one sentence that names the
    option, variable or file, and says what is allowed; `OSError` for a file that can't be read.
    """
    options = {name: value for name, value in (given or {}).items() if value is not None}
    types = {name: type_ for kind in kinds for name, type_ in get_type_hints(kind, include_extras=True).items()}
    file = _Said("--config", options.pop("config", None), False)
    if file.value is None:
        file = _Said(f"The environment's {FILE_VARIABLE}", environ.get(FILE_VARIABLE), True)
    said = {} if file.value is None else dict(_of_file(Path(_checked(file, FileName)), types))
    said |= dict(_of_environment(environ, types))
    said |= {name: _Said(f"--{name.replace('_', '-')}", value, False) for name, value in options.items()}
    return {name: _checked(said_, types[name]) for name, said_ in said.items()}


def _of_file(file: Path, types: Mapping[str, Any]) -> Iterator[tuple[str, _Said]]:
    try:
        values = tomllib.loads(read_file(file, pipe=True).decode())
    except OSError as error:
        raise type(error)(f"{file} can't be read ({error.strerror}); name the file of settings again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no TOML file: it is not UTF-8, from byte {error.start} on.") from error
    except ValueError as error:
        raise ValueError(f"{file} is no TOML file: {error}.") from error
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"{file}: there is no setting {name!r}; {_meant(name, types)}")
        yield name, _Said(f"{file}: {name}", value, False)


def _of_environment(environ: Mapping[str, str], types: Mapping[str, Any]) -> Iterator[tuple[str, _Said]]:
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in types or variable != variable.upper():
            advice = _meant(name, types, lambda name: PREFIX + name.upper())
            raise ValueError(f"The environment's {variable} is no setting; {advice}")
        yield name, _Said(f"The environment's {variable}", value, True)


def _meant(name: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {shown(close[0])}?" if close else "take it out."


def _checked(said: _Said, type_: Any) -> Any:
    value = said.value
    plain, meta = _parted(type_)
    if isinstance(value, str) and (value != value.strip() or "\0" in value):
        raise ValueError(f"{said.place} has white space or a NUL around its value; take that out.")
    try:
        if isinstance(value, str) and meta.extra == BYTES:
            value = parse_size(value)
        converted = msgspec.convert(value, type_, strict=not said.is_text)
        if plain in (int, float) and isinstance(value, str) and _NUMBER.fullmatch(value) is None:
            converted = math.nan
        for check in (meta.extra or {}).get("checks", ()):
            check(converted)
    except (msgspec.ValidationError, ValueError):
        converted = math.nan
    if isinstance(converted, float) and not math.isfinite(converted):
        shown = "" if meta.extra == SECRET and value else f"is {said.value!r}, but "
        raise ValueError(f"{said.place} {shown}has to be {_described(type_)}.")
    return converted


def _parted(type_: Any) -> tuple[Any, msgspec.Meta]:
    """Return a setting's type without its constraints, and those; of one that may be None as if it may not."""
    if get_origin(type_) in (Union, UnionType):
        (type_,) = (part for part in get_args(type_) if part is not NoneType)
    plain, *metas = get_args(type_) if get_origin(type_) is Annotated else (type_,)
    return plain, metas[0] if metas else msgspec.Meta()


def _described(type_: Any) -> str:
    plain, meta = _parted(type_)
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
