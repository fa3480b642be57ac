"""Which password goes with which key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from cloudstore_mapping.client.files import Password, Passwords


class Lazy(Mapping[str, "str | Password | None"]):
    """A mapping that answers one key at a time, and can't be walked or asked in any other way."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getitem__(self, key: str) -> str:
        self.asked.append(key)
        if key == "broken":
            raise OSError("the vault is shut")
        if key == "absent":
            raise KeyError(key)
        return f"secret of {key}"

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __contains__(self, key: object) -> bool:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("password", "view", "edit"),
    [
        ("both", "both", "both"),
        ("", "", ""),
        (None, None, None),
        (Password(), None, None),
        (Password(view="v"), "v", None),
        (Password(edit="e"), "e", "e"),
        (Password(view="v", edit="e"), "v", "e"),
        (Password(view="", edit="e"), "", "e"),
    ],
)
def test_purposes(password: str | Password | None, view: str | None, edit: str | None) -> None:
    """A text serves for both, the edit password for viewing as well, and an explicit None is none."""
    passwords = Passwords({"k": password}, "default")
    assert passwords.for_view("k") == view
    assert passwords.for_edit("k") == edit


@pytest.mark.parametrize("mapping", [None, {}, {"other": "x"}])
@pytest.mark.parametrize("default", [None, "", "d"])
def test_default(mapping: dict[str, str | Password | None] | None, default: str | None) -> None:
    """A key that the mapping doesn't know has the default password."""
    passwords = Passwords(mapping, default)
    assert passwords.for_view("k") == default
    assert passwords.for_edit("k") == default


def test_change_counts_at_once() -> None:
    """A password is looked up at each request, so a change of the mapping is in force at the next."""
    mapping: dict[str, str | Password | None] = {}
    passwords = Passwords(mapping, None)
    assert passwords.for_edit("k") is None
    mapping["k"] = "new"
    assert passwords.for_edit("k") == "new"


def test_lazy_mapping() -> None:
    """A mapping is only ever asked for the one key, and its other errors go through."""
    mapping = Lazy()
    passwords = Passwords(mapping, "default")
    assert mapping.asked == []
    assert passwords.for_view("a") == "secret of a"
    assert passwords.for_edit("absent") == "default"
    with pytest.raises(OSError, match="vault"):
        passwords.for_view("broken")
    assert mapping.asked == ["a", "absent", "broken"]


def test_repr_hides() -> None:
    """No repr shows a password, only whether one is set."""
    assert repr(Password(edit="hunter2")) == "Password(view=not set, edit=set)"
    assert repr(Password(view="", edit=None)) == "Password(view=set, edit=not set)"
    assert repr(Passwords({"key": "hunter2"}, "hunter3")) == "<Passwords, with a default>"
    assert repr(Passwords(None, None)) == "<Passwords, without a default>"


def test_password_is_a_value() -> None:
    """Passwords compare by what they hold and can't be changed."""
    password = Password("v", "e")
    assert password == Password(view="v", edit="e")
    assert hash(password) == hash(Password("v", "e"))
    with pytest.raises(AttributeError):
        password.view = "other"  # type: ignore[misc]  # frozen
