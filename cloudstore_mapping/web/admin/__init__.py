"""Dashboard of the service: HTML pages and forms for signed-in owners, under ``/admin``."""

from __future__ import annotations

from cloudstore_mapping.web.admin.routes import make_admin

__all__ = ["make_admin"]
