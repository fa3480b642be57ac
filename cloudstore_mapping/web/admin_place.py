"""Where somebody is in the dashboard: all of it stands in the address, so that each view can be linked and reloaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

#: The panels by their names in an address, and what they are called.
PANELS: Final = {"data": "Data files", "media": "Media files", "user": "User info", "activity": "Activity"}


@dataclass(frozen=True)
class Place:
    """
    A panel; of the files those whose names contain `search`, behind the name `after`; and one that is open.

    `value` says that its value is shown, `new` that a file is being made.
    """

    panel: str = "data"
    search: str = ""
    after: str | None = None
    file: str | None = None
    value: str | None = None
    new: str | None = None

    @classmethod
    def parse(cls, query: str) -> Place:
        """Return the place that the query of an address names; what means nothing is left out."""
        given = dict(parse_qsl(query, keep_blank_values=True))
        panel = given.get("panel", "")
        facts: dict[str, Any] = {key: given[key] for key in ("search", "after", "file", "value", "new") if key in given}
        return cls(panel if panel in PANELS else "data", **facts)

    def query(self, **changes: str | None) -> str:
        """Return the query of the address of this place, or of one that differs in this."""
        facts = asdict(replace(self, **changes))  # type: ignore[arg-type]  # `panel` is never given as None
        return urlencode({key: value for key, value in facts.items() if value is not None and value != ""})
