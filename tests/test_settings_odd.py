"""Empty and odd values of every setting, wherever they are given, are errors that name the place."""

from __future__ import annotations

import dataclasses
import math
import socket
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.client.shelf import secrets_of
from cloudstore_mapping.errors import BadValueError
from cloudstore_mapping.service.configuration import FILE_VARIABLE, PREFIX, load
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.connections import listen
from cloudstore_mapping.web.options import Options
from tests.support.command_line import CliRunner

KINDS = (Options, Settings)
#: Every setting, so that a new one is tried too, and its default.
FIELDS: dict[str, object] = {field.name: field.default for kind in KINDS for field in dataclasses.fields(kind)}
#: Settings that may be 0, and those that may be empty: no proxy is trusted.
MAY_BE_ZERO = {"port"}
MAY_BE_EMPTY = {"trusted_proxies"}
#: No value of a number may be larger.
LARGEST = 2**60

NUMBERS = ["nan", "inf", "-inf", "1e3", "-1", "0", "-0", "9" * 30, "1e400", "0x10", "1_000", "\u0663", "0.5", "+1"]
TEXTS = ["", " ", "\t", "\n", " x", "x\n", "x\0", "yes", "no", "on", "None", "null", "[]", "*", "'", "a b", "\u00e9"]
#: What a file of settings may hold that is no text, as TOML writes it.
LITERALS = ["nan", "inf", "-inf", "-1", "0", "-0.0", "9" * 18, "1e300", "1.5", "true", "[]", "[1]", "{}", "1979-05-27"]


def check(name: str, loaded: object) -> None:
    """Check that a value which was taken for a setting can do no harm."""
    if isinstance(loaded, bool):
        assert isinstance(FIELDS[name], bool)
    elif isinstance(loaded, int | float):
        assert type(loaded) is type(FIELDS[name])
        assert math.isfinite(loaded)
        assert 0 < loaded <= LARGEST or (name in MAY_BE_ZERO and loaded == 0), loaded
    else:
        assert isinstance(loaded, str)
        assert loaded or name in MAY_BE_EMPTY
        assert loaded == loaded.strip()
        assert "\0" not in loaded


def taken(place: str, environ: dict[str, str], given: dict[str, object], name: str) -> None:
    """Load one setting; it is harmless, or the error is one line that names the place."""
    try:
        check(name, load(KINDS, environ, given)[name])
    except ValueError as error:
        sentence = str(error)
    else:
        return
    assert place in sentence
    assert sentence.count("\n") == 0
    assert sentence.endswith(".")


@pytest.mark.parametrize("name", FIELDS)
def test_odd_values_in_the_environment(name: str) -> None:
    """A variable is taken as what it says, or refused by its name."""
    for text in NUMBERS + TEXTS:
        variable = PREFIX + name.upper()
        taken(variable, {variable: text}, {}, name)


@pytest.mark.parametrize("name", FIELDS)
def test_odd_values_on_the_command_line(name: str) -> None:
    """An option is taken as what it says, or refused by its name."""
    for text in NUMBERS + TEXTS:
        taken(f"--{name.replace('_', '-')}", {}, {name: text}, name)


@pytest.mark.parametrize("name", FIELDS)
def test_odd_values_in_a_file(name: str, tmp_path: Path) -> None:
    """A line of a file is taken as what it says, or refused by the file's name and its own."""
    file = tmp_path / "service.toml"
    strings = [f'"{text.encode("unicode_escape").decode().replace(chr(92) + "x", chr(92) + "u00")}"' for text in TEXTS]
    for value in strings + LITERALS:
        file.write_text(f"{name} = {value}\n", "utf-8")
        taken(f"{file}: {name}", {}, {"config": str(file)}, name)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("empty", ["", " "])
def test_empty_values(name: str, empty: str, tmp_path: Path) -> None:
    """A setting that is there and empty is an error in all three places, unless it may be empty."""
    file = tmp_path / "service.toml"
    file.write_text(f'{name} = "{empty}"\n')
    for environ, given in (
        ({PREFIX + name.upper(): empty}, {}),
        ({}, {name: empty}),
        ({}, {"config": str(file)}),
    ):
        if name in MAY_BE_EMPTY and not empty:
            assert load(KINDS, environ, given) == {name: ""}
        else:
            with pytest.raises(ValueError, match=r"has to be|white space"):
                load(KINDS, environ, given)


def test_an_empty_setting_is_told_what_it_has_to_be() -> None:
    """The error says what the setting takes, also of one that is nothing unless it is given."""
    with pytest.raises(ValueError, match=r"TLS_CERT is '', but has to be the name of a file\."):
        load(KINDS, {f"{PREFIX}TLS_CERT": ""})


