"""What several files of this tier ask of a rollout. Looks and waits; changes nothing but what a test names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo.site import EXAMPLES
from demo.waiting import until

if TYPE_CHECKING:
    from demo.kubectl import Kubectl, Manifest
    from demo.model import Model
    from demo.scenario import Act, Stage

OURS = "app.kubernetes.io/managed-by=onnx-operator"


def begin_canary(stage: Stage, act: Act) -> Model:
    """Apply a version and wait until it has some of the traffic."""
    stage.kubectl.apply_file(EXAMPLES / act.file)

    def on_its_way() -> Model | None:
        model = stage.model()
        return model if model.is_seen and model.candidate_weight else None

    return until(f"{act.key} to get traffic", on_its_way, seconds=180)


def finish(stage: Stage, *, seconds: float = 240) -> Model:
    """Wait until the rollout rests."""

    def rests() -> Model | None:
        model = stage.model()
        return model if model.is_promoted or model.is_given_up else None

    return until("the rollout to rest", rests, seconds=seconds)


def owned(kubectl: Kubectl, kinds: str, *, model: str = "") -> dict[str, Manifest]:
    """Everything of these kinds that the operator made, by kind and name."""
    selector = f"{OURS},onnx-operator.io/model={model}" if model else OURS
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in kubectl.list(kinds, selector=selector)}
