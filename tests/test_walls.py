"""The walls between the parts of the package: who may know whom."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cloudstore_mapping

PACKAGE = Path(cloudstore_mapping.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PATHS = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
MODULES = {name.removesuffix(".__init__"): path for name, path in PATHS.items()}

ROOT = "cloudstore_mapping"
#: What may not be imported by what, parts under it included.
WALLS = [
    (f"{ROOT}.client", f"{ROOT}.service"),
    (f"{ROOT}.client", f"{ROOT}.web"),
    (f"{ROOT}.service", f"{ROOT}.client"),
    (f"{ROOT}.service", f"{ROOT}.callback_client"),
    (f"{ROOT}.service", f"{ROOT}.web"),
]
#: The modules of ours that the lowest ones may import, and no others.
LOWEST: dict[str, set[str]] = {
    f"{ROOT}.callback_client": set(),
    f"{ROOT}.errors": set(),
    f"{ROOT}.wire": {f"{ROOT}.errors"},
    f"{ROOT}.merge": {f"{ROOT}.errors"},
    f"{ROOT}.keys": {f"{ROOT}.errors"},
}
HEAVY = ["psycopg", "sqlite3", "uvicorn", "starlette", "typer", "rich", "argon2", "requests", "urllib3", "email"]
#: Calls that open files, each with the reason why none of them can be a store that this process has open.
OPENING = re.compile(r"(^|\.)(open|fdopen|(read|write)_(bytes|text)|whichdb|copyfile|copy2|copytree)$")
OPENED: dict[str, dict[str, str]] = {
    "callback_client": {"os.fdopen": "the user's file, which is open already"},
    "cli.editor": {"self._file.write_bytes": "its own folder", "self._file.read_bytes": "its own folder"},
    "cli.frame": {"os.open": "a device"},
    "cli.output": {"os.open": "a device"},
    "client.media": {"self._draft.path.open": "a new file"},
    "client.shelf": {"os.open": "a new file", "os.fdopen": "a new file"},
    "drafts": {"os.open": "a lock: a new file, or an empty one"},
    "service.storage.migrations": {"file.read_text": "the package's own"},
    "service.merge_worker": {"Path('/proc/self/autogroup').write_text": "/proc"},
    "service.storage.sqlite_backup": {"draft.open": "its own file, closed by SQLite"},
    "service.storage.sqlite_files": {
        "log.open": "a log, which SQLite doesn't lock",
        "os.open": "a device, or an index, which isn't closed while SQLite may have it open",
        "path.open": "a journal, which SQLite doesn't lock",
        "path.read_text": "/proc",
    },
    "storefiles": {"path.open": "SQLite was asked", "os.open": "a folder"},
    "transfer.dbmfiles": {
        "dbm.open": "its own folder",
        "module.open": "SQLite was asked",
    },
    "transfer.export_target": {"file.open": "its own draft, closed by its maker"},
    "transfer.exporting": {"draft.open": "a new file"},
    "transfer.replacing": {"shutil.copy2": "a secret beside a store that isn't open"},
    "transfer.sources": {"Path(place).open": "a pipe or device", "path.open": "a new file"},
    "transfer.journal": {"os.open": "SQLite was asked", "os.fdopen": "SQLite was asked"},
    "web.connections": {"os.open": "a device"},
    "web.admin.pages": {"files(package).joinpath(path).read_bytes": "the package's own"},
}
#: Calls of the same name that open something else.
NO_FILES = re.compile(r"(.*\.)?_?(place|source|target|reader|line)\.open|(read|write)_text")


@functools.cache
def tree(module: str) -> ast.Module:
    """Return what a module says, read where a test wants it."""
    return ast.parse(MODULES[module].read_bytes())


@functools.cache
def imports(module: str) -> list[tuple[str, str]]:
    """Return each import of a module, wherever it stands in it, as (from where, what); what is empty for the whole."""
    found: list[tuple[str, str]] = []
    package = module if f"{module}.__init__" in PATHS else module.rpartition(".")[0]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found += [(source, alias.name) for alias in node.names]
    return found


def ours(module: str) -> set[str]:
    """Return the modules of ours that a module imports."""
    found = {f"{source}.{name}" if f"{source}.{name}" in MODULES else source for source, name in imports(module)}
    return found & MODULES.keys()


def is_within(module: str, part: str) -> bool:
    """Whether a module is a part of the package, or under it."""
    return module == part or module.startswith(f"{part}.")


@pytest.mark.parametrize(("part", "other"), WALLS)
def test_wall(part: str, other: str) -> None:
    """No module of the one part imports the other."""
    for module in MODULES:
        if is_within(module, part):
            assert not [name for name in ours(module) if is_within(name, other)], module


def test_nothing_needs_the_command_line() -> None:
    """Only `python -m` leads to the command line."""
    users = {module for module in MODULES for name in ours(module) if is_within(name, f"{ROOT}.cli")}
    assert {module for module in users if not is_within(module, f"{ROOT}.cli")} <= {f"{ROOT}.__main__"}


def test_nothing_needs_the_test_kit() -> None:
    """Nothing but pytest's plugin imports the kit, which may import all other parts but the command line."""
    users = {module for module in MODULES for name in ours(module) if is_within(name, f"{ROOT}.testing")}
    users.discard(f"{ROOT}.pytest_plugin")
    assert all(is_within(module, f"{ROOT}.testing") for module in users)


