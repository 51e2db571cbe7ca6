"""When a window is open. Cron is `cronsim`'s business, time zones are `zoneinfo`'s; here is only what a window is.

Pure: the moment is a parameter.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from onnx_operator.api.common import parse_duration

if TYPE_CHECKING:
    from onnx_operator.api.windows import Window

_FIELDS: Final = 5
_ANY_MOMENT: Final = datetime(2026, 1, 1, tzinfo=UTC)


def problem_of(window: Window) -> str:
    """What keeps the window from being understood, with its field and the way out; empty when nothing does."""
    try:
        zone = _zone(window)
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


def closes(window: Window, now: datetime) -> datetime:
    """When the window closes that opened last; not after `now` for one that is closed."""
    # Backwards from a second later, because a window that opens now is open now.
    start = now.astimezone(_zone(window)).replace(microsecond=0) + timedelta(seconds=1)
    opened = next(CronSim(window.schedule, start, reverse=True), None)
    return now if opened is None else opened.astimezone(UTC) + parse_duration(window.duration)


def opens(window: Window, now: datetime) -> datetime:
    """When the window opens next, after `now`."""
    return next(CronSim(window.schedule, now.astimezone(_zone(window)))).astimezone(UTC)


def _zone(window: Window) -> ZoneInfo:
    return ZoneInfo("UTC" if window.time_zone is None else window.time_zone)
