"""Uploads from the dashboard's page: by the session in place of an API key, and stored as all others are."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.requests import Request

from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.web.admin_http import Cookies, ForbiddenError, check_origin, check_token
from cloudstore_mapping.web.http import CLOSE, BoundedWorkers, Message, Receive, RefusedError, Scope, Send, answer
from cloudstore_mapping.web.uploads import AT_ONCE, WAITING, take_upload

if TYPE_CHECKING:
    from cloudstore_mapping.service.media import UploadStream
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.web.forms import UploadForm
    from cloudstore_mapping.web.uploads import SpoolSpace
    from cloudstore_mapping.wire import Reply


class AdminUpload:
    """The ASGI application that takes the form of the dashboard's upload, and answers as the wire does."""

    def __init__(self, service: Service, page: str, cookies: Cookies, space: SpoolSpace) -> None:
        self._service = service
        self._page = page
        self._cookies = cookies
        self._space = space
        self._turns = BoundedWorkers(AT_ONCE, WAITING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an upload; a browser without scripts is sent back to the page."""
        wants_page = "text/html" in Request(scope).headers.get("accept", "")
        taken: list[Reply] = []
        if wants_page:
            scope["extensions"] = {}  # no reply in one message, for its headers are added to

        async def take(scope: Scope, receive: Receive) -> Reply:
            taken.append(await self._take(scope, receive))
            return taken[0]

        async def send_back(message: Message) -> None:
            if taken and wants_page and message["type"] == "http.response.start":
                headers = [*message["headers"], (b"location", self._page.encode())]
                message = {**message, "status": HTTPStatus.SEE_OTHER, "headers": headers}
            await send(message)

        await answer(scope, receive, send_back, take)

    async def _take(self, scope: Scope, receive: Receive) -> Reply:
        request = Request(scope)
        token = self._cookies.token(request)
        try:
            check_origin(request)
        except ForbiddenError as error:
            raise _refused(error) from error
        signed_in = await asyncio.to_thread(self._service.owners.session, token) if token else None
        if signed_in is None or signed_in.must_change:
            sentence = "You are signed in no longer; sign in, and upload again."
            raise RefusedError(ProtocolError(sentence, error="BadKey"), CLOSE)

        def begin(form: UploadForm, address: str) -> UploadStream:
            try:
                check_token(token, form.fields["token"])
            except ForbiddenError as error:
                raise ProtocolError(str(error), error="BadRequest") from error
            return self._service.media.begin(
                name=form.filename, content_type=form.content_type, address=address, owner=signed_in.account
            )

        settings = self._service.settings
        return await take_upload(scope, receive, settings, begin, self._turns, self._space, needs="token")


def _refused(error: ForbiddenError) -> RefusedError:
    return RefusedError(ProtocolError(str(error), error="BadRequest"), CLOSE)
