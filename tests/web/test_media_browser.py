"""A media file opened by its link in real Chromium: shown or played if it is media, harmless whatever it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request

from cloudstore_mapping.service.media import link
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.browser import chromium, needs_chromium
from tests.media_fakes import LOOKS, Uploader
from tests.media_samples import GIF, JPEG, MP3, MP4, PDF, PNG, WEBM, WEBP, wav
from tests.storages import new_storage

__all__ = ["chromium"]  # a fixture, defined beside

pytestmark = needs_chromium

#: What a script would do that got to run: it calls home, from wherever it is.
SCRIPT = "new Image().src = '/cloudstore/it-ran'; fetch('/cloudstore/it-ran'); document.title = 'it ran'"


@dataclass
class Opened:
    """The media files of an account, and a page to open them in."""

    uploader: Uploader
    address: str
    page: Page
    asked: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def put(self, data: bytes, name: str, content_type: str) -> str:
        """Upload a file, and return its whole link."""
        media = self.uploader.find(self.uploader.upload(data, name, content_type))
        assert media is not None
        return self.address + link(self.uploader.account, media)

    def player(self, what: str) -> Any:
        """Return something of the page's player `e`."""
        return self.page.evaluate(f"(e => {what})(document.querySelector('video, audio'))")

    def comes_to(self, condition: str) -> bool:
        """Whether the player comes to be so; Playwright's own waits need scripts, which these pages are denied."""
        return any(self.player(condition) for _ in range(LOOKS))

    def played(self) -> Any:
        """Return duration, width and error of the page's player, once it could play or can't."""
        assert self.comes_to("e && (e.readyState >= 3 || e.error)")
        return self.player("[e.duration, e.videoWidth, e.error]")


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Opened]:
    """Return the media files of an account that has none."""
    with Service(new_storage()) as service, background(service) as address:
        context = chromium.new_context()
        context.set_default_timeout(15_000)
        opened = Opened(Uploader(service), address, context.new_page())

        def on_request(request: Request) -> None:
            opened.asked.append(request.url)

        opened.page.on("request", on_request)
        opened.page.on("console", lambda message: opened.troubles.append(message.text))
        yield opened
        context.close()


@pytest.mark.parametrize(
    ("data", "name", "content_type", "width"),
    [
        (wav(0.5), "a.wav", "audio/wav", 0),
        (wav(0.5), "a.wav", "audio/x-wav", 0),
        (MP3, "a.mp3", "audio/mp3", 0),
        (MP4, "a.mp4", "video/mp4", 16),
        (WEBM, "a.webm", "video/webm", 16),
        (WEBM, "a", "", 16),
    ],
)
@pytest.mark.slow
def test_a_player(opened: Opened, data: bytes, name: str, content_type: str, width: int) -> None:
    """Audio and video play if they are opened by their link, and again if the page is loaded anew."""
    opened.page.goto(opened.put(data, name, content_type))
    duration, video_width, error = opened.played()
    assert (error, video_width) == (None, width)
    assert duration is None or duration > 0  # None: a recording of unknown length
    opened.page.reload()
    assert opened.played()[2] is None
    assert not [each for each in opened.troubles if "Content Security Policy" in each]


def test_a_player_may_skip(opened: Opened) -> None:
    """A player gets the end of a long file without what is before it."""
    opened.page.goto(opened.put(wav(3000), "long.wav", "audio/wav"))
    opened.played()
    opened.player("e.currentTime = 2999")
    assert opened.comes_to("!e.seeking && e.readyState >= 2 && e.currentTime >= 2999")


