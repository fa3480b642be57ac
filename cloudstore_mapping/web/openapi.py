"""OpenAPI document of the wire format, generated from its messages."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec

from cloudstore_mapping._version import __version__
from cloudstore_mapping.errors import REPLY_ERRORS, ProtocolError
from cloudstore_mapping.links import FILES_PATH
from cloudstore_mapping.web.http import (
    CROSS_ORIGIN,
    END,
    Application,
    Receive,
    RefusedError,
    Scope,
    Send,
    answer,
    check_method,
)
from cloudstore_mapping.wire import (
    BATCH_PATH,
    EXTENSIONS,
    EXTENSIONS_HEADER,
    ID_HEADER,
    ID_PATTERN,
    LOAD_PATH,
    SAVE_PATH,
    UPLOAD_PATH,
    Batch,
    Reply,
    ReplyBody,
    Request,
)

OPENAPI_PATH: Final = "/openapi.json"

Schema: TypeAlias = dict[str, Any]

_SCHEMAS: Final = "#/components/schemas/"
_READ: Final = ("GET", "HEAD")
_OF_JSON: Final = "application/json"
_NUMBER: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}

# Constraints of each path, in addition to the messages shared by all of them.
_WITH_KEY: Final[Schema] = {"required": ["key"], "properties": {"key": {"minLength": 1}}}
_DELETES: Final[Schema] = {"properties": {"options": {"const": "delete"}}, "required": ["options"]}
_WITH_VALUE: Final[Schema] = {"anyOf": [{"required": ["value"]}, _DELETES]}
_IN_BATCH: Final[Schema] = {
    "properties": {"key": {"const": "", "description": "Absent: the key of the batch applies to all requests."}},
    "anyOf": [{"required": ["value"]}, {"properties": {"options": {"enum": [None, "delete", "list", "stat"]}}}],
}
_FORM: Final[Schema] = {
    "type": "object",
    "properties": {
        "key": {"type": "string", "minLength": 1},
        "password": {"type": "string"},
        "mediaPass": {
            "type": "string",
            "description": "The account's default password for media files.",
        },
        "if_version": {"const": "", "description": "Before the file: replace no existing file of this name."},
        "file": {"type": "string", "format": "binary", "description": "The file, with its filename and content type."},
    },
    "required": ["key", "file"],
}
_WITH_ID: Final[Schema] = {
    "name": ID_HEADER,
    "in": "header",
    "schema": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
    "description": "Idempotency key: a write with the same key is done once. It replaces `request` in the body.",
}
_OF_MEDIA: Final[tuple[Schema, ...]] = (
    {"name": "folder", "in": "path", "required": True, "schema": _NUMBER},
    {"name": "file", "in": "path", "required": True, "schema": {"type": "string"}},
    {"name": "Range", "in": "header", "schema": {"type": "string"}},
)


def openapi_document(base_path: str) -> Schema:
    """Return the OpenAPI document of a service at `base_path`, without its dashboard."""
    _, schemas = msgspec.json.schema_components((Request, Batch, ReplyBody), ref_template=f"{_SCHEMAS}{{name}}")
    saved = _of("Request", _WITH_KEY, _options(None, "merge", "delete"), _WITH_VALUE)
    loaded = _of("Request", _WITH_KEY, _options(None, "list", "stat"))
    batch = _of("Batch", {"properties": {"requests": {"items": _IN_BATCH}}})
    return {
        "openapi": "3.1.0",
        "info": {"title": "CloudStore", "version": __version__},
        "servers": [{"url": base_path or "/"}],
        "paths": {
            SAVE_PATH: {"post": _posted("save", "Save, merge or delete a file.", _OF_JSON, saved, _WITH_ID)},
            LOAD_PATH: {"post": _posted("load", "Load a value, list names, or describe a file.", _OF_JSON, loaded)},
            BATCH_PATH: {
                "post": _posted("batch", "Send many saves and loads in a single request.", _OF_JSON, batch, _WITH_ID)
            },
            UPLOAD_PATH: {"post": _posted("upload", "Store a media file.", "multipart/form-data", _FORM)},
            f"{FILES_PATH}{{folder}}/{{file}}": _read(
                "media", "Get a media file, or a range of it.", _media(), *_OF_MEDIA
            ),
            "/health": _read("health", "Return 200 if the store can be read and written.", _replies((200, 405, 503))),
            "/metrics": _read("metrics", "Get the metrics in Prometheus' format.", _as("text/plain")),
            OPENAPI_PATH: _read("openapi", "Get this document.", _as(_OF_JSON)),
        },
        "components": {"schemas": schemas},
    }


def make_openapi(base_path: str, path: str) -> Application:
    """Return the ASGI application for the OpenAPI document at `path`."""
    body = msgspec.json.encode(openapi_document(base_path))
    headers = [(b"content-type", _OF_JSON.encode()), (b"content-length", b"%d" % len(body)), *CROSS_ORIGIN]

    async def refuse(scope: Scope, _: Receive) -> Reply:
        if scope["path"] == path:
            check_method(scope["method"], _READ)
        raise RefusedError(ProtocolError(f"There is nothing here; the OpenAPI document is at {path}.", error="NoPath"))

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != path or scope["method"] not in _READ:
            await answer(scope, receive, send, refuse)
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(END if scope["method"] == "HEAD" else {"type": "http.response.body", "body": body})

    return application


def _of(name: str, *more: Schema) -> Schema:
    return {"allOf": [{"$ref": _SCHEMAS + name}, *more]}


def _options(*names: str | None) -> Schema:
    return {"properties": {"options": {"enum": list(names)}}}


def _posted(name: str, summary: str, content_type: str, schema: Schema, *parameters: Schema) -> Schema:
    return {
        "parameters": list(parameters),
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {content_type: {"schema": schema}}},
        "responses": _replies(status for status, _ in REPLY_ERRORS.values()),
    }


def _read(name: str, summary: str, responses: Schema, *parameters: Schema) -> Schema:
    return {
        "parameters": list(parameters),
        "get": {"operationId": name, "summary": summary, "responses": responses},
        "head": {
            "operationId": f"{name}-head",
            "summary": f"{summary.removesuffix('.')}: the headers only.",
            "responses": {status: {**response, "content": {}} for status, response in responses.items()},
        },
    }


def _replies(statuses: Iterable[int]) -> Schema:
    """Return the replies with these statuses, each with its possible errors."""
    return {str(status): _reply(status) for status in sorted(set(statuses))}


def _reply(status: int) -> Schema:
    errors: list[str | None] = [name for name, (its, _) in REPLY_ERRORS.items() if its == status]
    if status == HTTPStatus.OK:
        errors.insert(0, None)
    headers: Schema = {
        EXTENSIONS_HEADER: {
            "schema": {"type": "string"},
            "description": f"Extensions of the protocol: {', '.join(EXTENSIONS)}.",
        }
    }
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = {"schema": {"type": "integer"}, "description": "In seconds."}
    return {
        "description": "Success, or an error named in `error`."
        if status == HTTPStatus.OK
        else ", ".join(filter(None, errors)),
        "headers": headers,
        "content": {_OF_JSON: {"schema": _of("ReplyBody", {"properties": {"error": {"enum": errors}}})}},
    }


def _media() -> Schema:
    file: Schema = {"content": {"*/*": {}}}
    return {
        "200": {"description": "The file.", **file},
        "206": {"description": "The requested range of the file.", **file},
        **{
            str(status.value): {"description": status.phrase}
            for status in (
                HTTPStatus.NOT_MODIFIED,
                HTTPStatus.PRECONDITION_FAILED,
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            )
        },
        **_replies((404, 405, 503)),
        "429": {**_reply(429), "content": {_OF_JSON: {"schema": _of("ReplyBody")}}},
    }


def _as(content_type: str) -> Schema:
    return {"200": {"description": "The document.", "content": {content_type: {}}}, **_replies((405,))}
