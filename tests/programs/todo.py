"""A to-do list on the command line: `todo.py SHELF add TEXT | done NUMBER | list | purge`."""

import shelve
import sys
from dataclasses import dataclass, field


@dataclass
class Task:
    """Something to do."""

    text: str
    tags: set[str] = field(default_factory=set)
    done: bool = False


def main(filename: str, command: str, *arguments: str) -> int:
    """Do one command, and return the exit status."""
    with shelve.open(filename, writeback=True) as db:
        tasks = db.setdefault("tasks", [])
        db["runs"] = db.get("runs", 0) + 1
        if command == "add":
            text = " ".join(arguments)
            tasks.append(Task(text, {word[1:] for word in text.split() if word.startswith("#")}))
        elif command == "done":
            try:
                tasks[int(arguments[0]) - 1].done = True
            except IndexError:
                print(f"There is no task {arguments[0]}.", file=sys.stderr)
                return 1
        elif command == "purge":
            db["tasks"] = [task for task in tasks if not task.done]
        for number, task in enumerate(db["tasks"], 1):
            print(f"{number}. [{'x' if task.done else ' '}] {task.text} {sorted(task.tags)}")
        print(f"{len(db['tasks'])} tasks, run {db['runs']}, keys {sorted(db)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
