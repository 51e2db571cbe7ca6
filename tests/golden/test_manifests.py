"""Every manifest the operator writes: input YAML beside the output YAML it must become.

`GOLDEN_UPDATE=1 pytest tests/golden` writes the outputs anew; read the difference before you commit it.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typing_extensions import override

from onnx_converter.spec import TASKS_OF, ConversionSpec, Dataset, Evaluations, Metric
from onnx_operator.api.model import METRICS, Autoscaling, OnnxModelSpec, OnnxModelStatus
from onnx_operator.api.model_class import OnnxModelClassSpec
from onnx_operator.api.revision import ArtifactStatus, OnnxModelRevisionStatus, StageStatus
from onnx_operator.core.acceptance import Offer, accept
from onnx_operator.core.actions import (
    Want,
    WantAnalysisJob,
    WantConvert,
    WantFetch,
    WantJobsPolicy,
    WantProber,
    WantPublish,
    WantRevision,
    WantRoutes,
    WantServers,
    WantService,
    WantValidate,
)
from onnx_operator.core.autoscaling import autoscaler
from onnx_operator.core.names import analysis_job_name
from onnx_operator.core.observation import ClassSeen, DefaultImages, ModelSeen, RevisionSeen
from onnx_operator.core.revisions import name_of, resolve, source_key
from onnx_operator.core.traffic import GatewayAddress, read_route, split
from onnx_operator.core.view import side_of
from onnx_operator.render.compare import is_as_wanted
from onnx_operator.render.manifests import build

if TYPE_CHECKING:
    from onnx_operator.api.common import ConfigMapKey

FOLDER = Path(__file__).parent / "manifests"
CASES = sorted(path.name.removesuffix(".in.yaml") for path in FOLDER.glob("*.in.yaml"))
WITH_GATEWAY = [name for name in CASES if not name.startswith("without-gateway")]
IMAGES = DefaultImages("operator:1", "converter:1", "triton:1")
DIGEST = "sha256:" + "ab" * 32
#: As told from headers.
_MEMORY = 3_000_000_000


def wants(case: dict[str, Any]) -> list[Want]:
    """Everything there ever is to want for the case's model, in the order of a rollout."""
    model = ModelSeen(
        case["namespace"],
        case["name"],
        "0a1b2c3d-0000-4000-8000-000000000000",
        1,
        "1",
        OnnxModelSpec.model_validate(case["spec"]),
        OnnxModelStatus(),
    )
    offer = accept(model, (ClassSeen("standard", OnnxModelClassSpec.model_validate(case["class"]), is_default=True),))
    assert isinstance(offer, Offer), offer
    candidate = revision(model, offer, number=2)
    stable = revision(model, offer, number=1, name="minilm-0123456789")
    has_gateway = offer.class_spec.traffic.gateway is not None
    gateway = GatewayAddress("10.0.0.1", 80, 9000) if has_gateway else None
    found: list[Want] = [
        WantJobsPolicy(model),
        WantFetch(model, offer, source_key(offer, ""), IMAGES.converter),
        WantRevision(model, candidate.name, candidate.spec),
        WantConvert(model, candidate, offer.class_spec, _MEMORY),
    ]
    providers = [placed.name for placed in candidate.spec.execution_providers]
    found += [WantValidate(model, candidate, offer.class_spec, provider, _MEMORY) for provider in providers]
    found.append(WantPublish(model, candidate, offer.class_spec))
    served = side_of(candidate).providers
    found += [WantServers(model, candidate, provider, offer.plan.capacity.replicas) for provider in served]
    wanted = split(
        stable=side_of(stable),
        candidate=side_of(candidate),
        weight=case["weight"],
        retiring=[],
        mirror=case.get("mirror", 0),
    )
    if has_gateway:
        found.append(WantRoutes(model, offer.class_spec, wanted))
    else:
        found += [WantService(model, stable.name), WantService(model, None)]
    found.append(WantProber(model, offer.class_spec, stable, candidate, gateway, "0.95", golden_of(offer)))
    metrics = offer.plan.analysis.metrics
    for name, metric in zip(("first", "second"), (one for one in metrics if one.job), strict=False):
        assert metric.job is not None
        identity = analysis_job_name(candidate.name, name)
        began = datetime(2026, 1, 1, tzinfo=UTC)
        now = began + timedelta(seconds=7)
        found.append(
            WantAnalysisJob(
                model, offer.class_spec, stable, candidate, identity, metric.name, metric.job, since=began, now=now
            )
        )
    return found


