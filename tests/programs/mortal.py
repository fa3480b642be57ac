"""Exports or imports over HTTP, and is killed with -9 when its n-th request is under way: mortal.py n WHAT URL FILE."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from cloudstore_mapping.client.address import parse_address
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.transfer import export_store, import_store

left, what, url, file = int(sys.argv[1]), *sys.argv[2:]


class Mortal(HTTPTransport):
    """Dies at a request: after the service did what was asked, before the program learns of it."""

    def send(self, request: Any) -> Any:
        """Send, and perhaps die."""
        reply = super().send(request)
        die_at_last()
        return reply

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Any:
        """Begin to get a media file, and perhaps die."""
        fetched = super().fetch(link, start, tag)
        die_at_last()
        return fetched


def die_at_last() -> None:
    """Count, and die."""
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


api_key, server = parse_address(url)
with CloudStoreMapping[Any](api_key, server, transport=Mortal(server)) as store:
    (export_store if what == "export" else import_store)(store, file)
