"""`cloudstore` and ``python -m cloudstore_mapping``: the command line, or the line that says how to install it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        from cloudstore_mapping.cli import app

        app(prog_name="cloudstore")
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.stderr.write(f"cloudstore: The command line needs {error.name}; pip install 'cloudstore-mapping[cli]'.\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # while still importing: later, the command line itself sees to it


if __name__ == "__main__":
    main()