def golden_of(offer: Offer) -> ConfigMapKey | None:
    golden = offer.plan.analysis.golden_requests
    return golden.config_map if golden else None


def revision(model: ModelSeen, offer: Offer, *, number: int, name: str | None = None) -> RevisionSeen:
    spec = resolve(model.name, offer, IMAGES, source_digest=DIGEST, number=number)
    artifact = ArtifactStatus(digest="sha256:" + f"{number:02d}" * 32, golden_digest="sha256:" + "9a" * 32)
    status = OnnxModelRevisionStatus(artifact=artifact)
    return RevisionSeen(name or name_of(spec), f"revision-uid-{number}", "1", spec, status)


class Plain(yaml.SafeDumper):
    """Without anchors, which nobody wants to read."""

    @override
    def ignore_aliases(self, data: Any) -> bool:
        return True


def rendered(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [manifest for want in wants(case) for manifest in build(want)]


@pytest.mark.parametrize("name", CASES)
def test_the_input_becomes_exactly_this(name: str) -> None:
    case = yaml.safe_load((FOLDER / f"{name}.in.yaml").read_text())
    output = yaml.dump_all(rendered(case), Dumper=Plain, sort_keys=False, width=110)
    expected = FOLDER / f"{name}.out.yaml"
    if os.environ.get("GOLDEN_UPDATE"):
        expected.write_text(output)
    assert output == expected.read_text()


@pytest.mark.parametrize(("outcome", "flag"), [("Skipped", "--unvalidated"), ("LeftOut", "--left-out")])
def test_what_was_not_validated_is_named_to_the_job_that_publishes(outcome: str, flag: str) -> None:
    case = yaml.safe_load((FOLDER / "two-providers.in.yaml").read_text())
    (want,) = (one for one in wants(case) if isinstance(one, WantPublish))
    skipped = StageStatus(name="validate-cuda", outcome=outcome, reason="NotValidated", finished_time="2026-01-01")
    status = want.revision.status.model_copy(update={"stages": [skipped]})
    (job,) = build(replace(want, revision=replace(want.revision, status=status)))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == [flag, "CUDAExecutionProvider"]
    mounts = [one["mountPath"] for one in container["volumeMounts"] if "validation" in one["mountPath"]]
    assert mounts == ["/conversion/validation-CPUExecutionProvider"]


def test_golden_requests_that_an_older_version_published_are_read_inside_the_artifact() -> None:
    case = yaml.safe_load((FOLDER / "smallest.in.yaml").read_text())
    (want,) = (one for one in wants(case) if isinstance(one, WantProber))
    artifact = ArtifactStatus(digest=f"sha256:{'01' * 32}", report_digest=f"sha256:{'78' * 32}")
    status = want.stable.status.model_copy(update={"artifact": artifact})
    (deployment,) = build(replace(want, stable=replace(want.stable, status=status)))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["--golden", f"/artifacts/{'01' * 32}/golden.json"]
    assert "env" not in container


@pytest.mark.parametrize("name", WITH_GATEWAY)
def test_routes_with_a_mirror_read_back_as_they_were_wanted(name: str) -> None:
    case = yaml.safe_load((FOLDER / f"{name}.in.yaml").read_text()) | {"weight": 0, "mirror": 25}
    (want,) = (one for one in wants(case) if isinstance(one, WantRoutes))
    gateway = want.class_spec.traffic.gateway
    assert gateway is not None
    assert [read_route(route, gateway).split for route in build(want)] == [want.split] * 2


def pods() -> list[Any]:
    found = []
    for name in CASES:
        for manifest in rendered(yaml.safe_load((FOLDER / f"{name}.in.yaml").read_text())):
            if manifest["kind"] in {"Job", "Deployment"}:
                template = manifest["spec"]["template"]
                found.append(pytest.param(template, id=f"{name}-{manifest['metadata']['name']}"))
    return found


@pytest.mark.parametrize("template", pods())
def test_every_pod_is_restricted_by_its_own_words_and_holds_no_token(template: dict[str, Any]) -> None:
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
    assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize("template", pods())
def test_only_fetch_and_what_is_the_users_own_get_a_secret_and_the_latter_nothing_of_ours(
    template: dict[str, Any],
) -> None:
    spec = template["spec"]
    component = template["metadata"]["labels"]["onnx-operator.io/component"]
    variables = [one for container in spec["containers"] for one in container.get("env", [])]
    secrets = [one for one in variables if "valueFrom" in one]
    claims = [one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"] if "persistentVolumeClaim" in one]
    if component == "analysis":
        assert claims == []
    else:
        assert component == "fetch" or (not secrets and set(claims) <= {"artifacts"})


@pytest.mark.parametrize("name", CASES)
def test_names_fit_whatever_the_model_is_called(name: str) -> None:
    case = yaml.safe_load((FOLDER / f"{name}.in.yaml").read_text()) | {"name": "m" + "x" * 62}
    for manifest in rendered(case):
        limit = 253 if manifest["kind"] in {"NetworkPolicy", "HTTPRoute", "GRPCRoute"} else 63
        assert len(manifest["metadata"]["name"]) <= limit
        assert all(len(value) <= 63 for value in manifest["metadata"]["labels"].values())


def test_what_was_rendered_is_as_wanted_and_any_change_of_it_is_not() -> None:
    case = yaml.safe_load((FOLDER / "two-providers.in.yaml").read_text())
    for manifest in rendered(case):
        live = {**manifest, "metadata": {**manifest["metadata"], "uid": "x"}, "status": {"anything": "else"}}
        assert is_as_wanted(manifest, live)
        for path in leaves(manifest["spec"]):
            assert not is_as_wanted(manifest, changed(live, path)), f"{manifest['kind']}: {path}"


Path_ = tuple[str | int, ...]


def leaves(value: Any, path: Path_ = ()) -> list[Path_]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path] if value not in ({}, []) else []


def changed(manifest: dict[str, Any], path: Path_) -> dict[str, Any]:
    edited = copy.deepcopy(manifest)
    *parents, last = path
    node: Any = edited["spec"]
    for part in parents:
        node = node[part]
    node[last] = "something else"
    return edited


@pytest.mark.parametrize(
    ("wanted", "live", "is_same"),
    [
        ("1", "1000m", True),
        ("0.5", "500m", True),
        ("1024Mi", "1Gi", True),
        ("2e3", "2k", True),
        ("1", "1001m", False),
        ("1Gi", "1G", False),
    ],
)
def test_amounts_are_compared_by_what_they_mean(wanted: str, live: str, is_same: bool) -> None:  # noqa: FBT001
    def with_limit(amount: str) -> dict[str, Any]:
        return {"metadata": {}, "spec": {"limits": {"cpu": amount}}}

    assert is_as_wanted(with_limit(wanted), with_limit(live)) is is_same


def test_an_autoscaler_owns_the_number_of_servers_and_scales_their_deployment() -> None:
    case = yaml.safe_load((FOLDER / "smallest.in.yaml").read_text())
    (want,) = (one for one in wants(case) if isinstance(one, WantServers))
    declared = {"maxReplicas": 8, "target": {"queueTime": "20ms"}}
    scaler = autoscaler(Autoscaling.model_validate(declared), least=3)
    made = {one["kind"]: one for one in build(replace(want, replicas=5, autoscaler=scaler, is_autoscaled=True))}
    assert "replicas" not in made["Deployment"]["spec"]
    assert build(replace(want, replicas=5, autoscaler=scaler))[1]["spec"]["replicas"] == 5
    metric = {"name": "onnx_operator_server_queue_seconds"}
    assert made["HorizontalPodAutoscaler"]["spec"] == {
        "scaleTargetRef": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": made["Deployment"]["metadata"]["name"],
        },
        "minReplicas": 3,
        "maxReplicas": 8,
        "metrics": [
            {"type": "Pods", "pods": {"metric": metric, "target": {"type": "AverageValue", "averageValue": "20m"}}}
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
    }
    assert [one.kind for one in replace(want, autoscaler=scaler).objects] == list(made)


def test_what_others_add_to_lists_with_keys_is_none_of_our_business() -> None:
    wanted = {"metadata": {}, "spec": {"containers": [{"name": "main", "args": ["a"]}]}}
    live = {"metadata": {}, "spec": {"containers": [{"name": "sidecar"}, {"name": "main", "args": ["a"], "tty": True}]}}
    assert is_as_wanted(wanted, live)


def test_a_list_without_keys_is_ours_as_a_whole() -> None:
    wanted = {"metadata": {}, "spec": {"args": ["a"]}}
    assert not is_as_wanted(wanted, {"metadata": {}, "spec": {"args": ["a", "b"]}})


CALIBRATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a ConfigMap": (
        {"configMap": {"name": "texts", "key": "of-our-shop.txt"}},
        {"configMap": {"name": "texts", "optional": True}},
    ),
    "a claim": (
        {"persistentVolumeClaim": {"claimName": "texts", "path": "shop/texts.txt"}},
        {"persistentVolumeClaim": {"claimName": "texts"}},
    ),
}


