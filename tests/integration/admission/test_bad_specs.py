"""What cannot be right is refused by the real API server when it is applied, with the field's path and a way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from integration.admission.conftest import BACKUP, Installation, dry_run
from integration.admission.specs import ABSENT, CLAIM, HUB, Bad, Manifest, changed, model, model_class, revision
from integration.apiserver import ApiAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable

MEGABYTE: Final = "a" * 1_000_000

STEPS = "spec.rollout.steps"
FREEZES = "spec.rollout.freezeWindows"
ON_THE_CPU = {"scheme": "none", "executionProvider": "CPUExecutionProvider"}
TENSORRT = [{"name": "TensorrtExecutionProvider"}]
POOLS = "spec.executionProviders"
NIGHTS = {"schedule": "0 22 * * *", "duration": "8h"}
METRICS = "spec.rollout.analysis.metrics"
ANALYSIS = "spec.rollout.analysis"
PROMISE = f"{ANALYSIS}.maxFalseRollback"
LIMITS = "spec.serving.resources.limits"
PATH = "spec.source.persistentVolumeClaim.path"


def hub(**fields: object) -> Manifest:
    return {"spec.source": {"huggingFace": {**HUB["huggingFace"], **fields}}}


EVALUATION: Final = {
    "name": "sts",
    "metric": "stsSpearman",
    "dataset": {"configMap": {"name": "data", "key": "sts.jsonl"}, "digest": f"sha256:{'a' * 64}"},
    "maxLoss": "0.01",
}


def on_a_hub(path: str, **more: object) -> Manifest:
    file = {"repository": "someone/pairs", "revision": "a" * 40, "path": path}
    return {**EVALUATION, "dataset": {"huggingFace": file, "digest": f"sha256:{'a' * 64}", **more}}


COUNTED: Final = {"bad": "bad[{{window}}]", "total": "all[{{window}}]"}


def own(name: str, says: str, at: str, **query: str) -> Bad:
    """A metric of one's own that is wrong somewhere."""
    return Bad({METRICS: [{"name": name, "tolerance": "0.01", "prometheus": query}]}, f"{METRICS}[0]{at}", says)


def job(says: str, at: str, *, metric: Manifest | None = None, **fields: object) -> Bad:
    """A metric that a Job measures and that is wrong somewhere."""
    declared = {key: value for key, value in ({"image": "checks:1"} | fields).items() if value is not ABSENT}
    return Bad({METRICS: [{"name": "accuracy", "job": declared, **(metric or {})}]}, f"{METRICS}[0]{at}", says)


