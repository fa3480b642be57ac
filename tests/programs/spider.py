"""Spider with threads, whose frontier outlasts it: `spider.py SHELF PAGES`."""

import shelve
import sys
import threading
from queue import Empty, Queue

LINKS = {f"/{number}": [f"/{2 * number + 1}", f"/{2 * number + 2}"] for number in range(40)}


def main(filename: str, pages: str) -> None:
    """Visit some pages with threads, and keep the others for the next run."""
    lock = threading.Lock()
    with shelve.open(filename) as db:
        todo: Queue[str] = Queue()
        for address in db.setdefault("frontier", {"/0"}):
            todo.put(address)
        seen: set[str] = set(db.get("seen", ()))
        left = int(pages)

        def work() -> None:
            nonlocal left
            while True:
                with lock:
                    if left == 0:
                        return
                    left -= 1
                try:
                    address = todo.get(timeout=1)
                except Empty:
                    return
                links = LINKS.get(address, [])
                with lock:
                    seen.add(address)
                    db[f"page {address}"] = {"links": links, "depth": address.count("/")}
                    db["seen"] = seen
                    for link in links:
                        todo.put(link)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        db["frontier"] = {todo.get_nowait() for _ in range(todo.qsize())}
        known = {link for address in seen for link in LINKS.get(address, [])} | {"/0"}
        print(len(seen), known == seen | db["frontier"], sum(key.startswith("page ") for key in db))


if __name__ == "__main__":
    main(*sys.argv[1:])
