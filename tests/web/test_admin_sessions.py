"""The dashboard's doors: cookies, sessions, and one-time passwords."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.types import ASGIApp

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.sessions import IDLE_END
from cloudstore_mapping.web.api import make_app
from cloudstore_mapping.web.server import background
from tests.admin_fixtures import api_key, guest
from tests.service_fakes import FakeHasher, ManualClock
from tests.storages import new_storage
from tests.visitor import PASSWORD, SAME_SITE, Visitor, owner, shown

__all__ = ["api_key", "guest"]  # fixtures, defined beside


def test_sign_in_and_out(guest: Visitor) -> None:
    """Who signs in sees the files, and after signing out the sign-in again."""
    assert not guest.is_in()
    assert "Data files" in shown(guest.sign_in())
    assert guest.is_in()
    assert "Sign in" in shown(guest.post("sign-out"))
    assert not guest.is_in()


def test_paths_lead_to_the_page(guest: Visitor) -> None:
    """``/admin`` and ``/admin/`` lead to ``/admin.html``, other paths nowhere."""
    for path in ("/admin", "/admin/"):
        assert guest.session.get(guest.address + path, timeout=30).url == guest.home
    for path in ("/admin/nothing", "/administrator", "/admin/static/nothing.js", "/admin/static/../admin.py"):
        assert guest.session.get(guest.address + path, timeout=30).status_code == 404
    assert guest.session.get(f"{guest.address}/admin/sign-in", timeout=30).status_code == 405


def cookie(guest: Visitor, headers: dict[str, str], password: str = PASSWORD) -> str:
    """Return the cookie that a sign-in sets."""
    response = guest.session.post(
        f"{guest.address}/admin/sign-in",
        data={"user": "owner", "password": password},
        headers=headers,
        timeout=30,
        allow_redirects=False,
    )
    return response.headers["Set-Cookie"]


def name_of(guest: Visitor) -> str:
    """Return the name of the session's cookie at the address that somebody visits."""
    return f"cloudstore-session-{urlsplit(guest.address).port}+cloudstore"


def test_the_cookie(guest: Visitor) -> None:
    """The session's cookie is HttpOnly, SameSite=Lax, for all paths, and ends with the browser."""
    parts = cookie(guest, SAME_SITE).split("; ")
    assert parts[0].startswith(f"{name_of(guest)}=")
    assert {part.lower() for part in parts[1:]} == {"httponly", "path=/", "samesite=lax"}


def test_the_cookie_behind_https(guest: Visitor) -> None:
    """Where the browser speaks https, the cookie is Secure, and has the prefix that binds it to the host."""
    parts = cookie(guest, {**SAME_SITE, "Origin": "https://example.org"}).split("; ")
    assert parts[0].startswith(f"__Host-{name_of(guest)}=")
    assert {part.lower() for part in parts[1:]} == {"httponly", "path=/", "samesite=lax", "secure"}


def test_two_services_on_one_host(service: Service, guest: Visitor, clock: ManualClock, hasher: FakeHasher) -> None:
    """Who signs in to a service on another port stays signed in to the first, and what one says the other doesn't."""
    with Service(new_storage(), clock=clock, hasher=hasher) as other, background(other) as address:
        owner(other)
        guest.sign_in()
        with Visitor(address) as second:
            second.session.cookies = guest.session.cookies  # a browser has one jar for all ports of a host
            assert not second.is_in()
            second.sign_in()
            assert (guest.is_in(), second.is_in()) == (True, True)
            second.get("?panel=user")
            second.session.post(
                f"{second.address}/admin/defaults",
                data={"token": second.form_token, "kind": "data", "password": "pw"},
                headers=SAME_SITE,
                timeout=30,
                allow_redirects=False,
            )
            assert "Default password set" not in shown(guest.get())
            assert "Default password set" in shown(second.get())
            second.post("sign-out")
            assert (guest.is_in(), second.is_in()) == (True, False)


@pytest.mark.parametrize("host", ["cloud.example.com", "cloud.example.com:8443", "[::1]:8443", "[::1]"])
def test_two_base_paths_on_one_host(service: Service, api_key: str, host: str) -> None:
    """Services under two paths of one address have cookies of their own; a service's nodes have the same."""
    token = service.owners.sign_in("owner", PASSWORD, "here")
    port = "-8443" if host.endswith("8443") else ""
    apps = {base: make_app(service, base_path=base) for base in ("", "/one", "/two/2")}
    for scheme, prefix in (("http", ""), ("https", "__Host-")):
        for base, app in apps.items():
            for cookie_of in apps:
                cookie = f"{prefix}cloudstore-session{port}{cookie_of.replace('/', '+')}={token}"
                is_in = "Sign out" in asked(app, scheme, cookie, base=base, host=host)
                assert is_in is (base == cookie_of)


