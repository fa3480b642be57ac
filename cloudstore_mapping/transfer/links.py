"""The media files that values name: a service lists none to an API key, so an export follows their addresses."""

from __future__ import annotations

import re
from typing import Final

from cloudstore_mapping.links import FILES_PATH

_LINK: Final = rb"[0-9a-f]{32}/[0-9a-f]{32}\.[A-Za-z0-9]{1,16}"


class Links:
    """Gathers the addresses of one service's media files that stand in values; JSON may write its slashes escaped."""

    def __init__(self, address: str) -> None:
        self._pattern = re.compile(re.escape((address + FILES_PATH).encode()) + _LINK)
        self.found: dict[str, None] = {}

    def look(self, value: bytes) -> None:
        """Gather those in one value."""
        for link in self._pattern.findall(value.replace(b"\\/", b"/")):
            self.found[link.decode()] = None
