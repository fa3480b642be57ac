"""File names of a store's keys: what the client asks first, and what it makes of listings."""

from __future__ import annotations

import pytest

from cloudstore_mapping.errors import BadNameError, TransportError
from cloudstore_mapping.keys import FileNames, escape_key


class Listing:
    """A service's files, listed exactly or joined; `asked` is each filter, "" for a complete listing."""

    def __init__(self, *files: str, exact: bool) -> None:
        self.files = list(files)
        self.asked: list[str | None] = []
        self.kind: bool | None = None
        self._exact = exact
        self.names = FileNames(lambda: self.kind, self.ask, lambda: self.ask(""))

    def ask(self, text: str | None) -> list[str]:
        """Return the names that a client reads from the reply."""
        self.asked.append(text)
        self.kind = self._exact
        found = [file for file in self.files if text is not None and text in file]
        return found if self._exact else [part for part in ",".join(found).split(",") if found]

    def keys(self) -> list[str]:
        """Return the keys of a complete listing."""
        return [*self.names.keys(self.ask(""), is_complete=True)]


@pytest.mark.parametrize("exact", [True, False])
def test_nothing_is_asked_for_one_spelling(exact: bool) -> None:
    """A key with the same name on both kinds of services needs no request."""
    service = Listing(exact=exact)
    for key in ("a", "users/ann", "a b", "100%", "naïve", "a.json", "", "%", "\0"):
        service.names.name(key)
    assert service.names.names(["x", "", "100%"]) == ["x", "%", "100%"]
    assert service.asked == []


def test_an_exact_service_is_asked_once() -> None:
    """The first key with two spellings is asked for, and no other."""
    service = Listing("a,b", exact=True)
    assert [service.names.name(key) for key in ("a,b", "a\tb", "..", "a,b", "%2C")] == [
        "a,b",
        "a\tb",
        "..",
        "a,b",
        "%2C",
    ]
    assert service.names.names(["c,d", "\n", ""]) == ["c,d", "\n", "%"]
    assert service.asked == ["a,b"]


def test_a_joined_service_is_asked_once_a_key() -> None:
    """Each key with two spellings is asked for before its first use, as another program may have its plain name."""
    service = Listing(exact=False)
    assert [service.names.name(key) for key in ("a,b", "..", "a,b", "..", "%2C")] == [
        *("a%2Cb", "%2E%2E", "a%2Cb", "%2E%2E", "%252C"),
    ]
    assert service.asked == ["a,b", "..", "%2C"]


@pytest.mark.parametrize("key", [".", ","])
@pytest.mark.parametrize("exact", [True, False])
def test_a_filter_that_would_list_everything(key: str, exact: bool) -> None:
    """For a key that is in nearly all names, nothing is listed to learn the kind of service."""
    service = Listing(exact=exact)
    assert service.names.name(key) == (key if exact else f"%{ord(key):02X}")
    assert service.asked == [None]


@pytest.mark.parametrize("number", [1, 2, 3, 10])
def test_many_keys_cost_two_lists_at_most(number: int) -> None:
    """Many keys with two spellings cost one list on an exact service, else two at most."""
    keys = [f"{i},x" for i in range(number)]
    exact, joined = Listing(exact=True), Listing(exact=False)
    assert exact.names.names(keys) == keys
    assert joined.names.names(["plain", *keys]) == ["plain", *(key.replace(",", "%2C") for key in keys)]
    assert exact.asked == ["0,x"]
    assert joined.asked == [["0,x"], ["0,x", "1,x"], ["0,x", ""], ["0,x", ""]][min(number, 4) - 1]


@pytest.mark.parametrize("name", ["a\tb", "a/../b", "..", "a,b"])
def test_a_plain_name_is_found_by_asking(name: str) -> None:
    """A file that another program made under a key's plain name is found at the key's first use."""
    service = Listing("other", name, f"{name}2", exact=False)
    assert service.names.name(name) == name


@pytest.mark.parametrize("name", ["a\tb", "a/../b", ".."])
def test_a_plain_name_is_found_by_listing(name: str) -> None:
    """A file that another program made under a key's plain name is listed as that key, until it is gone."""
    service = Listing("other", name, exact=False)
    assert service.keys() == ["other", name]
    assert service.names.name(name) == name
    service.files.clear()
    assert service.keys() == []
    assert service.names.name(name) == escape_key(name, joined=True)


def test_no_name_hides_another() -> None:
    """Where a file has a key's plain name, it is the key's, and the one with the escaped name is listed as itself."""
    files = ["a%09b", "a%2509b", "a\tb", "x"]
    service = Listing(*files, exact=False)
    assert sorted(service.keys()) == sorted(files)
    assert service.names.names(files) == files
    service.files.remove("a\tb")
    assert service.keys() == ["a\tb", "a%09b", "x"]
    assert service.names.name("a\tb") == "a%09b"
    assert service.names.name("a%09b") == "a%2509b"


def test_a_listing_answers_for_all_keys() -> None:
    """After a complete listing no key has to be asked for."""
    for exact in (True, False):
        service = Listing("a", exact=exact)
        service.keys()
        service.names.names(["a,b", "c\td", "e,f"])
        service.names.name("..")
        assert service.asked == [""]


def test_filters() -> None:
    """A filter is the text itself on an exact service, else the part that each name has."""
    service = Listing(exact=False)
    assert (service.names.filter("log,2024"), service.names.prefix("log,2024")) == ("2024", "log")
    exact = Listing(exact=True)
    exact.keys()
    assert (exact.names.filter("log,2024"), exact.names.prefix("log,2024")) == ("log,2024", "log,2024")
    assert (exact.names.filter("50%00x"), exact.names.prefix("50%00x")) == ("00x", "50")


def test_asking_fails() -> None:
    """An error of the list that asks is raised, and the next use asks again."""
    service = Listing(exact=True)

    def fail(text: str | None) -> list[str]:
        raise TransportError("lost", sent=True)

    failing = FileNames(lambda: service.kind, fail, list)
    for _ in range(2):
        with pytest.raises(TransportError):
            failing.name("a,b")


def test_an_impossible_key_is_left_to_its_own_error() -> None:
    """A lone surrogate among many keys is the error of that key alone."""
    service = Listing(exact=True)
    service.names.settle(["\ud800", "a,b"])
    assert service.asked == ["a,b"]
    with pytest.raises(BadNameError):
        service.names.name("\ud800")
