"""What a rollout was like, for whoever asks afterwards: told beside the ledgers, and read by no decision.

Written down by the look that judges, with the judgement. A look that dies in between leaves a point that the next one
replaces or stands beside, and an end that the next one corrects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onnx_operator.api.revision import RecordedMetric, RecordedMoment, RolloutEnd, RolloutRecord
from onnx_operator.core import reasons
from onnx_operator.core.analysis import Verdict, criteria
from onnx_operator.core.conditions import ConditionType, moment, timestamp
from onnx_operator.core.counts import Counts
from onnx_operator.core.ledger import MoveModel, fate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from onnx_operator.api.model import CandidateStatus
    from onnx_operator.api.revision import OnnxModelRevisionStatus, QuarantineStatus
    from onnx_operator.api.rollout import Analysis
    from onnx_operator.core.analysis import Judgement
    from onnx_operator.core.conditions import Finding
    from onnx_operator.core.ladder import Standing
    from onnx_operator.core.ledger import Move
    from onnx_operator.core.view import View

MOST_POINTS: Final = 120
#: Of all points together. With eight metrics of large counts a point has some 300.
MOST_CHARACTERS: Final = 5000
_MOST_METRICS: Final = 8
MOST_MOMENTS: Final = 30
_HALF_AND_HALF: Final = 50

_LETTERS: Final = {
    Verdict.PASS: "P",
    Verdict.INCONCLUSIVE: "I",
    Verdict.NO_DATA: "N",
    Verdict.PROVIDER_ERROR: "E",
    Verdict.FAIL: "F",
}
_VERDICTS: Final = {letter: verdict for verdict, letter in _LETTERS.items()}
_NOTHING: Final = "-"
_UNTOLD: Final = f"{_NOTHING} {_NOTHING} {_NOTHING}"
_BETWEEN: Final = " | "

Side = Counts | float | None
"""What one side of a metric came to: counts, or the value itself where the metric is one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric at one moment."""

    verdict: Verdict
    candidate: Side
    stable: Side


@dataclass(frozen=True, slots=True)
class Point:
    """One judgement, `seconds` after the rollout began. A metric that was not judged is None."""

    seconds: int
    weight: int
    samples: tuple[Sample | None, ...]


# ---- writing


def recorded(
    view: View, candidate: CandidateStatus, standing: Standing, move: Move | None, status: OnnxModelRevisionStatus
) -> RolloutRecord:
    """The record of the candidate's rollout with what this look adds. `status` is the candidate's as it will be."""
    known = status.rollout
    if known is None or known.started_time != candidate.started_time:
        known = RolloutRecord(started_time=candidate.started_time)
    if view.judgements and view.plan is not None:
        known = _with_judgements(known, view, view.plan.analysis)
    end = _end(view, move, status.quarantine)
    # A move that had the first word changes what the ladder tells.
    if end is not None or move is not standing.move:
        return known.model_copy(update={"end": end})
    moments = _moments(known.moments, view, candidate, standing.story)
    return known.model_copy(update={"end": None, "moments": moments})


def _with_judgements(known: RolloutRecord, view: View, analysis: Analysis) -> RolloutRecord:
    declared = [
        RecordedMetric(
            name=one.metric,
            bound=one.words,
            maximum=_number(one.maximum if one.maximum_value is None else one.maximum_value),
            minimum=_number(one.minimum_value),
            tolerance=_number(one.tolerance),
            dry_run=one.is_dry_run,
        )
        for one in criteria(analysis, weight=_HALF_AND_HALF)
    ]
    metrics, before = _columns(known.metrics, declared), known.points
    if any(one.name != now.name for one, now in zip(known.metrics, metrics, strict=False)):
        before = []  # their columns are gone
    # The clock of the operator before may have been ahead of this one's.
    seconds = max(0, int((view.now - moment(known.started_time)).total_seconds()))
    newest = _line(seconds, view.candidate_weight, view.judgements, metrics)
    points = thinned([*(line for line in before if _seconds(line) < seconds), newest])
    return known.model_copy(update={"metrics": metrics, "points": points})


def _number(bound: Decimal | None) -> str | None:
    """In at most 24 characters, whatever was multiplied."""
    return None if bound is None else f"{bound:.17g}"


def _columns(known: Sequence[RecordedMetric], declared: Sequence[RecordedMetric]) -> list[RecordedMetric]:
    """What is judged now, in the places it has; anew where there is no place left."""
    now = {one.name: one for one in declared}
    columns = [now.pop(one.name, one) for one in known] + list(now.values())
    return columns if len(columns) <= _MOST_METRICS else list(declared)


def _line(seconds: int, weight: int, judgements: Sequence[Judgement], metrics: Sequence[RecordedMetric]) -> str:
    told = {
        str(one.metric): f"{_LETTERS[one.verdict]} {_side(one.candidate)} {_side(one.stable)}" for one in judgements
    }
    return _BETWEEN.join([f"{seconds} {weight}", *(told.get(one.name, _UNTOLD) for one in metrics)])


def _side(side: Side) -> str:
    if side is None:
        return _NOTHING
    if isinstance(side, Counts):
        return f"{side.bad}+{side.disputed}/{side.total}" if side.disputed else f"{side.bad}/{side.total}"
    return f"{side:.6g}"


def thinned(lines: Sequence[str]) -> list[str]:
    """As many of the points as there is room for, over the whole time.

    The first and the last stay, and the last of each weight, which is what was known when the weight changed. Of the
    others every second goes, as often as it takes; so the newest are the finest.
    """
    kept, gap = list(lines), 1
    while not _fit(kept) and gap <= _seconds(lines[-1]):
        kept, gap = _apart(kept, gap), 2 * gap
    while not _fit(kept):
        del kept[1]
    return kept


def _fit(lines: Sequence[str]) -> bool:
    return len(lines) <= MOST_POINTS and sum(map(len, lines)) <= MOST_CHARACTERS


def _apart(lines: Sequence[str], gap: int) -> list[str]:
    """The points that are that many seconds from the one before, and those that stay whatever happens."""
    kept = [lines[0]]
    for line, following in zip(lines[1:], [*lines[2:], None], strict=True):
        is_last = following is None or _weight(following) != _weight(line)
        if is_last or _seconds(line) - _seconds(kept[-1]) >= gap:
            kept.append(line)
    return kept


def _seconds(line: str) -> int:
    return int(line.split(" ", 1)[0])


def _weight(line: str) -> int:
    return int(line.split(" ", 2)[1])


def _moments(
    known: Sequence[RecordedMoment], view: View, candidate: CandidateStatus, story: Finding
) -> list[RecordedMoment]:
    """One for each change of what the model waits for. When there is no room, one that began no new weight goes."""
    is_about_it = view.wanted_name == candidate.revision and story.type is not ConditionType.TRAFFIC_PROGRAMMED
    if not is_about_it or (known and known[-1].reason == story.reason):
        return list(known)
    new = RecordedMoment(
        time=timestamp(view.now),
        weight=view.candidate_weight,
        reason=story.reason,
        message=_short(story.message, 160),
    )
    moments = [*known, new]
    if len(moments) > MOST_MOMENTS:
        dull = (place for place in range(1, MOST_MOMENTS) if moments[place].weight == moments[place - 1].weight)
        del moments[next(dull, 1)]
    return moments


def _end(view: View, move: Move | None, quarantine: QuarantineStatus | None) -> RolloutEnd | None:
    if quarantine is not None:
        return RolloutEnd(
            time=quarantine.time,
            outcome=str(fate(quarantine.stage)),
            reason=quarantine.reason,
            message=_short(quarantine.message, 512),
        )
    if not isinstance(move, MoveModel):
        return None
    now = timestamp(view.now)
    if move.ended is not None:
        said = _short(move.ended.message, 512)
        return RolloutEnd(time=now, outcome=move.ended.outcome, reason=move.ended.reason, message=said)
    if move.status.candidate is None:
        said = "the spec wants another revision"
        return RolloutEnd(time=now, outcome="Superseded", reason=reasons.SUPERSEDED, message=said)
    return None


def _short(text: str, most: int) -> str:
    """At most so many bytes: what a scheduler or a gateway says may be in any script."""
    raw = text.encode()
    return text if len(raw) <= most else f"{raw[: most - 3].decode(errors='ignore')}…"


# ---- reading


def read(line: str) -> Point:
    """A point as it was written; ValueError for anything else."""
    head, *parts = line.split(_BETWEEN)
    seconds, weight = head.split()
    return Point(int(seconds), int(weight), tuple(_sample(part) for part in parts))


def _sample(part: str) -> Sample | None:
    if part == _UNTOLD:
        return None
    verdict, candidate, stable = part.split()
    if verdict not in _VERDICTS:
        raise ValueError(f"{verdict} is no verdict")
    return Sample(_VERDICTS[verdict], _read_side(candidate), _read_side(stable))


def _read_side(text: str) -> Side:
    if text == _NOTHING:
        return None
    if "/" not in text:
        return float(text)
    bad, total = text.split("/")
    bad, _, disputed = bad.partition("+")
    return Counts(int(bad), int(total), int(disputed or 0))
