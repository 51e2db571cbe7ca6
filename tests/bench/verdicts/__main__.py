"""How often good candidates are taken back, how often bad ones get through, and what it takes to tell them apart.

    make bench-verdicts

Prints the tables of docs/concepts/verdicts.md. Seeded: the same command prints the same figures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from math import sqrt
from statistics import NormalDist, fmean, quantiles
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.verdicts.rules import PROMISE, Fate, Ours, argo, fates, flagger, play
from bench.verdicts.streams import BAD_NODE, FIVEFOLD, HARMS, LOOK_SECONDS, NONE, STEADY, STREAMS, WEIGHTS, generate
from onnx_operator.api.rollout import MetricName
from onnx_operator.core.analysis import Criterion, Verdict
from onnx_operator.core.counts import Counts
from onnx_operator.core.evidence import samples_to_see

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.verdicts.rules import Ending, Judge

STRICT: Final = (Criterion(MetricName.ERROR_RATIO, 50, tolerance=Decimal(0)),)
"""Nothing worse is fine: the bound on which a candidate as good as stable stands with one foot outside."""
DETECTING: Final = (replace(STRICT[0], detect=Decimal("0.03")),)
RULES: Final[dict[str, Callable[[], Judge]]] = {
    "tolerance 0": partial(Ours, STRICT),
    "tolerance 0, detect 0.03": partial(Ours, DETECTING),
    "Flagger's defaults": flagger,
    "failureLimit": argo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2000, help="rollouts of each stream without a regression")
    parser.add_argument("--seed", type=int, default=4)
    asked = parser.parse_args()
    good_candidates(asked.rollouts, asked.seed)
    bad_candidates(max(1, asked.rollouts // 10), asked.seed)
    requests_needed(max(1, asked.rollouts // 5), asked.seed)
    requests_awaited()
    requests_to_prove(max(1, asked.rollouts // 10), asked.seed)


def good_candidates(rollouts: int, seed: int) -> None:
    print(f"\n### Candidates as good as stable: rolled back + given up at the deadline, of {rollouts}\n")
    _row("stream", *RULES)
    _row("---", *("---" for _ in RULES))
    false = dict.fromkeys(RULES, 0)
    for number, stream in enumerate((*STREAMS, BAD_NODE)):
        traffic = generate(stream, NONE, rollouts=rollouts, seed=seed + number)
        counted = {name: fates(list(play(traffic, rule))) for name, rule in RULES.items()}
        _row(stream.name, *(f"{one[Fate.ROLLED_BACK]} + {one[Fate.GIVEN_UP]}" for one in counted.values()))
        if stream is not BAD_NODE:
            false = {name: false[name] + counted[name][Fate.ROLLED_BACK] for name in RULES}
    played = rollouts * len(STREAMS)
    _row(f"rolled back of {played:,}, without the limit", *(f"{count:,}" for count in false.values()))
    print(f"\nOurs promises {PROMISE * played:g} at most.")


def bad_candidates(rollouts: int, seed: int) -> None:
    print(f"\n### Bad candidates: mean requests and minutes until rolled back, and the rest of {rollouts}\n")
    _row("regression", "stream", *RULES)
    _row("---", "---", *("---" for _ in RULES))
    cases = [*((harm, STEADY) for harm in HARMS), *((FIVEFOLD, stream) for stream in STREAMS if stream is not STEADY)]
    for number, (harm, stream) in enumerate(cases):
        traffic = generate(stream, harm, rollouts=rollouts, seed=seed + 100 * number)
        _row(harm.name, stream.name, *(_cost(list(play(traffic, rule))) for rule in RULES.values()))


def _cost(endings: list[Ending]) -> str:
    caught, counted = [one for one in endings if one.fate is Fate.ROLLED_BACK], fates(endings)
    told = []
    if caught:
        minutes = fmean(one.looks for one in caught) * LOOK_SECONDS / 60
        told.append(f"{fmean(one.requests for one in caught):,.0f} in {minutes:.1f} min")
    if counted[Fate.GIVEN_UP]:
        told.append(f"{counted[Fate.GIVEN_UP]} given up")
    if counted[Fate.PROMOTED]:
        told.append(f"**{counted[Fate.PROMOTED]} missed**")
    return ", ".join(told)


def requests_needed(runs: int, seed: int) -> None:
    print(f"\n### Requests of the candidate until a regression is proved, {runs} runs each, one step, one bound\n")
    _row("stable : candidate", "errors", "requests a look", "fixed test", "mean", "90th percentile", "in two looks")
    _row(*["---"] * 7)
    for ratio, theirs, ours, per_look in (
        (1, 0.01, 0.02, 100),
        (9, 0.01, 0.02, 20),
        (1, 0.001, 0.01, 100),
        (9, 0.001, 0.01, 20),
        (1, 0.01, 0.25, 100),
        (9, 0.01, 0.25, 20),
        (9, 0.01, 0.25, 40),
    ):
        fixed = fixed_sample(theirs, ours, ratio)
        looks = [looks_to_prove(ratio, theirs, ours, per_look, seed + run) for run in range(runs)]
        needed = [look * per_look for look in looks]
        _row(
            f"{ratio}:1",
            f"{theirs:.1%} → {ours:.0%}",
            str(per_look),
            f"{fixed:,.0f}",
            f"{fmean(needed):,.0f} ({fmean(needed) / fixed:.2f}x)",
            f"{quantiles(needed, n=10)[-1]:,.0f} ({quantiles(needed, n=10)[-1] / fixed:.2f}x)",
            f"{sum(look <= 2 for look in looks) / runs:.0%}",
        )


def looks_to_prove(ratio: int, theirs: float, ours: float, per_look: int, seed: int) -> int:
    pair = Pair(ratio, theirs, ours, per_look)
    return _looks_until(Verdict.FAIL, STRICT, pair, seed=seed, at_most=10_000)


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides at steady rates: stable has `ratio` times the candidate's requests."""

    ratio: int
    theirs: float
    ours: float
    per_look: int


