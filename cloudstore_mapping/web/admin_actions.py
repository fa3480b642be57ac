"""What the dashboard's forms do: each does it in the name of the session's account, and says where to go then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cloudstore_mapping.errors import REPLY_ERRORS, BadValueError, CloudStoreError, NoFileError
from cloudstore_mapping.keys import escape_key, unescape_name
from cloudstore_mapping.web.admin_pages import Dialog, Draft
from cloudstore_mapping.web.admin_place import Place
from cloudstore_mapping.web.admin_values import save_request
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies

if TYPE_CHECKING:
    from starlette.responses import Response

    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.web.admin_http import Form
    from cloudstore_mapping.web.admin_pages import Pages, Visit

#: What is said after something was done, by the names that these sentences travel under; `{}` is a number of files.
SAID: Final = {
    "deleted": "Deleted: {}.",
    "locked": "Password set: {}.",
    "cleared": "Password cleared: {}.",
    "gone": "Some were gone already. Done: {}.",
    "saved": "Saved.",
    "uploaded": "Uploaded.",
    "default": "The default password is in force.",
    "no-default": "There is no default password any more.",
    "ended": "The old key opens nothing any more.",
    "changed": "Your password is changed; you are signed out everywhere else.",
}


@dataclass(frozen=True)
class Done:
    """Where to go after something was done, and what is said there: one of `SAID`, of so many files."""

    place: Place
    said: str
    times: int = 0


class RetryError(Exception):
    """Something can't be done with what was typed: the page is shown again, with the reason and what was typed."""

    def __init__(self, error: CloudStoreError, draft: Draft | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.draft = draft


class Actions:
    """The actions by the end of their paths; each call waits for the storage."""

    def __init__(self, service: Service, pages: Pages) -> None:
        self._service = service
        self._pages = pages
        self.all: dict[str, Callable[[Visit, Form], Done | Response]] = {
            "password": self._change_password,
            "data/ask": self._ask,
            "data/delete": self._delete_data,
            "data/lock": self._lock_data,
            "data/save": self._save,
            "media/ask": self._ask,
            "media/delete": self._delete_media,
            "media/lock": self._lock_media,
            "key/rotate": self._rotate_key,
            "key/end": self._end_keys,
            "defaults": self._set_default,
        }

    def _change_password(self, visit: Visit, form: Form) -> Done:
        if form.text("new") != form.text("again"):
            raise BadValueError("The new password was typed in two ways; type it twice the same.")
        self._service.owners.change_password(visit.signed_in, form.text("old"), form.text("new"), visit.address)
        return Done(Place() if visit.signed_in.must_change else visit.place, "changed")

    def _ask(self, visit: Visit, form: Form) -> Response:
        does = "lock" if form.text("do") == "lock" else "delete"
        names = form.names()
        if not names:
            raise BadValueError("No file is ticked; tick those that are meant first.")
        return self._pages.show(visit, dialog=Dialog(does, names))

    def _delete_data(self, visit: Visit, form: Form) -> Done:
        names = form.names()
        requests = [Request(name=name, options="delete") for name in names]
        reply = self._answered(visit, Batch(api_key="", requests=requests)) if requests else None
        replies = [] if reply is None else decode_replies(reply.content)
        deleted = [name for name, each in zip(names, replies, strict=True) if each.error is None]
        self._service.owners.record(visit.account, "file deleted", deleted, visit.address)
        refused = [each for each in replies if each.error not in (None, NoFileError.error)]
        if refused:
            raise _error_of(refused[0])
        return _done(visit, "deleted", len(deleted), len(names))

    def _lock_data(self, visit: Visit, form: Form) -> Done:
        password = form.text("password")
        what: Literal["edit", "view"] = "view" if form.text("what") == "view" else "edit"

        def lock(name: str) -> None:
            self._service.set_passwords(visit.account.name, name, **{what: password}, origin=visit.address)

        return _done(visit, _locked(password), *_each(form.names(), lock))

    def _save(self, visit: Visit, form: Form) -> Done:
        key, text, version = form.text("file"), form.text("value"), form.text("version")
        name = form.names()[0] if form.names() else key and escape_key(key)  # without a key it is refused below
        try:
            request = save_request(name, text, version or None, self._service.settings.max_depth)
            self._answered(visit, request)
        except CloudStoreError as error:
            raise RetryError(error, self._drafted(visit, name, text, version, error)) from error
        action = "value changed" if version else "file made"
        self._service.owners.record(visit.account, action, [name], visit.address)
        return Done(Place("data", visit.place.search, visit.place.after, name, value="1"), "saved")

    def _drafted(self, visit: Visit, name: str, text: str, version: str, error: CloudStoreError) -> Draft:
        if error.error != "Changed" or not version:
            return Draft(unescape_name(name), text, version)
        theirs = self._pages.load(visit.account, name)
        key = unescape_name(name)
        return Draft(key, text, "", None) if theirs is None else Draft(key, text, theirs[1], theirs[0])

    def _delete_media(self, visit: Visit, form: Form) -> Done:
        def delete(media_id: str) -> None:
            self._service.media.delete(visit.account, media_id, origin=visit.address)

        return _done(visit, "deleted", *_each(form.names(), delete))

    def _lock_media(self, visit: Visit, form: Form) -> Done:
        password = form.text("password")

        def lock(media_id: str) -> None:
            self._service.media.set_password(visit.account, media_id, password, origin=visit.address)

        return _done(visit, _locked(password), *_each(form.names(), lock))

    def _rotate_key(self, visit: Visit, form: Form) -> Response:  # noqa: ARG002 - the form says nothing
        key = self._service.accounts.rotate_key(visit.account.name, origin=visit.address)
        return self._pages.show(visit, new_key=key, said="Here is your new key.")

    def _end_keys(self, visit: Visit, form: Form) -> Done:  # noqa: ARG002 - the form says nothing
        self._service.accounts.drop_old_keys(visit.account.name, origin=visit.address)
        return Done(visit.place, "ended")

    def _set_default(self, visit: Visit, form: Form) -> Done:
        password = form.text("password")
        kind: Literal["data", "media"] = "media" if form.text("kind") == "media" else "data"
        self._service.set_default_passwords(visit.account.name, **{kind: password}, origin=visit.address)
        return Done(visit.place, "default" if password else "no-default")

    def _answered(self, visit: Visit, request: Request | Batch) -> Reply:
        reply = self._service.submit(request, address=visit.address, owner=visit.account).result()
        if reply.error is not None:
            raise _error_of(reply)
        return reply


def _error_of(reply: Reply) -> CloudStoreError:
    assert reply.error is not None  # noqa: S101 - it is asked only of refusals
    return REPLY_ERRORS[reply.error][1](reply.sentence, error=reply.error)


def _each(names: list[str], act: Callable[[str], None]) -> tuple[int, int]:
    """Do something to each of the files, and return for how many it was done, and how many were meant."""
    done = 0
    for name in names:
        try:
            act(name)
        except NoFileError:
            continue
        done += 1
    return done, len(names)


def _done(visit: Visit, said: str, done: int, meant: int) -> Done:
    place = visit.place
    if said == "deleted":
        place = Place(place.panel, place.search, place.after)
    return Done(place, said if done == meant else "gone", done)


def _locked(password: str) -> str:
    return "locked" if password else "cleared"
