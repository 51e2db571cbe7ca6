"""What several files of this tier ask of a rollout: to flip between the two good versions, and to see how it ends.

Both artifacts exist, so a flip converts nothing: every one is a canary of its own, and takes seconds.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml

from demo.scenario import ACTS, MODEL
from demo.site import EXAMPLES
from demo.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from demo.kubectl import Kubectl, Manifest
    from demo.load import Counters, Load
    from demo.model import Model
    from demo.scenario import Stage
    from demo.site import Site

#: The model that most files share.
QUICK_MODEL: Final = "quick"
#: The folder of its retrained checkpoint, whose vectors moved.
QUICK_MODEL_MOVED: Final = "quick-moved"
#: Requests a second that it gets while it is judged, while others need the two cores, and where nothing else is done.
RATE: Final = 300
RATE_BESIDE: Final = 20
RATE_ALONE: Final = 500
#: The requests after which a test may say that none is lost.
ENOUGH: Final = 10_000
OURS: Final = "app.kubernetes.io/managed-by=onnx-operator"
ACT: Final = {act.key: act for act in ACTS}
#: The key of the good version with this quantisation.
_GOOD: Final = {"none": "v1", "int8-dynamic": "v2"}
#: One step at which the candidate gets its samples at once.
QUICK: Final = [{"weight": 50, "duration": "8s"}]


def declared(key: str, **rollout: Any) -> Manifest:
    """An example, of the quick model and with some of its rollout changed."""
    manifest: Manifest = yaml.safe_load((EXAMPLES / ACT[key].file).read_text())
    manifest["metadata"]["name"] = QUICK_MODEL
    claim = manifest["spec"]["source"]["persistentVolumeClaim"]
    claim["path"] = claim["path"].replace(MODEL, QUICK_MODEL)
    # So that both good versions outlive all that other files try on the model.
    manifest["spec"]["revisionHistoryLimit"] = 30
    manifest["spec"]["rollout"] |= rollout
    return manifest


def declare(stage: Stage, manifest: Manifest) -> None:
    """`kubectl apply`, so that the next one takes back what it does not say."""
    stage.kubectl.run("apply", "--filename=-", stdin=yaml.safe_dump(manifest))


def traffic(stage: Stage) -> Load:
    """The requests that the stage's model gets."""
    assert stage.load is not None
    return stage.load


def declare_new(stage: Stage, manifest: Manifest) -> None:
    """Declare a version that has to be converted, and wait until it is: the Jobs have the cores meanwhile."""
    traffic(stage).at(RATE_BESIDE)
    declare(stage, manifest)
    until_model(stage, "the version to be validated", lambda it: it.holds("Validated"))
    traffic(stage).at(RATE)


def stable_version(stage: Stage) -> str:
    """Which of the two good versions serves."""
    stable = stage.model().status.stable
    assert stable is not None
    revision = stage.kubectl.get("onnxmodelrevision", stable.revision)
    assert revision is not None
    return _GOOD[revision["spec"]["quantization"]["scheme"]]


def other_version(stage: Stage) -> str:
    """The good version that does not serve now."""
    return "v1" if stable_version(stage) == "v2" else "v2"


def until_model(stage: Stage, what: str, is_it: Callable[[Model], object]) -> Model:
    """Wait until what the operator tells of the present spec is so."""

    def look() -> Model | None:
        model = stage.model()
        return model if model.is_seen and is_it(model) else None

    return until(what, look, seconds=180, every=0.5)


def begin_flip(stage: Stage, **rollout: Any) -> Model:
    """Declare the other good version and wait until it has some of the traffic."""
    declare(stage, declared(other_version(stage), **rollout))
    return until_model(stage, "the candidate to get traffic", lambda it: it.candidate_weight)


def finish(stage: Stage, *, seconds: float = 240) -> Model:
    """Wait until the rollout rests."""

    def rests() -> Model | None:
        model = stage.model()
        return model if model.is_promoted or model.is_given_up else None

    return until("the rollout to rest", rests, seconds=seconds)


def settle(stage: Stage) -> None:
    """Declare what serves anyway; nothing to do for anybody when that is so already."""
    declare(stage, declared(stable_version(stage)))
    assert finish(stage).is_promoted


def standard_class(cluster: Site) -> Manifest:
    """The class that the chart came with."""
    found = cluster.kubectl.get("onnxmodelclass", "default")
    assert found is not None
    return found


@contextmanager
def own_class(cluster: Site, name: str, **spec: Any) -> Iterator[None]:
    """A class beside the standard one, with this otherwise."""
    standard = standard_class(cluster)
    made = {key: standard[key] for key in ("apiVersion", "kind")}
    cluster.kubectl.apply(made | {"metadata": {"name": name}, "spec": standard["spec"] | spec})
    yield
    cluster.kubectl.delete("onnxmodelclass", name)


def small_jobs_of(cluster: Site) -> Manifest:
    """Jobs as in the standard class that ask for less of a processor, so that none waits for a place on the node."""
    jobs: Manifest = standard_class(cluster)["spec"]["jobs"]
    resources = jobs["resources"] | {"requests": jobs["resources"]["requests"] | {"cpu": "200m"}}
    return jobs | {"resources": resources}


def owned(kubectl: Kubectl, kinds: str, *, model: str = "") -> dict[str, Manifest]:
    """Everything of these kinds that the operator made, by kind and name."""
    selector = f"{OURS},onnx-operator.io/model={model}" if model else OURS
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in kubectl.list(kinds, selector=selector)}


def tensors(protocol: Any, inputs: Manifest) -> list[Any]:
    """One tokenised text as the inputs of `tritonclient.http` or `tritonclient.grpc`."""
    made = []
    for name, column in inputs.items():
        tensor = protocol.InferInput(name, column["shape"], column["datatype"])
        tensor.set_data_from_numpy(np.array([column["data"]], dtype=np.int64))
        made.append(tensor)
    return made


def answered_badly(counted: Counters) -> Mapping[str, int]:
    """Errors by the revision that answered them."""
    return {name.rpartition("-")[0]: each.errors for name, each in counted.by_upstream.items() if each.errors}


def assert_nothing_lost(stage: Stage) -> None:
    """Of ten thousand requests all were answered well, but for those that a version got which was taken back.

    The rollout may be over before so many were sent; what it left behind must serve the rest as well.
    """
    traffic(stage).at(RATE_ALONE)
    until("enough requests", lambda: stage.counters().sent >= ENOUGH, seconds=300)
    traffic(stage).at(RATE_BESIDE)
    counted = stage.counters()
    revisions = stage.kubectl.list("onnxmodelrevisions")
    taken_back = {one["metadata"]["name"] for one in revisions if "quarantine" in one.get("status", {})}
    assert set(answered_badly(counted)) <= taken_back, counted
    too_slow = sum(counted.of_revision(revision).timeouts for revision in taken_back)
    assert counted.failed == too_slow, counted