BAD_MODELS: Final = {
    # Sources
    "no source": Bad({"spec.source": {}}, "spec.source", "exactly one of"),
    "two sources": Bad({"spec.source": {**CLAIM, **HUB}}, "spec.source", "exactly one of"),
    "a source that is not there": Bad({"spec.source": ABSENT}, "spec.source", "Required"),
    "a source that is null": Bad({"spec.source": None}, "spec.source", "Required"),
    "a source of an unknown kind": Bad({"spec.source": {"ftp": {"host": "x"}}}, "spec.source.ftp", "unknown field"),
    "a claim without its name": Bad(
        {"spec.source": {"persistentVolumeClaim": {}}}, "spec.source.persistentVolumeClaim.claimName", "Required"
    ),
    "a claim in another namespace": Bad(
        {"spec.source.persistentVolumeClaim.namespace": "other"},
        "spec.source.persistentVolumeClaim.namespace",
        "unknown field",
    ),
    "a claim whose name cannot be": Bad(
        {"spec.source.persistentVolumeClaim.claimName": "My Claim"},
        "spec.source.persistentVolumeClaim.claimName",
        "should match",
    ),
    "an absolute path": Bad({PATH: "/etc"}, PATH, "must be relative"),
    "a path that climbs": Bad({PATH: "models/../../other"}, PATH, "must not contain .."),
    "a path with a null byte": Bad({PATH: "models\x00"}, PATH, "should match"),
    "a path of a megabyte": Bad({PATH: MEGABYTE}, PATH, "Too long"),
    "a repository by its URL": Bad(
        hub(repository="https://huggingface.co/team/encoder"), "spec.source.huggingFace.repository", "<owner>/<name>"
    ),
    "a repository three levels deep": Bad(
        hub(repository="team/group/encoder"), "spec.source.huggingFace.repository", "<owner>/<name>"
    ),
    "a repository that climbs": Bad(hub(repository="team/.."), "spec.source.huggingFace.repository", "<owner>/<name>"),
    "a repository without a revision": Bad(
        {"spec.source": {"huggingFace": {"repository": "team/encoder"}}},
        "spec.source.huggingFace.revision",
        "Required",
    ),
    "a revision with a shell in it": Bad(
        hub(revision="main; rm -rf /"), "spec.source.huggingFace.revision", "should match"
    ),
    "a revision that climbs": Bad(hub(revision="a/../b"), "spec.source.huggingFace.revision", "must not contain .."),
    "a token written into the spec": Bad(
        {**hub(), "spec.source.huggingFace.token": "hf_x"}, "spec.source.huggingFace.token", "unknown field"
    ),
    "a token from another namespace": Bad(
        hub(tokenSecretRef={"name": "hub", "namespace": "other"}),
        "spec.source.huggingFace.tokenSecretRef.namespace",
        "unknown field",
    ),
    "a digest in capitals": Bad({"spec.source.digest": f"sha256:{'A' * 64}"}, "spec.source.digest", "should match"),
    # What the graph is
    "an unknown quantisation": Bad(
        {"spec.quantization": {"scheme": "int4"}}, "spec.quantization.scheme", '"none", "float16"'
    ),
    "blocks of a scheme without any": Bad(
        {"spec.quantization": {"scheme": "int8-dynamic", "blockSize": 32}},
        "spec.quantization",
        "or take one of these schemes",
    ),
    "blocks of a size that no kernel has": Bad(
        {"spec.quantization": {"scheme": "int4-weight-only", "blockSize": 48}},
        "spec.quantization.blockSize",
        "Unsupported value: 48",
    ),
    "a scheme that a device has no kernels for": Bad(
        {
            "spec.quantization": {"scheme": "int8-dynamic"},
            "spec.executionProviders": [{"name": "CPUExecutionProvider"}, {"name": "CUDAExecutionProvider"}],
        },
        "spec.quantization.scheme",
        "or leave that provider out",
    ),
    "a static scheme on a device that multiplies it in floats": Bad(
        {
            "spec.quantization": {"scheme": "int8-static"},
            "spec.executionProviders": [{"name": "CUDAExecutionProvider"}],
        },
        "spec.quantization.scheme",
        "or leave that provider out",
    ),
    "a type that the CPU cannot multiply": Bad(
        {"spec.quantization": {"scheme": "bfloat16"}},
        "spec.quantization.scheme",
        "or take float16 or none",
    ),
    "layers excluded from a scheme that takes all": Bad(
        {"spec.quantization": {"scheme": "int8-weight-only", "exclude": ["pooler.*"]}},
        "spec.quantization.exclude",
        "belongs to int8-dynamic and int8-static; leave it out, or take one of these schemes",
    ),
    "a bound for auto with a scheme that was chosen": Bad(
        {"spec.quantization": {"scheme": "int8-dynamic", "auto": {"maxQualityLoss": "0.02"}}},
        "spec.quantization.auto",
        "leave it out, or take that scheme",
    ),
    "a loss of more than all": Bad(
        {"spec.quantization": {"scheme": "auto", "auto": {"maxQualityLoss": "2"}}},
        "spec.quantization.auto.maxQualityLoss",
        'must be a number from 0 to 1 as text, such as "0.05"',
    ),
    "a layer's error for a scheme that measures none": Bad(
        {"spec.quantization": {"scheme": "int8-dynamic", "maxLayerError": "0.04"}},
        "spec.quantization",
        "belong to int8-static, which measures on texts; leave them out, or take that scheme",
    ),
    "an algorithm for a scheme that rounds as it runs": Bad(
        {"spec.quantization": {"scheme": "int8-dynamic", "algorithm": "gptq"}},
        "spec.quantization.algorithm",
        "belongs to int4-weight-only; leave it out, or take that scheme",
    ),
    "an algorithm without a kernel on the CPU": Bad(
        {"spec.quantization": {"scheme": "int4-weight-only", "algorithm": "hqq"}},
        "spec.quantization.algorithm",
        "must be rtn or gptq; hqq has no kernel on the CPU",
    ),
    "an algorithm that nobody knows": Bad(
        {"spec.quantization": {"scheme": "int4-weight-only", "algorithm": "awq"}},
        "spec.quantization.algorithm",
        "must be rtn or gptq",
    ),
    "texts for an algorithm that reads none": Bad(
        {"spec.quantization": {"scheme": "int4-weight-only", "calibration": EVALUATION["dataset"]}},
        "spec.quantization.calibration",
        "belongs to int8-static and to algorithm gptq",
    ),
    "a scheme for one graph that is the whole model's": Bad(
        {"spec.quantization": {"components": {"encoder": {"scheme": "bfloat16"}}}},
        "spec.quantization.components.encoder.scheme",
        '"float16", "int8-dynamic", "int8-static", "int8-weight-only", "int4-weight-only"',
    ),
    "graphs that differ in a scheme of the whole model": Bad(
        {"spec.quantization": {"scheme": "auto", "components": {"decoder": {"scheme": "none"}}}},
        "spec.quantization.components",
        "bfloat16 and auto are for a model as a whole",
    ),
    "activations of no width": Bad(
        {"spec.quantization": {"scheme": "int8-static", "activations": "int4"}},
        "spec.quantization.activations",
        '"uint8", "uint16"',
    ),
    "calibration texts without a digest": Bad(
        {"spec.quantization": {"scheme": "int8-static", "calibration": {"configMap": {"name": "texts"}}}},
        "spec.quantization.calibration.digest",
        "Required",
    ),
    "calibration texts from nowhere": Bad(
        {"spec.quantization": {"scheme": "int8-static", "calibration": {"digest": f"sha256:{'a' * 64}"}}},
        "spec.quantization.calibration",
        "own texts leave calibration out",
    ),
    "calibration texts outside of their claim": Bad(
        {
            "spec.quantization": {
                "scheme": "int8-static",
                "calibration": {
                    "persistentVolumeClaim": {"claimName": "texts", "path": "../texts"},
                    "digest": f"sha256:{'a' * 64}",
                },
            }
        },
        "spec.quantization.calibration.persistentVolumeClaim.path",
        "must not contain ..",
    ),
    "an evaluation by a metric of another task": Bad(
        {"spec.task": "text-generation", "spec.validation": {"evaluations": [EVALUATION]}},
        "spec.validation.evaluations",
        "text-generation is measured by wordPerplexity, bytePerplexity",
    ),
    "an evaluation of a task that has no metric": Bad(
        {"spec.task": "image-classification", "spec.validation": {"evaluations": [EVALUATION]}},
        "spec.validation.evaluations",
        "image-classification has no metric yet",
    ),
    "a length of images": Bad(
        {"spec.task": "image-feature-extraction", "spec.maxSequenceLength": 64},
        "spec.maxSequenceLength",
        "leave it out for a model that takes images",
    ),
    "texts to measure a model of images on": Bad(
        {
            "spec.task": "image-classification",
            "spec.quantization": {"scheme": "int8-static", "calibration": EVALUATION["dataset"]},
        },
        "spec.quantization.calibration",
        "calibration holds texts; leave it out",
    ),
    "an evaluation without a bound": Bad(
        {"spec.validation": {"evaluations": [{**EVALUATION, "maxLoss": None}]}},
        "spec.validation.evaluations[0].maxLoss",
        "Required",
    ),
    "an evaluation that is judged by something else": Bad(
        {"spec.validation": {"evaluations": [{**EVALUATION, "judgedBy": "Mean"}]}},
        "spec.validation.evaluations[0].judgedBy",
        '"Value", "Interval"',
    ),
    "an evaluation with data from nowhere": Bad(
        {"spec.validation": {"evaluations": [{**EVALUATION, "dataset": {"digest": f"sha256:{'a' * 64}"}}]}},
        "spec.validation.evaluations[0].dataset",
        "exactly one of configMap, persistentVolumeClaim and huggingFace must be set",
    ),
    "an evaluation with data from two places": Bad(
        {"spec.validation": {"evaluations": [on_a_hub("test.jsonl", configMap={"name": "data", "key": "test.jsonl"})]}},
        "spec.validation.evaluations[0].dataset",
        "exactly one of configMap, persistentVolumeClaim and huggingFace must be set",
    ),
    "an evaluation with data in parquet": Bad(
        {"spec.validation": {"evaluations": [on_a_hub("data/test.parquet")]}},
        "spec.validation.evaluations[0].dataset.huggingFace.path",
        "path must end in .jsonl, .json or .csv",
    ),
    "an evaluation with data outside of its repository": Bad(
        {"spec.validation": {"evaluations": [on_a_hub("../test.jsonl")]}},
        "spec.validation.evaluations[0].dataset.huggingFace.path",
        "path must be relative to the repository's root and must not contain ..",
    ),
    "an evaluation of fewer programs than are asked for": Bad(
        {
            "spec.task": "text-generation",
            "spec.validation": {
                "evaluations": [{**EVALUATION, "metric": "passAtK", "sampling": {"k": 10, "completions": 5}}]
            },
        },
        "spec.validation.evaluations[0].sampling.completions",
        "completions must be k at least",
    ),
    "sampling of what is not written": Bad(
        {"spec.validation": {"evaluations": [{**EVALUATION, "sampling": {"k": 1}}]}},
        "spec.validation.evaluations[0].sampling",
        "sampling belongs to passAtK",
    ),
    "two evaluations of one name": Bad(
        {"spec.validation": {"evaluations": [EVALUATION, EVALUATION]}},
        "spec.validation.evaluations[1]",
        "Duplicate value",
    ),
    "an unknown task": Bad({"spec.task": "poetry"}, "spec.task", "sentence-embedding"),
    "an opset that torch cannot export": Bad({"spec.opset": 11}, "spec.opset", "greater than or equal to 18"),
    "an opset from the future": Bad({"spec.opset": 99}, "spec.opset", "less than or equal to 23"),
    "an opset as text": Bad({"spec.opset": "18"}, "spec.opset", "must be of type integer"),
    "an opset with a fraction": Bad({"spec.opset": 18.5}, "spec.opset", "must be of type integer"),
    "a maximum length of nothing": Bad(
        {"spec.maxSequenceLength": 0}, "spec.maxSequenceLength", "greater than or equal"
    ),
    "no execution provider": Bad({"spec.executionProviders": []}, "spec.executionProviders", "at least 1 items"),
    "an execution provider twice": Bad(
        {"spec.executionProviders": [{"name": "CPUExecutionProvider"}] * 2}, "spec.executionProviders[1]", "Duplicate"
    ),
    "an unknown execution provider": Bad(
        {"spec.executionProviders": [{"name": "TPUExecutionProvider"}]},
        "spec.executionProviders[0].name",
        "CUDAExecutionProvider",
    ),
    "execution providers as plain text": Bad(
        {"spec.executionProviders": ["CPUExecutionProvider"]}, "spec.executionProviders[0]", "must be of type object"
    ),
    "a graph on the CPU of a pool that is nothing else": Bad(
        {"spec.quantization": {"components": {"decoder": ON_THE_CPU}}},
        "spec.quantization.components",
        "list it in executionProviders, or leave the component's out",
    ),
    "both graphs on the CPU of a device": Bad(
        {
            "spec.quantization": {"components": {"encoder": ON_THE_CPU, "decoder": ON_THE_CPU}},
            POOLS: [{"name": "CUDAExecutionProvider"}],
        },
        "spec.quantization.components",
        "leave executionProvider out of one",
    ),
    "weights in blocks for TensorRT": Bad(
        {"spec.quantization": {"scheme": "int4-weight-only"}, POOLS: TENSORRT},
        "spec.quantization.scheme",
        "take one of these, or auto, or leave that provider out",
    ),
    "wide activations for TensorRT": Bad(
        {"spec.quantization": {"scheme": "int8-static", "activations": "uint16"}, POOLS: TENSORRT},
        "spec.quantization.activations",
        "take uint8, or leave that provider out",
    ),
    "a language model for TensorRT": Bad(
        {"spec.task": "text-generation", POOLS: TENSORRT}, POOLS, "take CUDAExecutionProvider"
    ),
    "a device outside of the cluster as a pool": Bad(
        {POOLS: [{"name": "CPUExecutionProvider"}, {"name": "DmlExecutionProvider"}]},
        f"{POOLS}[1].serving",
        "say serving: none",
    ),
    "a pool that is served in words": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "serving": "some"}]}, f"{POOLS}[0].serving", "should match"
    ),
    "a weight of what is not served": Bad(
        {
            POOLS: [
                {"name": "CPUExecutionProvider"},
                {"name": "CoreMLExecutionProvider", "serving": "none", "weight": 1},
            ]
        },
        f"{POOLS}[1].serving",
        "leave weight and schedules out",
    ),
    "all of the weight in what is not served": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "weight": 0}, {"name": "DmlExecutionProvider", "serving": "none"}]},
        POOLS,
        "give one a weight above 0",
    ),
    "a type that graphs for other devices cannot be judged in": Bad(
        {
            "spec.quantization": {"scheme": "bfloat16"},
            POOLS: [{"name": "CUDAExecutionProvider"}, {"name": "DmlExecutionProvider", "serving": "none"}],
        },
        "spec.quantization.scheme",
        "or take float16 or none",
    ),
    "floats for a device that takes quantised graphs alone": Bad(
        {POOLS: [{"name": "CPUExecutionProvider"}, {"name": "QNNExecutionProvider", "serving": "none"}]},
        "spec.quantization.scheme",
        "take int8-static, or leave that provider out",
    ),
    "a choice for devices that nothing is measured on": Bad(
        {
            "spec.quantization": {"scheme": "auto"},
            POOLS: [{"name": "CPUExecutionProvider"}, {"name": "WebGpuExecutionProvider", "serving": "none"}],
        },
        "spec.quantization.scheme",
        "name a scheme, or leave them out",
    ),
    "a pool below nothing": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "weight": -1}]}, f"{POOLS}[0].weight", "to 0"
    ),
    "a pool above a thousand": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "weight": 1001}]}, f"{POOLS}[0].weight", "to 1000"
    ),
    "a pool in percent as text": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "weight": "50"}]}, f"{POOLS}[0].weight", "must be of type integer"
    ),
    "pools that all weigh nothing": Bad(
        {
            POOLS: [
                {"name": "CPUExecutionProvider", "weight": 0},
                {"name": "CUDAExecutionProvider", "weight": 0, "schedules": [{**NIGHTS, "weight": 1}]},
            ]
        },
        POOLS,
        "give one a weight above 0",
    ),
    "a pool's window without a weight": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "schedules": [NIGHTS]}]},
        f"{POOLS}[0].schedules[0].weight",
        "Required",
    ),
    "a pool's window that never ends": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "schedules": [{"schedule": "0 22 * * *", "weight": 1}]}]},
        f"{POOLS}[0].schedules[0].duration",
        "Required",
    ),
    "a pool's window at minute 60": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "schedules": [{**NIGHTS, "schedule": "60 * * * *", "weight": 1}]}]},
        f"{POOLS}[0].schedules[0].schedule",
        "five cron fields",
    ),
    "too many windows of a pool": Bad(
        {POOLS: [{"name": "CPUExecutionProvider", "schedules": [{**NIGHTS, "weight": 1}] * 9}]},
        f"{POOLS}[0].schedules",
        "at most 8 items",
    ),
    # Validation
    "a cosine above 1": Bad({"spec.validation.parity.minCosine": "1.5"}, "spec.validation.parity.minCosine", "0 to 1"),
    "a cosine as a number": Bad(
        {"spec.validation.parity.minCosine": 0.99}, "spec.validation.parity.minCosine", "must be of type string"
    ),
    "an infinite tolerance": Bad(
        {"spec.validation.parity.maxAbsolute": "1e999"}, "spec.validation.parity.maxAbsolute", 'such as "1e-3"'
    ),
    "a tolerance that is not a number": Bad(
        {"spec.validation.parity.maxRelative": "NaN"}, "spec.validation.parity.maxRelative", 'such as "1e-3"'
    ),
    "a negative tolerance": Bad(
        {"spec.validation.parity.maxAbsolute": "-1"}, "spec.validation.parity.maxAbsolute", 'such as "1e-3"'
    ),
    "label agreement in percent": Bad(
        {"spec.validation.parity.minLabelAgreement": "99"}, "spec.validation.parity.minLabelAgreement", "0 to 1"
    ),
    # Serving
    "no replicas": Bad({"spec.serving.replicas": 0}, "spec.serving.replicas", "greater than or equal to 1"),
    "replicas below nothing": Bad({"spec.serving.replicas": -1}, "spec.serving.replicas", "greater than or equal to 1"),
    "replicas and an autoscaler": Bad(
        {"spec.serving": {"replicas": 2, "autoscaling": {"maxReplicas": 4, "target": {"queueTime": "20ms"}}}},
        "spec.serving.replicas",
        "take replicas out",
    ),
    "an autoscaler without a target": Bad(
        {"spec.serving": {"autoscaling": {"maxReplicas": 4, "target": {}}}},
        "spec.serving.autoscaling.target",
        "exactly one of queueTime and requestsInFlight",
    ),
    "an autoscaler with two targets": Bad(
        {"spec.serving": {"autoscaling": {"maxReplicas": 4, "target": {"queueTime": "1s", "requestsInFlight": 4}}}},
        "spec.serving.autoscaling.target",
        "exactly one of queueTime and requestsInFlight",
    ),
    "an autoscaler for nothing in flight": Bad(
        {"spec.serving": {"autoscaling": {"maxReplicas": 4, "target": {"requestsInFlight": 0}}}},
        "spec.serving.autoscaling.target.requestsInFlight",
        "above 0",
    ),
    "an autoscaler with more at least than at most": Bad(
        {"spec.serving": {"autoscaling": {"minReplicas": 5, "maxReplicas": 4, "target": {"queueTime": "20ms"}}}},
        "spec.serving.autoscaling.minReplicas",
        "must not be above maxReplicas",
    ),
    "a queue shorter than batching makes it": Bad(
        {
            "spec.serving": {
                "autoscaling": {"maxReplicas": 4, "target": {"queueTime": "20ms"}},
                "batching": {"maxQueueDelay": "20ms"},
            }
        },
        "spec.serving.autoscaling",
        "longer than batching.maxQueueDelay",
    ),
    "a PodSpec smuggled in": Bad(
        {"spec.serving.template": {"spec": {"hostNetwork": True, "containers": []}}},
        "spec.serving.template",
        "unknown field",
    ),
    "a service account to run as": Bad(
        {"spec.serving.serviceAccountName": "admin"}, "spec.serving.serviceAccountName", "unknown field"
    ),
    "an amount in words": Bad({f"{LIMITS}": {"cpu": "lots"}}, "limits[cpu]", "such as 500m"),
    "a negative amount": Bad({f"{LIMITS}": {"memory": "-1Gi"}}, "limits[memory]", "such as 500m"),
    "a negative amount as a number": Bad({f"{LIMITS}": {"cpu": -1}}, "limits[cpu]", "such as 500m"),
    "an amount with a fraction, not quoted": Bad({f"{LIMITS}": {"cpu": 0.5}}, f"{LIMITS}.cpu", "integer,string"),
    "a resource that no pod can have": Bad({f"{LIMITS}": {"c pu": "1"}}, LIMITS, "nvidia.com/gpu"),
    "requests above limits": Bad(
        {"spec.serving.resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}},
        "spec.serving.resources.requests",
        "must not be above limits",
    ),
    "a batch of nothing": Bad(
        {"spec.serving.batching.maxBatchSize": 0}, "spec.serving.batching.maxBatchSize", "greater than or equal to 1"
    ),
    "a queue delay of an hour": Bad(
        {"spec.serving.batching.maxQueueDelay": "1h"}, "spec.serving.batching.maxQueueDelay", "at most 10s"
    ),
    "more threads than any node has": Bad({"spec.serving.threads": 1000}, "spec.serving.threads", "less than or equal"),
    # Rollout
    "steps that descend": Bad({STEPS: [{"weight": 50}, {"weight": 10}]}, STEPS, "must ascend"),
    "two steps of one weight": Bad({STEPS: [{"weight": 50}, {"weight": 50}]}, STEPS, "each above the one before"),
    "a step that rests on what is not measured": Bad(
        {
            METRICS: [{"name": "errorRatio", "maximum": "0.05"}],
            STEPS: [{"weight": 50, "metrics": ["errorRatio", "slowRatio"]}],
        },
        STEPS,
        "metrics of a step are names of metrics in analysis.metrics",
    ),
    "no steps": Bad({STEPS: []}, STEPS, "at least 1 items"),
    "more steps than anybody watches": Bad({STEPS: [{"weight": n} for n in range(1, 18)]}, STEPS, "at most 16 items"),
    "a step above all traffic": Bad({STEPS: [{"weight": 101}]}, f"{STEPS}[0].weight", "less than or equal to 100"),
    "a step below no traffic": Bad({STEPS: [{"weight": -1}]}, f"{STEPS}[0].weight", "greater than or equal to 0"),
    "nothing but a preview that ends by itself": Bad(
        {STEPS: [{"weight": 0, "duration": "5m"}]}, STEPS, "give it a pause or mirror, or add a step with traffic"
    ),
    "a mirror beside traffic": Bad(
        {STEPS: [{"weight": 10, "mirror": 25}]}, f"{STEPS}[0].mirror", "a shadow, whose answers go to nobody"
    ),
    "a mirror of nothing": Bad(
        {STEPS: [{"weight": 0, "mirror": 0}, {"weight": 5}]}, f"{STEPS}[0].mirror", "greater than or equal to 1"
    ),
    "a mirror of more than there is": Bad(
        {STEPS: [{"weight": 0, "mirror": 101}, {"weight": 5}]}, f"{STEPS}[0].mirror", "less than or equal to 100"
    ),
    "a preview after a shadow": Bad(
        {STEPS: [{"weight": 0, "mirror": 25}, {"weight": 0}, {"weight": 5}]}, STEPS, "without mirror comes first"
    ),
    "two shadows of one size": Bad(
        {STEPS: [{"weight": 0, "mirror": 25}, {"weight": 0, "mirror": 25}]}, STEPS, "and mirrors ascend"
    ),
    "a step with a duration and a pause": Bad(
        {STEPS: [{"weight": 10, "duration": "5m", "pause": {}}]}, f"{STEPS}[0].duration", "not both"
    ),
    "a pause as long as a duration": Bad({STEPS: [{"weight": 10, "pause": "5m"}]}, f"{STEPS}[0].pause", "type object"),
    "a pause with a duration inside": Bad(
        {STEPS: [{"weight": 10, "pause": {"duration": "5m"}}]}, f"{STEPS}[0].pause.duration", "unknown field"
    ),
    "a deadline of a minute, and a step that lasts one by default": Bad(
        {"spec.rollout": {"progressDeadline": "1m", "steps": [{"weight": 10}]}},
        "spec.rollout.progressDeadline",
        "longer than the duration of every step",
    ),
    "a step without a weight": Bad({STEPS: [{"duration": "1m"}]}, f"{STEPS}[0].weight", "Required"),
    "a negative duration": Bad(
        {STEPS: [{"weight": 10, "duration": "-5m"}]}, f"{STEPS}[0].duration", "such as 500us, 30s or 1h30m"
    ),
    "a duration in days": Bad(
        {STEPS: [{"weight": 10, "duration": "1d"}]}, f"{STEPS}[0].duration", "such as 500us, 30s or 1h30m"
    ),
    "a duration without a unit": Bad(
        {STEPS: [{"weight": 10, "duration": "90"}]}, f"{STEPS}[0].duration", "such as 500us, 30s or 1h30m"
    ),
    "a duration longer than history": Bad(
        {STEPS: [{"weight": 10, "duration": "99999999999999999h"}]},
        f"{STEPS}[0].duration",
        "such as 500us, 30s or 1h30m",
    ),
    "a deadline that no step can meet": Bad(
        {"spec.rollout": {"progressDeadline": "5m", "steps": [{"weight": 10, "duration": "10m"}]}},
        "spec.rollout.progressDeadline",
        "longer than the duration of every step",
    ),
    "a deadline of a second": Bad(
        {"spec.rollout.progressDeadline": "1s"}, "spec.rollout.progressDeadline", "at least 10s"
    ),
    "a bake without a duration": Bad({"spec.rollout.bake": {}}, "spec.rollout.bake.duration", "Required"),
    "a bake that is only a duration": Bad({"spec.rollout.bake": "1h"}, "spec.rollout.bake", "type object"),
    "a bake of a day": Bad(
        {"spec.rollout.bake": {"duration": "1d"}}, "spec.rollout.bake.duration", "such as 500us, 30s or 1h30m"
    ),
    "no room for the first server": Bad(
        {"spec.rollout.maxSurge": 0, "spec.rollout.maxUnavailable": "0%"}, "spec.rollout.maxSurge", "cannot both be 0"
    ),
    "a surge below nothing": Bad({"spec.rollout.maxSurge": -1}, "spec.rollout.maxSurge", "such as 25%"),
    "a surge without a number": Bad({"spec.rollout.maxSurge": "all"}, "spec.rollout.maxSurge", "such as 25%"),
    "a surge of twice as many": Bad({"spec.rollout.maxSurge": "200%"}, "spec.rollout.maxSurge", "such as 25%"),
    "a surge of one and a half": Bad({"spec.rollout.maxSurge": 1.5}, "spec.rollout.maxSurge", "integer"),
    "a step without servers": Bad({STEPS: [{"weight": 10, "replicas": 0}]}, f"{STEPS}[0].replicas", "equal to 1"),
    "a way back that does not say how far": Bad(
        {"spec.rollout.rollbackWindow": {"duration": "24h"}}, "spec.rollout.rollbackWindow.revisions", "Required"
    ),
    "a way back that is too far": Bad(
        {"spec.rollout.rollbackWindow": {"revisions": 11}},
        "spec.rollout.rollbackWindow.revisions",
        "less than or equal to 10",
    ),
    "a way back for a second": Bad(
        {"spec.rollout.rollbackWindow": {"revisions": 3, "duration": "1s"}},
        "spec.rollout.rollbackWindow.duration",
        "at least 1m",
    ),
    "a freeze at minute 60": Bad(
        {FREEZES: [{"schedule": "60 * * * *", "duration": "1h"}]}, f"{FREEZES}[0].schedule", "five cron fields"
    ),
    "a freeze of four fields": Bad(
        {FREEZES: [{"schedule": "0 18 * *", "duration": "1h"}]}, f"{FREEZES}[0].schedule", "five cron fields"
    ),
    "a freeze of six fields": Bad(
        {FREEZES: [{"schedule": "0 0 18 * * 5", "duration": "1h"}]}, f"{FREEZES}[0].schedule", "five cron fields"
    ),
    "a freeze by a nickname": Bad(
        {FREEZES: [{"schedule": "@weekly", "duration": "1h"}]}, f"{FREEZES}[0].schedule", "such as 0 18 * * FRI"
    ),
    "a freeze that never ends": Bad({FREEZES: [{"schedule": "0 18 * * FRI"}]}, f"{FREEZES}[0].duration", "Required"),
    "a freeze of a second": Bad(
        {FREEZES: [{"schedule": "0 18 * * FRI", "duration": "1s"}]}, f"{FREEZES}[0].duration", "at least 1m"
    ),
    "a freeze in a zone with a path": Bad(
        {FREEZES: [{"schedule": "0 18 * * FRI", "duration": "1h", "timeZone": "../UTC"}]},
        f"{FREEZES}[0].timeZone",
        "such as Europe/Berlin",
    ),
    "a schedule of a megabyte": Bad(
        {FREEZES: [{"schedule": MEGABYTE, "duration": "1h"}]}, f"{FREEZES}[0].schedule", "Too long"
    ),
    "an unknown metric": Bad({METRICS: [{"name": "happiness", "maximum": "1"}]}, f"{METRICS}[0].name", "errorRatio"),
    "a metric of one's own with the name of none": own("Bad Vectors", "has a name of lower-case", ".name", **COUNTED),
    "a built-in metric with a query": own("memory", "give a metric of your own a name", ".prometheus", value="up"),
    "a query of half a ratio": own("bad-vectors", "give bad and total", ".prometheus", bad="up"),
    "a query of a ratio and a value": own("bad-vectors", "give bad and total", ".prometheus", **COUNTED, value="up"),
    "a placeholder that nobody fills in": own(
        "bad-vectors", "those known are {{namespace}}, {{model}}", ".prometheus.bad", bad="x[{{period}}]", total="x"
    ),
    "half a placeholder": own(
        "bad-vectors", "a placeholder that nobody fills in", ".prometheus.total", bad="x", total="x[{{window}]"
    ),
    "a query of nothing": own("bad-vectors", "at least 1 chars", ".prometheus.value", value=""),
    "a value with a share for a bound": Bad(
        {METRICS: [{"name": "memory", "maximum": "0.5", "maximumValue": "2Gi"}]}, f"{METRICS}[0]", "shares of answers"
    ),
    "a value without a bound": Bad({METRICS: [{"name": "memory"}]}, f"{METRICS}[0]", "is bounded by maximumValue"),
    "a share with the bound of a value": Bad(
        {METRICS: [{"name": "errorRatio", "maximum": "0.1", "maximumValue": "1"}]},
        f"{METRICS}[0]",
        "and nothing else is",
    ),
    "memory that must not be too little": Bad(
        {METRICS: [{"name": "memory", "minimumValue": "1Gi"}]}, f"{METRICS}[0]", "bounded from above only"
    ),
    "throughput compared with stable's": Bad(
        {METRICS: [{"name": "throughputPerReplica", "minimumOfStable": "0.9"}]}, f"{METRICS}[0]", "minimumValue only"
    ),
    "a memory in words": Bad(
        {METRICS: [{"name": "memory", "maximumValue": "much"}]}, f"{METRICS}[0].maximumValue", "such as 500m, 2 or 4Gi"
    ),
    "none of stable's": Bad(
        {METRICS: [{"name": "memory", "maximumOfStable": "0"}]}, f"{METRICS}[0].maximumOfStable", "above 0 as text"
    ),
    "slowness asked of triton": Bad(
        {METRICS: [{"name": "slowRatio", "maximum": "0.1", "slowerThan": "1s", "provider": "triton"}]},
        f"{METRICS}[0].provider",
        "leave provider out",
    ),
    "a provider that nobody knows": Bad(
        {METRICS: [{"name": "errorRatio", "maximum": "0.1", "provider": "datadog"}]},
        f"{METRICS}[0].provider",
        '"prometheus", "triton", "job"',
    ),
    "a built-in metric with a Job": job("give a metric of your own a name", ".job", metric={"name": "memory"}),
    "a metric with a query and a Job": job("one of the two", ".name", metric={"prometheus": COUNTED}),
    "a Job of another provider": job("leave provider out", ".provider", metric={"provider": "prometheus"}),
    "a provider of Jobs without a Job": Bad(
        {METRICS: [{"name": "accuracy", "provider": "job", "prometheus": {"value": "up"}, "maximumValue": 1}]},
        f"{METRICS}[0].provider",
        "leave provider out",
    ),
    "a Job with a share for a bound": job("are shares of answers", "", metric={"maximum": "0.5"}),
    "a Job without an image": job("Required", ".job.image", image=ABSENT),
    "a Job with a pod's field": job("unknown field", ".job.hostNetwork", hostNetwork=True),
    "an argument that nobody fills in": job("those known are {{namespace}}", ".job.args[0]", args=["--of={{stable}}"]),
    "an argument of a megabyte": job("Too long", ".job.args[0]", args=[MEGABYTE]),
    "a hundred arguments": job("must have at most 16 items", ".job.args", args=["a"] * 100),
    "a variable without a value": job("one of the two", ".job.env[0]", env=[{"name": "A"}]),
    "a variable with two values": job(
        "one of the two", ".job.env[0]", env=[{"name": "A", "value": "a", "secretKeyRef": {"name": "b", "key": "c"}}]
    ),
    "a variable twice": job("Duplicate value", ".job.env[1]", env=[{"name": "A", "value": "a"}] * 2),
    "a variable with the name of none": job("should match", ".job.env[0].name", env=[{"name": "A-B", "value": "a"}]),
    "a secret without its key": job(
        "Required", ".job.env[0].secretKeyRef.key", env=[{"name": "A", "secretKeyRef": {"name": "b"}}]
    ),
    "a Job of no time": job("at least 1s", ".job.deadline", deadline="0s"),
    "a bad end with exit code 0": job("greater than or equal to 1", ".job.failExitCodes[0]", failExitCodes=[0]),
    "a bad end by a signal": job("less than or equal to 125", ".job.failExitCodes[0]", failExitCodes=[137]),
    "no bad end": job("at least 1 items", ".job.failExitCodes", failExitCodes=[]),
    "a Job that reserves more than it may use": job(
        "requests must not be above limits",
        ".job.resources.requests",
        resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}},
    ),
    "a quantile of no latency": Bad(
        {METRICS: [{"name": "latencyQuantile", "slowerThan": "1s"}]}, f"{METRICS}[0].quantile", "needs quantile"
    ),
    "a quantile of errors": Bad(
        {METRICS: [{"name": "errorRatio", "maximum": "0.1", "quantile": "0.9"}]},
        f"{METRICS}[0].quantile",
        "no other metric has one",
    ),
    "a quantile with a maximum": Bad(
        {METRICS: [{"name": "latencyQuantile", "quantile": "0.9", "slowerThan": "1s", "maximum": "0.2"}]},
        f"{METRICS}[0]",
        "use slowRatio for maximum",
    ),
    "a metric twice": Bad(
        {METRICS: [{"name": "errorRatio", "maximum": "0.1"}] * 2}, f"{METRICS}[1]", "Duplicate value"
    ),
    "a metric without a bound": Bad({METRICS: [{"name": "errorRatio"}]}, f"{METRICS}[0]", "give maximum"),
    "slow answers without saying what slow is": Bad(
        {METRICS: [{"name": "slowRatio", "maximum": "0.1"}]}, f"{METRICS}[0].slowerThan", "for example 250ms"
    ),
    "slowness of a metric that has none": Bad(
        {METRICS: [{"name": "errorRatio", "maximum": "0.1", "slowerThan": "1s"}]},
        f"{METRICS}[0].slowerThan",
        "belongs to slowRatio and latencyQuantile only",
    ),
    "a maximum in percent": Bad({METRICS: [{"name": "errorRatio", "maximum": "5"}]}, f"{METRICS}[0].maximum", "0 to 1"),
    "an interval of a millisecond": Bad(
        {"spec.rollout.analysis.interval": "1ms"}, "spec.rollout.analysis.interval", "at least 1s"
    ),
    "a promise of no samples": Bad(
        {"spec.rollout.analysis.minimumSamples": 0},
        "spec.rollout.analysis.minimumSamples",
        "greater than or equal to 1",
    ),
    "a promise without a chance of error": Bad({PROMISE: "0"}, PROMISE, "from 0.000001 to 0.1"),
    "a promise that is worth nothing": Bad({PROMISE: "0.5"}, PROMISE, "from 0.000001 to 0.1"),
    "a promise in words": Bad({PROMISE: "one in a thousand"}, PROMISE, "as text"),
    "a proof of another kind": Bad({f"{ANALYSIS}.proof": "hope"}, f"{ANALYSIS}.proof", '"guard", "prove"'),
    "a proof that nothing at all is worse": Bad(
        {ANALYSIS: {"proof": "prove", "metrics": [{"name": "errorRatio", "tolerance": "0.00"}]}},
        f"{ANALYSIS}.proof",
        "must be above 0",
    ),
    "a proof that nothing ever fails": Bad(
        {ANALYSIS: {"proof": "prove", "metrics": [{"name": "errorRatio", "maximum": "0"}]}},
        f"{ANALYSIS}.proof",
        "must be above 0",
    ),
    "a wish for the case of doubt": Bad(
        {f"{ANALYSIS}.onInconclusive": "promote"}, f"{ANALYSIS}.onInconclusive", '"rollback", "proceed"'
    ),
    "a limit of no time for a verdict": Bad(
        {f"{ANALYSIS}.limits": {"noData": "0s"}}, f"{ANALYSIS}.limits.noData", "at least 1s"
    ),
    "a limit for a verdict that is acted on at once": Bad(
        {f"{ANALYSIS}.limits": {"fail": "1m"}}, f"{ANALYSIS}.limits.fail", "unknown field"
    ),
    "harm of no size to detect": Bad(
        {METRICS: [{"name": "errorRatio", "tolerance": "0", "detect": "0"}]}, f"{METRICS}[0].detect", "from 0.0001 to 1"
    ),
    "harm in percent to detect": Bad(
        {METRICS: [{"name": "errorRatio", "tolerance": "0", "detect": "5"}]}, f"{METRICS}[0].detect", "from 0.0001 to 1"
    ),
    "a dry run in words": Bad(
        {METRICS: [{"name": "errorRatio", "tolerance": "0", "dryRun": "true"}]},
        f"{METRICS}[0].dryRun",
        "must be of type boolean",
    ),
    "paused in words": Bad({"spec.rollout.paused": "yes"}, "spec.rollout.paused", "must be of type boolean"),
    "a token of a megabyte": Bad({"spec.rollout.retryToken": MEGABYTE}, "spec.rollout.retryToken", "Too long"),
    # The rest
    "a misspelt field": Bad({"spec.quantisation": {"scheme": "none"}}, "spec.quantisation", "unknown field"),
    "no spec": Bad({"spec": ABSENT}, "spec", "Required"),
    "no history at all": Bad(
        {"spec.revisionHistoryLimit": 0}, "spec.revisionHistoryLimit", "greater than or equal to 1"
    ),
    "a class by no name": Bad({"spec.className": ""}, "spec.className", "at least 1 chars long"),
    "a class by an impossible name": Bad({"spec.className": "größer"}, "spec.className", "should match"),
    # Names
    "a name of 64 characters": Bad({"metadata.name": "a" * 64}, "metadata.name", "at most 63 characters"),
    "a name of 253 characters": Bad({"metadata.name": "a" * 253}, "metadata.name", "at most 63 characters"),
    "a name with a dot": Bad({"metadata.name": "mini.lm"}, "metadata.name", "no dots"),
    "a name that begins with a digit": Bad({"metadata.name": "3minilm"}, "metadata.name", "begin with a letter"),
    "a name in capitals": Bad({"metadata.name": "MiniLM"}, "metadata.name", "lowercase"),
    "a name in Chinese": Bad({"metadata.name": "模型"}, "metadata.name", "alphanumeric"),
    # What the class does not allow
    "more replicas than the class allows": Bad(
        {"spec.serving.replicas": 11}, "spec.serving.replicas", "above the 10 that OnnxModelClass default allows"
    ),
    "more of an autoscaler than the class allows": Bad(
        {"spec.serving": {"autoscaling": {"maxReplicas": 11, "target": {"queueTime": "20ms"}}}},
        "spec.serving.autoscaling.maxReplicas",
        "above the 10 that OnnxModelClass default allows",
    ),
    "a branch where the class wants a commit": Bad(
        hub(revision="main"), "spec.source.huggingFace.revision", "40 hexadecimal digits"
    ),
    "a step as long as the class's deadline": Bad(
        {STEPS: [{"weight": 10, "duration": "15m"}]}, STEPS, "progressDeadline of 15m from OnnxModelClass default"
    ),
    "a deadline shorter than the class's steps": Bad(
        {"spec.rollout.progressDeadline": "1m"},
        "spec.rollout.progressDeadline",
        "every step from OnnxModelClass default",
    ),
}