@pytest.mark.parametrize("empty", ["", " "])
def test_the_name_of_the_file_is_empty(empty: str) -> None:
    """An empty name of the file of settings is an error that names its place, and no other file is read instead."""
    with pytest.raises(ValueError, match=FILE_VARIABLE):
        load(KINDS, {FILE_VARIABLE: empty})
    with pytest.raises(ValueError, match="--config"):
        load(KINDS, {FILE_VARIABLE: "absent"}, {"config": empty})


@pytest.mark.parametrize("value", [" postgresql://u:secret@h/db", "postgresql://u:secret@h/db\0"])
def test_the_address_of_a_database_is_not_shown(value: str, tmp_path: Path) -> None:
    """An error about the store doesn't show its address, which may hold a password."""
    file = tmp_path / "service.toml"
    file.write_text('store = ["postgresql://u:secret@h/db"]')
    for environ, given in (({f"{PREFIX}STORE": value}, {}), ({}, {"store": value}), ({}, {"config": str(file)})):
        with pytest.raises(ValueError, match=r"store|STORE") as caught:
            load(KINDS, environ, given)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        *("", "0", "00", "0.0", "1", "0x7f.1", "0x0", "127.1", "*", "<any>", "<broadcast>", "localhost:8787", "[::1]"),
        *("http://127.0.0.1", "127.0.0.1,::1", "a b", "-x", "x-.example", "127.0.0.1\n", "\u0661", "h/p"),
    ],
)
def test_a_host_that_is_none(host: str) -> None:
    """What is no address or name is refused; above all what the system would take for all addresses."""
    with pytest.raises(ValueError, match=r"CLOUDSTORE_SERVICE_HOST .*(IP address or a host name|white space)"):
        load(KINDS, {f"{PREFIX}HOST": host})
    with pytest.raises(ValueError, match="no host to listen on"):
        listen(host, 0)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "localhost", "my_host"),
        *("a-b.example.", "4f5e6a7b8c9d", "3com", "1.example", "x1.2a"),
    ],
)
def test_a_host(host: str) -> None:
    """Addresses in their usual form and names are hosts."""
    assert load(KINDS, {f"{PREFIX}HOST": host}) == {"host": host}


@pytest.mark.parametrize(
    ("host", "port", "advice"),
    [
        ("256.1.1.1", 0, "a name that this machine can look up"),
        ("192.0.2.1", 0, "an address that this machine has"),
    ],
)
def test_where_it_can_not_listen(host: str, port: int, advice: str) -> None:
    """A host of another machine, or of none, is an error that says so, and not that the port is taken."""
    with pytest.raises(OSError, match=f"can't listen on {host}, port {port} .*{advice}"):
        listen(host, port)


def test_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has no IPv6 the error says to write an IPv4 address."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(OSError, match=r"on ::, port 1 .*no IPv6, so write an IPv4 address"):
        listen("::", 1)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], {f"{PREFIX}HOST": ""}),
        (["--host", ""], {}),
        ([], {f"{PREFIX}STORE": ""}),
        (["--store", ""], {}),
        (["--config", ""], {}),
        (["--base-path", ""], {}),
        (["--tls-cert", "", "--tls-key", ""], {}),
        ([], {f"{PREFIX}TLS_CERT": "", f"{PREFIX}TLS_KEY": ""}),
        ([], {f"{PREFIX}TRUSTED_PROXIES": "10.0.0.1/8"}),
        ([], {f"{PREFIX}TRUSTED_PROXIES": ","}),
    ],
)
def test_serve(
    arguments: list[str], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends with status 2 and one line, and makes nothing."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments], env=environment)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert next(iter([*arguments, *environment])) in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("blank", [" ", "\t", "sqlite:///", "sqlite:/// "])
def test_a_location_that_is_blank(blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location of nothing but white space is an error, and no file of that name; an empty variable is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOUDSTORE_URL", blank)
    with pytest.raises(ValueError, match="location is empty"):
        cm.open()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("CLOUDSTORE_URL", "")
    with cm.open():
        assert (tmp_path / "cloudstore.db").exists()


@pytest.mark.parametrize("blank", ["", "\n", " " * 32, "\t" * 32, "a secret of the tests\n \n"])
def test_a_secret_that_is_blank(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty secret, or one of white space, is an error: everybody could guess it."""
    monkeypatch.setenv("CLOUDSTORE_SECRET", blank)
    with pytest.raises(BadValueError, match="at least 16 bytes"):
        secrets_of(None, None)


def test_a_server_that_is_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of white space is an error."""
    monkeypatch.setenv("CLOUDSTORE_SERVER", " ")
    with pytest.raises(ValueError, match="white space"):
        cm.CloudStoreMapping("k" * 32)
