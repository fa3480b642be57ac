"""Settings come from the command line, the environment and a file, in this order, and are checked one by one."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from msgspec import Raw

import cloudstore_mapping
from cloudstore_mapping.cli import app
from cloudstore_mapping.cli.places import configured
from cloudstore_mapping.service.configuration import PREFIX, load, parse_size
from cloudstore_mapping.service.settings import Settings, check_together
from cloudstore_mapping.web.options import Options
from cloudstore_mapping.wire import Request, _too_deep, encode_request
from tests.support.command_line import CliRunner

PACKAGE = Path(cloudstore_mapping.__file__).parent
KINDS = (Options, Settings)
FIELDS = {field.name: field.default for kind in KINDS for field in dataclasses.fields(kind)}


def variable(name: str) -> str:
    """Return what the environment calls a setting."""
    return PREFIX + name.upper()


def test_every_field_can_be_set() -> None:
    """Each setting has a variable and a key in the file, and takes its own default as text and as itself."""
    given = {name: default for name, default in FIELDS.items() if default is not None}
    assert load(KINDS, {variable(name): str(default) for name, default in given.items()}) == given
    assert load(KINDS, {}, given) == given


def test_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option wins over the environment, that over the file, and what nobody says is the default."""
    file = tmp_path / "service.toml"
    file.write_text('port = 1\nhost = "file"\nworkers = 2\nmax_value_bytes = "1 MiB"\n')
    monkeypatch.setenv(variable("config"), str(file))
    monkeypatch.setenv(variable("port"), "2")
    monkeypatch.setenv(variable("host"), "environment")
    options, settings = configured(port=3, host=None, config=None)
    assert (options.port, options.host, options.workers) == (3, "environment", 2)
    assert settings == Settings(max_value_bytes=2**20)
    assert configured(config=str(tmp_path / "other.toml.d" / ".." / ".." / file)) == configured()


#: Settings that refuse nothing by themselves: they name places, switch something, or belong to another setting.
REFUSE_NOTHING = {
    *(field.name for field in dataclasses.fields(Options)),
    "count_accesses",
    "max_unread_memory",
    "password_window",
}


def test_refusals_name_their_settings() -> None:
    """Each setting that refuses something is named in a text of the code that refuses."""
    texts = [
        node.value
        for folder in ("service", "web")
        for path in (PACKAGE / folder).rglob("*.py")
        if path.name != "settings.py"
        for node in _without_docstrings(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    texts.append(str(_too_deep(1)))
    refusing = FIELDS.keys() - REFUSE_NOTHING
    assert [name for name in refusing if not any(re.search(rf"\b{name}\b", text) for text in texts)] == []


def _without_docstrings(tree: ast.Module) -> list[ast.AST]:
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [node for node in ast.walk(tree) if id(node) not in said]


def test_no_setting_at_all() -> None:
    """Where nobody says anything, nothing is set."""
    assert load(KINDS, {"PATH": "/bin", "CLOUDSTORE_URL": "x"}) == {}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "0", 0),
        ("workers", "4", 4),
        ("log_json", "true", True),
        ("log_json", "0", False),
        ("body_timeout", "2", 2.0),
        ("body_timeout", "0.5", 0.5),
        ("max_body_bytes", "16 MiB", 2**24),
        ("max_body_bytes", "3kB", 3000),
        ("base_path", "/", "/"),
        ("base_path", "/a/b/", "/a/b/"),
        ("trusted_proxies", "127.0.0.1, 10.0.0.0/8, ::1", "127.0.0.1, 10.0.0.0/8, ::1"),
    ],
)
def test_what_text_means(name: str, text: str, value: object) -> None:
    """In the environment numbers, yes and no are text, and sizes may have a unit."""
    loaded = load(KINDS, {variable(name): text})[name]
    assert (loaded, type(loaded)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("port", "many", "a whole number from 0 to 65535"),
        ("port", "-1", "a whole number from 0 to 65535"),
        ("port", "80.5", "a whole number from 0 to 65535"),
        ("workers", "0", "a whole number from 1 to 256"),
        ("max_depth", "0", "a whole number above 0"),
        ("body_timeout", "0", "a number above 0"),
        ("body_timeout", "nan", "a number above 0"),
        ("body_timeout", "inf", "a number above 0"),
        ("max_body_bytes", "0", "a size above 0"),
        ("max_body_bytes", "16 MX", "a size above 0"),
        ("max_body_bytes", "", "a size above 0"),
        ("log_json", "perhaps", "true or false"),
        ("base_path", "cloudstore", "a path such as /cloudstore"),
        ("base_path", "/a b", "a path such as /cloudstore"),
        ("trusted_proxies", "the proxy", "IP addresses or networks"),
    ],
)
def test_a_value_that_can_not_be(name: str, text: str, allowed: str) -> None:
    """A wrong value is one sentence that names the variable, what it is, and what is allowed."""
    with pytest.raises(ValueError, match=f"{variable(name)} is {re.escape(repr(text))}, but has to be {allowed}") as e:
        load(KINDS, {variable(name): text})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PROT", "CLOUDSTORE_SERVICE_PORT"),
        ("MAX_VALUE_BYTE", "CLOUDSTORE_SERVICE_MAX_VALUE_BYTES"),
        ("XYZ", "remove"),
    ],
)
def test_a_variable_that_is_none(name: str, meant: str) -> None:
    """A variable that begins like ours and is none of ours is refused, with the one that may have been meant."""
    with pytest.raises(ValueError, match=f"{PREFIX}{name} is not a setting.*{meant}"):
        load(KINDS, {f"{PREFIX}{name}": "1"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("port = 'many'", "port is 'many', but has to be a whole number from 0 to 65535"),
        ("port = '80'", "port is '80', but has to be a whole number"),
        ("port = true", "port is True, but has to be a whole number"),
        ("body_timeout = [1]", "body_timeout is .*, but has to be a number above 0"),
        ("prot = 1", "there is no setting 'prot'; did you mean port"),
        ("[service]\nport = 1", "there is no setting 'service'"),
        ("port = ", "is not a TOML file"),
        ("host = '\udcff'", "is not a TOML file"),
    ],
)
def test_a_file_that_can_not_be(tmp_path: Path, text: str, sentence: str) -> None:
    """What is wrong in a file is one sentence that names the file and the setting."""
    file = tmp_path / "service.toml"
    file.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}.*{sentence}"):
        load(KINDS, {}, {"config": str(file)})


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--base-path", "x"], {}, "--base-path"),
        (["--config", "absent.toml"], {}, "absent.toml"),
        ([], {"CLOUDSTORE_SERVICE_PORT": "x"}, "CLOUDSTORE_SERVICE_PORT"),
        ([], {"CLOUDSTORE_SERVICE_CONFIG": "absent.toml"}, "absent.toml"),
        (["--workers", "2", "--store", "memory:"], {}, "memory"),
    ],
)
def test_serve_with_a_wrong_setting(
    arguments: list[str], environment: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong setting is exit status 2 and one line, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["serve", *arguments], env=environment)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert named in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["1.5", "0.3 kiB.", "-1", "1e3", "٣", "1 PiB", "KiB", "1" * 19])
