"""The numbers of an evaluation: what a task is measured by, and how sure one may be of it.

Each example gives a row of numbers for each side, and a metric makes one number of rows. Intervals are of a bootstrap
that draws examples, the same for both sides, so that what is hard for both does not blur their difference. Seeded: the
same rows give the same numbers. Refuses nothing; evaluate.py judges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from onnx_converter import wording
from onnx_converter.spec import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Rows = NDArray[np.float64]

DRAWS: Final = 1000
_SEED: Final = 20260726
#: So many draws lie on either side of the interval of 95 %.
_TAIL: Final = DRAWS // 40


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and the interval that holds the true one in 95 of 100 cases."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides, and what is lost between them: above 0 the graph is worse."""

    original: Estimate
    graph: Estimate
    loss: Estimate


def compare(metric: Metric, original: Rows, graph: Rows) -> Comparison:
    """`original` and `graph` are (examples, numbers of each) of the same examples."""
    value = VALUES[metric]
    loss = _increase if metric in RELATIVE else _excess if metric in SMALLER_IS_BETTER else _shortfall
    generator = np.random.default_rng(_SEED)
    drawn = np.empty((DRAWS, 3))
    for draw in drawn:
        chosen = generator.integers(len(original), size=len(original))
        before, after = value(original[chosen]), value(graph[chosen])
        draw[:] = before, after, loss(before, after)
    before, after = value(original), value(graph)
    drawn.sort(axis=0)
    low, high = drawn[_TAIL], drawn[-1 - _TAIL]
    points = (before, after, loss(before, after))
    return Comparison(*(Estimate(*map(float, each)) for each in zip(points, low, high, strict=True)))


def _increase(before: float, after: float) -> float:
    return after / before - 1 if math.isfinite(after) and 0 < before < math.inf else math.inf


def _excess(before: float, after: float) -> float:
    return after - before


def _shortfall(before: float, after: float) -> float:
    return before - after


def _perplexity(rows: Rows) -> float:
    """Of rows of log-likelihood and number of units; lm-evaluation-harness's weighted_perplexity."""
    with np.errstate(over="ignore"):
        return float(np.exp(-rows[:, 0].sum() / rows[:, 1].sum()))


def _bits(rows: Rows) -> float:
    """lm-evaluation-harness's bits_per_byte, of rows of log-likelihood and bytes."""
    return float(-rows[:, 0].sum() / rows[:, 1].sum() / math.log(2))


def _mean(rows: Rows) -> float:
    return float(rows[:, 0].mean())


def _error_rate(rows: Rows) -> float:
    """Of rows of errors and how many words there should be."""
    return float(rows[:, 0].sum() / rows[:, 1].sum())


def _spearman(rows: Rows) -> float:
    """Of rows of two numbers. 0 where one of them never changes: it tells nothing of the other."""
    ranks = [_ranks(column) for column in rows.T]
    first, second = (one - one.mean() for one in ranks)
    spread = math.sqrt((first @ first) * (second @ second))
    return float(first @ second) / spread if spread else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is equal shares the mean of its ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return np.asarray((ends - (counts - 1) / 2)[places])


def _accuracy(rows: Rows) -> float:
    return float((rows[:, 0] == rows[:, 1]).mean())


def _f1_macro(rows: Rows) -> float:
    """Of rows of the answered and the true label: the mean of F1 over all labels that occur on either side."""
    answered, true = rows.astype(np.int64).T
    size = int(rows.max()) + 1
    hits = np.bincount(true[answered == true], minlength=size)
    occurrences = np.bincount(answered, minlength=size) + np.bincount(true, minlength=size)
    return float((2 * hits[occurrences > 0] / occurrences[occurrences > 0]).mean())


def _f1_of_counts(rows: Rows) -> float:
    """Of rows of how many agree, were answered and are true: over all of them together."""
    agreeing, answered, true = rows.sum(axis=0)
    return float(2 * agreeing / (answered + true)) if answered + true else 0.0


def _share(rows: Rows) -> float:
    """Of rows of how many are right and how many there are."""
    return float(rows[:, 0].sum() / rows[:, 1].sum())


VALUES: Final[dict[Metric, Callable[[Rows], float]]] = {
    Metric.WORD_PERPLEXITY: _perplexity,
    Metric.BYTE_PERPLEXITY: _perplexity,
    Metric.BITS_PER_BYTE: _bits,
    Metric.MULTIPLE_CHOICE: _mean,
    Metric.MULTIPLE_CHOICE_NORMALIZED: _mean,
    Metric.STS_SPEARMAN: _spearman,
    Metric.RETRIEVAL_NDCG10: _mean,
    Metric.ACCURACY: _accuracy,
    Metric.F1_MACRO: _f1_macro,
    Metric.ENTITY_F1: _f1_of_counts,
    Metric.TOKEN_ACCURACY: _share,
    Metric.WORD_ERROR_RATE: _error_rate,
    Metric.BLEU: lambda rows: wording.bleu(rows.sum(axis=0)),
    Metric.CHRF: lambda rows: wording.chrf(rows.sum(axis=0)),
    Metric.PASS_AT_K: _mean,
}
#: What is lost of these is a share of what the original has.
RELATIVE: Final = frozenset({Metric.WORD_PERPLEXITY, Metric.BYTE_PERPLEXITY, Metric.BITS_PER_BYTE})
SMALLER_IS_BETTER: Final = RELATIVE | {Metric.WORD_ERROR_RATE}
_DEPTH: Final = 10


def ndcg(is_relevant: NDArray[np.bool_]) -> float:
    """nDCG@10 of one query, by whether each document is relevant, best first."""
    found, best = is_relevant[:_DEPTH], np.sort(is_relevant)[::-1][:_DEPTH]
    return float(found @ _discounts(len(found)) / (best @ _discounts(len(best))))


def ndcg_by_chance(relevant: int, documents: int) -> float:
    """What a random order has on average."""
    best = _discounts(min(relevant, _DEPTH)).sum()
    return float(relevant / documents * _discounts(min(documents, _DEPTH)).sum() / best)


def _discounts(length: int) -> NDArray[np.float64]:
    return np.asarray(1 / np.log2(np.arange(2, length + 2)))


def entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """Kind, first word and the one after the last, as CoNLL's own script reads B-, I- and O.

    What continues nothing of its kind begins it, and a label without a prefix continues.
    """
    found, begun = set(), 0
    kinds = [("", "") if label == "O" else _parted(label) for label in [*labels, "O"]]
    for place in range(1, len(kinds)):
        before, now = kinds[place - 1], kinds[place]
        if now[0] == "B" or now[1] != before[1]:
            if before[1]:
                found.add((before[1], begun, place))
            begun = place
    return found


def _parted(label: str) -> tuple[str, str]:
    prefix, _, kind = label.partition("-")
    return (prefix, kind) if kind and prefix in ("B", "I") else ("I", label)


def log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Of tokens, in nats, by the logits (tokens, vocabulary) before each."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    chosen = wide[np.arange(len(targets)), targets]
    return float((chosen - np.log(np.exp(wide).sum(axis=-1))).sum())
