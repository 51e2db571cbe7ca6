"""The Jobs that turn a checkpoint into an artifact, and the policy that keeps them off the network.

Only `fetch` ever holds a credential or may reach out, and it opens no weights; `convert` and `validate` open the
checkpoint, which is assumed hostile, and have neither. No Job has a token of the API server.

Beside them the Jobs that measure a candidate, of an image that is the user's: they see neither checkpoints nor
artifacts, and reach both versions as any pod of the namespace does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from onnx_converter.footprint import MEBIBYTE, told
from onnx_converter.reasons import PERMANENT_CODES, USAGE
from onnx_operator.api.common import ExecutionProvider, Resources, parse_duration, parse_quantity
from onnx_operator.api.model import TOKEN_KEY
from onnx_operator.api.rollout import DEFAULT_FAIL_EXIT_CODES, DEFAULT_JOB_DEADLINE
from onnx_operator.core.names import (
    COMPONENT_LABEL,
    METRIC_LABEL,
    MODEL_LABEL,
    Component,
    digest_hex,
    jobs_policy_name,
    work_folder,
)
from onnx_operator.core.questions import Party, filled_in
from onnx_operator.core.revisions import conversion_key, declared, devices
from onnx_operator.core.view import side_of
from onnx_operator.render.parts import (
    ARTIFACTS,
    GRPC_PORT,
    HTTP_PORT,
    TMP,
    TMP_VOLUME,
    Manifest,
    claim_volume,
    config_map_volume,
    container_basics,
    labels,
    metadata,
    owned_by_model,
    owned_by_revision,
    pod_basics,
    resources,
    stamped,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from onnx_operator.api.model import Dataset, Evaluation, HubFile, HuggingFaceSource
    from onnx_operator.api.revision import OnnxModelRevisionSpec, RevisionProvider
    from onnx_operator.core.actions import (
        WantAnalysisJob,
        WantConvert,
        WantFetch,
        WantJobsPolicy,
        WantPublish,
        WantValidate,
    )
    from onnx_operator.core.observation import ModelSeen, RevisionSeen

_STORE: Final = "store"
_RETRIES: Final = 2
_KEPT_SECONDS: Final = 86_400
_KILLED: Final = 137
#: What a step holds that goes through files piece by piece.
_LITTLE: Final = 512 * MEBIBYTE


def build_fetch_job(want: WantFetch) -> Manifest:
    model, spec, class_spec = want.model, want.offer.spec, want.offer.class_spec
    flags = ["--source", _json(declared(spec.source)), "--source-root", "/source", "--output", "/checkpoints"]
    if spec.source.digest is not None:
        flags += ["--expect-digest", spec.source.digest]
    mounts = [_mount("/checkpoints", f"{work_folder(model.name, model.uid)}/checkpoints")]
    volumes: list[Manifest] = []
    environment: list[Manifest] = []
    if (claim := spec.source.persistent_volume_claim) is not None:
        mounts.append({"name": "source", "mountPath": "/source", "readOnly": True})
        volumes.append(claim_volume("source", claim.claim_name))
    if (hub := spec.source.hugging_face) is not None:
        environment += _token("HF_TOKEN", hub)
    texts, evaluations = spec.quantization.calibration, spec.validation.evaluations
    if texts is not None and (file := texts.hugging_face) is not None:
        flags += ["--calibration", _json(_told(texts.without_token()))]
        environment += _token("HF_TOKEN_CALIBRATION", file)
    told = []
    for one in evaluations:
        if (file := one.dataset.hugging_face) is not None:
            told.append(_told(one.model_copy(update={"dataset": one.dataset.without_token()})))
            environment += _token(f"HF_TOKEN_EVALUATION_{one.name.upper().replace('-', '_')}", file)
    if told:
        flags += ["--evaluations", _json(told)]
    files = [one for one in spec.datasets.values() if one.hugging_face is not None]
    if files:
        flags += ["--datasets", "/datasets"]
        mounts.append(_mount("/datasets", _datasets(model)))
    if (hub is not None or files) and (endpoint := class_spec.sources.hugging_face.endpoint) is not None:
        environment.insert(0, {"name": "HF_ENDPOINT", "value": endpoint})
    return _job(
        namespace=model.namespace,
        name=want.objects[0].name,
        labelled=labels(model.name, component=Component.FETCH),
        owner=owned_by_model(model),
        deadline=parse_duration(class_spec.jobs.deadline),
        pod=_pod(
            _container(
                Component.FETCH,
                flags,
                image=want.converter_image,
                mounts=mounts,
                environment=environment,
                amounts=_planned(class_spec.jobs.resources, None),
            ),
            claim=class_spec.artifact_store.claim_name,
            volumes=volumes,
        ),
    )


def build_convert_job(want: WantConvert) -> Manifest:
    model, revision = want.model, want.revision
    flags = ["--checkpoint", "/checkpoint", "--source-digest", revision.spec.source_digest]
    flags += ["--spec", _json(_conversion(revision.spec)), "--output", "/graph"]
    mounts = [
        _mount("/checkpoint", _checkpoint(model, revision), read_only=True),
        _mount("/graph", _graph(model, revision)),
    ]
    texts = revision.spec.quantization.calibration
    files = {"calibration": texts} if texts is not None else {}
    volumes = _dataset_volumes(files)
    mounts += [_dataset_mount(model, name, one, "/calibration") for name, one in files.items()]
    container = _container(
        Component.CONVERT,
        flags,
        image=revision.spec.converter_image,
        mounts=mounts,
        amounts=_planned(want.class_spec.jobs.resources, want.memory),
    )
    return _stage_job(want, Component.CONVERT, container, volumes=volumes)


def _dataset_volumes(files: Mapping[str, Dataset]) -> list[Manifest]:
    """Of those that fetch has not put into the store."""
    found = []
    for name, dataset in files.items():
        if dataset.persistent_volume_claim is not None:
            found.append(claim_volume(name, dataset.persistent_volume_claim.claim_name))
        elif dataset.config_map is not None:
            found.append(config_map_volume(name, dataset.config_map.name))
    return found


def _dataset_mount(model: ModelSeen, name: str, dataset: Dataset, path: str) -> Manifest:
    if dataset.hugging_face is not None:
        return _mount(path, _datasets(model), read_only=True)
    return {"name": name, "mountPath": path, "readOnly": True}


def build_validate_job(want: WantValidate) -> Manifest:
    model, revision = want.model, want.revision
    placement = next(one for one in revision.spec.execution_providers if one.name is want.provider)
    flags = ["--checkpoint", "/checkpoint", "--graph", "/graph", "--provider", str(want.provider)]
    flags += ["--spec", _json(_conversion(revision.spec))]
    flags += ["--parity", _json(revision.spec.parity.model_dump(exclude_none=True)), "--output", "/validation"]
    seconds = parse_duration(want.class_spec.jobs.benchmark).total_seconds()
    flags += ["--serving", _json(_serving(revision.spec)), "--benchmark", f"{seconds:g}"]
    mounts = [
        _mount("/checkpoint", _checkpoint(model, revision), read_only=True),
        _mount("/graph", _graph(model, revision), read_only=True),
        _mount("/validation", _validation(model, revision, want.provider)),
    ]
    evaluations = revision.spec.evaluations
    if evaluations:
        flags += ["--evaluations", _json(_declared_evaluations(revision.spec))]
        if want.class_spec.validation.run_generated_code:
            flags += ["--run-generated-code"]
    volumes = _dataset_volumes({f"dataset-{one.name}": one.dataset for one in evaluations})
    mounts += [
        _dataset_mount(model, f"dataset-{one.name}", one.dataset, f"/datasets/{one.name}") for one in evaluations
    ]
    jobs = _planned(want.class_spec.jobs.resources, want.memory)
    amounts = jobs.model_copy(
        update={
            "requests": jobs.requests | devices(placement.resources.requests),
            "limits": jobs.limits | devices(placement.resources.limits),
        }
    )
    container = _container(
        Component.VALIDATE,
        flags,
        image=revision.spec.converter_image,
        mounts=mounts,
        amounts=amounts,
        # CUDA alone is told by an option of its session.
        environment=arithmetic(want.provider) if want.provider is ExecutionProvider.TENSORRT else (),
    )
    return _stage_job(want, Component.VALIDATE, container, placement=placement, volumes=volumes)


def build_publish_job(want: WantPublish) -> Manifest:
    model, revision = want.model, want.revision
    flags = ["--work", "/conversion", "--store", "/artifacts", "--spec", _json(_conversion(revision.spec))]
    flags += ["--serving", _json(_serving(revision.spec)), "--lineage", _json(_lineage(revision.spec))]
    unproved = {
        provider: flag
        for flag, outcome in (("--unvalidated", "Skipped"), ("--left-out", "LeftOut"))
        for provider in revision.whose_validation_is(outcome)
    }
    for provider, flag in unproved.items():
        flags += [flag, str(provider)]
    mounts = [_mount("/conversion/graph", _graph(model, revision), read_only=True)]
    mounts += [
        _mount(f"/conversion/validation-{one}", _validation(model, revision, one), read_only=True)
        for one in (provider.name for provider in revision.spec.execution_providers)
        if one not in unproved
    ]
    mounts.append(_mount("/artifacts", ARTIFACTS))
    container = _container(
        Component.PUBLISH,
        flags,
        image=revision.spec.converter_image,
        mounts=mounts,
        amounts=_planned(want.class_spec.jobs.resources, None),
    )
    return _stage_job(want, Component.PUBLISH, container)


def build_analysis_job(want: WantAnalysisJob) -> Manifest:
    model, job, candidate = want.model, want.job, want.candidate
    party = Party(candidate.name, candidate.spec.number, side_of(candidate).services)

    def filled(text: str) -> str:
        return filled_in(text, party, namespace=model.namespace, model=model.name, since=want.since, now=want.now)

    variables = {one["name"]: one for one in _both_sides(want)}
    for one in job.env or ():
        if one.secret_key_ref is not None:
            variables[one.name] = {
                "name": one.name,
                "valueFrom": {"secretKeyRef": one.secret_key_ref.model_dump(mode="json")},
            }
        else:
            variables[one.name] = {"name": one.name, "value": filled(one.value or "")}
    declared_ = job.resources.model_dump(exclude_none=True) if job.resources is not None else {}
    most = want.class_spec.limits.max_analysis_resources
    amounts = Resources.model_validate(declared_ | {"limits": most | declared_.get("limits", {})})
    container = {
        "name": "main",
        "image": job.image,
        **container_basics(),
        **({"command": job.command} if job.command else {}),
        **({"args": [filled(one) for one in job.args]} if job.args else {}),
        "env": list(variables.values()),
        "resources": resources(amounts),
        "volumeMounts": [TMP],
    }
    labelled = labels(model.name, revision=candidate.name, component=Component.ANALYSIS) | {METRIC_LABEL: want.metric}
    return _job(
        namespace=model.namespace,
        name=want.name,
        labelled=labelled,
        owner=owned_by_revision(candidate),
        deadline=parse_duration(job.deadline or DEFAULT_JOB_DEADLINE),
        pod=_bare_pod(container, [TMP_VOLUME]),
        final_codes=job.fail_exit_codes or DEFAULT_FAIL_EXIT_CODES,
    )


def _both_sides(want: WantAnalysisJob) -> Iterator[Manifest]:
    """How to reach both versions: at their Services, as what comes by the gateway is counted as users' requests."""
    yield {"name": "HOME", "value": TMP["mountPath"]}
    yield {"name": "MODEL_NAME", "value": want.model.name}
    for side, revision in (("CANDIDATE", want.candidate), ("STABLE", want.stable)):
        host = f"{side_of(revision).services[0]}.{want.model.namespace}.svc"
        yield {"name": f"{side}_URL", "value": f"http://{host}:{HTTP_PORT}"}
        yield {"name": f"{side}_GRPC", "value": f"{host}:{GRPC_PORT}"}
        yield {"name": f"{side}_VERSION", "value": str(revision.spec.number)}