def test_what_is_no_size(text: str) -> None:
    """A size is digits and a unit, and a whole number of bytes."""
    with pytest.raises(ValueError, match=r"not a size|not a whole number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1 b", 1), ("2KB", 2000), ("1.5kib", 1536), ("0.5 GiB", 2**29), ("1TiB", 2**40)]
)
def test_sizes(text: str, size: int) -> None:
    """Units of a thousand and of 1024 are told apart; upper and lower case don't matter."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"max_value_bytes": "20 MiB"},
            "max_body_bytes (17,825,792) lets no request with a value of max_value_bytes (20,971,520) through; raise "
            "max_body_bytes to 20,984,832, or lower max_value_bytes.",
        ),
        ({"max_body_bytes": "16 MiB"}, "max_body_bytes (16,777,216) lets no request with a value of max_value_bytes"),
        ({"max_name_bytes": "1 MiB"}, "raise max_body_bytes to"),
        ({"max_password_bytes": "1 MiB"}, "raise max_body_bytes to"),
        (
            {"max_spool_bytes": "1 GiB"},
            "max_spool_bytes (1,073,741,824) is below max_address_spool_bytes (4,294,967,296), a part of it; raise the "
            "one, or lower the other.",
        ),
    ],
)
def test_settings_of_which_one_has_no_effect(
    given: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that another leaves without effect is exit status 2 for any command, and one line that names both."""
    monkeypatch.chdir(tmp_path)
    environment = {variable(name): value for name, value in given.items()}
    result = CliRunner().invoke(app, ["account", "list"], env=environment)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert sentence in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_that_go_together() -> None:
    """The largest value, with the longest name and password, has room in the smallest body that is taken."""
    settings = Settings(max_value_bytes=2**20, max_body_bytes=2**20 + 13 * 1024)
    check_together(settings)
    check_together(Settings())
    request = Request(
        api_key="k" * 200,
        name="\0" * settings.max_name_bytes,
        value=Raw(b'"' + b"x" * (settings.max_value_bytes - 2) + b'"'),
        password="\0" * settings.max_password_bytes,
    )
    assert len(encode_request(request)) <= settings.max_body_bytes
    with pytest.raises(ValueError, match="max_body_bytes"):
        check_together(dataclasses.replace(settings, max_body_bytes=settings.max_body_bytes - 1))
