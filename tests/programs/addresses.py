"""Address book: `addresses.py SHELF add NAME PHONE | remove NAME | find TEXT | list`."""

import shelve
import sys
from typing import NamedTuple


class Person(NamedTuple):
    """A person in the book."""

    name: str
    phones: tuple[str, ...]


def main(filename: str, command: str, *arguments: str) -> int:
    """Do a single command, and return the exit status."""
    book: shelve.Shelf[Person] = shelve.open(filename)  # noqa: SIM115 - closed at the end
    try:
        if command == "add":
            name, phone = arguments
            known = book.get(name, Person(name, ()))
            book[name] = known._replace(phones=(*known.phones, phone))
        elif command == "remove":
            del book[arguments[0]]
        elif command == "find":
            print(sorted(name for name in book if arguments[0] in name))
        else:
            for name in sorted(book.keys()):
                print(name, book[name])
    except KeyError:
        print("There is nobody of this name.", file=sys.stderr)
        return 1
    finally:
        book.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