def build_jobs_policy(want: WantJobsPolicy) -> Manifest:
    """No network for the Jobs that open a checkpoint; whether that binds is the cluster's network's part."""
    model = want.model
    selector = {
        "matchLabels": {MODEL_LABEL: model.name},
        "matchExpressions": [
            {
                "key": COMPONENT_LABEL,
                "operator": "In",
                "values": [str(Component.CONVERT), str(Component.VALIDATE), str(Component.PUBLISH)],
            }
        ],
    }
    return stamped(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(
                owned_by_model(model), model.namespace, jobs_policy_name(model.name), labels(model.name)
            ),
            "spec": {"podSelector": selector, "policyTypes": ["Ingress", "Egress"]},
        }
    )


def _stage_job(
    want: WantConvert | WantValidate | WantPublish,
    component: Component,
    container: Manifest,
    *,
    placement: RevisionProvider | None = None,
    volumes: Sequence[Manifest] = (),
) -> Manifest:
    model, revision = want.model, want.revision
    provider: ExecutionProvider | None = placement.name if placement is not None else None
    pod = _pod(container, claim=revision.spec.artifact_claim_name, volumes=volumes)
    return _job(
        namespace=model.namespace,
        name=want.objects[0].name,
        labelled=labels(model.name, revision=revision.name, component=component, provider=provider),
        owner=owned_by_revision(revision),
        deadline=parse_duration(want.class_spec.jobs.deadline),
        pod=pod | placed(placement) if placement is not None else pod,
    )


