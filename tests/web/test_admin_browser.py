"""The dashboard in real Chromium: what an owner does there with the mouse, and what programs get of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import Browser, Page, Route, expect

import cloudstore_mapping as cm
from cloudstore_mapping.callback_client import CloudStore
from tests.browser import Dashboard, chromium, dashboard, needs_chromium
from tests.visitor import PASSWORD, owner

__all__ = ["chromium"]  # a fixture, defined beside

pytestmark = needs_chromium

#: A picture of one pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture
def shown(chromium: Browser) -> Iterator[Dashboard]:
    """Return the dashboard of an owner of three files, who is signed in."""
    with dashboard(chromium, permissions=["clipboard-read", "clipboard-write"]) as shown:
        with cm.open(shown.address.replace("//", f"//{shown.api_key}@")) as store:
            store |= {"apples": {"red": 1}, "pears": {"green": 2}, "plums": {}}
        shown.sign_in()
        yield shown


@pytest.fixture
def page(shown: Dashboard) -> Page:
    """Return the owner's page."""
    return shown.page


def merged(shown: Dashboard, name: str, password: str | None = None) -> tuple[str | None, str]:
    """Return the error and message of a merge by the vendor's callback client."""
    with CloudStore(shown.api_key, shown.address) as cloud:
        reply = cloud.merge(name, {"more": 1}, password=password).result(30)
    return reply["error"], reply["message"]


def loaded(shown: Dashboard, name: str, password: str | None = None) -> str | None:
    """Return the error of a load."""
    with CloudStore(shown.api_key, shown.address) as cloud:
        error: str | None = cloud.load(name, password=password).result(30)["error"]
    return error


def lock(page: Page, password: str, what: str) -> None:
    """Give the ticked files a password by the dialog."""
    page.locator("#lock").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Password", exact=True).fill(password)
    dialog.get_by_label(what).check()
    dialog.get_by_role("button", name="Save").click()


def test_passwords_of_files(shown: Dashboard, page: Page) -> None:
    """Two ticked files get an edit password: a merge without it is `Locked`, with it saved; so for a view password."""
    page.get_by_role("link", name="pears").wait_for()
    expect(page.locator("#lock")).to_be_disabled()
    page.get_by_label("Tick apples").check()
    page.get_by_label("Tick pears").check()
    expect(page.locator("#ticked")).to_have_text("2 ticked")
    lock(page, "pw", "Edit")
    shown.said("Password set: 2.")
    assert [merged(shown, name)[0] for name in ("apples", "pears", "plums")] == ["Locked", "Locked", None]
    assert merged(shown, "apples", "pw") == (None, "Entry saved")
    page.get_by_label("Tick plums").check()
    lock(page, "seen", "View")
    shown.said("Password set: 1.")
    assert [loaded(shown, "plums"), loaded(shown, "plums", "seen"), loaded(shown, "pears")] == ["Locked", None, None]
    page.get_by_role("link", name="plums").click()
    expect(page.locator("#detail")).to_contain_text("View passwordset")


def test_media_files(shown: Dashboard, page: Page) -> None:
    """An image is uploaded with its progress, its preview seen, its link copied and fetched, and it is deleted."""
    progress: list[bool] = []

    def look(route: Route) -> None:
        progress.append(page.get_by_role("progressbar").is_visible())
        route.continue_()

    page.route("**/admin/media/upload", look)
    page.get_by_role("link", name="Media files").click()
    page.locator("#upload-file").set_input_files({"name": "dot.png", "mimeType": "image/png", "buffer": PNG})
    shown.said("Uploaded dot.png.")
    assert progress == [True]
    page.get_by_role("link", name="dot.png").click()
    preview = page.locator("#preview")
    preview.wait_for()
    expect(preview).to_have_js_property("naturalWidth", 1)
    page.get_by_role("button", name="Copy").click()
    shown.said("Copied.")
    link = page.evaluate("navigator.clipboard.readText()")
    answer = requests.get(link, timeout=30)
    assert (answer.status_code, answer.content) == (200, PNG)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open").click()
    assert opened.value.url == link
    opened.value.close()
    page.get_by_label("Tick dot.png").check()
    page.locator("#delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    shown.said("Deleted: 1.")
    assert requests.get(link, timeout=30).status_code == 404


def test_drag_and_drop(shown: Dashboard, page: Page) -> None:
    """Files that are dropped on the page are uploaded, one after another; what is refused says why."""
    shown.service.accounts.set_limits("owner", max_media_bytes=10)
    page.get_by_role("link", name="Media files").click()
    page.locator("#upload").wait_for()
    files = page.evaluate_handle(
        "() => { const data = new DataTransfer();"
        " data.items.add(new File(['one'], 'one.txt', {type: 'text/plain'}));"
        " data.items.add(new File(['far too large'], 'two.txt', {type: 'text/plain'})); return data; }"
    )
    page.dispatch_event("#upload", "dragover", {"dataTransfer": files})
    expect(page.locator("#upload")).to_have_class("drop is-over")
    page.dispatch_event("#upload", "drop", {"dataTransfer": files})
    shown.said("two.txt: ")
    page.get_by_role("link", name="one.txt").wait_for()
    expect(page.get_by_role("link", name="two.txt")).to_have_count(0)


def test_edit_a_value(shown: Dashboard, page: Page) -> None:
    """A value is shown by the eye, edited, refused with the place of its fault, and then saved."""
    page.get_by_role("link", name="apples").click()
    page.get_by_role("link", name="Show value").click()
    value = page.get_by_label("Value, as JSON")
    expect(value).to_have_value('{\n  "red": 1\n}')
    value.fill('{"red": 1,\n}')
    page.get_by_role("button", name="Save").click()
    shown.said("line 2, column 1")
    expect(value).to_have_value('{"red": 1,\n}')
    expect(value).to_be_focused()
    value.fill('{"red": 2}')
    page.get_by_role("button", name="Save").click()
    shown.said("Saved.")
    with cm.open(shown.address.replace("//", f"//{shown.api_key}@")) as store:
        assert store["apples"] == {"red": 2}


def test_search_as_one_types(shown: Dashboard, page: Page) -> None:
    """The list follows the search, which keeps the focus; the address can be loaded again."""
    page.get_by_label("Search names").press_sequentially("pl")
    expect(page.get_by_role("link", name="apples")).to_be_visible()
    expect(page.get_by_role("link", name="pears")).to_have_count(0)
    expect(page.get_by_label("Search names")).to_be_focused()
    assert "search=pl" in page.url
    page.reload()
    expect(page.locator(".row")).to_have_count(2)


def test_back_and_forth(shown: Dashboard, page: Page) -> None:
    """The browser's own back leads to where one was, and nothing of a page is kept in the browser's storage."""
    page.get_by_role("link", name="apples").click()
    page.get_by_role("heading", name="apples").wait_for()
    page.get_by_role("link", name="User info").click()
    page.get_by_role("heading", name="User info").wait_for()
    page.go_back()
    page.get_by_role("heading", name="apples").wait_for()
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]


