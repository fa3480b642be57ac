"""Dashboard uploads: authenticate by session cookie and CSRF token instead of an API key, then store as any upload."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.requests import Request

from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.web.admin.forms import CSRFError, check_csrf_origin, check_csrf_token
from cloudstore_mapping.web.http import CLOSE, Message, Receive, RefusedError, Scope, Send, answer, network
from cloudstore_mapping.web.uploads import Sender, take_upload, upload_turns

if TYPE_CHECKING:
    from cloudstore_mapping.service.media import UploadStream
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.web.admin.sessions import DashboardCookies
    from cloudstore_mapping.web.forms import UploadForm
    from cloudstore_mapping.web.uploads import SpoolSpace
    from cloudstore_mapping.wire import Reply


class DashboardUpload:
    """ASGI application for the upload form of the dashboard; it replies with JSON as the wire does."""

    def __init__(self, service: Service, page: str, cookies: DashboardCookies, space: SpoolSpace) -> None:
        self._service = service
        self._page = page
        self._cookies = cookies
        self._space = space
        self._turns = upload_turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an upload; redirect a browser without scripts to the page of media files."""
        wants_page = "text/html" in Request(scope).headers.get("accept", "")
        is_stored = False
        if wants_page:
            scope["extensions"] = {}  # no reply in a single message, as its headers are changed below

        async def take(scope: Scope, receive: Receive) -> Reply:
            nonlocal is_stored
            reply = await self._take(scope, receive)
            is_stored = True
            return reply

        async def send_redirect(message: Message) -> None:
            if is_stored and wants_page and message["type"] == "http.response.start":
                headers = [*message["headers"], (b"location", self._page.encode())]
                message = {**message, "status": HTTPStatus.SEE_OTHER, "headers": headers}
            await send(message)

        await answer(scope, receive, send_redirect, take)

    async def _take(self, scope: Scope, receive: Receive) -> Reply:
        request = Request(scope)
        token = self._cookies.session_token(request)
        try:
            check_csrf_origin(request)
        except CSRFError as error:
            raise RefusedError(ProtocolError(str(error), error="BadRequest"), CLOSE) from error
        session = partial(self._service.owners.session, token)
        signed_in = await self._turns.run(session, network(scope)) if token else None
        if signed_in is None or signed_in.must_change:
            sentence = "Your session has ended; sign in and upload again."
            raise RefusedError(ProtocolError(sentence, error="BadKey"), CLOSE)

        def begin(form: UploadForm, address: str) -> UploadStream:
            try:
                check_csrf_token(token, form.fields["token"])
            except CSRFError as error:
                raise ProtocolError(str(error), error="BadRequest") from error
            return self._service.media.begin(
                name=form.filename, content_type=form.content_type, address=address, owner=signed_in.account
            )

        async def owner(_form: UploadForm, _address: str) -> int:
            return signed_in.account.id

        settings = self._service.settings
        return await take_upload(
            scope, receive, settings, Sender(owner, begin), self._turns, self._space, needs="token"
        )