def _looks_until(verdict: Verdict, wanted: tuple[Criterion, ...], pair: Pair, *, seed: int, at_most: int) -> int:
    """Looks until the verdict, or one more than at most."""
    chance, judge, others = np.random.default_rng(seed), Ours(wanted, steps=1), pair.ratio * pair.per_look
    for look in range(1, at_most + 1):
        bad, stable_bad = chance.binomial(pair.per_look, pair.ours), chance.binomial(others, pair.theirs)
        if judge.look(Counts(int(bad), pair.per_look), Counts(int(stable_bad), others)) is verdict:
            return look
    return at_most + 1


def fixed_sample(theirs: float, ours: float, ratio: int) -> float:
    """Requests of the candidate for the one-sided test of two shares that looks once: power 0.9, alpha the promise."""
    rare, power = NormalDist().inv_cdf(1 - PROMISE), NormalDist().inv_cdf(0.9)
    pooled = (ours + ratio * theirs) / (1 + ratio)
    spread = rare * sqrt(pooled * (1 - pooled) * (1 + 1 / ratio))
    return float(((spread + power * sqrt(ours * (1 - ours) + theirs * (1 - theirs) / ratio)) / (ours - theirs)) ** 2)


def requests_awaited() -> None:
    print("\n### Requests of the candidate that `detect` waits for in a step, tolerance 0, one metric, two steps\n")
    sizes = (0.01, 0.03, 0.1)
    _row("stable's errors", "weight", *(f"detect {size}" for size in sizes))
    _row("---", "---", *("---" for _ in sizes))
    for theirs in (0.0, 0.001, 0.01, 0.05):
        for weight in WEIGHTS:
            ours, stable = (
                Counts(0, 1000 * weight),
                Counts(round(1000 * theirs) * (100 - weight), 1000 * (100 - weight)),
            )
            awaited = (samples_to_see(size, 0.0, ours, stable, PROMISE / len(WEIGHTS)) for size in sizes)
            _row(f"{theirs:.1%}", f"{weight} %", *(f"{samples:,.0f}" for samples in awaited))


def requests_to_prove(runs: int, seed: int) -> None:
    print(f"\n### proof: prove. Requests of the candidate until it is shown to be within tolerance, {runs} runs each\n")
    _row("stable : candidate", "errors of both", "tolerance", "mean", "90th percentile", "shown though beyond it")
    _row(*["---"] * 6)
    for ratio, theirs, tolerance, per_look in (
        (9, 0.001, 0.01, 20),
        (9, 0.01, 0.01, 50),
        (9, 0.01, 0.03, 20),
        (1, 0.01, 0.01, 100),
        (1, 0.01, 0.03, 100),
    ):
        wanted = (Criterion(MetricName.ERROR_RATIO, 50, tolerance=Decimal(str(tolerance)), is_to_be_proved=True),)
        as_good, beyond = (Pair(ratio, theirs, ours, per_look) for ours in (theirs, theirs + tolerance))
        looks = partial(_looks_until, Verdict.PASS, wanted)
        needed = [per_look * looks(as_good, seed=seed + run, at_most=10_000) for run in range(runs)]
        false = sum(looks(beyond, seed=seed + run, at_most=100) <= 100 for run in range(runs))
        _row(
            f"{ratio}:1",
            f"{theirs:.1%}",
            f"{tolerance}",
            f"{fmean(needed):,.0f}",
            f"{quantiles(needed, n=10)[-1]:,.0f}",
            f"{false} of {runs}",
        )


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
