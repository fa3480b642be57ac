"""Entry point of `cloudstore` and ``python -m cloudstore_mapping``."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line and exit with its status; without its extra, show how to install it."""
    try:
        from cloudstore_mapping.cli import app

        app(prog_name="cloudstore")
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.stderr.write(f"cloudstore: The command line needs {error.name}; pip install 'cloudstore-mapping[cli]'.\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # during the imports, or a second Ctrl-C while the command closes its store
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while Python ends would print a traceback


if __name__ == "__main__":
    main()