@pytest.mark.parametrize("kind", CALIBRATED, ids=lambda kind: kind.replace(" ", "-"))
def test_the_convert_job_alone_reads_calibration_texts_and_all_steps_hear_of_the_same_digest(kind: str) -> None:
    said, volume = CALIBRATED[kind]
    case = yaml.safe_load((FOLDER / "smallest.in.yaml").read_text())
    calibration = {**said, "digest": DIGEST}
    case["spec"]["quantization"] = {"scheme": "int8-static", "exclude": ["pooler.*"], "calibration": calibration}
    jobs = {one["spec"]["template"]["spec"]["containers"][0]["args"][0]: one for one in rendered(case) if is_job(one)}
    mounted = {
        step: [one for one in job["spec"]["template"]["spec"]["volumes"] if one["name"] == "calibration"]
        for step, job in jobs.items()
    }
    assert mounted == {"fetch": [], "convert": [{"name": "calibration", **volume}], "validate": [], "publish": []}
    mounts = jobs["convert"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "calibration", "mountPath": "/calibration", "readOnly": True} in mounts
    for step in ("convert", "validate", "publish"):
        args = jobs[step]["spec"]["template"]["spec"]["containers"][0]["args"]
        spec = ConversionSpec.model_validate_json(args[args.index("--spec") + 1])
        assert spec.calibration is not None
        assert (spec.exclude, spec.calibration.digest) == (("pooler.*",), DIGEST)


