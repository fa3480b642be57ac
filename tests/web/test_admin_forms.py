"""The dashboard's forms and headers: what comes from elsewhere, is hostile or too much, and what every page says."""

from __future__ import annotations

import asyncio
import re
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.sessions import SignedInOwner
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.admin import routes
from cloudstore_mapping.web.admin.forms import Form, parse_form
from cloudstore_mapping.web.admin.routes import SIGN_INS_AT_ONCE, WAITING
from cloudstore_mapping.web.server import background
from tests.admin_fixtures import api_key, guest
from tests.raw_http import Connection
from tests.service_fakes import PATIENCE, FakeHasher
from tests.storages import new_storage
from tests.visitor import PASSWORD, SAME_SITE, Visitor, shown

__all__ = ["api_key", "guest"]  # fixtures, defined beside


ELSEWHERE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {},
]


def test_forms_from_elsewhere(service: Service, guest: Visitor) -> None:
    """A form that isn't said to come from the same origin does nothing, even with the right token."""
    guest.sign_in()
    guest.get("?panel=user")
    before = service.accounts.keys("owner")
    for headers in ELSEWHERE:
        refused = guest.post("key/rotate", headers)
        assert refused.status_code == 403
        assert "from another site" in shown(refused)
    assert service.accounts.keys("owner") == before


def test_a_sign_in_from_elsewhere(guest: Visitor) -> None:
    """Nobody is signed in by another site's form, as somebody else."""
    refused = guest.post("sign-in", {"Sec-Fetch-Site": "cross-site"}, user="owner", password=PASSWORD)
    assert refused.status_code == 403
    assert not guest.is_in()


def test_an_old_browser_says_its_origin(service: Service, guest: Visitor) -> None:
    """Without Sec-Fetch-Site an Origin that is the host's own will do."""
    guest.sign_in()
    guest.get("?panel=user")
    guest.post("key/rotate", {"Origin": guest.address.removesuffix("/cloudstore")})
    assert len(service.accounts.keys("owner")) == 2


def test_forms_without_their_token(service: Service, guest: Visitor) -> None:
    """A form of the same origin without the session's own token does nothing; another session's is no better."""
    with Visitor(guest.address) as other:
        other.sign_in()
    guest.sign_in()
    for token in ("", "0" * 64, "é", other.form_token):
        refused = guest.post("key/rotate", token=token)
        assert refused.status_code == 403
        assert "another session" in shown(refused)
    assert len(service.accounts.keys("owner")) == 1


ACTIONS = [
    *("password", "data/ask", "data/delete", "data/lock", "data/save", "media/ask", "media/delete", "media/lock"),
    *("key/rotate", "key/end", "defaults", "sign-out"),
]


def test_every_form_needs_a_session_and_its_token(guest: Visitor) -> None:
    """Each action leads to the sign-in without a session, and with one it needs the token and the origin."""
    for action in ACTIONS:
        assert "Sign in" in shown(guest.post(action)), action
    guest.sign_in()
    for action in ACTIONS:
        assert guest.post(action, token="").status_code == 403, action
        assert guest.post(action, {}).status_code == 403, action


def test_headers_on_every_answer(guest: Visitor) -> None:
    """Pages, refusals, redirects, static files and errors carry the security headers, and nothing is open to others."""
    paths = ["/admin.html", "/admin", "/admin/nothing", "/admin/static/admin.css", "/admin/static/x", "/admin/sign-in"]
    answers = [guest.session.get(guest.address + path, allow_redirects=False, timeout=30) for path in paths]
    answers += [guest.sign_in("owner", "wrong"), guest.post("sign-in", {}), guest.post("media/upload")]
    guest.sign_in()
    answers += [guest.get(f"?panel={panel}") for panel in ("data", "media", "user", "activity")]
    answers += [guest.post("data/save", file="", value="1"), guest.post("media/upload")]
    for answer in answers:
        headers = answer.headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src "), answer.url
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "Permissions-Policy" in headers
        assert "Access-Control-Allow-Origin" not in headers
        if "/static/admin" not in answer.url:
            assert headers["Cache-Control"] == "no-store", answer.url


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("127.0.0.1:8787", "127.0.0.1:8787/cloudstore/admin/static/ "),
        ("cloud.example.com", "cloud.example.com/cloudstore/admin/static/ "),
        ("[::1]:8787", ""),
        ("a_b", ""),
    ],
)
def test_only_scripts_of_the_dashboard(guest: Visitor, host: str, named: str) -> None:
    """The policy admits scripts of the dashboard's own static path, and by their hashes, and no other of the host."""
    page = guest.session.get(guest.home, headers={"Host": host}, timeout=30)
    (scripts,) = re.findall(r"script-src ([^;]*)", page.headers["Content-Security-Policy"])
    tags = re.findall(r'<script src="(/cloudstore/admin/static/\w+\.js)[^"]*" integrity="([^"]+)"', page.text)
    assert [path.rpartition("/")[2] for path, _ in tags] == ["htmx.js", "admin.js"]
    hashes = [f"'{integrity}'" for _, integrity in tags]
    assert scripts.removeprefix(named).split() == sorted(hashes, key=scripts.index)
    assert scripts.startswith(named)
    for path, integrity in tags:
        content = guest.session.get(guest.address.removesuffix("/cloudstore") + path, timeout=30).content
        assert integrity == f"sha256-{b64encode(sha256(content).digest()).decode()}"


