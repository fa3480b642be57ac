"""The service on a socket."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from cloudstore_mapping.errors import UnsupportedError

#: What the extra ``server`` brings, by the names under which it is imported.
NEEDED: Final = (
    "uvicorn",
    "httptools",
    "starlette",
    "jinja2",
    "python_multipart",
    "prometheus_client",
    "js_lib_htmx",
    "argon2",
)

if missing := [name for name in NEEDED if find_spec(name) is None]:
    raise UnsupportedError(f"Serving over HTTP needs {', '.join(missing)}; pip install 'cloudstore-mapping[server]'.")