def _job(
    *,
    namespace: str,
    name: str,
    labelled: dict[str, str],
    owner: Manifest,
    deadline: timedelta,
    pod: Manifest,
    final_codes: Sequence[int] = (USAGE.exit_code, *PERMANENT_CODES),
) -> Manifest:
    """`final_codes` are those after which trying again gives the same again."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(owner, namespace, name, labelled),
        "spec": {
            "backoffLimit": _RETRIES,
            "activeDeadlineSeconds": max(1, int(deadline.total_seconds())),
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "podFailurePolicy": {
                "rules": [
                    # A node that went away says nothing about the work, whatever code the container died with.
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": "main",
                            "operator": "In",
                            "values": [*final_codes, _KILLED],
                        },
                    },
                ]
            },
            "template": {"metadata": {"labels": labelled}, "spec": pod},
        },
    }


def _pod(container: Manifest, *, claim: str, volumes: Sequence[Manifest] = ()) -> Manifest:
    return _bare_pod(container, [claim_volume(_STORE, claim), *volumes, TMP_VOLUME])


def _bare_pod(container: Manifest, volumes: Sequence[Manifest]) -> Manifest:
    return {
        "restartPolicy": "Never",
        **pod_basics(grace_seconds=30),
        "containers": [container],
        "volumes": list(volumes),
    }


def arithmetic(provider: ExecutionProvider) -> list[Manifest]:
    """What was proved was float32: by itself the device rounds what it multiplies to ten bits."""
    if provider is ExecutionProvider.CPU:
        return []
    return [{"name": "NVIDIA_TF32_OVERRIDE", "value": "0"}]


def placed(placement: RevisionProvider) -> Manifest:
    """Where the pods of an execution provider run."""
    found: Manifest = {}
    if placement.node_selector:
        found["nodeSelector"] = placement.node_selector
    if placement.tolerations:
        found["tolerations"] = [one.model_dump(exclude_none=True) for one in placement.tolerations]
    if placement.runtime_class_name is not None:
        found["runtimeClassName"] = placement.runtime_class_name
    return found


def _container(
    step: Component,
    flags: Sequence[str],
    *,
    image: str,
    mounts: Sequence[Manifest],
    amounts: Resources,
    environment: Sequence[Manifest] = (),
) -> Manifest:
    # HOME lies on the one writable folder that is not a volume: libraries keep caches and locks there.
    variables = [{"name": "HOME", "value": TMP["mountPath"]}, *environment]
    return {
        "name": "main",
        "image": image,
        **container_basics(),
        "command": ["python3", "-m", "onnx_converter"],
        "args": [str(step), *flags],
        "env": variables,
        "resources": resources(amounts),
        "volumeMounts": [*mounts, TMP],
    }


def _planned(amounts: Resources, needed: int | None) -> Resources:
    """Requests the memory that is needed where the class requests none, and never more than it allows."""
    if "memory" in amounts.requests:
        return amounts
    size, limit = told(needed or _LITTLE), amounts.limits.get("memory")
    wanted = limit if limit is not None and parse_quantity(size) > parse_quantity(limit) else size
    return amounts.model_copy(update={"requests": amounts.requests | {"memory": wanted}})


def _mount(path: str, folder: str, *, read_only: bool = False) -> Manifest:
    mount: Manifest = {"name": _STORE, "mountPath": path, "subPath": folder}
    return mount | {"readOnly": True} if read_only else mount


def _token(variable: str, hub: HuggingFaceSource | HubFile) -> list[Manifest]:
    if (secret := hub.token_secret_ref) is None:
        return []
    reference = {"name": secret.name, "key": secret.key or TOKEN_KEY}
    return [{"name": variable, "valueFrom": {"secretKeyRef": reference}}]


def _datasets(model: ModelSeen) -> str:
    """Files of a hub, by their digests."""
    return f"{work_folder(model.name, model.uid)}/datasets"


def _checkpoint(model: ModelSeen, revision: RevisionSeen) -> str:
    return f"{work_folder(model.name, model.uid)}/checkpoints/{digest_hex(revision.spec.source_digest)}"


def _graph(model: ModelSeen, revision: RevisionSeen) -> str:
    return f"{_conversion_folder(model, revision)}/graph"


def _validation(model: ModelSeen, revision: RevisionSeen, provider: ExecutionProvider) -> str:
    """Below the graphs it speaks of, apart for each set of bounds."""
    return f"{_conversion_folder(model, revision)}/{revision.spec.artifact_key}/validation-{provider}"


def _conversion_folder(model: ModelSeen, revision: RevisionSeen) -> str:
    return f"{work_folder(model.name, model.uid)}/{conversion_key(revision.spec)}"


def _conversion(spec: OnnxModelRevisionSpec) -> dict[str, Any]:
    return {
        "task": str(spec.task),
        "opset": spec.opset,
        **spec.quantization.model_dump(mode="json", exclude_none=True),
        "maxSequenceLength": spec.max_sequence_length,
        "providers": [str(one.name) for one in spec.execution_providers],
    }


def _declared_evaluations(spec: OnnxModelRevisionSpec) -> list[dict[str, Any]]:
    return [_told(one) for one in spec.evaluations]


def _told(said: Dataset | Evaluation) -> dict[str, Any]:
    return said.model_dump(mode="json", exclude_none=True)


def _serving(spec: OnnxModelRevisionSpec) -> dict[str, int]:
    delay = parse_duration(spec.batching.max_queue_delay)
    return {
        "maxBatchSize": spec.batching.max_batch_size,
        "maxQueueDelayMicroseconds": round(delay.total_seconds() * 1_000_000),
        "instances": spec.instances,
        "threads": spec.threads,
    }


def _lineage(spec: OnnxModelRevisionSpec) -> dict[str, Any]:
    """What the artifact is told to have come from; nothing in it differs between two runs of the same."""
    return {
        "source": declared(spec.source),
        "sourceDigest": spec.source_digest,
        "converterImage": spec.converter_image,
        "parity": spec.parity.model_dump(exclude_none=True),
        **({"evaluations": _declared_evaluations(spec)} if spec.evaluations else {}),
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