@pytest.mark.parametrize(
    ("data", "name", "content_type"),
    [
        (PNG, "UP.PNG", "image/png"),
        (PNG, "a", ""),
        (PNG, "a.png", "image/x-png"),
        (JPEG, "a.jpg", "image/jpg"),
        (JPEG, "a.jpg", "application/octet-stream"),
        (GIF, "a.gif", "image/gif"),
        (WEBP, "a.webp", ""),
    ],
)
@pytest.mark.slow
def test_a_picture(opened: Opened, data: bytes, name: str, content_type: str) -> None:
    """A picture is shown, laid out as the browser does it, under the documentation's own type and without any."""
    opened.page.goto(opened.put(data, name, content_type))
    assert opened.page.evaluate("document.images[0].naturalWidth") > 0
    assert not [each for each in opened.troubles if "Content Security Policy" in each]


def test_a_pdf(opened: Opened) -> None:
    """A PDF is shown by the browser's viewer, which is a page around it."""
    url = opened.put(PDF, "a.pdf", "application/x-pdf")
    answer = opened.page.goto(url)
    assert answer is not None
    assert (answer.status, answer.header_value("content-type")) == (200, "application/pdf")
    # Playwright learns of the viewer's frames while it asks something.
    assert any(
        [frame.url for frame in opened.page.frames].count(url) == 2
        for _ in range(LOOKS)
        if opened.page.evaluate("document.contentType") == "application/pdf"
    )
    assert not [each for each in opened.troubles if "Content Security Policy" in each]


@pytest.mark.parametrize(
    ("data", "name", "content_type"),
    [
        (f"<script>{SCRIPT}</script>".encode(), "page.html", "text/html"),
        (f"<script>{SCRIPT}</script>".encode(), "page", ""),
        (f"<script>{SCRIPT}</script>".encode(), "photo.png", "image/png"),
        (f"<script>{SCRIPT}</script>".encode(), "photo.png", ""),
        (f"<svg xmlns='http://www.w3.org/2000/svg' onload=\"{SCRIPT}\"/>".encode(), "a.svg", "image/svg+xml"),
        (f"<svg xmlns='http://www.w3.org/2000/svg' onload=\"{SCRIPT}\"/>".encode(), "a.svg", ""),
        (SCRIPT.encode(), "a.js", "text/javascript"),
        (PNG + f"<script>{SCRIPT}</script>".encode(), "a.html", "text/html"),
    ],
)
@pytest.mark.slow
def test_what_could_run_is_not_opened(opened: Opened, data: bytes, name: str, content_type: str) -> None:
    """HTML, SVG and what only claims to be a picture are downloaded, and none of it runs."""
    url = opened.put(data, name, content_type)
    with opened.page.expect_download() as download:
        opened.page.evaluate("url => void (location.href = url)", url)
    assert download.value.suggested_filename.startswith(name.partition(".")[0])
    assert not [each for each in opened.asked if "it-ran" in each]


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"GIF89a/*<script>" + SCRIPT.encode() + b"</script>*/=1;" + SCRIPT.encode(), "image/gif"),
        (PNG + b"<script>" + SCRIPT.encode() + b"</script>", "image/png"),
        (wav(0.5) + b"<html><script>" + SCRIPT.encode() + b"</script>", "audio/wav"),
        (b"RIFF\x00\x00\x00\x00WAVE<html><script>" + SCRIPT.encode() + b"</script>", "audio/wav"),
    ],
)
@pytest.mark.slow
def test_a_script_behind_a_signature(opened: Opened, data: bytes, content_type: str) -> None:
    """A file that begins as media is nothing but media: its text is no page, no script and no style of another page."""
    url = opened.put(data, "a", content_type)
    opened.page.goto(url)
    opened.page.wait_for_load_state("load")
    assert opened.page.title() != "it ran"
    opened.page.goto(f"{opened.address}/health")
    ran = opened.page.evaluate(
        """url => new Promise(done => {
            const script = document.createElement("script");
            script.src = url;
            script.onload = () => done("ran");
            script.onerror = () => done("refused");
            document.head.append(script);
        })""",
        url,
    )
    assert ran == "refused"
    assert not [each for each in opened.asked if "it-ran" in each]