def test_the_kit_needs_hypothesis_alone() -> None:
    """The kit imports nothing that the base install and hypothesis don't bring, and pytest nowhere."""
    kit = [module for module in MODULES if is_within(module, f"{ROOT}.testing")]
    found = {source.partition(".")[0] for module in kit for source, _ in imports(module)}
    assert found - sys.stdlib_module_names == {ROOT, "hypothesis"}


def test_the_kit_serves_only_on_demand() -> None:
    """Importing the kit loads no web framework: a service is loaded by the fixture that runs one."""
    program = f"import sys, {ROOT}.testing.service; print(*sys.modules.keys() & {set(HEAVY) - {'sqlite3', 'email'}!r})"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, check=True, capture_output=True, text=True
    )
    assert ran.stdout.split() == []


@pytest.mark.parametrize("module", LOWEST)
def test_lowest_modules(module: str) -> None:
    """The lowest modules import nothing of ours but those listed for them."""
    assert ours(module) <= LOWEST[module]


def test_no_cycles() -> None:
    """No module imports itself over others, not even within a function."""
    assert list(graphlib.TopologicalSorter({module: ours(module) for module in MODULES}).static_order())


def test_no_private_names() -> None:
    """No module imports a name that another keeps to itself."""
    for module in MODULES:
        for source, name in imports(module):
            is_private = name.startswith("_") and not name.startswith("__")
            assert not (is_within(source, ROOT) and is_private), (module, source, name)


def test_docstring() -> None:
    """Each file says its purpose in its first line, as a sentence does, with a full stop or a colon and more."""
    for module in MODULES:
        docstring = ast.get_docstring(tree(module))
        assert docstring, module
        assert docstring.splitlines()[0].endswith((".", ":")), module


def test_only_the_transport_names_requests() -> None:
    """The transport alone imports the libraries that speak HTTP, and the callback client only `requests`."""
    libraries = {"requests", "urllib3"}
    users = {
        (module, library)
        for module in MODULES
        for source, _ in imports(module)
        if (library := source.split(".")[0]) in libraries
    }
    transport = {(f"{ROOT}.client.transport", library) for library in libraries}
    assert users == transport | {(f"{ROOT}.callback_client", "requests")}


def test_the_callback_client_stands_alone() -> None:
    """The callback client, whose file users copy, imports the standard library and `requests`, nothing else."""
    found = {source.partition(".")[0] for source, _ in imports(f"{ROOT}.callback_client")}
    assert found - sys.stdlib_module_names == {"requests"}


def test_import_is_light() -> None:
    """Importing the package loads neither a database, nor a web framework, nor what only a command line needs."""
    program = f"import sys, {ROOT}; print(*sys.modules.keys() & set({HEAVY!r}))"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=PACKAGE.parent, check=True, capture_output=True, text=True
    )
    assert ran.stdout.split() == []


def test_no_placeholder_has_a_number() -> None:
    """SQL for SQLite numbers none of its placeholders: Python 3.12 warns of it, and 3.14 refuses it."""
    storage = PACKAGE / "service" / "storage"
    assert not [file.name for file in storage.glob("*.py") if re.search(r"\?[0-9]", file.read_text("utf-8"))]


def test_no_possessive_quantifiers() -> None:
    """Python 3.11.0 to 3.11.4 match possessive quantifiers of groups and atomic groups wrongly, so none is used."""
    found = [
        f"{module}: {each.value}"
        for module in MODULES
        for each in ast.walk(tree(module))
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
        if re.search(r"[])}\w.][*+?}]\+|\(\?>", each.value) and "{0}" not in each.value
    ]
    assert found == []


def test_only_sqlite_opens_what_may_be_a_store() -> None:
    """A file is opened by `storefiles`, which asks SQLite first, unless it can't be a store: its close drops locks."""
    for module in MODULES:
        called = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
        opening = {name for name in called if OPENING.search(name) and not NO_FILES.fullmatch(name)}
        assert opening == set(OPENED.get(module.removeprefix(f"{ROOT}."), ())), module
