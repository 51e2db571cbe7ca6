"""How strongly the answers so far speak against a bound: a bet that only a candidate beyond the bound can win on.

At every look the new answers are bet on. A stake is put on the candidate's bad answers, and where it is compared with
stable, a counter-stake on stable's, sized so that whatever makes both sides worse gains nothing. Stakes are chosen by
earlier looks alone. While the candidate keeps to its bound, no look is expected to win, whatever the rate was in that
look: a daily drift or a shock that both sides share does no harm. So the purse, which begins at 1 and is multiplied by
what each look pays, ever reaches 1/alpha with a chance of at most alpha (Ville's inequality), and looking every few
seconds adds nothing to that chance as it does with binomial or Fisher tests.

In figures: let q be the rate the bound allows the candidate, p that of stable (q = p + tolerance), n and m the new
answers of each, s the stake. A bad answer of the candidate pays 1 + s(1-q), a good one 1 - sq; of stable 1 - r(1-p) and
1 + rp, with rm = sn. For true rates q* and p* with q* <= p* + tolerance a look is expected to pay at most
(1 + s(q*-q))^n (1 - r(p*-p))^m <= exp(sn(q* - q - p* + p)) <= 1. It holds for every p and s; what they are is a matter
of skill only. The idea is from Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests".

Pure, and nothing is remembered here: an `Evidence` is a few numbers that the ledger keeps from look to look.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from math import exp, inf, log, log1p, sqrt
from typing import Final

from onnx_operator.core.counts import Counts

_GUESSES: Final = ((-1.3, 0.25), (0.0, 0.5), (1.3, 0.25))
"""The stake is divided among three guesses of the candidate's rate: how many deviations off the estimate, what part."""
_CANDIDATE_UNSEEN: Final = (0.5, 10.0)
_STABLE_UNSEEN: Final = (0.5, 50.0)
"""Bad answers and answers that each estimate begins with: a candidate nobody has seen may be anything, even crashed."""
_CAUTION: Final = 0.25
"""The part of the purse that is not staked while the candidate is unseen."""
_STAKED_AT_MOST: Final = 0.95
"""No single answer may cost more than this part of a stake: a bet that can lose everything can win nothing later."""
_TO_BE_SURE: Final = 2.0
"""With twice the answers after which the purse is full on average, a harm is found nine times in ten; measured."""
_LEAST_RATE: Final = 1e-6
_GUESSED_AT_MOST: Final = 0.95
_LARGEST: Final = 500.0
"""Nothing is larger than its exponential, and nobody needs to know how much."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the looks of a step have come to for one bound. `stable` is None where nothing is compared."""

    bound: str
    """The bound in words; what was gathered against another bound says nothing about this one."""
    strength: float
    """Log of the purse: 6.9 is a thousandfold, which chance alone brings about once in a thousand times."""
    candidate: Counts
    stable: Counts | None
    """The answers that were bet on so far."""


def beginning(bound: str, *, is_compared: bool) -> Evidence:
    """Before the first look."""
    return Evidence(bound, 0.0, Counts(0, 0), Counts(0, 0) if is_compared else None)


class Claim(Enum):
    """What is bet on."""

    BEYOND = auto()
    """The candidate is worse than its bound allows."""
    WITHIN = auto()
    """It is better than that. The same bet with its stakes turned round."""


def weigh(
    before: Evidence, candidate: Counts, stable: Counts | None, limit: float, claim: Claim = Claim.BEYOND
) -> Evidence:
    """Bet on what came since `before`. `limit` is the bound: a rate, or an excess over stable where it is compared.

    Answers of one side alone wait for those of the other: without a counter-stake nothing may be staked.
    """
    fresh, beside = candidate.since(before.candidate), _since(stable, before.stable)
    if fresh is None or (stable is not None and beside is None):
        return weigh(beginning(before.bound, is_compared=stable is not None), candidate, stable, limit, claim)
    if not fresh.total or (beside is not None and not beside.total):
        return before
    strength = before.strength + _payment(before, fresh, beside, limit, claim)
    return Evidence(
        before.bound,
        min(max(strength, -_LARGEST), _LARGEST),
        before.candidate + fresh,
        before.stable + beside if before.stable is not None and beside is not None else None,
    )