def test_the_validate_job_alone_reads_the_data_of_evaluations_each_in_a_folder_of_its_own() -> None:
    case = yaml.safe_load((FOLDER / "smallest.in.yaml").read_text())
    said = {
        "sts": ("stsSpearman", {"configMap": {"name": "pairs", "key": "sts.jsonl"}}),
        "search": ("retrievalNdcg10", {"persistentVolumeClaim": {"claimName": "data", "path": "search.jsonl"}}),
    }
    evaluations = [
        {"name": name, "metric": metric, "dataset": {**file, "digest": DIGEST}, "maxLoss": "0.02"}
        for name, (metric, file) in said.items()
    ]
    case["spec"]["validation"] = {"evaluations": evaluations}
    jobs = {one["spec"]["template"]["spec"]["containers"][0]["args"][0]: one for one in rendered(case) if is_job(one)}
    mounted = {
        step: [one for one in job["spec"]["template"]["spec"]["volumes"] if one["name"].startswith("dataset")]
        for step, job in jobs.items()
    }
    volumes = [
        {"name": "dataset-search", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "dataset-sts", "configMap": {"name": "pairs", "optional": True}},
    ]
    assert mounted == {"fetch": [], "convert": [], "validate": volumes, "publish": []}
    container = jobs["validate"]["spec"]["template"]["spec"]["containers"][0]
    for name in said:
        mount = {"name": f"dataset-{name}", "mountPath": f"/datasets/{name}", "readOnly": True}
        assert mount in container["volumeMounts"]
    text = container["args"][container["args"].index("--evaluations") + 1]
    found = Evaluations.model_validate_json(text).root
    assert [(one.name, one.metric, one.max_loss) for one in found] == [
        ("search", "retrievalNdcg10", 0.02),
        ("sts", "stsSpearman", 0.02),
    ]
    assert all(one.dataset.digest == DIGEST for one in found)


