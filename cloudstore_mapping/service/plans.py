"""The plans that an account can be on: names for sets of limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloudstore_mapping.service.storage.records import Limits

#: The plan of accounts that are not made under another one.
DEFAULT_PLAN: Final = "unlimited"
#: What an account is said to be on whose limits were set one by one.
OWN_PLAN: Final = "custom"

PLANS: Final[Mapping[str, Limits]] = {
    DEFAULT_PLAN: Limits(),
    # As the account page of the vendor's own service shows it for its BASIC plan.
    "basic": Limits(max_files=100, max_file_bytes=3072, max_daily_accesses=300, min_interval=3.0),
}
