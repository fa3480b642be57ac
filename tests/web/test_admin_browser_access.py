"""The dashboard for whoever has no mouse, no scripts, a narrow screen, or likes it dark."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import Dashboard, chromium, dashboard, needs_chromium
from tests.service_fakes import Asker
from tests.visitor import PASSWORD

__all__ = ["chromium"]  # a fixture, defined beside

pytestmark = needs_chromium


def fill(shown: Dashboard) -> Asker:
    """Make two files, and return a program that made them."""
    ask = Asker(shown.service, shown.api_key)
    ask.save("apples", {"red": 1})
    ask.save("pears with a name that is longer than a narrow screen is wide", [2] * 2000)
    return ask


def tab_to(page: Page, identity: str) -> None:
    """Press the tabulator until an element has the focus."""
    for _ in range(40):
        if page.evaluate("document.activeElement.id") == identity:
            return
        page.keyboard.press("Tab")
    pytest.fail(f"The tabulator doesn't lead to {identity}.")


@pytest.mark.slow
def test_keyboard_only(chromium: Browser) -> None:
    """Signing in, ticking, setting a password and opening a file work without a mouse, and the focus comes back."""
    with dashboard(chromium) as shown:
        ask = fill(shown)
        page = shown.page
        page.goto(shown.home)
        page.keyboard.type("owner")  # the first field has the focus
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Data files").wait_for()
        tab_to(page, "tick-1")
        page.keyboard.press("Space")
        page.keyboard.press("Shift+Tab")
        tab_to(page, "tick-1")
        for _ in range(3):
            page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.activeElement.id") == "lock"
        page.keyboard.press("Enter")
        page.locator("dialog:modal").wait_for()
        expect(page.get_by_label("Password", exact=True)).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
        expect(page.locator("#lock")).to_be_focused()
        page.keyboard.press("Enter")
        page.locator("dialog:modal").wait_for()
        page.keyboard.type("pw")
        page.keyboard.press("Enter")  # saves, and deletes nothing
        shown.said("Password set: 1.")
        assert ask.merge("apples", {}).error == "Locked"
        tab_to(page, "file-1")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="apples")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # closes it
        expect(page.locator("#file-1")).to_be_focused()


def test_what_a_screen_reader_is_told(chromium: Browser) -> None:
    """All controls have a name, pages have one heading of the first level, and what is done is announced."""
    with dashboard(chromium) as shown:
        fill(shown)
        shown.sign_in()
        page = shown.page
        for name in ("Data files", "Media files", "User info", "Activity"):
            page.get_by_role("link", name=name).click()
            page.get_by_role("heading", name=name, level=1).wait_for()
            assert page.title().startswith(name)
            expect(page.get_by_role("heading", level=1)).to_have_count(1)
            expect(page.get_by_role("main")).to_have_count(1)
            expect(page.get_by_role("link", name=name)).to_have_attribute("aria-current", "page")
            nameless = page.evaluate(
                "[...document.querySelectorAll('button, a, input:not([type=hidden]), textarea')].filter(element =>"
                " !element.textContent.trim() && !element.labels?.length && !element.ariaLabel"
                " && element.ariaHidden !== 'true').map(element => element.outerHTML)"
            )
            assert nameless == []
            identities = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
            assert len(identities) == len(set(identities))
        expect(page.get_by_role("status")).to_have_attribute("aria-live", "polite")


def test_narrow_screens(chromium: Browser) -> None:
    """At 360 pixels nothing sticks out of the page, whatever the names are."""
    with dashboard(chromium, viewport={"width": 360, "height": 740}) as shown:
        fill(shown)
        shown.sign_in()
        page = shown.page
        for query in ("", "?panel=media", "?panel=user", "?panel=activity", "?panel=data&file=apples&value=1"):
            page.goto(shown.home + query)
            assert page.evaluate("document.documentElement.scrollWidth") == 360, query
        page.goto(shown.home)
        page.get_by_label("Tick pears").check()
        page.locator("#delete").click()
        page.locator("dialog:modal").wait_for()
        assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")


def brightness(page: Page, selector: str, what: str) -> float:
    """Return the brightness of an element's colour, from 0 to 255."""
    colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(parts) / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_dark_and_light(chromium: Browser, scheme: str) -> None:
    """The page follows the colours that the browser asks for, and text stands out from what is behind it."""
    with dashboard(chromium, color_scheme=scheme) as shown:
        fill(shown)
        shown.sign_in()
        back = brightness(shown.page, "#listing", "backgroundColor")
        text = brightness(shown.page, ".name", "color")
        assert (back < text) is (scheme == "dark")
        assert abs(back - text) > 150


@pytest.mark.slow
def test_without_scripts(chromium: Browser) -> None:
    """Signing in, opening, locking, saving and uploading work in a browser without scripts."""
    with dashboard(chromium, java_script_enabled=False) as shown:
        ask = fill(shown)
        shown.sign_in()
        page = shown.page
        page.get_by_label("Tick apples").check()
        page.locator("#lock").click()
        page.get_by_role("dialog").get_by_label("Password", exact=True).fill("pw")
        page.get_by_role("dialog").get_by_role("button", name="Save").click()
        shown.said("Password set: 1.")
        assert ask.merge("apples", {}).error == "Locked"
        page.get_by_role("link", name="apples").click()
        page.get_by_role("link", name="Show value").click()
        page.get_by_label("Value, as JSON").fill("[3]")
        page.get_by_role("button", name="Save").click()
        shown.said("Saved.")
        assert ask.value("apples") == [3]
        page.get_by_role("link", name="Media files").click()
        page.locator("#upload-file").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"})
        page.get_by_role("button", name="Upload").click()
        page.get_by_role("link", name="a.txt").wait_for()
