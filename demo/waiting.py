"""Waiting for facts. Never for time alone: every wait names what it waits for and has a deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from demo.kubectl import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class DeadlineError(Exception):
    """What was waited for did not come."""


def until(what: str, look: Callable[[], T | None], *, seconds: float, every: float = 1.0) -> T:
    """The first answer of `look` that is neither None nor False.

    An API server that does not answer is waited for as well: it says nothing about what is waited for.
    """
    deadline = time.monotonic() + seconds
    silence: UnreachableError | None = None
    while True:
        try:
            answer = look()
        except UnreachableError as unreachable:
            answer, silence = None, unreachable
        else:
            silence = None
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() >= deadline:
            why = f"; last answer of the cluster: {silence}" if silence else ""
            raise DeadlineError(f"waited {seconds:.0f} s for {what}{why}")
        time.sleep(every)
