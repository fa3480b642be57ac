"""Responses of which little is looked at, as a rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


@functools.cache
def lazy(base: type[R]) -> Callable[[int, bytes, Callable[[], R]], R]:
    """Return a kind of responses that are like those of `base`: made of status, content, and what makes the rest."""

    class LazyResponse(base):  # type: ignore[valid-type, misc]  # a class that is not known before
        """A response of which all but status and content is made when looked at: it would double the time to send."""

        def __init__(self, status: int, content: bytes, build: Callable[[], R]) -> None:
            self.status_code = status
            self._content = content
            self._content_consumed = True
            self._build = build

        def __getattr__(self, name: str) -> Any:
            build = vars(self).get("_build")
            if build is None or name.startswith("__"):
                raise AttributeError(name)
            self.__dict__.update({**vars(build()), **vars(self)})
            return object.__getattribute__(self, name)

    return LazyResponse
