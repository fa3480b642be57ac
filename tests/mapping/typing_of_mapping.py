"""What type checkers see of the mapping: this file is checked by mypy, and never run."""

from __future__ import annotations

from typing import Any, assert_type

import cloudstore_mapping as cm

untyped = cm.open("memory:")
assert_type(untyped["key"], Any)

store = cm.CloudStoreMapping[dict[str, int]]("key")
assert_type(store["key"], dict[str, int])
assert_type(store.get("key"), dict[str, int] | None)
assert_type(store.get("key", 5), dict[str, int] | int)
assert_type(store.pop("key"), dict[str, int])
assert_type(store.pop("key", None), dict[str, int] | None)
assert_type(store.popitem(), tuple[str, dict[str, int]])
assert_type(list(store.keys()), list[str])
assert_type(list(store.values()), list[dict[str, int]])
assert_type(dict(store), dict[str, dict[str, int]])
assert_type(store.copy(), dict[str, dict[str, int]])
assert_type(store.get_many(["key"]), dict[str, dict[str, int]])
assert_type(store.get_as("key", list[int]), list[int])
assert_type(store.view("prefix")["key"], dict[str, int])
assert_type("key" in store, bool)
store["key"] = {"a": 1}
store["key"] = "text"  # type: ignore[assignment]
store[5] = {"a": 1}  # type: ignore[index]
