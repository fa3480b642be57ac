"""`cloudstore` and ``python -m cloudstore_mapping``: the command line, or the line that says how to install it."""

from __future__ import annotations

import signal
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
        sys.exit(130)  # while still importing, or another one while the first one's command closes its store
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # what comes while Python ends would print a traceback


if __name__ == "__main__":
    main()
