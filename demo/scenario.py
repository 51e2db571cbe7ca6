"""The story that the demo shows and the e2e tests assert: which example is applied, and how it must end.

Knows nothing of terminals and of how the cluster came to be. It looks, tells, and judges; it never helps the
operator along.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from demo.load import Counters
from demo.model import Model
from demo.screen import Row
from demo.site import EXAMPLES
from demo.waiting import until

if TYPE_CHECKING:
    from demo.kubectl import Kubectl
    from demo.load import Load
    from demo.screen import Screen
    from onnx_operator.api.common import Condition

MODEL: Final = "minilm"


class Ending(Enum):
    """How an act ends."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    REFUSED = "refused before any traffic"


@dataclass(frozen=True, slots=True)
class Act:
    """One example and how it must end; `names` are words that the reason or message must hold."""

    key: str
    file: str
    title: str
    story: str
    ending: Ending
    names: tuple[str, ...] = ()
    seconds: float = 600


ACTS: Final = (
    Act(
        "v1",
        "minilm-v1.yaml",
        "v1: MiniLM in fp32, the first version",
        "The checkpoint is fetched, converted, compared with torch, packed, and served. There is nothing to compare "
        "with in service yet, so it takes all traffic as soon as it is ready.",
        Ending.PROMOTED,
    ),
    Act(
        "v2",
        "minilm-v2.yaml",
        "v2: quantised to int8, under traffic",
        "Same checkpoint, smaller numbers. It starts beside v1 and gets a growing share of the requests while both "
        "are compared.",
        Ending.PROMOTED,
    ),
    Act(
        "v3a",
        "minilm-v3a-slow.yaml",
        "v3a: a CPU limit far too small",
        "Every check before service passes: the graph is right. It is only slow, and that shows under traffic alone.",
        Ending.ROLLED_BACK,
        ("slowRatio",),
    ),
    Act(
        "v3b",
        "minilm-v3b-short.yaml",
        "v3b: a maximum length too short for what people send",
        "The graph is right for every text it takes; the long ones among the real requests it answers with an error.",
        Ending.ROLLED_BACK,
        ("errorRatio",),
    ),
    Act(
        "v3c",
        "minilm-v3c-moved.yaml",
        "v3c: a retrained checkpoint whose vectors moved",
        "ONNX and torch agree on it, it is fast and never fails. But its vectors do not fit to those that stable "
        "made, which are in everybody's index.",
        Ending.ROLLED_BACK,
        ("disagreement",),
    ),
    Act(
        "v4",
        "minilm-v4-invalid.yaml",
        "v4: fails its validation",
        "The graph differs from torch by more than the spec allows: it is refused before a pod of it ever starts.",
        Ending.REFUSED,
    ),
)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of an act."""

    act: Act
    ending: Ending
    reason: str
    message: str
    revision: str
    """The revision that this act was about; empty when it was refused before there was one."""
    seconds: float
    highest_weight: int
    traffic: Counters
    """What was counted from the start of this act to its end."""

    @property
    def surprises(self) -> tuple[str, ...]:
        """What differs from the declared ending, its reason, and nobody harmed but by a bad candidate itself."""
        told = f"{self.reason} {self.message}"
        found = {
            f"it ended {self.ending.value}, not {self.act.ending.value}: {told}": self.ending is not self.act.ending,
            f"the reason does not name {' and '.join(self.act.names)}: {told}": not all(
                name in told for name in self.act.names
            ),
            f"{self.traffic.failed} requests were lost on the way": self.traffic.failed > 0,
            f"{self.traffic.errors} requests were answered with an error": (
                self.traffic.errors > 0 and self.ending is not Ending.ROLLED_BACK
            ),
            f"it was refused, and yet had {self.highest_weight} % of the traffic": (
                self.ending is Ending.REFUSED and self.highest_weight > 0
            ),
        }
        return tuple(words for words, is_so in found.items() if is_so)

    @property
    def is_as_expected(self) -> bool:
        """Whether the act ended as declared."""
        return not self.surprises


class Stage:
    """Where acts are played: one model in one namespace, with or without traffic on it."""

    def __init__(self, kubectl: Kubectl, screen: Screen, *, name: str = MODEL) -> None:
        self.kubectl = kubectl
        self._screen = screen
        self.name = name
        self.load: Load | None = None

    def play(self, act: Act) -> Played:
        """Apply the act's example and watch until the operator rests again."""
        self._screen.heading(act.title)
        self._screen.tell(act.story)
        self._screen.tell(f"$ kubectl apply -f examples/{act.file}")
        before = self.counters()
        started = time.monotonic()
        self.kubectl.apply_file(EXAMPLES / act.file)
        witness = Witness(self._screen)

        def look() -> Model | None:
            seen = self.model()
            witness.see(seen, self.counters())
            return seen if seen.is_promoted or seen.is_given_up else None

        end = until(f"{act.title!r} to end", look, seconds=act.seconds)
        return _played(act, end, witness, time.monotonic() - started, self.counters() - before)

    def model(self) -> Model:
        """The model as it is now."""
        return Model.of(json.loads(self.kubectl.run("get", "onnxmodel", self.name, "--output=json")))

    def counters(self) -> Counters:
        return self.load.counters() if self.load else Counters()


