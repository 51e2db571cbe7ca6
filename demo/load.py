"""The steady traffic: a pod that sends requests through the gateway and counts what comes back.

The pod tells apart what a model server answered, good or bad, from what was lost on the way; this module only
starts it, reads its counters and subtracts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from demo import objects, texts
from demo.checkpoints import MINILM
from demo.site import ROOT, SiteError, gateway_of
from demo.waiting import until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from demo.kubectl import Kubectl
    from demo.model import Model
    from demo.site import Site

_SCRIPT: Final = ROOT / "tests" / "load" / "load.py"
_NAME: Final = "load"
_DIFFERENT_TEXTS: Final = 60
_SAME: Final = 0.9
"""The cosine below which an answer is not the one that torch gave: int8 stays far above it."""
RATE: Final = 30


@dataclass(frozen=True, slots=True)
class Answers:
    """What one upstream answered; `slow` and `wrong` answers are among the good ones."""

    good: int = 0
    errors: int = 0
    slow: int = 0
    wrong: int = 0
    timeouts: int = 0
    """What it was asked and did not answer until the gateway gave up."""
    harm_seconds: float = 0.0
    """From the first bad answer to the last answer of all: how long users had to bear it."""

    def __sub__(self, earlier: Answers) -> Answers:
        return Answers(
            self.good - earlier.good,
            self.errors - earlier.errors,
            self.slow - earlier.slow,
            self.wrong - earlier.wrong,
            self.timeouts - earlier.timeouts,
            self.harm_seconds - earlier.harm_seconds,
        )


@dataclass(frozen=True, slots=True)
class Counters:
    """What the load pod has counted since it started, or between two looks.

    `failed` are the requests that no model server answered: those that moving traffic about could lose.
    """

    sent: int = 0
    failed: int = 0
    by_upstream: Mapping[str, Answers] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    longest_gap: float = 0.0
    kinds: Mapping[str, int] = field(default_factory=dict)
    """What was no good answer, by protocol, status and the gateway's word on it."""

    @classmethod
    def of(cls, counted: Mapping[str, Any]) -> Self:
        """The counters as the pod tells them."""
        upstreams = {
            name: Answers(
                good=answers["ok"],
                errors=answers["errors"],
                slow=answers["slow"],
                wrong=answers["wrong"],
                timeouts=answers["timeouts"],
                harm_seconds=_harm(answers),
            )
            for name, answers in counted["upstreams"].items()
        }
        failures, kinds = tuple(counted["failures"]), counted["kinds"]
        return cls(counted["sent"], counted["failed"], upstreams, failures, counted["longest_gap"], kinds)

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(
            sent=self.sent - earlier.sent,
            failed=self.failed - earlier.failed,
            by_upstream={
                name: answers - earlier.by_upstream.get(name, Answers()) for name, answers in self.by_upstream.items()
            },
            failures=self.failures[len(earlier.failures) :],
            longest_gap=self.longest_gap,
            kinds=Counter(self.kinds) - Counter(earlier.kinds),
        )

    def of_revision(self, revision: str) -> Answers:
        """What the servers of one revision answered."""
        return self.by_upstream.get(f"{revision}-cpu", Answers())

    @property
    def errors(self) -> int:
        """Requests that a model server itself answered with an error."""
        return sum(answers.errors for answers in self.by_upstream.values())


def _harm(answers: Mapping[str, Any]) -> float:
    return 0.0 if answers["first_bad"] is None else float(answers["last"] - answers["first_bad"])


@dataclass(frozen=True, slots=True)
class Load:
    """A load pod that runs."""

    kubectl: Kubectl

    @classmethod
    def start(cls, site: Site, kubectl: Kubectl, model: Model, *, checkpoint: Path = MINILM, rate: int = RATE) -> Self:
        """Start the pod on a model that serves, made of this checkpoint, and wait until it sends."""
        if model.status.endpoint is None:
            raise SiteError(f"OnnxModel {model.name} tells no endpoint: it does not serve yet")
        cls.stop(kubectl)
        gateway = gateway_of(site)
        files = {"load.py": _SCRIPT.read_text(), "requests.json": texts.as_json(_DIFFERENT_TEXTS, checkpoint)}
        arguments = (
            f"--http={gateway.address}:{gateway.http_port}",
            f"--grpc={gateway.address}:{gateway.grpc_port}",
            f"--host={model.status.endpoint.host}",
            f"--model={model.status.endpoint.model_name}",
            f"--rate={rate}",
            f"--min-cosine={_SAME}",
        )
        kubectl.apply(objects.load_pod(_NAME, image=site.images["operator"], files=files, arguments=arguments))
        until("the load pod to be ready", lambda: kubectl.is_ready(_NAME), seconds=60)
        return cls(kubectl)

    @classmethod
    def stop(cls, kubectl: Kubectl) -> None:
        """Stop the traffic; none running is fine."""
        kubectl.delete("pod", _NAME)

    def counters(self) -> Counters:
        """What was counted since the start, or since the counting began anew."""
        return Counters.of(self.kubectl.through(f"pods/{_NAME}", 8080, "counters"))

    def at(self, rate: int) -> None:
        """Send so many requests a second from now on."""
        self.kubectl.through(f"pods/{_NAME}", 8080, f"start?rate={rate}", method="POST")

    def count_anew(self) -> None:
        """Begin at zero; what is under way now is not counted any more."""
        self.kubectl.through(f"pods/{_NAME}", 8080, "reset", method="POST")
