"""Debian's Chromium for the tests of the dashboard: a browser for each module, a fresh profile for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.service_fakes import FakeHasher
from tests.storages import new_storage
from tests.visitor import PASSWORD, owner

CHROMIUM: Final = shutil.which("chromium")
needs_chromium: Final = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")

_FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Dashboard:
    """A service with an account, and a page in a browser that looks at its dashboard."""

    service: Service
    address: str
    api_key: str
    page: Page
    troubles: list[str] = field(default_factory=list)
    hosts: set[str | None] = field(default_factory=set)

    @property
    def home(self) -> str:
        """The address of the dashboard."""
        return f"{self.address}/admin.html"

    def watch(self) -> None:
        """Gather what the page complains of, and where it asks for something."""

        def on_request(request: Request) -> None:
            if not request.url.startswith(("data:", "blob:")):
                self.hosts.add(urlsplit(request.url).hostname)

        # A refusal that a test provokes is logged by the browser as well; that is no fault of the page.
        self.page.on("console", lambda message: self._trouble(message.type, message.text))
        self.page.on("pageerror", lambda error: self._trouble("error", str(error)))
        self.page.on("request", on_request)

    def _trouble(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"} and "the server responded with a status of 4" not in text:
            self.troubles.append(text)

    def sign_in(self, password: str = PASSWORD) -> None:
        """Sign in by the page."""
        self.page.goto(self.home)
        self.page.get_by_label("User name").fill("owner")
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("heading", name="Data files", exact=True).wait_for()

    def said(self, text: str) -> None:
        """Wait until the page says something."""
        self.page.locator("#status").get_by_text(text).wait_for()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Return a browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        yield browser
        browser.close()


@contextmanager
def dashboard(chromium: Browser, storage: Path | None = None, **options: Any) -> Iterator[Dashboard]:
    """Serve a new service with an account "owner" while the block runs, and check that the pages had no trouble."""
    with (
        Service(new_storage(storage), hasher=FakeHasher()) as service,
        background(service) as address,
    ):
        key = owner(service)
        context = chromium.new_context(**options)
        context.set_default_timeout(15_000)
        shown = Dashboard(service, address, key, context.new_page())
        shown.watch()
        try:
            yield shown
        finally:
            context.close()
        assert shown.troubles == [], shown.troubles
        assert shown.hosts <= {"127.0.0.1"}