GATEWAY = "spec.traffic.gateway"
PROVIDERS = "spec.executionProviders"

BAD_CLASSES: Final = {
    "no artifact store": Bad({"spec.artifactStore": ABSENT}, "spec.artifactStore", "Required"),
    "a gateway without a domain": Bad({"spec.traffic.domain": ABSENT}, "spec.traffic", "belong together"),
    "a domain without a gateway": Bad({GATEWAY: ABSENT}, "spec.traffic", "belong together"),
    "a domain with a scheme": Bad({"spec.traffic.domain": "https://models"}, "spec.traffic.domain", "should match"),
    "a domain too long for any model's host": Bad(
        {"spec.traffic.domain": "a" * 121}, "spec.traffic.domain", "Too long"
    ),
    "a gateway without its namespace": Bad({f"{GATEWAY}.namespace": ABSENT}, f"{GATEWAY}.namespace", "Required"),
    "a hub with a password in its address": Bad(
        {"spec.sources.huggingFace.endpoint": "https://user:secret@hub"}, "spec.sources.huggingFace.endpoint", "match"
    ),
    "a source of an unknown kind": Bad({"spec.sources.allowed": ["ftp"]}, "spec.sources.allowed[0]", "huggingFace"),
    "an unlimited Job in words": Bad({"spec.limits.maxAnalysisResources": {"cpu": "all"}}, "cpu", "such as 500m"),
    "a provider twice": Bad({PROVIDERS: [{"name": "CPUExecutionProvider"}] * 2}, f"{PROVIDERS}[1]", "Duplicate value"),
    "a toleration of everything with a value": Bad(
        {
            PROVIDERS: [
                {"name": "CPUExecutionProvider", "tolerations": [{"operator": "Exists", "key": "a", "value": "b"}]}
            ]
        },
        f"{PROVIDERS}[0].tolerations[0]",
        "value must be unset",
    ),
    "a toleration of nothing": Bad(
        {PROVIDERS: [{"name": "CPUExecutionProvider", "tolerations": [{"effect": "NoSchedule"}]}]},
        f"{PROVIDERS}[0].tolerations[0]",
        "key may be unset only",
    ),
    "a provider served unvalidated and left out": Bad(
        {PROVIDERS: [{"name": "CUDAExecutionProvider", "serveUnvalidatedAfter": "1m", "leaveOutAfter": "1m"}]},
        f"{PROVIDERS}[0].leaveOutAfter",
        "not both",
    ),
    "a benchmark of an hour": Bad({"spec.jobs.benchmark": "1h"}, "spec.jobs.benchmark", "at most 10m"),
    "a benchmark as long as its Job": Bad(
        {"spec.jobs": {"benchmark": "1m", "deadline": "1m"}}, "spec.jobs.benchmark", "shorter than deadline"
    ),
    "Jobs without time": Bad({"spec.jobs.deadline": "1s"}, "spec.jobs.deadline", "at least 10s"),
    "steps that descend": Bad({STEPS: [{"weight": 50}, {"weight": 10}]}, STEPS, "must ascend"),
    "a step as long as its own deadline": Bad(
        {STEPS: [{"weight": 10, "duration": "15m"}]}, "spec.rollout.progressDeadline", "duration of every step"
    ),
    "a freeze in no month": Bad(
        {FREEZES: [{"schedule": "0 0 1 13 *", "duration": "1h"}]}, f"{FREEZES}[0].schedule", "five cron fields"
    ),
    "no room for the first server of any model": Bad(
        {"spec.rollout.maxSurge": 0}, "spec.rollout.maxSurge", "cannot both be 0"
    ),
    "no replicas at all": Bad({"spec.limits.maxReplicas": 0}, "spec.limits.maxReplicas", "greater than or equal to 1"),
    "a default that is neither true nor false": Bad(
        {"metadata.annotations": {"onnx-operator.io/is-default-class": "yes"}},
        "onnx-operator.io/is-default-class",
        'must be "true" or "false"',
    ),
}