class Witness:
    """Remembers what it saw of one act, and tells every change once."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._told: set[str] = set()
        self._weight = 0
        self.highest_weight = 0
        self.candidate = ""

    def see(self, model: Model, traffic: Counters) -> None:
        """Take one look in."""
        candidate = model.status.candidate
        if candidate:
            self.candidate = candidate.revision
        if model.candidate_weight != self._weight and candidate:
            self._screen.tell(f"the gateway gives revision {candidate.number} {candidate.weight} % of the traffic")
        self._weight = model.candidate_weight
        self.highest_weight = max(self.highest_weight, self._weight)
        for condition in model.status.conditions:
            if is_news(condition, model) and condition.reason not in self._told:
                self._told.add(condition.reason)
                self._screen.tell(f"{condition.reason}: {condition.message}")
        self._screen.show(row(model, traffic))


def is_news(condition: Condition, model: Model) -> bool:
    """Whether a condition speaks of the present spec and says more than that nothing is wrong."""
    if condition.observed_generation != model.generation or not condition.message:
        return False
    # Reconciling and Stalled say again what Ready says, and what is Unknown has yet to come.
    return condition.type not in {"Reconciling", "Stalled"} and condition.status != "Unknown"


def row(model: Model, traffic: Counters) -> Row:
    """A model and its traffic as a line of the table."""
    stable, candidate = model.status.stable, model.status.candidate
    return Row(
        model=model.name,
        stable=f"v{stable.number} ({stable.weight} %)" if stable else "-",
        candidate=f"v{candidate.number}" if candidate else "-",
        weight=f"{candidate.weight} %" if candidate else "-",
        verdict=(candidate.verdict if candidate else None) or "-",
        requests=f"{traffic.sent:,}",
        failures=f"{traffic.failed} lost, {traffic.errors} answered with an error",
        why=_why(model),
    )


def _why(model: Model) -> str:
    told = f"{model.reason('Ready')}: {model.message('Ready')}"
    if model.status.candidate is None:
        return told
    return "\n".join((told, *(f"{metric.verdict}: {metric.message}" for metric in model.status.candidate.analysis)))


def _played(act: Act, end: Model, witness: Witness, seconds: float, traffic: Counters) -> Played:
    if end.is_promoted:
        revision = end.status.stable.revision if end.status.stable else ""
        return Played(act, Ending.PROMOTED, "Promoted", "", revision, seconds, witness.highest_weight, traffic)
    failure = end.status.last_failure
    if failure is None:
        raise ValueError(f"{end.name} is stalled and tells no failure: {end.message('Stalled')}")
    ending = Ending.ROLLED_BACK if witness.highest_weight else Ending.REFUSED
    revision = failure.revision or witness.candidate
    return Played(act, ending, failure.reason, failure.message, revision, seconds, witness.highest_weight, traffic)
