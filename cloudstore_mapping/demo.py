"""Script of `cloudstore demo`: the shopping list of the original documentation, as in a Python session."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterable
from contextlib import chdir
from tempfile import TemporaryDirectory
from typing import Any, Final

_SHOPPING: Final = (
    'store["Shopping_List"] = {"Apples": 8, "Oranges": 6}',
    'store["Shopping_List"]',
    'store |= {"Shopping_List": {"Oranges": 10, "Bananas": 8}}  # merged where the data is',
    'store["Shopping_List"]',
    'list(store), len(store), "Shopping_List" in store',
    'store["Recipes"]  # a dictionary says KeyError; NoFileError is one',
)
_EMBEDDED: Final = (
    "import cloudstore_mapping as cm",
    'store = cm.open("shopping.db")',
    *_SHOPPING,
    'del store["Shopping_List"]',
    "len(store)",
    "store.close()",
)
_SERVED: Final = (
    'store = cm.open("ADDRESS")',
    *_SHOPPING,
    'service.set_passwords("owner", "Shopping_List", edit="pie")  # at the service: its owner locks the list',
    'store["Shopping_List"] = {}',
    "store.close()",
    'store = cm.open("ADDRESS", password="pie")',
    'store["Shopping_List"] = {}',
    'store["Shopping_List"]',
    "store.close()",
)


def transcript() -> Generator[str]:
    """
    Yield the parts of the demonstration: headings, and executed lines after ``>>>`` with their results.

    Meanwhile the working directory is a temporary folder. The API key is shown as ``API_KEY``.
    """
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
    from cloudstore_mapping.web.server import background

    names: dict[str, Any] = {}
    with TemporaryDirectory(prefix="cloudstore-demo-", ignore_cleanup_errors=True) as folder, chdir(folder):
        yield "1. A dictionary in a file\n"
        yield from _play(_EMBEDDED, names)
        yield "\n2. The same dictionary through a service, started on this machine\n"
        with Service(SQLiteStorage("service.db")) as service, background(service) as address:
            names["service"] = service
            api_key = service.accounts.create("owner")
            yield from _play(
                [line.replace("ADDRESS", address.replace("://", "://API_KEY@")) for line in _SERVED], names, api_key
            )
    yield "\nNext: `cloudstore set KEY JSON`, `get KEY` and `ls` work on ./cloudstore.db, as `cm.open()` does;"
    yield "`cloudstore serve` starts a service that stays, and `cloudstore --help` lists the rest."


def _play(lines: Iterable[str], names: dict[str, Any], api_key: str = "API_KEY") -> Generator[str]:
    try:
        for line in lines:
            given = _execute(line.replace("API_KEY", api_key), names)
            shown = f">>> {line}" if given is None else f">>> {line}\n{given}"
            yield shown.replace(api_key, "API_KEY")
    finally:
        if "store" in names:
            names["store"].close()


def _execute(line: str, names: dict[str, Any]) -> str | None:
    """Return the output of `line` at Python's prompt, only the last line of a traceback; None for no output."""
    try:
        try:
            code = compile(line, "<demo>", "eval")
        except SyntaxError:
            exec(line, names)  # noqa: S102 - the lines are this file's own
            return None
        value = eval(code, names)  # noqa: S307 - the lines are this file's own
    except Exception as error:  # noqa: BLE001 - errors are part of the demonstration
        return traceback.format_exception_only(error)[-1].rstrip()
    return None if value is None else repr(value)
