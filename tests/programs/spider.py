"""Spider with threads, whose frontier outlasts it: `spider.py SHELF PAGES`."""

import shelve
import sys
import threading
from queue import Empty, SimpleQueue

LINKS = {f"/{number}": [f"/{2 * number + 1}", f"/{2 * number + 2}"] for number in range(40)}


def main(filename: str, pages: str) -> None:
    """Visit some pages with threads, a level of links after another, and keep the others for the next run."""
    lock = threading.Lock()
    with shelve.open(filename) as db:
        frontier: set[str] = db.setdefault("frontier", {"/0"})
        seen: set[str] = set(db.get("seen", ()))
        left = int(pages)
        while left and frontier:
            level: SimpleQueue[str] = SimpleQueue()
            for address in sorted(frontier)[:left]:
                level.put(address)
            left -= level.qsize()

            def work(level: SimpleQueue[str] = level) -> None:
                while True:
                    try:
                        address = level.get_nowait()
                    except Empty:
                        return
                    links = LINKS.get(address, [])
                    with lock:
                        seen.add(address)
                        db[f"page {address}"] = {"links": links, "depth": address.count("/")}
                        db["seen"] = seen

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            frontier = (frontier | {link for address in seen for link in LINKS.get(address, [])}) - seen
        db["frontier"] = frontier
        print(len(seen), len(frontier), sum(key.startswith("page ") for key in db))


if __name__ == "__main__":
    main(*sys.argv[1:])