def test_no_inline_script_or_style(guest: Visitor) -> None:
    """No page has a script, style or event handler in it, and none names another host."""
    pages = [guest.get(), guest.sign_in()]
    pages += [guest.get(f"?panel={panel}") for panel in ("data", "media", "user", "activity")]
    for page in pages:
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", page.text)
        assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", page.text)


def test_static_files_can_be_kept(guest: Visitor) -> None:
    """A static file is kept for ever under its hash, and asked for again without it."""
    for path in re.findall(r'"(/cloudstore(/admin/static/[^"?]+)\?v=\w+)"', guest.get().text):
        root = guest.address.removesuffix("/cloudstore")
        kept = guest.session.get(root + path[0], timeout=30)
        assert kept.status_code == 200
        assert "immutable" in kept.headers["Cache-Control"]
        assert guest.session.get(guest.address + path[1], timeout=30).headers["Cache-Control"] == "no-cache"


FORM = "application/x-www-form-urlencoded"
HOSTILE = [
    (b"x" * (2**21 + 1), FORM, 413),
    (b"&".join(b"a=%d" % number for number in range(301)), FORM, 400),
    (b"user=%ff", FORM, 400),
    (b"user=\xff", FORM, 400),
    (b'{"user": "owner"}', "application/json", 415),
    (b"", "", 415),
]


def test_hostile_forms(guest: Visitor) -> None:
    """A form that is too long, has too many fields, is no UTF-8 or none at all is refused, with a page."""
    for body, kind, status in HOSTILE:
        headers = {**SAME_SITE, "Content-Type": kind}
        answer = guest.session.post(f"{guest.address}/admin/sign-in", data=body, headers=headers, timeout=30)
        assert answer.status_code == status
        assert "<h1>Not done</h1>" in answer.text


def test_a_form_that_doesnt_end(hasher: FakeHasher) -> None:
    """A form that stops in the middle is refused after the time that a body may take, and costs others nothing."""
    settings = Settings(body_timeout=0.2)
    with Service(new_storage(), settings, hasher=hasher) as service, background(service) as address:
        kind = f"Content-Type: {FORM}\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 100\r\n"
        with Connection(address) as slow, Visitor(address) as guest:
            slow.start("/admin/sign-in", kind, b"user=")
            assert guest.get().status_code == 200
            answer = slow.answer()
            assert answer.status == 400
            assert b"took longer than 0.2 seconds" in answer.body


def test_a_flood_of_sign_ins(hasher: FakeHasher, guest: Visitor) -> None:
    """While sign-ins are hashed, as many wait as may; the rest is refused, and pages are shown all the same."""
    guest.sign_in()
    hasher.gate.clear()
    held = SIGN_INS_AT_ONCE + WAITING

    def knock(number: int) -> int:
        with Visitor(guest.address) as other:
            return other.sign_in(f"stranger {number}", "x").status_code

    with ThreadPoolExecutor(held + 1) as crowd:
        knocks = [crowd.submit(knock, number) for number in range(held + 1)]
        first = next(as_completed(knocks, timeout=PATIENCE))
        assert first.result() == 503
        assert "Data files" in shown(guest.get())
        hasher.gate.set()
        assert sorted({knock.result() for knock in knocks}) == [403, 503]


def test_a_failure_is_told_without_its_reason(
    service: Service, guest: Visitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails in the service is a page that says no more than that; the reason is in the log."""
    guest.sign_in()

    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(service.panels, "user", fail)
    answer = guest.get("?panel=user")
    assert answer.status_code == 500
    assert "a secret" not in answer.text
    assert "a secret" in caplog.text


def test_a_stranger_sends_no_body(guest: Visitor) -> None:
    """Without a session, a form is answered before its body is read."""
    kind = f"Content-Type: {FORM}\r\nSec-Fetch-Site: same-origin\r\nContent-Length: {2**24}\r\n"
    with Connection(guest.address) as stranger:
        stranger.start("/admin/data/save", kind, b"token=")
        answer = stranger.answer()
        assert answer.status == 303
        assert answer.headers["connection"] == "close"


def test_a_session_that_ends_meanwhile(service: Service, guest: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form does nothing if its session ends while its body comes in."""
    guest.sign_in()
    guest.get("?panel=user")
    (token,) = (each.value for each in guest.session.cookies if "session" in each.name)
    assert token is not None
    checked = threading.Event()
    session = service.owners.session

    def check(token: str) -> SignedInOwner | None:
        signed_in = session(token)
        checked.set()
        return signed_in

    monkeypatch.setattr(service.owners, "session", check)
    body = f"token={guest.form_token}".encode()
    cookie = f"Cookie: cloudstore-session+cloudstore={token}\r\n"
    kind = f"Content-Type: {FORM}\r\nSec-Fetch-Site: same-origin\r\n{cookie}Content-Length: {len(body)}\r\n"
    with Connection(guest.address) as slow:
        slow.start("/admin/key/rotate", kind, body[:-1])
        assert checked.wait(PATIENCE)
        guest.post("sign-out")
        slow.send(body[-1:])
        assert slow.answer().status == 303
    assert len(service.accounts.keys("owner")) == 1


def test_forms_are_decoded_on_a_thread(guest: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form is decoded on a thread, as a large value takes a second, in which the event loop would answer nobody."""
    on_loop: list[bool] = []

    def parse(body: bytes) -> Form:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            on_loop.append(False)
        else:
            on_loop.append(True)
        return parse_form(body)

    monkeypatch.setattr(routes, "parse_form", parse)
    guest.sign_in()
    guest.get()
    guest.post("data/save", file="name", value="1", version="")
    assert on_loop == [False, False]