def asked(app: ASGIApp, scheme: str, cookie: str, *, base: str = "/cloudstore", host: str = "test") -> str:
    """Return the dashboard's page as the application gives it to somebody with a cookie, over http or https."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "GET",
        "scheme": scheme,
        "path": f"{base}/admin.html",
        "query_string": b"",
        "headers": [(b"host", host.encode()), (b"cookie", cookie.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("test", 443),
    }

    async def ask() -> None:
        await app(scope, receive, send)

    asyncio.run(ask())
    return b"".join(message.get("body", b"") for message in sent).decode()


def test_over_https_only_its_own_cookie_counts(service: Service, api_key: str) -> None:
    """Over https a session's token is taken from the cookie with the prefix only, which no other site can set."""
    token = service.owners.sign_in("owner", PASSWORD, "here")
    app = make_app(service, base_path="/cloudstore")
    assert "Sign out" in asked(app, "https", f"__Host-cloudstore-session+cloudstore={token}")
    assert "Sign out" in asked(app, "http", f"cloudstore-session+cloudstore={token}")
    assert "Sign out" not in asked(app, "https", f"cloudstore-session+cloudstore={token}")


def test_a_planted_session_is_not_taken(guest: Visitor) -> None:
    """A sign-in makes a token of its own, whatever cookie came with it."""
    planted = {**SAME_SITE, "Cookie": f"{name_of(guest)}=planted"}
    assert "planted" not in cookie(guest, planted)
    guest.session.cookies.set(name_of(guest), "planted")
    assert not guest.is_in()


def test_a_second_sign_in_ends_the_first_session(service: Service, guest: Visitor) -> None:
    """Who signs in again has one session, and the old token is worth nothing."""
    guest.sign_in()
    old = guest.session.cookies[name_of(guest)]
    guest.sign_in()
    assert service.owners.session(old) is None


def test_an_expired_session(clock: ManualClock, guest: Visitor) -> None:
    """After the session's end there is the sign-in, and a form does nothing."""
    guest.sign_in()
    guest.get("?panel=user")
    clock.advance(IDLE_END)
    assert "Sign in" in shown(guest.post("key/rotate"))
    assert not guest.is_in()


def test_a_disabled_account(service: Service, guest: Visitor) -> None:
    """When an account is disabled, its owner is signed out, and told why at the next sign-in."""
    guest.sign_in()
    guest.get("?panel=user")
    service.accounts.set_disabled("owner", disabled=True)
    assert "Sign in" in shown(guest.post("key/rotate"))
    assert not guest.is_in()
    refused = guest.sign_in()
    assert refused.status_code == 403
    assert "The account is switched off" in shown(refused)
    assert not guest.is_in()
    assert len(service.accounts.keys("owner")) == 1


def test_refused_sign_ins_look_the_same(guest: Visitor) -> None:
    """A wrong password and an unknown user get the same page, but for the name that was typed."""
    wrong = guest.sign_in("owner", "wrong")
    unknown = guest.sign_in("stranger", "wrong")
    assert wrong.status_code == unknown.status_code == 403
    assert "The user name or the password is wrong" in shown(wrong)
    assert wrong.text.replace('value="owner"', "") == unknown.text.replace('value="stranger"', "")
    assert not guest.is_in()


def test_sign_in_is_slowed(clock: ManualClock, guest: Visitor) -> None:
    """After five wrong passwords even the right one has to wait, and is told how long."""
    for _ in range(5):
        guest.sign_in("owner", "wrong")
    slowed = guest.sign_in()
    assert slowed.status_code == 429
    assert 299 <= int(slowed.headers["Retry-After"]) <= 301
    assert "try again in 300 seconds" in shown(slowed)
    clock.advance(300)
    assert "Sign out" in shown(guest.sign_in())


def test_a_one_time_password_has_to_be_changed(service: Service, guest: Visitor) -> None:
    """With a one-time password there is one page, for another password, and nothing else can be seen or done."""
    once = service.owners.reset_password("owner")
    page = guest.sign_in("owner", once)
    assert "Choose a password" in shown(page)
    for panel in ("data", "media", "user", "activity"):
        assert "Choose a password" in shown(guest.get(f"?panel={panel}"))
    for action in ("key/rotate", "data/save", "defaults"):
        assert "Choose a password" in shown(guest.post(action, file="a", value="1", kind="data", password="x"))
    assert "Choose a password" in shown(guest.session.get(f"{guest.address}/admin/data/value?name=a", timeout=30))
    assert len(service.accounts.keys("owner")) == 1
    assert "don't match" in shown(guest.post("password", old=once, new="another horse", again="another house"))
    assert "old one" in shown(guest.post("password", old=once, new=once, again=once))
    changed = guest.post("password", old=once, new="another horse", again="another horse")
    assert "Your password is changed" in shown(changed)
    assert "Data files" in shown(changed)


def test_a_change_of_the_password_ends_other_sessions(guest: Visitor) -> None:
    """Who changes the password stays, and is signed out everywhere else."""
    with Visitor(guest.address) as other:
        other.sign_in()
        guest.sign_in()
        guest.post("password", old=PASSWORD, new="another horse", again="another horse")
        assert guest.is_in()
        assert not other.is_in()
