"""Job queue: `jobs.py SHELF add COUNT | work COUNT | show`, which says of each job that it is kept, or done."""

import shelve
import sys
from enum import Enum
from itertools import islice


class State(Enum):
    """State of a job."""

    WAITS = "waits"
    DONE = "done"


def main(filename: str, command: str, count: str = "0") -> None:
    """Do a single command."""
    with shelve.open(filename) as db:
        if command == "add":
            first = len(db)
            for number in range(first, first + int(count)):
                db[f"{number:06}"] = (State.WAITS, {"number": number, "data": [number] * 3})
                print(number, flush=True)
        elif command == "work":
            for key in islice(sorted(key for key in db if db[key][0] is State.WAITS), int(count)):
                db[key] = (State.DONE, db[key][1])
                db.sync()
                print(key, flush=True)
        else:
            for key, (state, job) in sorted(db.items()):
                print(key, state, job)


if __name__ == "__main__":
    main(*sys.argv[1:])
