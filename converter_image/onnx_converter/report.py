"""What validation found, as plain data: the report that lies beside the artifact.

Standard library only, so that whoever shows a report needs nothing else. Holds no time and no host name: the same
graph judged again on the same kind of machine gives the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA: Final = "onnx-operator.io/report/v1alpha1"
REPORT: Final = "report.json"
PAGE: Final = "report.html"
GOLDEN: Final = "golden.json"
BENCHMARK: Final = "benchmark.json"
#: Followed by the provider: the folder of one validation beside the graphs.
VALIDATION_PREFIX: Final = "validation-"
#: What of an evaluation is said only where there is something to say.
_SAID_WHERE_TRUE: Final = ("pooling", "judged_by")


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of the parity table."""

    sample: str
    vectors: int
    ignored: int
    min_cosine: str
    max_absolute: str
    max_relative: str
    label_agreement: str | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval."""

    value: str
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well the graph did its task on data of the user's, beside the original."""

    name: str
    metric: str
    #: Digest of the file.
    dataset: str
    samples: int
    original: Estimate
    graph: Estimate
    loss: Estimate
    max_loss: str
    #: Whether the loss is a share of the original's value.
    is_relative: bool
    #: Whether all of the loss's interval keeps the bound; where not, the data is too little to show it.
    is_shown: bool
    #: How vectors of texts were made of those of tokens, where that is none of the model's; said only there.
    pooling: str = ""
    #: What has to keep the bound, where that is not the loss that was measured.
    judged_by: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on one graph on one execution provider."""

    verdict: str
    reason: str
    message: str
    provider: str
    graph_digest: str
    parity: Mapping[str, str | None]
    tolerance: Mapping[str, str | None]
    samples: int
    vectors: int
    ignored: int
    placement: Mapping[str, int]
    #: Operator to execution provider to nodes, of the graph as onnxruntime runs it.
    coverage: Mapping[str, Mapping[str, int]]
    conversion: Mapping[str, Any]
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...] = ()
    #: Of a graph for devices outside of the cluster: what the table of its execution provider says.
    checked: Mapping[str, Any] | None = None

    def value(self) -> dict[str, Any]:
        listed = ("rows", "evaluations")
        plain = {_camel(key): inner for key, inner in asdict(self).items() if key not in listed}
        if self.checked is None:
            del plain["checked"]
        return {"schema": SCHEMA, **plain} | {
            key: [
                {_camel(name): inner for name, inner in asdict(one).items() if inner or name not in _SAID_WHERE_TRUE}
                for one in getattr(self, key)
            ]
            for key in listed
        }


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def number(value: float | None) -> str | None:
    """A measured number as a string: the API has no floats, and digits beyond the fifth are noise."""
    return None if value is None else f"{value:.5g}"


def cosine(value: float) -> str:
    """A cosine near 1 says little in five digits; never rounded up to a bound it does not keep."""
    return f"{int(value * 1e7) / 1e7:.7f}"
