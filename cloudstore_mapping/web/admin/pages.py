"""Dashboard pages: read the data of a panel and render its Jinja template; paginate and search lists of files."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from cloudstore_mapping.keys import literal_part, unescape_name
from cloudstore_mapping.service.media import begins_as, known_type, link
from cloudstore_mapping.service.quotas import DAY
from cloudstore_mapping.web.admin.charts import accesses_chart, format_day, format_size, sizes_chart
from cloudstore_mapping.web.admin.forms import csrf_token
from cloudstore_mapping.wire import Request

if TYPE_CHECKING:
    from cloudstore_mapping.service.panels import DataRow, Page
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.sessions import SignedInOwner
    from cloudstore_mapping.service.storage.records import Account, Media

#: Panels by their names in a URL, with their titles.
PANELS: Final = {"data": "Data files", "media": "Media files", "user": "User info", "activity": "Activity"}
#: Maximum bytes of a value shown and edited in a page; larger values can be downloaded.
MAX_SHOWN: Final = 2**20
#: Static files by name, with their package and path; another package provides htmx.
STATIC: Final[Mapping[str, tuple[str, str]]] = {
    "admin.css": ("cloudstore_mapping.web", "static/admin.css"),
    "admin.js": ("cloudstore_mapping.web", "static/admin.js"),
    "icon.svg": ("cloudstore_mapping.web", "static/icon.svg"),
    "htmx.js": ("js_lib_htmx", "static/htmx/htmx.min.js"),
}


@dataclass(frozen=True)
class ViewState:
    """
    View of the dashboard, kept in the URL's query so that each view can be linked and reloaded.

    `search` filters the files of `panel` by name, the page starts behind the name `after`, and `file` is open. `value`
    shows the open file's value; `new` shows the form for a new file.
    """

    panel: str = "data"
    search: str = ""
    after: str | None = None
    file: str | None = None
    value: str | None = None
    new: str | None = None

    @classmethod
    def parse(cls, query: str) -> ViewState:
        """Return the view of a URL's query; unknown parameters are ignored."""
        given = dict(parse_qsl(query, keep_blank_values=True))
        panel = given.get("panel", "")
        facts: dict[str, Any] = {key: given[key] for key in ("search", "after", "file", "value", "new") if key in given}
        return cls(panel if panel in PANELS else "data", **facts)

    def query(self, **changes: str | None) -> str:
        """Return the URL query of this view with some changes."""
        facts = asdict(replace(self, **changes))  # type: ignore[arg-type]  # `panel` is never given as None
        return urlencode({key: value for key, value in facts.items() if value is not None and value != ""})


@dataclass(frozen=True)
class Visit:
    """Request of a signed-in owner: session, view and client address."""

    signed_in: SignedInOwner
    token: str = field(repr=False)
    view: ViewState
    address: str

    @property
    def account(self) -> Account:
        """The owner's account."""
        return self.signed_in.account


@dataclass(frozen=True)
class ValueDraft:
    """Text in the value editor; saving replaces `version`, and another program saved `theirs` meanwhile."""

    key: str
    text: str = field(repr=False)
    version: str
    theirs: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Dialog:
    """Confirmation of an action on data files, by name, or on media files, by id."""

    action: str
    names: Sequence[str]


@cache
def static(name: str) -> tuple[bytes, str]:
    """Return a static file and a hash of it; URLs with the hash may be cached forever."""
    package, path = STATIC[name]
    content = files(package).joinpath(path).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]


