"""The values that are handed to a command: JSON as an argument, from standard input, or from a file."""

from __future__ import annotations

import codecs
import json
from typing import Any

from msgspec import MsgspecError

from cloudstore_mapping.cli.asking import STDIN, reading, stdin
from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.client.codec import encode
from cloudstore_mapping.errors import BadValueError
from cloudstore_mapping.oserrors import sentence_of
from cloudstore_mapping.storefiles import read_file
from cloudstore_mapping.wire import decode_value, fault_of


def read(source: str) -> Any:
    """Return the value that `source` says, names or stands for; `UsageError` for what is no JSON."""
    if source == "-" or (source.startswith("@") and source[1:] in STDIN - {"-"}):
        name, text = "Standard input", reading(stdin().read)
    elif source.startswith("@"):
        try:
            name, text = source[1:], read_file(source[1:], pipe=True)
        except OSError as error:
            raise UsageError(sentence_of(error, source[1:])) from error
        except ValueError as error:
            raise UsageError(f"{source[1:]!r} can't be read: {error}.") from error
    else:
        name, text = "The value", source.encode("utf-8", "surrogateescape")
    return parse(name, text)


def parse(name: str, text: bytes) -> Any:
    """Return the value that `text` is as JSON; `UsageError` that says where it isn't, calling it `name`."""
    try:
        return decode_value(text)
    except (MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {_where(text, error)}.") from error


def _where(text: bytes, refusal: Exception) -> str:
    """Return what Python's own parser, which counts lines, or the codec, which names the part, says to `text`."""
    if text.startswith(codecs.BOM_UTF8):
        return fault_of(text, refusal)  # Python's sentence advises the programmer
    try:
        encode(json.loads(text.decode()))
    except json.JSONDecodeError as error:
        hint = "" if error.pos or not text.strip() else "; a text is written with its quotes, '\"text\"'"
        return f"{error.msg}, line {error.lineno}, column {error.colno}{hint}"
    except (BadValueError, UnicodeDecodeError) as error:
        return str(error).rstrip(".")
    except (ValueError, RecursionError):  # an integer of more digits than Python takes; brackets without end
        pass
    return fault_of(text, refusal)