def test_sign_out(shown: Dashboard, page: Page) -> None:
    """After signing out there is the sign-in, also for the addresses of before."""
    page.get_by_role("link", name="apples").click()
    page.get_by_role("heading", name="apples").wait_for()
    address = page.url
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    page.goto(address)
    page.get_by_role("heading", name="Sign in").wait_for()
    expect(page.get_by_text("apples")).to_have_count(0)


def test_the_focus_stays(shown: Dashboard, page: Page) -> None:
    """A page is finished in the moment it comes, so whoever is quick never types into another field than was meant."""
    page.evaluate(
        "() => { window.first = new Promise(resolve => {"
        " document.addEventListener('htmx:afterSwap', () => setTimeout(() => resolve('a key')));"
        " document.addEventListener('htmx:afterSettle', () => resolve('the page')); }); }"
    )
    page.get_by_role("button", name="Sign out").click()
    assert page.evaluate("first") == "the page"


def test_two_clicks(shown: Dashboard, page: Page) -> None:
    """Of two links that are clicked one after the other the second one's page comes, though the first is answered."""
    held: list[Route] = []
    page.route(lambda url: "panel=" in url, lambda route: held.append(route))
    page.get_by_role("link", name="User info").click()
    with page.expect_request("**/admin.html?panel=media"):
        page.get_by_role("link", name="Media files").click()
    for route in held:
        route.continue_()
    page.get_by_role("heading", name="Media files", level=1).wait_for()
    expect(page.get_by_role("link", name="Media files")).to_have_attribute("aria-current", "page")


def test_a_session_that_ended(shown: Dashboard, page: Page) -> None:
    """Where the session has ended, any part of the page that is asked for becomes the sign-in."""
    shown.service.owners.reset_password("owner")
    page.get_by_role("link", name="apples").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    expect(page.get_by_role("link", name="apples")).to_have_count(0)


def test_a_stranger(shown: Dashboard, page: Page) -> None:
    """The owner of another account gets nothing at the addresses of this one's pages."""
    page.get_by_role("link", name="apples").click()
    page.get_by_role("heading", name="apples").wait_for()
    address = page.url
    page.get_by_role("button", name="Sign out").click()
    owner(shown.service, "stranger")
    page.get_by_label("User name").fill("stranger")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("There are no data files yet").wait_for()
    page.goto(f"{address}&value=1")
    page.get_by_role("heading", name="There is no such file").wait_for()
    expect(page.get_by_text("red")).to_have_count(0)


def test_the_first_sign_in(shown: Dashboard, page: Page) -> None:
    """A one-time password leads to a page for another, and then to the files."""
    once = shown.service.owners.reset_password("owner")
    page.reload()
    page.get_by_label("User name").fill("owner")
    page.get_by_label("Password").fill(once)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Choose a password").wait_for()
    page.get_by_label("One-time password").fill(once)
    page.get_by_label("New password", exact=True).fill("another horse")
    page.get_by_label("New password again").fill("another horse")
    page.get_by_role("button", name="Change password").click()
    page.get_by_role("heading", name="Data files").wait_for()
    shown.said("Your password is changed")


@pytest.mark.slow
def test_account_and_activity(shown: Dashboard, page: Page) -> None:
    """The key is rotated and copied, and the list of events says so."""
    page.get_by_role("link", name="User info").click()
    page.get_by_role("button", name="Rotate the key").click()
    page.get_by_role("button", name="Copy").click()
    shown.said("Copied.")
    key = page.evaluate("navigator.clipboard.readText()")
    with cm.open(shown.address.replace("//", f"//{key}@")) as store:
        assert len(store) == 3
    page.get_by_role("link", name="Activity").click()
    expect(page.get_by_role("cell", name="API key made")).to_be_visible()
    expect(page.get_by_role("img", name="Accesses per day from")).to_be_visible()