class Pages:
    """Renders the dashboard of a service under the path `base`; each call reads the storage."""

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
            "size": format_size,
            "time": _format_time,
            "date": lambda at: format_day(int(at // DAY)),
            "quoted": lambda name: quote(name, safe=""),
            "key": display_key,
            "icon_of": _icon_of,
        }
        self._templates.filters |= filters
        self._templates.globals |= {"base": base, "panels": PANELS, "static": self._static, "integrity": _integrity}

    def address(self, view: ViewState) -> str:
        """Return the URL of a view."""
        query = view.query()
        return f"{self._base}/admin.html{'?' if query else ''}{query}"

    def sign_in(self, *, name: str = "", alert: str = "", status: int = 200) -> Response:
        """Return the sign-in page."""
        response = self._full_page("sign_in.html", status, name=name, alert=alert, message="", title="Sign in")
        response.headers["HX-Push-Url"] = self.address(ViewState())
        return response

    def error(self, sentence: str, status: int) -> Response:
        """Return an error page."""
        response = self._full_page("error.html", status, alert=sentence, message="", title="Not done")
        response.headers["HX-Push-Url"] = "false"
        return response

    def show(
        self,
        visit: Visit,
        *,
        alert: str = "",
        message: str = "",
        status: int = 200,
        dialog: Dialog | None = None,
        draft: ValueDraft | None = None,
        new_key: str | None = None,
    ) -> Response:
        """Return the page of the owner's view; a one-time password must be changed first."""
        shared = {
            "alert": alert,
            "message": message,
            "account": visit.account,
            "csrf_token": csrf_token(visit.token),
            "view": visit.view,
            "here": self.address(visit.view),
            "link": lambda **changes: f"{self._base}/admin.html?{visit.view.query(**changes)}",
            "dialog": dialog,
        }
        if visit.signed_in.must_change:
            return self._full_page("first.html", status, **shared, title="Choose a password")
        facts: dict[str, Any] = {
            "data": self._data,
            "media": self._media,
            "user": self._user,
            "activity": self._activity,
        }[visit.view.panel](visit)
        if visit.view.panel == "data":
            facts["draft"] = draft if draft is not None else self._draft(visit)
            facts["fault"] = alert if draft is not None else ""
        if visit.view.panel == "user":
            facts["new_key"] = new_key
        if facts.get("missing") and status == 200:
            status = 404
        response = self._page(f"{visit.view.panel}.html", status, **shared, **facts)
        response.headers["HX-Push-Url"] = self.address(visit.view) if dialog is None else "false"
        return response

    def _data(self, visit: Visit) -> dict[str, Any]:
        view = visit.view
        file = None if view.file is None else self._service.panels.data_file(visit.account, view.file)
        return {
            "page": self._search_data(visit.account, view),
            "file": file,
            "missing": view.file is not None and file is None,
            "max_shown": MAX_SHOWN,
            "title": "Data files" if file is None else display_key(file.name),
        }

    def _search_data(self, account: Account, view: ViewState) -> Page[DataRow]:
        """Return a page of the files with the search text in their keys."""
        page = self._service.panels.data(account, literal_part(view.search, joined=False), view.after)
        return page._replace(rows=[row for row in page.rows if view.search in unescape_name(row.name)])

    def _draft(self, visit: Visit) -> ValueDraft | None:
        view = visit.view
        if view.new is not None:
            return ValueDraft("", "", "")
        if view.value is None or view.file is None:
            return None
        loaded = self.load(visit.account, view.file)
        return None if loaded is None else ValueDraft(unescape_name(view.file), *loaded)

    def load(self, account: Account, name: str) -> tuple[str, str] | None:
        """Return a file's value as indented JSON, and its version; None for an absent file or a large value."""
        info = self._service.panels.data_file(account, name)
        if info is None or info.info.size > MAX_SHOWN:
            return None
        reply = self._service.submit(Request(name=name, brief=True), owner=account).result()
        if reply.error is not None or not isinstance(reply.version, str):
            return None
        # The text is indented without decoding the value, so numbers keep their spelling.
        return msgspec.json.format(reply.content, indent=2).decode(), reply.version

    def _media(self, visit: Visit) -> dict[str, Any]:
        view = visit.view
        page = self._service.panels.media(visit.account, view.search, view.after)
        file = None if view.file is None else self._service.panels.media_file(visit.account, view.file)
        return {
            "page": page,
            "file": file,
            "missing": view.file is not None and file is None,
            "file_link": None if file is None else self._base + link(visit.account, file.media),
            "mimetype": "" if file is None else self._service.media.typed(file.media)[0],
            "has_preview": file is not None and self.image_type(file.media) is not None,
            "title": "Media files" if file is None else file.media.name,
        }

    def image_type(self, media: Media) -> str | None:
        """Return the media type of an image safe to display, by type and magic bytes; None for other files."""
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
            (format_day(activity.first_day + number), count) for number, count in enumerate(activity.accesses) if count
        ]
        return {
            "activity": activity,
            "days": days[::-1],
            "accesses_chart": accesses_chart(activity.first_day, activity.accesses),
            "data_chart": sizes_chart(
                "data-sizes", "The largest data files", [(display_key(name), size) for name, size in activity.data]
            ),
            "media_chart": sizes_chart("media-sizes", "The largest media files", activity.media),
            "title": "Activity",
        }

    def _full_page(self, template: str, status: int, **facts: Any) -> Response:
        """Return a page for htmx to show in full, even after a request for a part of a page."""
        response = self._page(template, status, **facts)
        response.headers.update({"HX-Retarget": "#page", "HX-Reselect": "#page"})
        return response

    def _page(self, template: str, status: int, **facts: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(facts), status)

    def _static(self, name: str) -> str:
        return f"{self._base}/admin/static/{name}?v={static(name)[1]}"


def integrity(content: bytes) -> str:
    """Return the hash of a static file, for the `integrity` of its tag and for the policy."""
    return f"sha256-{b64encode(hashlib.sha256(content).digest()).decode()}"


def _integrity(name: str) -> str:
    return integrity(static(name)[0])


def display_key(name: str) -> str:
    """Return a file's key as text for a page; HTML can't contain NUL."""
    return unescape_name(name).replace("\0", "\u2400") or "(empty key)"


def _format_time(at: float | None) -> str:
    return "never" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _icon_of(mimetype: str) -> str:
    """Return the icon's name for a media type."""
    main, _, rest = known_type(mimetype).lower().partition(";")[0].partition("/")
    if main in {"image", "audio", "video", "text"}:
        return main
    return "text" if rest.strip() in {"pdf", "json", "xml"} else "other"
