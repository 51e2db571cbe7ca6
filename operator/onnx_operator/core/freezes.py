"""Freeze windows: times in which nothing new may reach users. Pure: the moment is a parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx_operator.core.windows import closes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from onnx_operator.api.rollout import FreezeWindow

#: Windows that open before others close are told as one; beyond so many it is enough to look again then.
_LINKS: Final = 32


def frozen_until(windows: Sequence[FreezeWindow], now: datetime) -> datetime | None:
    """When the last of the windows closes that are open now or open before another one closes; None while all are
    closed.
    """
    until = now
    for _ in range(_LINKS):
        later = max((closes(window, until) for window in windows), default=until)
        if later <= until:
            break
        until = later
    return until if until > now else None
