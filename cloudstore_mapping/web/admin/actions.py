"""Dashboard form actions: delete files, set passwords, save values, rotate API keys, change the owner's password."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Raw

from cloudstore_mapping.errors import REPLY_ERRORS, BadValueError, CloudStoreError, NoFileError
from cloudstore_mapping.keys import escape_key, unescape_name
from cloudstore_mapping.web.admin.pages import Dialog, ValueDraft, ViewState
from cloudstore_mapping.wire import (
    SAVE_PATH,
    Batch,
    Reply,
    Request,
    decode_replies,
    decode_request,
    encode_request,
    fault_of,
)

if TYPE_CHECKING:
    from starlette.responses import Response

    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.web.admin.forms import Form
    from cloudstore_mapping.web.admin.pages import Pages, Visit

#: Messages about finished actions, by their names in the cookie; `{}` is a number of files.
MESSAGES: Final = {
    "deleted": "Deleted: {}.",
    "locked": "Password set: {}.",
    "cleared": "Password cleared: {}.",
    "gone": "Some files were already deleted. Done: {}.",
    "saved": "Saved.",
    "default": "Default password set.",
    "no-default": "Default password cleared.",
    "ended": "The old keys no longer work.",
    "changed": "Your password is changed; your other sessions have ended.",
}

# Message of msgspec: the problem, then the byte offset.
_BYTE: Final = re.compile(r"(.*?):? ?\(byte (\d+)\)")
#: Stands for an API key in the request of a signed-in owner.
_NO_KEY: Final = "owner"


@dataclass(frozen=True)
class Redirect:
    """Result of a finished action: the next view, a name in `MESSAGES`, and a number of files."""

    view: ViewState
    message: str
    count: int = 0


@dataclass(frozen=True)
class RedisplayForm:
    """Result of a refused action: show the page again with the error and the owner's draft."""

    error: CloudStoreError
    draft: ValueDraft


Result = Redirect | RedisplayForm


