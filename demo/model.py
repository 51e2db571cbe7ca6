"""An OnnxModel as kubectl shows it, and the questions the demo and the tests ask of it. Pure.

Refuses to look past a status that speaks of an older spec: such a model is neither ready nor stalled, just unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_operator.api.model import OnnxModelStatus

if TYPE_CHECKING:
    from demo.kubectl import Manifest
    from onnx_operator.api.common import Condition


@dataclass(frozen=True, slots=True)
class Model:
    """One look at a model."""

    name: str
    uid: str
    generation: int
    status: OnnxModelStatus

    @classmethod
    def of(cls, manifest: Manifest) -> Model:
        """The model of an object from `kubectl get --output=json`."""
        metadata = manifest["metadata"]
        status = OnnxModelStatus.model_validate(manifest.get("status", {}))
        return cls(metadata["name"], metadata["uid"], metadata["generation"], status)

    def condition(self, kind: str) -> Condition | None:
        """The condition of this type, if the operator has written one."""
        return next((condition for condition in self.status.conditions if condition.type == kind), None)

    def holds(self, kind: str) -> bool:
        """Whether a condition is True, and for the spec as it is now."""
        found = self.condition(kind)
        return found is not None and found.status == "True" and found.observed_generation == self.generation

    def reason(self, kind: str) -> str:
        """The reason of a condition; empty when there is none."""
        found = self.condition(kind)
        return found.reason if found else ""

    def message(self, kind: str) -> str:
        """The message of a condition; empty when there is none."""
        found = self.condition(kind)
        return found.message if found else ""

    @property
    def is_seen(self) -> bool:
        """Whether the status speaks of the spec as it is now."""
        return self.status.observed_generation == self.generation

    @property
    def is_promoted(self) -> bool:
        """Everything that was declared serves, and nothing of the past is left running."""
        return self.is_seen and self.holds("Ready") and self.is_at_rest

    @property
    def is_given_up(self) -> bool:
        """The operator waits for a person: rolled back or refused, and cleaned up."""
        return self.is_seen and self.holds("Stalled") and self.is_at_rest

    @property
    def is_at_rest(self) -> bool:
        """No candidate on its way and nothing being drained."""
        return self.status.candidate is None and not self.status.retiring

    @property
    def candidate_weight(self) -> int:
        """Percent of the traffic that the candidate has; 0 without one."""
        return self.status.candidate.weight if self.status.candidate else 0
