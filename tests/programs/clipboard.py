"""Clipboard with many slots: `clipboard.py SHELF save NAME TEXT | load NAME | list | delete [NAME]`."""

import shelve
import sys


def main(filename: str, command: str, *arguments: str) -> None:
    """Do a single command."""
    slots = shelve.open(filename)  # noqa: SIM115 - closed at the end
    if command == "save":
        slots[arguments[0]] = arguments[1]
    elif command == "load" and arguments[0] in slots:
        print(slots[arguments[0]])
    elif command == "delete" and arguments:
        slots.pop(arguments[0], None)
    elif command == "delete":
        slots.clear()
    elif command == "list":
        print(sorted(list(slots.keys())), len(slots))  # noqa: C414 - as people write it
    slots.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
