"""What users write is taken, shown back with its defaults, and explained; applied again it changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

import series
from helm import ROOT
from integration.admission.conftest import Installation
from integration.admission.specs import GROUP, Manifest, model

if TYPE_CHECKING:
    from pathlib import Path

    from integration.apiserver import ControlPlane

EXAMPLES: Final = sorted((ROOT / "examples").glob("*.yaml"))
MODELS: Final = [path for path in EXAMPLES if "kind: OnnxModel\n" in path.read_text()]
CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_taken(path: Path, installation: Installation, namespace: str) -> None:
    done = installation.kubectl(
        *("apply", f"--namespace={namespace}", "--validate=strict", "--dry-run=server", "-f", str(path))
    )
    assert done.returncode == 0, done.stderr


def test_the_smallest_spec_shows_its_defaults(installation: Installation, namespace: str) -> None:
    inside = f"--namespace={namespace}"
    assert installation.kubectl("apply", inside, "-f", str(ROOT / "examples" / "smallest.yaml")).returncode == 0
    shown = yaml.safe_load(installation.kubectl("get", inside, "onnxmodel", "minilm", "-o", "yaml").stdout)["spec"]
    assert shown["executionProviders"] == [{"name": "CPUExecutionProvider"}]
    assert shown["quantization"] == {"scheme": "none"}
    assert (shown["task"], shown["opset"], shown["revisionHistoryLimit"]) == ("auto", 18, 5)
    assert not {"replicas", "autoscaling"} & shown["serving"].keys()
    assert shown["serving"]["batching"] == {"maxBatchSize": 32, "maxQueueDelay": "500us"}
    # What the class decides is not frozen into the model.
    assert not {"steps", "analysis", "progressDeadline"} & shown["rollout"].keys()


GOOD_ROLLOUTS: Final = {
    "a step that says only its weight": {"steps": [{"weight": 10}]},
    "a step that waits for a person": {"steps": [{"weight": 10, "duration": "5m"}, {"weight": 50, "pause": {}}]},
    "blue and green": {"steps": [{"weight": 0, "pause": {}}]},
    "a preview that ends by time before steps with traffic": {
        "steps": [{"weight": 0, "duration": "5m"}, {"weight": 5}]
    },
    "a shadow before everything": {"steps": [{"weight": 0, "mirror": 100}]},
    "a preview, then shadows, then traffic": {
        "steps": [
            {"weight": 0, "pause": {}},
            {"weight": 0, "mirror": 5, "duration": "5m"},
            {"weight": 0, "mirror": 50, "pause": {}},
            {"weight": 1},
        ]
    },
    "no server to spare": {"maxSurge": 0, "maxUnavailable": 1},
    "a quarter more": {"maxSurge": "25%", "maxUnavailable": "0%"},
    "one more": {"maxSurge": 1},
    "servers for a step": {"steps": [{"weight": 10, "replicas": 1}]},
    "a way back": {"rollbackWindow": {"revisions": 3}},
    "a way back for a day": {"rollbackWindow": {"revisions": 3, "duration": "24h"}},
    "no way back, whatever the class says": {"rollbackWindow": {"revisions": 0}},
    "a bake": {"bake": {"duration": "1h"}},
    "no bake, whatever the class says": {"bake": {"duration": "0s"}},
    "a frozen weekend": {
        "freezeWindows": [{"schedule": "0 18 * * FRI", "duration": "62h", "timeZone": "Europe/Berlin"}]
    },
    "cron as people write it": {
        "freezeWindows": [
            {"schedule": schedule, "duration": "1h", "timeZone": "UTC"}
            for schedule in ("*/15 8-18 * jan-mar mon-fri", "0 0 L * *", "0 0 LW * *", "59 23 31 12 7", "0 0 * * TUE#2")
        ]
    },
    "a pause under the shortest deadline": {"steps": [{"weight": 10, "pause": {}}], "progressDeadline": "10s"},
}


@pytest.mark.parametrize("rollout", GOOD_ROLLOUTS.values(), ids=GOOD_ROLLOUTS.keys())
def test_a_rollout_is_taken_as_it_is(rollout: Manifest, installation: Installation, namespace: str) -> None:
    created = installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", model(rollout=rollout))
    assert rollout.items() <= created["spec"]["rollout"].items()


def test_pools_are_taken_as_they_are(installation: Installation, namespace: str) -> None:
    window = {"schedule": "0 8 * * MON-FRI", "duration": "10h", "weight": 0}
    pools = [
        {"name": "CPUExecutionProvider", "weight": 1000, "schedules": [window]},
        {
            "name": "CUDAExecutionProvider",
            "weight": 0,
            "schedules": [{**window, "timeZone": "Europe/Berlin", "weight": 1}],
        },
    ]
    wanted = model(executionProviders=pools)
    created = installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", wanted)
    assert created["spec"]["executionProviders"] == pools


@pytest.mark.parametrize("beside", [[], [{"name": "CPUExecutionProvider"}]], ids=["alone", "beside a pool"])
def test_what_is_not_served_is_taken_as_it_is(
    beside: list[Manifest], installation: Installation, namespace: str
) -> None:
    kinds = ("CUDA", "Dml", "CoreML", "WebGpu", "OpenVINO")
    providers = [*beside, *({"name": f"{kind}ExecutionProvider", "serving": "none"} for kind in kinds)]
    wanted = model(executionProviders=providers)
    created = installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", wanted)
    assert created["spec"]["executionProviders"] == providers


def test_a_language_model_is_taken_for_an_npu(installation: Installation, namespace: str) -> None:
    quantization = {"scheme": "int8-static", "maxLayerError": "0.04"}
    providers = [{"name": "QNNExecutionProvider", "serving": "none"}]
    wanted = model(task="text-generation", quantization=quantization, executionProviders=providers)
    created = installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", wanted)
    assert quantization.items() <= created["spec"]["quantization"].items()


def test_a_graph_of_two_may_have_settled_ranges_beside_one_that_has_not(
    installation: Installation, namespace: str
) -> None:
    quantization = {"scheme": "int8-dynamic", "components": {"decoder": {"scheme": "int8-static"}}}
    wanted = model(task="automatic-speech-recognition", quantization=quantization)
    created = installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", wanted)
    assert created["spec"]["quantization"] == quantization


def test_a_model_that_nobody_has_looked_at_says_so(installation: Installation, namespace: str) -> None:
    created = installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", model())
    assert created["status"]["observedGeneration"] == 0
    assert created["status"]["phase"] == "Pending"
    columns = installation.kubectl("get", f"--namespace={namespace}", "om").stdout.splitlines()
    assert columns[0].split() == ["NAME", "READY", "PHASE", "STABLE", "CANDIDATE", "WEIGHT", "REASON", "AGE"]
    assert "Pending" in columns[1]


def stored(installation: Installation, namespace: str, path: Path) -> list[Manifest]:
    """The file's objects as the API server has them, in the file's order."""
    shown = installation.kubectl("get", f"--namespace={namespace}", "-f", str(path), "-o", "json")
    found = json.loads(shown.stdout)
    manifests: list[Manifest] = found.get("items", [found])
    return manifests


def the_model(installation: Installation, namespace: str, path: Path) -> Manifest:
    """The first one of the file."""
    return next(one for one in stored(installation, namespace, path) if one["kind"] == "OnnxModel")


def versions(manifests: list[Manifest]) -> list[str]:
    """Of our kinds: claims and namespaces have controllers, which write into them whenever they like."""
    return [
        one["metadata"]["resourceVersion"] for one in manifests if one["apiVersion"].startswith("onnx-operator.io/")
    ]


def generations(manifests: list[Manifest]) -> list[int | None]:
    return [one["metadata"].get("generation") for one in manifests]


def otherwise(said: Any, has: Any, path: str = "") -> list[str]:
    """Where the API server has something else than what was said. What it has besides is no difference."""
    if isinstance(said, dict) and isinstance(has, dict):
        return [found for name, value in said.items() for found in otherwise(value, has.get(name), f"{path}.{name}")]
    if isinstance(said, list) and isinstance(has, list) and len(said) == len(has):
        return [found for one, other in zip(said, has, strict=True) for found in otherwise(one, other, f"{path}[]")]
    return [] if said == has else [f"{path}: {said!r} is stored as {has!r}"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_stored_as_it_was_said(path: Path, installation: Installation, namespace: str) -> None:
    assert installation.kubectl("apply", f"--namespace={namespace}", "-f", str(path)).returncode == 0
    said = [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]
    assert otherwise(said, stored(installation, namespace, path)) == []


#: How people apply, and how GitOps does.
WAYS: Final = ((), ("--server-side", "--field-manager=gitops"))


@pytest.mark.parametrize("way", WAYS, ids=["by the client", "by the server"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_applied_again_an_example_changes_nothing(
    path: Path, way: tuple[str, ...], installation: Installation, namespace: str
) -> None:
    what = (f"--namespace={namespace}", *way, "-f", str(path))
    first = installation.kubectl("apply", *what)
    assert first.returncode == 0, first.stderr
    before = stored(installation, namespace, path)
    assert installation.kubectl("apply", *what).returncode == 0
    after = stored(installation, namespace, path)
    assert generations(after) == generations(before)
    # The first update by server-side apply writes down the status that was a default until then: the same object to
    # everybody, under another version. From then on there is nothing to write.
    settled = after if "--server-side" in way else before
    assert installation.kubectl("apply", *what).returncode == 0
    assert versions(stored(installation, namespace, path)) == versions(settled)
    difference = installation.kubectl("diff", *what)
    assert difference.returncode == 0, difference.stdout + difference.stderr


@pytest.mark.parametrize("way", WAYS, ids=["by the client", "by the server"])
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_what_the_operator_tells_is_no_difference_to_what_was_applied(
    path: Path, way: tuple[str, ...], installation: Installation, namespace: str
) -> None:
    what = (f"--namespace={namespace}", *way, "-f", str(path))
    assert installation.kubectl("apply", *what).returncode == 0
    model = the_model(installation, namespace, path)
    status = series.a_status().model_dump(mode="json", exclude_none=True)
    where = f"{GROUP}/namespaces/{namespace}/onnxmodels/{model['metadata']['name']}/status"
    told = installation.operator().merge(where, {"status": status})
    assert told["status"]["candidate"]["revision"] == "m-1"
    difference = installation.kubectl("diff", *what)
    assert difference.returncode == 0, difference.stdout + difference.stderr
    assert installation.kubectl("apply", *what).returncode == 0
    assert versions([the_model(installation, namespace, path)]) == versions([told])


@pytest.mark.parametrize("promise", ["0.001", "1e-6", "0.1"])
def test_how_surely_a_candidate_is_judged_can_be_said(promise: str, installation: Installation, namespace: str) -> None:
    metrics = [
        {"name": "errorRatio", "tolerance": "0.005", "detect": "0.01"},
        {"name": "disagreement", "maximum": "0.02", "dryRun": True},
    ]
    wanted = model()
    analysis = {"maxFalseRollback": promise, "metrics": metrics, "proof": "prove", "onInconclusive": "proceed"}
    wanted["spec"]["rollout"] = {"analysis": analysis}
    created = installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", wanted)
    shown = created["spec"]["rollout"]["analysis"]
    assert (shown["maxFalseRollback"], shown["minimumSamples"]) == (promise, 50)
    assert [one.get("dryRun") for one in shown["metrics"]] == [None, True]


@pytest.mark.parametrize(
    "metric",
    [
        {"name": "errorRatio", "maximum": "0.05", "provider": "triton"},
        {"name": "latencyQuantile", "quantile": "0.99", "slowerThan": "250ms", "detect": "0.01"},
        {"name": "memory", "maximumValue": "2Gi", "maximumOfStable": "1.2", "dryRun": True},
        {"name": "throughputPerReplica", "minimumValue": "0.5", "provider": "triton"},
        {
            "name": "bad-vectors",
            "tolerance": "0.01",
            "prometheus": {
                "bad": 'sum(increase(bad_total{namespace="{{namespace}}",service=~"{{services}}"}[{{window}}]))',
                "total": 'sum(increase(all_total{model="{{model}}",version="{{number}}"}[{{window}}]))',
            },
        },
        {"name": "queue", "minimumOfStable": "0.8", "prometheus": {"value": 'q{r="{{revision}}"} or on () {x="{"}'}},
        {
            "name": "accuracy",
            "provider": "job",
            "maximumOfStable": "1.1",
            "job": {
                "image": "registry.example/checks:1",
                "args": ["--number={{number}}", "$(CANDIDATE_URL)", '{"a": {"b": 1} }'],
                "env": [
                    {"name": "WHERE", "value": "{{namespace}}"},
                    {"name": "TOKEN", "secretKeyRef": {"name": "hub", "key": "token"}},
                ],
                "resources": {"limits": {"memory": "1Gi"}},
                "deadline": "10m",
                "failExitCodes": [3],
            },
        },
        {"name": "smoke", "job": {"image": "checks"}},
    ],
    ids=lambda metric: str(metric["name"]),
)
@pytest.mark.parametrize("proof", ["guard", "prove"])
def test_every_kind_of_metric_can_be_said(
    metric: dict[str, Any], proof: str, installation: Installation, namespace: str
) -> None:
    wanted = model()
    wanted["spec"]["rollout"] = {"analysis": {"proof": proof, "metrics": [metric]}}
    created = installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", wanted)
    assert created["spec"]["rollout"]["analysis"]["metrics"] == [metric], "no defaults inside of a list"


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("onnxmodel.spec.rollout.analysis.metrics.prometheus", "once for the candidate and once for stable"),
        ("onnxmodel.spec.rollout", "How a new revision takes over"),
        ("onnxmodel.spec.rollout.steps", "Weights the candidate passes through"),
        ("onnxmodel.spec.rollout.analysis.metrics.slowerThan", "an answer that takes longer is slow"),
        ("onnxmodel.spec.rollout.analysis.maxFalseRollback", "a promise for a whole rollout"),
        ("onnxmodel.spec.rollout.analysis.metrics.detect", "The harm that a step must have been able to see"),
        ("onnxmodel.spec.source.huggingFace.revision", "40 hexadecimal digits"),
        ("onnxmodel.status.conditions", "Ready, Reconciling, Stalled and one per stage"),
        ("onnxmodelclass.spec.artifactStore.claimName", "must exist in every namespace"),
        ("onnxmodelrevision.status.quarantine", "Set when the revision failed or was rolled back"),
    ],
)
def test_kubectl_explains(field: str, says: str, installation: Installation) -> None:
    told = installation.kubectl("explain", field)
    assert told.returncode == 0, told.stderr
    assert says in " ".join(told.stdout.split())


def test_short_names_and_the_category_work(installation: Installation, namespace: str) -> None:
    installation.admin.create(f"{GROUP}/namespaces/{namespace}/onnxmodels", model())
    for name in ("om", "omr", "omc", "onnx"):
        done = installation.kubectl("get", f"--namespace={namespace}", name)
        assert done.returncode == 0, done.stderr


def test_the_api_server_has_nothing_against_the_crds(control_plane: ControlPlane) -> None:
    for name in ("onnxmodels", "onnxmodelrevisions", "onnxmodelclasses"):
        definition = control_plane.admin.get(f"{CRDS}/{name}.onnx-operator.io")
        assert definition is not None
        conditions = {condition["type"]: condition["status"] for condition in definition["status"]["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_the_crds_can_be_applied_the_old_way_and_again(control_plane: ControlPlane, installation: Installation) -> None:
    # Client-side apply keeps a copy in an annotation, which ends at 262,144 bytes.
    on_shared_plane = Installation(control_plane, installation.helm, values="")
    apply = ("apply", "-f", str(ROOT / "crds"))
    first = on_shared_plane.kubectl(*apply)
    assert first.returncode == 0, first.stderr
    again = on_shared_plane.kubectl(*apply)
    assert again.stderr == ""
    assert [line.split()[-1] for line in again.stdout.splitlines()] == ["unchanged"] * 3
