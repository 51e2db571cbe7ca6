"""Conditions as the Kubernetes conventions want them: all there from the first write, and calm.

`lastTransitionTime` moves only when the status flips. Nothing here decides; it only writes down.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from onnx_operator.api.common import Condition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The schema's bounds: a status that the API server refuses would stop the model.
_MESSAGE_LIMIT: Final = 2048
TEXT_LIMIT: Final = 1024


class ConditionType(StrEnum):
    """Every condition of an OnnxModel, in the order of a revision's life."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    ACCEPTED = "Accepted"
    SOURCE_RESOLVED = "SourceResolved"
    CONVERTED = "Converted"
    VALIDATED = "Validated"
    CANDIDATE_AVAILABLE = "CandidateAvailable"
    TRAFFIC_PROGRAMMED = "TrafficProgrammed"
    PROMOTED = "Promoted"


#: Conditions that tell about one stage, in the order in which stages are passed.
STAGES: Final = tuple(ConditionType)[3:]

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said under one condition."""

    type: ConditionType
    status: Status
    reason: str
    message: str


def written(
    findings: Iterable[Finding], before: Iterable[Condition], *, generation: int, now: datetime
) -> list[Condition]:
    """The findings as conditions; what flipped is stamped with now, what did not keeps its time."""
    old: Mapping[str, Condition] = {condition.type: condition for condition in before}
    return [_written(finding, old.get(finding.type), generation, timestamp(now)) for finding in findings]


def _written(finding: Finding, old: Condition | None, generation: int, now: str) -> Condition:
    is_same = old is not None and old.status == finding.status
    return Condition(
        type=finding.type,
        status=finding.status,
        observed_generation=generation,
        last_transition_time=old.last_transition_time if is_same and old is not None else now,
        reason=finding.reason,
        message=clipped(finding.message, _MESSAGE_LIMIT),
    )


def timestamp(moment: datetime) -> str:
    """As the API server writes times: UTC, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(moment: datetime) -> str:
    """A time that steps and deadlines are counted from: UTC, milliseconds."""
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{moment.microsecond // 1000:03d}Z"


def moment(text: str) -> datetime:
    """A time that was written by `timestamp` or `instant`."""
    return datetime.fromisoformat(text)


def clipped(text: str, limit: int = TEXT_LIMIT) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