def test_the_fetch_job_alone_loads_data_of_a_hub_and_the_steps_that_read_it_find_it_in_the_store() -> None:
    case = yaml.safe_load((FOLDER / "smallest.in.yaml").read_text())
    file = {"repository": "someone/pairs", "revision": "a" * 40, "tokenSecretRef": {"name": "hub"}}
    texts = {"huggingFace": {**file, "path": "texts.txt"}, "digest": DIGEST}
    pairs = {"huggingFace": {**file, "path": "test.jsonl"}, "digest": DIGEST}
    evaluation = {"name": "sts-own", "metric": "stsSpearman", "dataset": pairs, "maxLoss": "0.02"}
    case["spec"]["quantization"] = {"scheme": "int8-static", "calibration": texts}
    case["spec"]["validation"] = {"evaluations": [evaluation]}
    jobs = {one["spec"]["template"]["spec"]["containers"][0]["args"][0]: one for one in rendered(case) if is_job(one)}
    main = {step: job["spec"]["template"]["spec"]["containers"][0] for step, job in jobs.items()}
    tokens = {one["name"]: step for step, one_ in main.items() for one in one_["env"] if "valueFrom" in one}
    assert tokens == {"HF_TOKEN_CALIBRATION": "fetch", "HF_TOKEN_EVALUATION_STS_OWN": "fetch"}
    mounts = {
        step: {
            one["mountPath"]: one for one in container["volumeMounts"] if one.get("subPath", "").endswith("/datasets")
        }
        for step, container in main.items()
    }
    assert {step: [*found] for step, found in mounts.items()} == {
        "fetch": ["/datasets"],
        "convert": ["/calibration"],
        "validate": ["/datasets/sts-own"],
        "publish": [],
    }
    folders = {one["subPath"] for found in mounts.values() for one in found.values()}
    assert len(folders) == 1
    assert all(one["readOnly"] for step, found in mounts.items() if step != "fetch" for one in found.values())
    assert not [step for step, container in main.items() if "tokenSecretRef" in str(container["args"])]
    args = main["fetch"]["args"]
    (asked,) = Evaluations.model_validate_json(args[args.index("--evaluations") + 1]).root
    assert (asked.dataset.place, args[args.index("--datasets") + 1]) == (DIGEST.removeprefix("sha256:"), "/datasets")
    assert Dataset.model_validate_json(args[args.index("--calibration") + 1]).hugging_face is not None


def test_the_validate_job_alone_may_run_programs_and_only_where_the_class_says_so() -> None:
    case = yaml.safe_load((FOLDER / "smallest.in.yaml").read_text())
    dataset = {"configMap": {"name": "problems", "key": "problems.jsonl"}, "digest": DIGEST}
    sampling = {"k": 5, "completions": 20, "temperature": "0.6"}
    evaluation = {"name": "code", "metric": "passAtK", "dataset": dataset, "maxLoss": "0.02", "sampling": sampling}
    plain = {**evaluation, "metric": "bytePerplexity", "sampling": None}
    case["spec"] |= {"task": "text-generation", "validation": {"evaluations": [plain]}}

    def jobs() -> dict[str, list[str]]:
        containers = [one["spec"]["template"]["spec"]["containers"][0] for one in rendered(case) if is_job(one)]
        return {one["args"][0]: one["args"] for one in containers}

    assert not [step for step, args in jobs().items() if "--run-generated-code" in args]
    case["class"]["validation"] = {"runGeneratedCode": True}
    case["spec"]["validation"] = {"evaluations": [evaluation]}
    found = jobs()
    assert [step for step, args in found.items() if "--run-generated-code" in args] == ["validate"]
    args = found["validate"]
    (asked,) = Evaluations.model_validate_json(args[args.index("--evaluations") + 1]).root
    assert asked.sampling.model_dump() == {"k": 5, "completions": 20, "temperature": 0.6}


def test_both_sides_know_the_same_metrics_of_the_same_tasks() -> None:
    declared = {(str(metric), str(task)) for task, metrics in METRICS.items() for metric in metrics}
    assert declared == {(str(metric), str(task)) for metric, tasks in TASKS_OF.items() for task in tasks}
    assert {metric for metric, _ in declared} == {*map(str, Metric)}


def is_job(manifest: dict[str, Any]) -> bool:
    return bool(manifest["kind"] == "Job")


def test_weights_of_two_providers_are_even() -> None:
    case = yaml.safe_load((FOLDER / "two-providers.in.yaml").read_text())
    (route,) = [one for one in rendered(case) if one["kind"] == "HTTPRoute"]
    shares: dict[str, Decimal] = {}
    backends = route["spec"]["rules"][0]["backendRefs"]
    total = sum(one["weight"] for one in backends)
    for one in backends:
        shares[one["name"]] = Decimal(one["weight"]) / total
    assert sorted(shares.values()) == [Decimal("0.15")] * 2 + [Decimal("0.35")] * 2