def samples_to_see(harm: float, limit: float, candidate: Counts, stable: Counts | None, alpha: float) -> float:
    """How many answers of the candidate show nine times in ten that it is beyond the limit by `harm`, if it is."""
    ratio, theirs = 0.0, 0.0
    if stable is not None:
        ratio, theirs = stable.total / max(candidate.total, 1), _estimate(stable, _STABLE_UNSEEN)
    ours = theirs + limit + harm
    if ours >= 1:
        return 0.0  # cannot be so bad
    rate = 0.0 if stable is None else _best_excuse(theirs, ours, ratio, limit)
    growth = _surprise(ours, rate + limit) + (ratio * _surprise(theirs, rate) if stable is not None else 0.0)
    return _TO_BE_SURE * log(1 / alpha) / growth


def _surprise(real: float, thought: float) -> float:
    """How much an answer is expected to tell when the rate is not what it was thought to be."""
    if thought <= 0:
        return inf
    return real * log(real / thought) + (1 - real) * log((1 - real) / (1 - thought))


def _since(now: Counts | None, before: Counts | None) -> Counts | None:
    return None if now is None or before is None else now.since(before)


def _payment(before: Evidence, fresh: Counts, beside: Counts | None, limit: float, claim: Claim) -> float:
    """Log of what one look pays."""
    if beside is None and limit <= 0:
        return _LARGEST if fresh.bad and claim is Claim.BEYOND else 0.0  # cannot happen under this bound
    if limit >= 1:
        return 0.0
    estimate, theirs = _estimate(before.candidate, _CANDIDATE_UNSEEN), _estimate(before.stable, _STABLE_UNSEEN)
    deviation = 1 / sqrt(before.candidate.bad + _CANDIDATE_UNSEEN[0])
    unstaked = _CAUTION * _CANDIDATE_UNSEEN[1] / (before.candidate.total + _CANDIDATE_UNSEEN[1])
    purse = unstaked
    for off, part in _GUESSES:
        guess = min(estimate * exp(off * deviation), _GUESSED_AT_MOST)
        is_beyond = guess > (limit if beside is None else theirs + limit)
        if is_beyond is not (claim is Claim.BEYOND):
            won = 0.0  # nobody bets against their own guess
        elif beside is None:
            won = _bet(fresh, limit, _stake(guess, limit))
        else:
            won = _hedged(fresh, beside, _best_excuse(theirs, guess, beside.total / fresh.total, limit), guess, limit)
        purse += (1 - unstaked) * part * exp(min(won, _LARGEST))
    return log(purse) if purse > 0 else -_LARGEST


def _estimate(seen: Counts | None, unseen: tuple[float, float]) -> float:
    bad, total = unseen
    return bad / total if seen is None else (seen.bad + bad) / (seen.total + total)


def _hedged(fresh: Counts, beside: Counts, rate: float, guess: float, tolerance: float) -> float:
    """Log of what a bet on the candidate with a counter-bet on stable, whose rate is thought to be `rate`, pays."""
    allowed, weight = rate + tolerance, fresh.total / beside.total
    most = _STAKED_AT_MOST / weight
    stake = min(max(_stake(guess, allowed), -most / rate), most / (1 - rate))
    return _bet(fresh, allowed, stake) + _bet(beside, rate, -stake * weight)


def _best_excuse(theirs: float, ours: float, ratio: float, tolerance: float) -> float:
    """The rate of stable under which both estimates are least surprising while the candidate keeps to the bound."""
    rate = min(theirs, 1 - tolerance - _LEAST_RATE)
    for _ in range(3):
        allowed = rate + tolerance
        stable, candidate = ratio / (rate * (1 - rate)), 1 / (allowed * (1 - allowed))
        rate = (stable * theirs + candidate * (ours - tolerance)) / (stable + candidate)
        rate = min(max(rate, _LEAST_RATE), 1 - tolerance - _LEAST_RATE)
    return rate


def _stake(guess: float, allowed: float) -> float:
    """What grows the purse fastest if the guess is right."""
    best = (guess - allowed) / (allowed * (1 - allowed))
    return min(max(best, -_STAKED_AT_MOST / (1 - allowed)), _STAKED_AT_MOST / allowed)


def _bet(counts: Counts, rate: float, stake: float) -> float:
    return counts.bad * log1p(stake * (1 - rate)) + (counts.total - counts.bad) * log1p(-stake * rate)
