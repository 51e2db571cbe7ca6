"""What was written beside what is right: the counts of which word error rate, BLEU and chrF are made.

The definitions of jiwer and of sacrebleu's defaults (BLEU|case:mixed|tok:13a|smooth:exp, chrF2), written out because
only counts can be drawn again for an interval, and because sacrebleu brings a parser of XML and a downloader into an
image that reads hostile files. The tests hold them to both libraries. Refuses nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Whisper's rule for all languages: lower case, nothing in brackets, no marks, symbols and punctuation, single blanks.
_NORMALIZED: Final = BasicTextNormalizer()
_WORDS: Final = 4
_CHARACTERS: Final = 6
#: How many times as much what is missing counts as what is too much.
_BETA: Final = 2
_ENTITIES: Final = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SEPARATED: Final = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def normalized(text: str) -> str:
    """As words of speech are compared."""
    return str(_NORMALIZED(text)).strip()


def word_errors(written: str, right: str) -> tuple[int, int]:
    """Words that are wrong, missing or too many, and how many there should be; of texts as they are."""
    found, wanted = written.split(), right.split()
    above = np.arange(len(wanted) + 1)
    places = np.arange(len(wanted) + 1)
    for word in found:
        differs = np.array([word != other for other in wanted], dtype=np.int64)
        here = np.minimum(above + 1, np.concatenate([[above[0] + 1], above[:-1] + differs]))
        # What is missing costs one a word: the least over all places before.
        above = np.minimum.accumulate(here - places) + places
    return int(above[-1]), len(wanted)


def bleu_counts(written: str, right: str) -> tuple[int, ...]:
    """Of words on either side, then for each length of n-grams those that agree and those that were written."""
    found, wanted = _separated(written), _separated(right)
    counts = [_shared(found, wanted, length) for length in range(1, _WORDS + 1)]
    return (len(found), len(wanted), *(number for of, _, agreeing in counts for number in (agreeing, of)))


def bleu(counts: NDArray[np.float64]) -> float:
    """Of the sum of counts, from 0 to 1."""
    written, right = counts[:2]
    agreeing, of = counts[2::2], counts[3::2]
    if not agreeing.any() or not of.all():
        return 0.0
    # Each length of which none agree counts half as much as the one before.
    halved = 0.5 ** np.cumsum(agreeing == 0)
    precisions = np.where(agreeing == 0, halved, agreeing) / of
    brevity = min(0.0, 1 - right / written)
    return float(math.exp(brevity + np.log(precisions).mean()))


def chrf_counts(written: str, right: str) -> tuple[int, ...]:
    """For each length of n-grams of characters those that were written, those that are right, and those that agree."""
    found, wanted = "".join(written.split()), "".join(right.split())
    counts = [_shared(found, wanted, length) for length in range(1, _CHARACTERS + 1)]
    # Of what is too long for the right text, none are too many.
    return tuple(number for of, there, agreeing in counts for number in (of if there else 0, there, agreeing))


def chrf(counts: NDArray[np.float64]) -> float:
    """Of the sum of counts, from 0 to 1."""
    written, right, agreeing = counts[::3], counts[1::3], counts[2::3]
    both = (written > 0) & (right > 0)
    if not agreeing.any():
        return 0.0
    precision, recall = (agreeing[both] / written[both]).mean(), (agreeing[both] / right[both]).mean()
    return float((1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall))


def _shared(found: Sequence[str], wanted: Sequence[str], length: int) -> tuple[int, int, int]:
    """N-grams found, wanted and in both."""
    ours, theirs = (
        Counter(tuple(one[start : start + length]) for start in range(len(one) - length + 1)) for one in (found, wanted)
    )
    return ours.total(), theirs.total(), (ours & theirs).total()


def _separated(text: str) -> list[str]:
    """Words, numbers and punctuation apart, as mteval-v13a has them."""
    line = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        line = line.replace(entity, character)
    line = f" {line} "
    for pattern, separated in _SEPARATED:
        line = pattern.sub(separated, line)
    return line.split()
