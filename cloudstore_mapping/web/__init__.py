"""HTTP server of the service; importing it checks the dependencies of the extra ``server``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from cloudstore_mapping.errors import UnsupportedError

#: Import names of the packages in the extra ``server``.
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