def cases(table: dict[str, Bad]) -> Iterable[object]:
    return [pytest.param(bad, id=name) for name, bad in table.items()]


def assert_refused(answer: ApiAnswer | None, bad: Bad) -> None:
    assert answer is not None, "it was let through"
    assert answer.status in {400, 403, 422}, answer
    assert bad.path in answer.message
    assert bad.word in answer.message
    # A refusal that repeats a megabyte back is none that anybody reads.
    assert len(answer.message) < 3_000


def test_there_are_enough_bad_specs_to_mean_something() -> None:
    assert len(BAD_MODELS) >= 40


@pytest.mark.parametrize("bad", cases(BAD_MODELS))
def test_a_model_is_refused_for(bad: Bad, installation: Installation, namespace: str) -> None:
    manifest = changed(model(), bad.change)
    assert_refused(dry_run(installation.admin, manifest, "onnxmodels", namespace), bad)


@pytest.mark.parametrize("bad", cases(BAD_CLASSES))
def test_a_class_is_refused_for(bad: Bad, installation: Installation) -> None:
    manifest = changed(model_class(), bad.change)
    assert_refused(dry_run(installation.admin, manifest, "onnxmodelclasses", None), bad)


def test_the_objects_that_the_bad_ones_are_made_from_are_fine(installation: Installation, namespace: str) -> None:
    assert dry_run(installation.admin, model(), "onnxmodels", namespace) is None
    assert dry_run(installation.admin, model_class(), "onnxmodelclasses", None) is None
    assert dry_run(installation.operator(), revision(), "onnxmodelrevisions", namespace) is None


