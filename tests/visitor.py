"""Owners who visit the dashboard over HTTP as a browser does, without the browser."""

from __future__ import annotations

import html
import re
from typing import Any, Final, Self
from urllib.parse import quote

import requests

from cloudstore_mapping.service.service import Service

PASSWORD: Final = "correct horse"
#: What a browser sends with a form of a page of the same site.
SAME_SITE: Final = {"Sec-Fetch-Site": "same-origin"}


def owner(service: Service, name: str = "owner", password: str = PASSWORD) -> str:
    """Make an account whose owner has this password, and return its API key."""
    key = service.accounts.create(name)
    once = service.owners.reset_password(name)
    signed_in = service.owners.session(service.owners.sign_in(name, once, ""))
    assert signed_in is not None
    service.owners.change_password(signed_in, once, password, "")
    return key


class Visitor:
    """A browser's cookies and the forms that it sends; the token of its forms is read off the last page."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.home = f"{address}/admin.html"
        self.session = requests.Session()
        self.form_token = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.session.close()

    def get(self, query: str = "", **options: Any) -> requests.Response:
        """Return a page of the dashboard."""
        return self._read(self.session.get(f"{self.home}{query}", timeout=30, **options))

    def post(self, action: str, headers: dict[str, str] | None = None, **fields: Any) -> requests.Response:
        """Send one of its forms, and return the page that it leads to."""
        return self._read(
            self.session.post(
                f"{self.address}/admin/{action}",
                data={"token": self.form_token, **fields},
                headers=SAME_SITE if headers is None else headers,
                timeout=30,
            )
        )

    def sign_in(self, name: str = "owner", password: str = PASSWORD) -> requests.Response:
        """Sign in."""
        return self.post("sign-in", user=name, password=password)

    def is_in(self) -> bool:
        """Whether the dashboard shows its panels."""
        return "Sign out" in shown(self.get())

    def _read(self, response: requests.Response) -> requests.Response:
        found = re.search(r'name="token" value="(\w+)"', response.text)
        if found is not None:
            self.form_token = found[1]
        return response


def shown(response: requests.Response) -> str:
    """Return the text of a page without its tags, on one line."""
    text = re.sub(r"<(script|title).*?</\1>|<[^>]*>", " ", response.text, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def named(*names: str) -> list[str]:
    """Return how files are named in a form."""
    return [quote(name, safe="") for name in names]