class Actions:
    """Form actions by path; each waits for the storage, and raises `CloudStoreError` for a refusal."""

    def __init__(self, service: Service, pages: Pages) -> None:
        self._service = service
        self._pages = pages
        self.by_path: dict[str, Callable[[Visit, Form], Result | Response]] = {
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

    def _change_password(self, visit: Visit, form: Form) -> Redirect:
        if form.text("new") != form.text("again"):
            raise BadValueError("The two new passwords don't match; type the same password twice.")
        self._service.owners.change_password(visit.signed_in, form.text("old"), form.text("new"), visit.address)
        return Redirect(ViewState() if visit.signed_in.must_change else visit.view, "changed")

    def _ask(self, visit: Visit, form: Form) -> Response:
        action = "lock" if form.text("do") == "lock" else "delete"
        names = form.names()
        if not names:
            raise BadValueError("No file is selected; tick one or more files first.")
        return self._pages.show(visit, dialog=Dialog(action, names))

    def _delete_data(self, visit: Visit, form: Form) -> Redirect:
        names = form.names()
        requests = [Request(name=name, options="delete") for name in names]
        reply = self._submit(visit, Batch(api_key="", requests=requests)) if requests else None
        replies = [] if reply is None else decode_replies(reply.content)
        deleted = [name for name, each in zip(names, replies, strict=True) if each.error is None]
        self._service.owners.record(visit.account, "file deleted", deleted, visit.address)
        refused = [each for each in replies if each.error not in (None, NoFileError.error)]
        if refused:
            raise _error_of(refused[0])
        return _redirect(visit, "deleted", len(deleted), len(names))

    def _lock_data(self, visit: Visit, form: Form) -> Redirect:
        password = form.text("password")
        kind: Literal["edit", "view"] = "view" if form.text("what") == "view" else "edit"

        names = form.names()
        done = self._service.set_passwords_of(visit.account.name, names, **{kind: password}, origin=visit.address)
        return _redirect(visit, _locked(password), done, len(names))

    def _save(self, visit: Visit, form: Form) -> Result:
        key, text, version = form.text("file"), form.text("value"), form.text("version")
        name = form.names()[0] if form.names() else key and escape_key(key)  # an empty name is refused by the service
        try:
            request = save_request(name, text, version or None, self._service.settings.max_depth)
            self._submit(visit, request)
        except CloudStoreError as error:
            return RedisplayForm(error, self._redraft(visit, name, text, version, error))
        action = "value changed" if version else "file made"
        self._service.owners.record(visit.account, action, [name], visit.address)
        return Redirect(ViewState("data", visit.view.search, visit.view.after, name, value="1"), "saved")

    def _redraft(self, visit: Visit, name: str, text: str, version: str, error: CloudStoreError) -> ValueDraft:
        """Return the owner's draft, after a conflict together with the value now stored."""
        key = unescape_name(name)
        if error.error != "Changed" or not version:
            return ValueDraft(key, text, version)
        theirs = self._pages.load(visit.account, name)
        return ValueDraft(key, text, "", None) if theirs is None else ValueDraft(key, text, theirs[1], theirs[0])

    def _delete_media(self, visit: Visit, form: Form) -> Redirect:
        def delete(media_id: str) -> None:
            self._service.media.delete(visit.account, media_id, origin=visit.address)

        return _redirect(visit, "deleted", *_for_each(form.names(), delete))

    def _lock_media(self, visit: Visit, form: Form) -> Redirect:
        password = form.text("password")

        def lock(media_id: str) -> None:
            self._service.media.set_password(visit.account, media_id, password, origin=visit.address)

        return _redirect(visit, _locked(password), *_for_each(form.names(), lock))

    def _rotate_key(self, visit: Visit, form: Form) -> Response:  # noqa: ARG002 - the form has no fields
        key = self._service.accounts.rotate_key(visit.account.name, origin=visit.address)
        return self._pages.show(visit, new_key=key, message="Your new key is ready.")

    def _end_keys(self, visit: Visit, form: Form) -> Redirect:  # noqa: ARG002 - the form has no fields
        self._service.accounts.drop_old_keys(visit.account.name, origin=visit.address)
        return Redirect(visit.view, "ended")

    def _set_default(self, visit: Visit, form: Form) -> Redirect:
        password = form.text("password")
        kind: Literal["data", "media"] = "media" if form.text("kind") == "media" else "data"
        self._service.set_default_passwords(visit.account.name, **{kind: password}, origin=visit.address)
        return Redirect(visit.view, "default" if password else "no-default")

    def _submit(self, visit: Visit, request: Request | Batch) -> Reply:
        reply = self._service.submit(request, address=visit.address, owner=visit.account).result()
        if reply.error is not None:
            raise _error_of(reply)
        return reply


def save_request(name: str, text: str, version: str | None, max_depth: int) -> Request:
    """
    Return the request to save typed JSON, if the file still has `version` (None: if there is no such file).

    Raises `BadValueError` with the line and column of invalid JSON, and any error of `decode_request`.
    """
    try:
        value = msgspec.json.decode(text.encode(), type=Raw)
    except msgspec.MsgspecError as error:
        raise BadValueError(_json_fault(text, error)) from error
    # Encoded and decoded like a program's request: a single parser decides about values.
    body = encode_request(Request(api_key=_NO_KEY, name=name, value=value, if_version=version))
    request = decode_request(SAVE_PATH, body, max_depth=max_depth)
    assert isinstance(request, Request)  # noqa: S101 - only the batch path gives another type
    return request


def _json_fault(text: str, error: Exception) -> str:
    if not text.strip():
        return 'There is no value; type one, such as {} or "text".'
    sentence = fault_of(text.encode(), error)
    if sentence not in str(error):
        return f"This is not valid JSON: {sentence}."
    match = _BYTE.search(sentence)
    if match is None:
        before, reason = text, "it ends before the value does"
    else:
        reason = match[1].removeprefix("JSON is malformed: ")
        # In this message only, msgspec counts the first byte too.
        offset = int(match[2]) - (reason == "trailing characters")
        before = text.encode()[:offset].decode(errors="ignore")
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    return f"This is not valid JSON: line {line}, column {column}: {reason}."


def _error_of(reply: Reply) -> CloudStoreError:
    assert reply.error is not None  # noqa: S101 - called for refusals only
    return REPLY_ERRORS[reply.error][1](reply.sentence, error=reply.error)


def _for_each(names: list[str], act: Callable[[str], None]) -> tuple[int, int]:
    """Call `act` for each file; return the numbers of existing files and of all files."""
    done = 0
    for name in names:
        try:
            act(name)
        except NoFileError:
            continue
        done += 1
    return done, len(names)


def _redirect(visit: Visit, message: str, done: int, selected: int) -> Redirect:
    view = visit.view
    if message == "deleted":
        view = ViewState(view.panel, view.search, view.after)
    return Redirect(view, message if done == selected else "gone", done)


def _locked(password: str) -> str:
    return "locked" if password else "cleared"
