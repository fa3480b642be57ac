"""`cloudstore serve` with a commit for every save: what a group's commit is compared with."""

from __future__ import annotations

from cloudstore_mapping.__main__ import main
from cloudstore_mapping.service.storage.sqlite import SQLiteSession

if __name__ == "__main__":
    SQLiteSession.max_group = 1  # the one thing that is to be different
    main()
