"""
Loops over a store in which the caller, the call or the frame stays the same around a write.

The tests run them as Python, and compiled by Cython and mypyc, so there are no imports from this project.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function, always from this line."""
    return function(*arguments)


def helper_around_a_write(store: Any, other: Any) -> Any:
    """Read every key by the same helper, around another handle's write of each."""
    results = []
    for key in call(store.keys):
        call(other.__setitem__, key, "new " + key)
        results.append(call(store.__getitem__, key))
    return results


def helper_over_listed_keys(store: Any, other: Any) -> Any:
    """Read every key of a list by the same helper, around the store's own write of the next."""
    results = []
    keys = call(list, call(iter, call(store.keys)))
    for number, key in enumerate(keys):
        results.append(call(store.__getitem__, key))
        if number + 1 < len(keys):
            call(store.__setitem__, keys[number + 1], number)
    return results


def methods_by_name(store: Any, other: Any) -> Any:
    """Call methods by their names, from one line."""
    first = "a"
    results = []
    steps: list[tuple[Any, str, tuple[Any, ...]]] = [
        (store, "keys", ()),
        (store, "__iter__", ()),
        (store, "__len__", ()),
        (other, "__setitem__", ("new", 1)),
        (store, "__len__", ()),
        (store, "__getitem__", (first,)),
        (other, "__setitem__", (first, "new")),
        (store, "__getitem__", (first,)),
        (other, "__delitem__", ("new",)),
        (store, "__len__", ()),
    ]
    for subject, method, arguments in steps:
        result = getattr(subject, method)(*arguments)
        if method in ("__len__", "__getitem__"):
            results.append(result)
    return results


def executor_of_one_worker(store: Any, other: Any) -> Any:
    """Have a single worker list the keys, and read each after a write."""
    results = []
    with ThreadPoolExecutor(1) as executor:
        keys = executor.submit(list, executor.submit(iter, executor.submit(store.keys).result()).result()).result()
        for key in keys:
            executor.submit(other.__setitem__, key, "new " + key).result()
            results.append(executor.submit(store.__getitem__, key).result())
            results.append(executor.submit(len, store).result())
    return results


def begin(store: Any) -> Iterator[str]:
    """Begin an iteration."""
    return iter(store)


def count(store: Any) -> int:
    """Count the keys."""
    return len(store)


def iteration_in_one_function_length_in_another(store: Any, other: Any) -> Any:
    """Begin an iteration and count the keys, in functions of their own, around another client's writes."""
    iterator = begin(store)
    results: list[Any] = [count(store)]
    other["f"] = 6
    results.append(count(store))
    iterator = begin(store)
    del other["f"]
    results.append(count(store))
    other["g"] = 7
    results.append(sorted(iterator))
    results.append(count(store))
    return results


def raised_in_a_loop(store: Any, other: Any) -> Any:
    """Store a result for each key, which changes the value of the next."""
    keys = sorted(store)
    following = dict(itertools.pairwise(keys))
    for key in store.keys():  # noqa: SIM118 - `keys()` reads ahead
        store[key] = store[key] + 1
        if key in following:
            other[following[key]] = store[key] * 10
    return dict(store)


def copies_around_writes(store: Any, other: Any) -> Any:
    """Copy everything in three ways, around writes."""
    results = []
    for number in range(3):
        results.append([dict(store), {**store}, {key: store[key] for key in store.keys()}])  # noqa: SIM118
        other["a"] = number
        store["b"] = -number
    return results


LOOPS: dict[str, Callable[[Any, Any], Any]] = {
    "helper around a write": helper_around_a_write,
    "helper over listed keys": helper_over_listed_keys,
    "methods by name": methods_by_name,
    "executor of one worker": executor_of_one_worker,
    "iteration in one function, length in another": iteration_in_one_function_length_in_another,
    "raised in a loop": raised_in_a_loop,
    "copies around writes": copies_around_writes,
}
