"""What the pages in `docs/` show is what happens."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from cloudstore_mapping import doctor
from cloudstore_mapping.keys import escape_key
from cloudstore_mapping.service import settings
from cloudstore_mapping.service.configuration import load
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.migrations import schema_steps
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web import options
from cloudstore_mapping.web.server import background
from tests.few_tries import FEW_TRIES
from tests.vendor import Vendor

DOCS = Path(__file__).parent.parent / "docs"
SERVED = "http://127.0.0.1:8787/cloudstore"
#: What is different each time: versions, the two numbers of a media file's link, and times.
RANDOM = re.compile(
    r'(?<=version": ")[\w-]{20}|(?<=version":")[\w-]{20}|(?<=",")[\w-]{20}(?=")|[0-9a-f]{32}|\b1[0-9]{9}\.[0-9]+'
)
#: A line that ends with a backslash, or is followed by one that is indented, goes on.
COMMAND = re.compile(r"^\$ ((?:.*\\\n|.*\n(?= {6}))*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """Return the page's code blocks in this language."""
    text = (DOCS / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def filled_in(text: str, real: dict[str, str]) -> str:
    """Return the page's text with the real ones of what is different each time."""
    return RANDOM.sub(lambda match: real.get(match[0], match[0]), text)


def learn(shown: str, output: str, real: dict[str, str]) -> None:
    """Remember what stands in the output for each of the page's versions, numbers and times."""
    if RANDOM.sub("…", shown) == RANDOM.sub("…", output):
        real.update(zip(RANDOM.findall(shown), RANDOM.findall(output), strict=True))


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page is about the program curl, which isn't there")
@pytest.mark.skipif(shutil.which("bash") is None, reason="the page's commands are a shell's")
def test_curl_alone_can_drive_the_whole_wire(tmp_path: Path) -> None:
    """Every command of the page prints what the page shows, and what it shows twice is the same both times."""
    file = tmp_path / "service.db"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "CLOUDSTORE_SERVICE_STORE": str(file), "PATH": path}
    ran = 0
    real: dict[str, str] = {}
    with Service(SQLiteStorage(file)) as service, background(service) as address:
        for command, shown in COMMAND.findall("".join(blocks("curl.md", "console"))):
            done = subprocess.run(
                ["bash", "-c", filled_in(command, real).replace(SERVED, address)],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            output = done.stdout.rstrip("\n")
            learn(shown.rstrip("\n"), output, real)
            assert (output, done.stderr) == (filled_in(shown, real).rstrip("\n"), ""), command
            ran += 1
    assert ran == 47


def test_curl_shows_every_request() -> None:
    """Each operation, extension and path of the wire is on the page."""
    text = (DOCS / "curl.md").read_text("utf-8")
    for said in (
        *("/store/save", "/store/load", "/store/batch", "/upload-2", "/files/"),
        *('"options": "merge"', '"options": "delete"', '"options": "list"', '"options": "stat"'),
        *('"password"', '"if_version"', '"if_not_version"', '"atomic"', '"after"', '"match"', '"request"', '"brief"'),
        '"values"',
    ):
        assert said in text, said


def settings_table() -> str:
    """Return the table of all settings, made of their dataclasses."""
    rows = ["| setting | default | what |", "|---|---|---|"]
    for module, kind in ((options, options.Options), (settings, settings.Settings)):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
        for field, documented in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(documented, ast.Expr):
                assert isinstance(field.target, ast.Name)
                told = " ".join(str(ast.literal_eval(documented.value)).split())
                rows.append(
                    f"| `{field.target.id}` | {_default(field.target.id, defaults.pop(field.target.id))} | {told} |"
                )
        assert not defaults, "a setting without a sentence"
    return "\n".join(rows)


def _default(name: str, default: object) -> str:
    if default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return "true" if default else "false"
    if name.endswith(("_bytes", "_memory")):
        assert isinstance(default, int)
        for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if default % factor == 0:
                return f"{default // factor} {unit}"
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_the_table_of_settings() -> None:
    """The page lists every setting with its default and its meaning, as the code has them."""
    table = re.search(r"^\| setting .*?(?=\n\n)", (DOCS / "operation.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert table is not None
    assert table[0] == settings_table()


def test_the_table_of_schemas() -> None:
    """The page has a row for each schema step of both engines, and it and the CHANGELOG name the newest ones."""
    page = (DOCS / "operation.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (\d*) ?\| (\d*) ?\| (\S.*) \|$", page.partition("| SQLite | PostgreSQL | added |")[2], re.MULTILINE
    )
    steps = [[*range(1, len(schema_steps(engine)) + 1)] for engine in ("sqlite", "postgres")]
    assert [[int(row[column]) for row in rows if row[column]] for column in (0, 1)] == steps
    sqlite, postgres = (each[-1] for each in steps)
    assert f"this version {sqlite} and {postgres};" in " ".join(page.split())
    changes = (DOCS.parent / "CHANGELOG.md").read_text("utf-8")
    assert f"A store gets schema {sqlite} (PostgreSQL: {postgres})" in changes


def test_the_file_of_settings(tmp_path: Path) -> None:
    """The file that the page shows can be loaded."""
    (text,) = blocks("operation.md", "toml")
    file = tmp_path / "cloudstore.toml"
    file.write_text(text)
    loaded = load((options.Options, settings.Settings), {}, {"config": str(file)})
    assert loaded.keys() == tomllib.loads(text).keys()
    assert loaded["max_media_bytes"] == 500 * 2**20


def test_the_pieces_work_together() -> None:
    """Unit and proxies name the address, the paths and the files that the service's own defaults and settings have."""
    (unit,) = blocks("operation.md", "ini")
    (nginx,) = blocks("operation.md", "nginx")
    (caddy,) = blocks("operation.md", "caddyfile")
    here = f"{options.Options.host}:{options.Options.port}"
    assert "cloudstore serve --config /etc/cloudstore.toml" in unit
    for proxy in (nginx, caddy):
        assert here in proxy
        assert f"{options.Options.base_path}/metrics" in proxy
    assert "proxy_request_buffering off" in nginx


def test_the_program_that_imports_its_own_shelf(tmp_path: Path) -> None:
    """The lines that the page about shelves has for a program with classes of its own move them."""
    (lines,) = (block for block in blocks("shelve.md", "python") if "import_store(" in block)
    program = f"""
import shelve
from dbm import dumb
class Point:
    def __init__(self, x):
        self.x = x
with shelve.Shelf(dumb.open("todo", "c")) as db:
    db["a"] = Point(5)
{lines}
from cloudstore_mapping import shelve
with shelve.open("todo-store") as db:
    print(db["a"].x)
"""
    run = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("5\n", "")


@pytest.mark.parametrize("page", ["shelve.md", "transfer.md"])
def test_pages_of_python(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of Python on the page gives what the page shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    failed, tried = doctest.testfile(str(DOCS / page), module_relative=False, encoding="utf-8")
    assert (failed, tried >= 5) == (0, True)


def test_the_page_about_keys(tmp_path: Path) -> None:
    """Each line of Python on the page gives what the page shows, and its table is what the escape does."""
    with Service(SQLiteStorage(tmp_path / "service.db")) as service, background(service) as address:
        api_key = service.accounts.create("keys")
        text = (DOCS / "keys.md").read_text("utf-8").replace(f'"API_KEY", "{SERVED}"', f'"{api_key}", "{address}"')
        text = text.replace(SERVED.replace("://", "://API_KEY@"), address.replace("://", f"://{api_key}@"))
        examples = doctest.DocTestParser().get_doctest(text, {}, "keys.md", "keys.md", 0)
        complaints: list[str] = []
        doctest.DocTestRunner().run(examples, out=complaints.append)
    assert (complaints, len(examples.examples)) == ([], 9)
    for key, exact, joined in (
        ("", "%", "%"),
        ("\0", "%00", "%00"),
        ("a,b", "a,b", "a%2Cb"),
        ("\t", "\t", "%09"),
        ("a/../b", "a/../b", "a/%2E%2E/b"),
        *(("%", "%25", "%25"), ("%00", "%2500", "%2500"), ("%2C", "%2C", "%252C")),
    ):
        assert (escape_key(key), escape_key(key, joined=True)) == (exact, joined)
        assert all(f"`{name}`" in text for name in (exact, joined) if name.isprintable())


@pytest.mark.slow
def test_the_page_about_testing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of Python on the page gives what the page shows, and its test files pass."""
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(DOCS / "testing.md"), module_relative=False, encoding="utf-8")
    assert (failed, tried > 20) == (0, True)
    files = [block for block in blocks("testing.md", "python") if re.search("^(def test_|Test)", block, re.MULTILINE)]
    assert len(files) == 2
    for number, text in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(text)
    (tmp_path / "conftest.py").write_text(FEW_TRIES)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", str(tmp_path)]
    env = {**os.environ, "PYTEST_ADDOPTS": ""}  # options for this run aren't for that one
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_page_about_the_doctor(vendor: Vendor) -> None:
    """The page's table has all checks, and its example is in the report about a service with folders."""
    text = (DOCS / "doctor.md").read_text("utf-8")
    rows = [f"| `{name}` | {check.assumption} |" for name, check in doctor.CHECKS.items()]
    assert "\n".join(["| check | assumption |", "|---|---|", *rows]) in text
    assert f"about {doctor.REQUESTS} requests" in text
    vendor.checks_keys = vendor.slashes_are_folders = True
    examination = doctor.Doctor(vendor.api_key, vendor.address, new_prefix=lambda: "doctor-1a2b3c4d")
    report = examination.examine().as_text()
    (example,) = blocks("doctor.md", "text")
    for part in example.rstrip().split("\n\n"):
        assert f"\n\n{part}\n" in f"{report}\n"
