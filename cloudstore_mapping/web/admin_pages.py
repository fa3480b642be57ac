"""The dashboard's pages: what is read for each, and how its template makes HTML of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from cloudstore_mapping.keys import literal_part, unescape_name
from cloudstore_mapping.service.media import begins_as, known_type, link
from cloudstore_mapping.service.quotas import DAY
from cloudstore_mapping.web.admin_http import form_token
from cloudstore_mapping.web.admin_place import PANELS, Place
from cloudstore_mapping.web.pictures import day_text, days_picture, size_text, sizes_picture
from cloudstore_mapping.wire import Request

if TYPE_CHECKING:
    from cloudstore_mapping.service.panels import DataRow, Page
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.sessions import SignedInOwner
    from cloudstore_mapping.service.storage.base import Account, Media

#: Bytes of the largest value that is shown and edited in a page; a larger one is downloaded.
MAX_SHOWN: Final = 2**20
#: The static files: those of this package, and htmx, which another package brings.
STATIC: Final[Mapping[str, tuple[str, str]]] = {
    "admin.css": ("cloudstore_mapping.web", "static/admin.css"),
    "admin.js": ("cloudstore_mapping.web", "static/admin.js"),
    "icon.svg": ("cloudstore_mapping.web", "static/icon.svg"),
    "htmx.js": ("js_lib_htmx", "static/htmx/htmx.min.js"),
}


@dataclass(frozen=True)
class Visit:
    """Somebody who is signed in and looks at a place, from an address."""

    signed_in: SignedInOwner
    token: str = field(repr=False)
    place: Place
    address: str

    @property
    def account(self) -> Account:
        """Whose files are shown."""
        return self.signed_in.account


@dataclass(frozen=True)
class Draft:
    """A value on its way into a key's file, as somebody wrote it; `version` is the one that it is to replace."""

    key: str
    text: str = field(repr=False)
    version: str
    theirs: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Dialog:
    """What is asked before something is done to these files: their names, or of media their ids."""

    does: str
    names: Sequence[str]


@cache
def static(name: str) -> tuple[bytes, str]:
    """Return a static file, and the hash that its address carries, so that it can be kept for ever."""
    package, path = STATIC[name]
    content = files(package).joinpath(path).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]


