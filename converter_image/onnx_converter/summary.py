"""The last words of a step: a JSON object that fits a container's termination message.

Shared with the operator, so standard library only. Refuses to exceed the 4096 bytes the kubelet keeps (a cut-off
message would be unreadable JSON), and to read anything that is not exactly such a summary.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT: Final = 4096
#: What a condition of Kubernetes takes as its reason.
_REASON: Final = re.compile(r"[A-Z][A-Za-z0-9]{0,127}")
ELLIPSIS: Final = "…"

Outcome = Literal["Succeeded", "Failed"]


class SummaryError(ValueError):
    """The text is not a summary; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a step ended."""

    step: str
    outcome: Outcome
    reason: str
    message: str
    exit_code: int
    details: Mapping[str, Any] = field(default_factory=dict)


def dump(summary: Summary) -> str:
    """One line of JSON of at most 4096 bytes; a message that is too long is cut, details never are."""
    text = _encode(summary, summary.message)
    excess = len(text.encode()) - LIMIT
    if excess <= 0:
        return text
    message = summary.message
    while excess > 0 and message:
        kept = len(message.encode()) - excess - len(ELLIPSIS.encode())
        message = message.encode()[: max(kept, 0)].decode(errors="ignore")
        text = _encode(summary, message + ELLIPSIS)
        excess = len(text.encode()) - LIMIT
    if excess > 0:
        raise SummaryError(f"the details of step {summary.step} exceed the {LIMIT} bytes of a termination message")
    return text


def _encode(summary: Summary, message: str) -> str:
    value = {
        "step": summary.step,
        "outcome": summary.outcome,
        "reason": summary.reason,
        "message": message,
        "exitCode": summary.exit_code,
        "details": summary.details,
    }
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def parse(text: str) -> Summary:
    """The summary in a termination message. A container's output is not to be trusted: every field is checked."""
    try:
        value = json.loads(text)
        # An escape can write half a surrogate pair, which nothing after this could encode again.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise SummaryError(f"the termination message is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise SummaryError(f"the termination message is a JSON {type(value).__name__}, not an object")
    for name, kind in (("step", str), ("outcome", str), ("reason", str), ("message", str), ("details", dict)):
        if not isinstance(value.get(name), kind):
            raise SummaryError(f"{name} of the termination message is missing or no {kind.__name__}")
    if not _REASON.fullmatch(value["reason"]):
        raise SummaryError(f"reason of the termination message is {value['reason'][:80]!r}, not in PascalCase")
    outcome = value["outcome"]
    if outcome not in ("Succeeded", "Failed"):
        raise SummaryError(f"outcome of the termination message is {outcome!r}, neither Succeeded nor Failed")
    exit_code = value.get("exitCode")
    if not isinstance(exit_code, int) or isinstance(exit_code, bool):
        raise SummaryError("exitCode of the termination message is missing or no int")
    if (exit_code == 0) != (outcome == "Succeeded"):
        raise SummaryError(f"the termination message contradicts itself: {outcome} with exit code {exit_code}")
    return Summary(value["step"], outcome, value["reason"], value["message"], exit_code, value["details"])
