"""Freeze windows: times in which nothing new may reach users.

Cron is `cronsim`'s business, time zones are `zoneinfo`'s; here is only what a window is. Pure: the moment is a
parameter.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from onnx_operator.api.common import parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_operator.api.rollout import FreezeWindow

_FIELDS: Final = 5
#: Windows that open before others close are told as one; beyond so many it is enough to look again then.
_LINKS: Final = 32
_ANY_MOMENT: Final = datetime(2026, 1, 1, tzinfo=UTC)


def problem_of(window: FreezeWindow) -> str:
    """What keeps the window from being understood, with its field and the way out; empty when nothing does."""
    try:
        zone = ZoneInfo(window.time_zone)
    except (KeyError, ValueError, OSError):  # OSError: a folder of zones, such as America
        return f"timeZone {window.time_zone!r} is not known; write an IANA name such as Europe/Berlin, or UTC"
    advice = "write minute, hour, day of month, month and day of week, such as 0 18 * * FRI"
    if len(window.schedule.split()) != _FIELDS:
        return f"schedule {window.schedule!r} does not have five fields; {advice}"
    try:
        next(CronSim(window.schedule, _ANY_MOMENT.astimezone(zone)))
    except CronSimError as error:
        return f"schedule {window.schedule!r} is no cron expression ({error}); {advice}"
    except StopIteration:
        return f"schedule {window.schedule!r} never comes; {advice}"
    return ""


def frozen_until(windows: Sequence[FreezeWindow], now: datetime) -> datetime | None:
    """When the last of the windows closes that are open now or open before another one closes; None while all are
    closed.
    """
    until = now
    for _ in range(_LINKS):
        later = max((_closes(window, until) for window in windows), default=until)
        if later <= until:
            break
        until = later
    return until if until > now else None


def _closes(window: FreezeWindow, now: datetime) -> datetime:
    """When the window closes that opened last; in the past for one that is closed."""
    # Backwards from a second later, because a window that opens now is open now.
    start = now.astimezone(ZoneInfo(window.time_zone)).replace(microsecond=0) + timedelta(seconds=1)
    opened = next(CronSim(window.schedule, start, reverse=True), None)
    return now if opened is None else opened.astimezone(UTC) + parse_duration(window.duration)
