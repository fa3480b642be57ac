"""Calculator that remembers what was typed, even after an error: `history.py SHELF LINE…`."""

import atexit
import shelve
import sys


def main(filename: str, *lines: str) -> None:
    """Evaluate the lines; `!N` repeats the line with this number, and `history` shows all."""
    db = shelve.open(filename, writeback=True)  # noqa: SIM115 - closed at the end of the program
    atexit.register(db.close)
    history: list[str] = db.setdefault("history", [])
    for typed in lines:
        line = history[int(typed[1:])] if typed.startswith("!") else typed
        history.append(line)
        if line == "history":
            print(history)
        else:
            name, _, numbers = line.rpartition("=")
            results: dict[str, complex] = db.setdefault("results", {})
            results[name or "_"] = sum(complex(number) for number in numbers.split("+"))
            print(results)


if __name__ == "__main__":
    main(*sys.argv[1:])
