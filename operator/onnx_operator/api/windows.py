"""Times that come again and again: the shape that freeze windows and the schedules of pools share."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from onnx_operator.api.common import ApiModel, cel, duration_field, schema_extra


def _cron_field(value: str) -> str:
    item = f"([*]|{value}(-{value})?)(/[0-9]{{1,2}})?"
    return f"{item}(,{item})*"


_MONTHS: Final = "JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
_CRON: Final = " ".join(
    (
        f"(?i)^{_cron_field('[0-5]?[0-9]')}",
        _cron_field("([01]?[0-9]|2[0-3])"),
        _cron_field("(0?[1-9]|[12][0-9]|3[01]|LW?)"),
        _cron_field(f"(0?[1-9]|1[0-2]|{_MONTHS})"),
        f"{_cron_field('([0-7]|SUN|MON|TUE|WED|THU|FRI|SAT)(L|#[1-5])?')}$",
    )
)


class Window(ApiModel):
    """A time that comes again and again."""

    schedule: Annotated[
        str,
        Field(
            max_length=100,
            examples=["0 18 * * FRI"],
            json_schema_extra=schema_extra(
                cel(
                    f"self.matches('{_CRON}')",
                    "must be five cron fields with one space between them (minute, hour, day of month, month, day of "
                    "week), such as 0 18 * * FRI",
                )
            ),
        ),
    ]
    """When the window opens: minute, hour, day of month, month and day of week, as in Debian's cron. "0 18 * * FRI" is
    Friday at six in the evening, "0 0 L * *" the last day of each month, "0 0 * * TUE#2" its second Tuesday."""
    duration: Annotated[str, duration_field(least="1m")]
    """How long it stays open, such as 62h for a weekend; windows may overlap."""
    # No default: kubectl apply sends a list whole, so a default inside of one is a change at every apply.
    time_zone: (
        Annotated[
            str,
            Field(
                max_length=64,
                examples=["Europe/Berlin"],
                json_schema_extra=schema_extra(
                    cel(
                        "self.matches('^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$')",
                        "must be the IANA name of a time zone, such as Europe/Berlin or UTC",
                    )
                ),
            ),
        ]
        | None
    ) = None
    """IANA name of the time zone that the schedule is read in, such as Europe/Berlin; UTC when unset."""