class Pages:
    """Makes the pages of a service's dashboard under `base`; each call waits for the storage."""

    def __init__(self, service: Service, base: str) -> None:
        self._service = service
        self._base = base
        self._templates = Environment(
            loader=PackageLoader("cloudstore_mapping.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters: dict[str, Callable[..., str]] = {
            "size": size_text,
            "when": _when,
            "date": lambda at: day_text(int(at // DAY)),
            "quoted": lambda name: quote(name, safe=""),
            "key": shown_key,
            "kind": _kind,
        }
        self._templates.filters |= filters
        self._templates.globals |= {"base": base, "panels": PANELS, "static": self._static}

    def address(self, place: Place) -> str:
        """Return where a place is."""
        query = place.query()
        return f"{self._base}/admin.html{'?' if query else ''}{query}"

    def sign_in(self, *, name: str = "", alert: str = "", status: int = 200) -> Response:
        """Return the page that asks who it is."""
        response = self._whole("sign_in.html", status, name=name, alert=alert, said="", title="Sign in")
        response.headers["HX-Push-Url"] = self.address(Place())
        return response

    def error(self, sentence: str, status: int) -> Response:
        """Return a page that says why there is no other."""
        response = self._whole("error.html", status, alert=sentence, said="", title="Not done")
        response.headers["HX-Push-Url"] = "false"
        return response

    def show(
        self,
        visit: Visit,
        *,
        alert: str = "",
        said: str = "",
        status: int = 200,
        dialog: Dialog | None = None,
        draft: Draft | None = None,
        new_key: str | None = None,
    ) -> Response:
        """Return the page of the visitor's place, or the one for a new password while a one-time one stands."""
        shared = {
            "alert": alert,
            "said": said,
            "account": visit.account,
            "form_token": form_token(visit.token),
            "place": visit.place,
            "here": self.address(visit.place),
            "link": lambda **changes: f"{self._base}/admin.html?{visit.place.query(**changes)}",
            "dialog": dialog,
        }
        if visit.signed_in.must_change:
            return self._whole("first.html", status, **shared, title="Choose a password")
        facts: dict[str, Any] = {
            "data": self._data,
            "media": self._media,
            "user": self._user,
            "activity": self._activity,
        }[visit.place.panel](visit)
        if visit.place.panel == "data":
            facts["draft"] = draft if draft is not None else self._draft(visit)
            facts["fault"] = alert if draft is not None else ""
        if visit.place.panel == "user":
            facts["new_key"] = new_key
        if facts.get("missing") and status == 200:
            status = 404
        response = self._page(f"{visit.place.panel}.html", status, **shared, **facts)
        response.headers["HX-Push-Url"] = self.address(visit.place) if dialog is None else "false"
        return response

    def _data(self, visit: Visit) -> dict[str, Any]:
        place = visit.place
        file = None if place.file is None else self._service.panels.data_file(visit.account, place.file)
        return {
            "page": self._page_of_data(visit.account, place),
            "file": file,
            "missing": place.file is not None and file is None,
            "max_shown": MAX_SHOWN,
            "title": "Data files" if file is None else shown_key(file.name),
        }

    def _page_of_data(self, account: Account, place: Place) -> Page[DataRow]:
        """Return the files whose keys contain what is searched for."""
        page = self._service.panels.data(account, literal_part(place.search, joined=False), place.after)
        return page._replace(rows=[row for row in page.rows if place.search in unescape_name(row.name)])

    def _draft(self, visit: Visit) -> Draft | None:
        place = visit.place
        if place.new is not None:
            return Draft("", "", "")
        if place.value is None or place.file is None:
            return None
        loaded = self.load(visit.account, place.file)
        return None if loaded is None else Draft(unescape_name(place.file), *loaded)

    def load(self, account: Account, name: str) -> tuple[str, str] | None:
        """Return a file's value, laid out for reading, and its version; None where it isn't there, or too large."""
        info = self._service.panels.data_file(account, name)
        if info is None or info.info.size > MAX_SHOWN:
            return None
        reply = self._service.submit(Request(name=name, brief=True), owner=account).result()
        if reply.error is not None or not isinstance(reply.version, str):
            return None
        # Text is laid out anew, and not the value decoded: so numbers stay as they were written.
        return msgspec.json.format(reply.content, indent=2).decode(), reply.version

    def _media(self, visit: Visit) -> dict[str, Any]:
        place = visit.place
        page = self._service.panels.media(visit.account, place.search, place.after)
        file = None if place.file is None else self._service.panels.media_file(visit.account, place.file)
        return {
            "page": page,
            "file": file,
            "missing": place.file is not None and file is None,
            "file_link": None if file is None else self._base + link(visit.account, file.media),
            "mimetype": "" if file is None else self._service.media.typed(file.media)[0],
            "has_preview": file is not None and self.picture_type(file.media) is not None,
            "title": "Media files" if file is None else file.media.name,
        }

    def picture_type(self, media: Media) -> str | None:
        """Return the type of an image that a browser may show, by its type and by its bytes; None for other files."""
        mimetype, beginning = self._service.media.typed(media)
        return mimetype if mimetype.lower().startswith("image/") and begins_as(mimetype, beginning) else None

    def _user(self, visit: Visit) -> dict[str, Any]:
        return {
            "info": self._service.panels.user(visit.account),
            "media_path": f"{self._base}/files/{visit.account.folder}/",
            "title": "User info",
        }

    def _activity(self, visit: Visit) -> dict[str, Any]:
        activity = self._service.panels.activity(visit.account)
        days = [
            (day_text(activity.first_day + number), times) for number, times in enumerate(activity.accesses) if times
        ]
        return {
            "activity": activity,
            "days": days[::-1],
            "days_picture": days_picture(activity.first_day, activity.accesses),
            "data_picture": sizes_picture(
                "data-sizes", "The largest data files", [(shown_key(name), size) for name, size in activity.data]
            ),
            "media_picture": sizes_picture("media-sizes", "The largest media files", activity.media),
            "title": "Activity",
        }

    def _whole(self, template: str, status: int, **facts: Any) -> Response:
        """Return a page that stands for all that is there, also where only a part of another was asked for."""
        response = self._page(template, status, **facts)
        response.headers.update({"HX-Retarget": "#page", "HX-Reselect": "#page"})
        return response

    def _page(self, template: str, status: int, **facts: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(facts), status)

    def _static(self, name: str) -> str:
        return f"{self._base}/admin/static/{name}?v={static(name)[1]}"


def shown_key(name: str) -> str:
    """Return the key with this file name as text for a page, which can hold no NUL."""
    return unescape_name(name).replace("\0", "\u2400") or "(empty key)"


def _when(at: float | None) -> str:
    return "never" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _kind(mimetype: str) -> str:
    """Return which icon a media file of this type has."""
    main, _, rest = known_type(mimetype).lower().partition(";")[0].partition("/")
    if main in {"image", "audio", "video", "text"}:
        return main
    return "text" if rest.strip() in {"pdf", "json", "xml"} else "other"