def test_a_name_of_63_characters_is_fine(installation: Installation, namespace: str) -> None:
    assert dry_run(installation.admin, model("a" * 63), "onnxmodels", namespace) is None


def test_a_bad_change_of_a_good_model_is_refused_and_leaves_it_as_it_was(
    installation: Installation, namespace: str
) -> None:
    path = f"/apis/onnx-operator.io/v1alpha1/namespaces/{namespace}/onnxmodels"
    created = installation.admin.create(path, model())
    with pytest.raises(ApiAnswer, match=r"spec\.rollout\.steps.*must ascend"):
        installation.admin.merge(f"{path}/minilm", {"spec": {"rollout": {"steps": [{"weight": 9}, {"weight": 5}]}}})
    assert installation.admin.get(f"{path}/minilm") == created
    mended = {"spec": {"rollout": {"steps": [{"weight": 5}, {"weight": 9}]}}}
    assert installation.admin.merge(f"{path}/minilm", mended)["metadata"]["generation"] == 2


def test_a_revision_is_immutable_even_for_who_may_write_it(installation: Installation, namespace: str) -> None:
    backup = installation.plane.client(BACKUP)
    path = f"/apis/onnx-operator.io/v1alpha1/namespaces/{namespace}/onnxmodelrevisions"
    backup.create(path, revision())
    with pytest.raises(ApiAnswer, match=r"spec.*a revision is immutable; change the OnnxModel instead"):
        backup.merge(f"{path}/minilm-1", {"spec": {"opset": 19}})


def test_kubectl_shows_the_refusal_as_it_is(installation: Installation, namespace: str) -> None:
    text = """
apiVersion: onnx-operator.io/v1alpha1
kind: OnnxModel
metadata: {name: minilm}
spec:
  source: {persistentVolumeClaim: {claimName: x, namespace: other}}
  rolout: {}
"""
    done = installation.kubectl("apply", f"--namespace={namespace}", "-f", "-", stdin=text)
    assert done.returncode == 1
    assert 'unknown field "spec.rolout"' in done.stderr
    assert 'unknown field "spec.source.persistentVolumeClaim.namespace"' in done.stderr
