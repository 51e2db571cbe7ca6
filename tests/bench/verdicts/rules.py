"""Three ways to judge the same streams. Ours is the operator's own code, fed as the operator feeds it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from typing_extensions import override

from bench.verdicts.streams import DEADLINE_LOOKS, STEP_LOOKS, WEIGHTS
from onnx_operator.core.analysis import Measurement, Outcome, Verdict, judge_all, worst
from onnx_operator.core.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.verdicts.streams import Traffic
    from onnx_operator.core.analysis import Criterion
    from onnx_operator.core.evidence import Evidence


PROMISE: Final = 0.001
"""The default of `maxFalseRollback`."""


class Fate(Enum):
    """How a rollout ended."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    GIVEN_UP = "given up"
    """At the deadline, for want of samples or of certainty."""


@dataclass(frozen=True, slots=True)
class Ending:
    fate: Fate
    looks: int
    requests: int
    """Answers of the candidate until then."""


class Judge(Protocol):
    """The state of one rollout's judging."""

    def enter_step(self) -> None: ...

    def look(self, candidate: Counts, stable: Counts) -> Verdict:
        """Judge by what came since the last look."""


class Ours(Judge):
    """`core.analysis` with its evidence carried from look to look, as the ledger does."""

    def __init__(self, wanted: tuple[Criterion, ...], *, steps: int = len(WEIGHTS), promise: float = PROMISE) -> None:
        self._wanted, self._steps, self._promise = wanted, steps, promise
        self._before: Mapping[str, tuple[Evidence, ...]] = {}
        self.enter_step()

    @override
    def enter_step(self) -> None:
        self._candidate, self._stable, self._before = Counts(0, 0), Counts(0, 0), {}

    @override
    def look(self, candidate: Counts, stable: Counts) -> Verdict:
        self._candidate += candidate
        self._stable += stable
        measured = [Measurement(one.metric, Outcome.MEASURED, self._candidate, self._stable) for one in self._wanted]
        judged = judge_all(self._wanted, measured, steps=self._steps, promise=self._promise, before=self._before)
        self._before = {one.metric: one.evidence for one in judged}
        return worst(one.verdict for one in judged)


class Thresholds(Judge):
    """A check per interval of the candidate alone; so many failed ones in the whole rollout end it."""

    def __init__(self, *, above: float, failures: int, silence: Verdict) -> None:
        self._above, self._failures, self._silence, self._failed = above, failures, silence, 0

    @override
    def enter_step(self) -> None:
        """Failures are counted over the whole rollout."""

    @override
    def look(self, candidate: Counts, stable: Counts) -> Verdict:
        verdict = self._silence
        if candidate.total:
            verdict = Verdict.INCONCLUSIVE if candidate.ratio > self._above else Verdict.PASS
        self._failed += verdict is not Verdict.PASS
        return Verdict.FAIL if self._failed >= self._failures else verdict


def flagger() -> Judge:
    """Flagger's `threshold: 5` with its request-success-rate of at least 99 %; no values are a failed check."""
    return Thresholds(above=0.01, failures=5, silence=Verdict.NO_DATA)


def argo() -> Judge:
    """The success rate of Argo Rollouts' documentation: at least 95 %, `failureLimit: 3`."""
    return Thresholds(above=0.05, failures=4, silence=Verdict.PASS)


LOOKED_AT_MOST: Final = DEADLINE_LOOKS * len(WEIGHTS)


def play(traffic: Traffic, new: Callable[[], Judge]) -> Iterator[Ending]:
    """Every rollout of the traffic, judged by a new judge: a step ends when it has lasted and the last look passed."""
    shape = (traffic.candidate_bad, traffic.candidate_total, traffic.stable_bad, traffic.stable_total)
    for rollout in range(traffic.candidate_bad.shape[1]):
        yield _roll([[side[step, rollout].tolist() for side in shape] for step in range(len(WEIGHTS))], new())


def _roll(steps: list[list[list[int]]], judge: Judge) -> Ending:
    look, requests = 0, 0
    for bad, total, stable_bad, stable_total in steps:
        judge.enter_step()
        entered = look
        while True:
            if look - entered >= DEADLINE_LOOKS:
                return Ending(Fate.GIVEN_UP, look, requests)
            requests += total[look]
            ours, theirs = Counts(bad[look], total[look]), Counts(stable_bad[look], stable_total[look])
            verdict = judge.look(ours, theirs)
            look += 1
            if verdict is Verdict.FAIL:
                return Ending(Fate.ROLLED_BACK, look, requests)
            if look - entered >= STEP_LOOKS and verdict is Verdict.PASS:
                break
    return Ending(Fate.PROMOTED, look, requests)


def fates(endings: list[Ending]) -> Counter[Fate]:
    return Counter(ending.fate for ending in endings)
