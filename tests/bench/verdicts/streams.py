"""Requests and errors as they might come: seeded streams, the same ones for every rule that is to judge them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LOOK_SECONDS: Final = 10
WEIGHTS: Final = (10, 50)
"""The steps of every rollout here, in percent."""
STEP_LOOKS: Final = 30
DEADLINE_LOOKS: Final = 90
"""A step lasts five minutes and is given up after fifteen."""
LOOKS: Final = DEADLINE_LOOKS * len(WEIGHTS)
BASE: Final = 0.01
"""The share of errors that is nobody's fault, in most streams."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What both sides live through; one row for each rollout, one column for each look."""

    requests: Floats
    """Requests that are split by weight."""
    rate: Floats
    """The share of errors, the same for both sides."""
    mine: Floats
    """Errors added to the candidate's share that have nothing to do with the model."""
    probes: int = 0
    """Requests that each side gets whatever its weight."""


@dataclass(frozen=True, slots=True)
class Stream:
    name: str
    make: Callable[[np.random.Generator, int], Weather]


@dataclass(frozen=True, slots=True)
class Harm:
    """What is wrong with the candidate: its share of errors from that of stable, by step and look."""

    name: str
    spoil: Callable[[Floats, int], Floats]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bad answers and answers, indexed by step, rollout and look."""

    candidate_bad: NDArray[np.int64]
    candidate_total: NDArray[np.int64]
    stable_bad: NDArray[np.int64]
    stable_total: NDArray[np.int64]


def generate(stream: Stream, harm: Harm, *, rollouts: int, seed: int) -> Traffic:
    """Everything the rollouts could see, at either weight."""
    chance = np.random.default_rng(seed)
    weather = stream.make(chance, rollouts)
    sides: list[list[NDArray[np.int64]]] = []
    for step, weight in enumerate(WEIGHTS):
        users = chance.poisson(weather.requests)
        to_candidate = chance.binomial(users, weight / 100)
        ours, theirs = to_candidate + weather.probes, users - to_candidate + weather.probes
        bad = chance.binomial(ours, np.clip(harm.spoil(weather.rate, step) + weather.mine, 0, 1))
        sides.append([bad, ours, chance.binomial(theirs, weather.rate), theirs])
    return Traffic(*(np.stack(each) for each in zip(*sides, strict=True)))


def _flat(rollouts: int, value: float) -> Floats:
    return np.full((rollouts, LOOKS), value)


def _steady(per_look: float, rate: float = BASE) -> Callable[[np.random.Generator, int], Weather]:
    return lambda _, rollouts: Weather(_flat(rollouts, per_look), _flat(rollouts, rate), _flat(rollouts, 0))


def _swing(chance: np.random.Generator, rollouts: int) -> Floats:
    """A whole day in ten minutes, beginning anywhere in it: far worse than life."""
    return np.sin(2 * np.pi * (np.arange(LOOKS) / 60 + chance.random((rollouts, 1))))


def _drifting(chance: np.random.Generator, rollouts: int) -> Weather:
    swing = _swing(chance, rollouts)
    return Weather(200 * (1 + 0.7 * swing), BASE * np.exp(1.1 * swing), _flat(rollouts, 0))


def _probed_by_night(chance: np.random.Generator, rollouts: int) -> Weather:
    """By night, when most goes wrong, the prober asks both sides the same: the split moves together with the rate."""
    swing = _swing(chance, rollouts)
    return Weather(100 * (1 + swing), BASE * np.exp(-2 * swing), _flat(rollouts, 0), probes=10)


def _bursts(chance: np.random.Generator, rollouts: int, *, begin: float, looks: float) -> NDArray[np.bool_]:
    is_on, rows = np.zeros((rollouts, LOOKS), dtype=bool), np.zeros(rollouts, dtype=bool)
    for look in range(LOOKS):
        rows = np.where(rows, chance.random(rollouts) > 1 / looks, chance.random(rollouts) < begin)
        is_on[:, look] = rows
    return is_on


def _bursting(chance: np.random.Generator, rollouts: int) -> Weather:
    rate = np.where(_bursts(chance, rollouts, begin=0.03, looks=3), 0.25, BASE)
    return Weather(_flat(rollouts, 200), rate, _flat(rollouts, 0))


def _wandering(chance: np.random.Generator, rollouts: int) -> Weather:
    """The logarithm of the rate is an autoregression: 0.9 of what it was, and a push."""
    level, path = chance.normal(0, 0.8, rollouts), []
    for _ in range(LOOKS):
        path.append(level)
        level = 0.9 * level + chance.normal(0, 0.8 * np.sqrt(1 - 0.9**2), rollouts)
    rate = np.minimum(BASE * np.exp(np.stack(path, axis=1)), 0.5)
    return Weather(_flat(rollouts, 200), rate, _flat(rollouts, 0))


def _bad_node(chance: np.random.Generator, rollouts: int) -> Weather:
    """Now and then the node under the candidate's pods loses a tenth of the requests for a minute."""
    is_on = _bursts(chance, rollouts, begin=0.01, looks=6)
    return Weather(_flat(rollouts, 200), _flat(rollouts, BASE), np.where(is_on, 0.1, 0))


STEADY: Final = Stream("steady, 20 requests a second", _steady(200))
STREAMS: Final = (
    STEADY,
    Stream("the same with 0.1 % errors", _steady(200, 0.001)),
    Stream("a day's drift in ten minutes", _drifting),
    Stream("worse by night, with the prober alone", _probed_by_night),
    Stream("bursts of 25 % that both sides share", _bursting),
    Stream("autocorrelated, a third to three times", _wandering),
    Stream("tiny: one request in two seconds", _steady(5)),
)
BAD_NODE: Final = Stream("limit: a bad node under the candidate", _bad_node)

NONE: Final = Harm("as good as stable", lambda rate, _: rate)
FIVEFOLD: Final = Harm("five times the errors", lambda rate, _: rate * 5)
HARMS: Final = (
    Harm("twice the errors", lambda rate, _: rate * 2),
    FIVEFOLD,
    Harm("a quarter fails", lambda rate, _: rate + 0.25),
    Harm("three times, at weight 50 only", lambda rate, step: rate * (3 if step else 1)),
    Harm("a quarter fails from minute 4 on", lambda rate, _: rate + np.where(np.arange(LOOKS) < 24, 0, 0.25)),
)
