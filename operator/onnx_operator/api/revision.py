"""`OnnxModelRevision`: one immutable version of a model, written by the operator only."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from onnx_operator.api.common import (
    ApiModel,
    Count,
    Digest,
    DnsLabel,
    ExecutionProvider,
    Image,
    ObjectName,
    Resources,
    Text,
    Toleration,
    cel,
    schema_extra,
)
from onnx_operator.api.model import (
    MOST_EVALUATIONS,
    Batching,
    Evaluations,
    Parity,
    Quantization,
    Source,
    Task,
    Time,
)


class RevisionProvider(ApiModel):
    """One execution provider with everything the class and the model say about its pods."""

    name: ExecutionProvider
    """The execution provider."""
    node_selector: dict[str, str] = {}
    """Labels a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Taints the pods tolerate."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods."""
    resources: Resources = Resources()
    """Resources of the server container."""
    serving: Annotated[str, Field(pattern="^none$")] | None = None
    """none for a graph that is packed and not served."""


class OnnxModelRevisionSpec(ApiModel):
    """Everything that shapes the artifact and the pods, resolved. Immutable."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel("self == oldSelf", "a revision is immutable; change the OnnxModel instead")
        )
    }

    model_name: DnsLabel
    """Name of the OnnxModel, and of the model in Triton."""
    number: Annotated[int, Field(ge=1)]
    """Counts up for each model; the version that Triton reports."""
    source: Source
    """The source as declared."""
    source_digest: Digest
    """The source as resolved."""
    task: Task
    """What the model answers."""
    opset: int
    """ONNX operator set."""
    quantization: Quantization
    """Precision of the graph."""
    max_sequence_length: int | None = None
    """Longest input in tokens."""
    parity: Parity
    """Bounds of the validation."""
    evaluations: Evaluations = []
    """What may be lost of which quality."""
    execution_providers: Annotated[
        list[RevisionProvider],
        Field(
            max_length=len(ExecutionProvider),
            json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["name"]),
        ),
    ]
    """Execution providers with their placement."""
    batching: Batching
    """Triton's dynamic batching."""
    instances: int
    """Copies of the graph inside one pod."""
    threads: int
    """CPU threads of each instance."""
    converter_image: Image
    """Image of the Jobs."""
    server_image: Image
    """Image of the server."""
    operator_image: Image
    """Image that checks the artifact before the server starts. Pinned here so that an upgrade of the operator
    restarts no server; not part of the revision's identity."""
    artifact_claim_name: ObjectName
    """Claim that holds the artifact."""
    artifact_key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Identifies what shapes the artifact; revisions with the same key share one artifact."""


class Outcome(StrEnum):
    """Where a revision stands in its life."""

    PENDING = "Pending"
    CANDIDATE = "Candidate"
    STABLE = "Stable"
    RETIRED = "Retired"
    SUPERSEDED = "Superseded"
    FAILED = "Failed"
    ROLLED_BACK = "RolledBack"


class StageStatus(ApiModel):
    """The result of one Job; a ledger that outlives the Job."""

    name: Annotated[str, Field(max_length=64)]
    """convert, publish, or validate-<provider>."""
    outcome: Annotated[str, Field(pattern=r"^(Succeeded|Failed|Skipped|LeftOut)$")]
    """How it ended. Skipped is a validation that no node took, where the class lets its provider be served all the
    same; LeftOut one whose provider the revision is served without."""
    reason: Annotated[str, Field(max_length=128)]
    """The documented reason."""
    message: Text = ""
    """What happened, in a sentence."""
    exit_code: int | None = None
    """Exit code of the container."""
    finished_time: Time
    """When it ended."""
    seconds: Annotated[int, Field(ge=0)] = 0
    """How long it took, from the Job's start to its end."""


Measured = Annotated[str, Field(max_length=32)]
"""A number as text. Not bounded like what people write: a measured cosine may be negative or nan, and a status
that the API server refuses would stop the whole model."""


class ParityStatus(ApiModel):
    """The measured difference between graph and original on one execution provider."""

    provider: ExecutionProvider
    """Where it was measured."""
    min_cosine: Measured | None = None
    """Smallest cosine similarity seen."""
    max_absolute: Measured | None = None
    """Largest absolute difference seen."""
    max_relative: Measured | None = None
    """Largest relative difference seen."""
    min_label_agreement: Measured | None = None
    """Smallest label agreement seen."""
    quality_loss: Measured | None = None
    """What is lost on real text: by how much perplexity rises on what the original would say, as a share of it; of
    embeddings the mean of 1 - cosine."""
    samples: Count = 0
    """Number of inputs compared."""
    checked: Text | None = None
    """Where the graph was packed for devices outside of the cluster: how it stands in their table of operators. What
    was measured is the same graph on the CPU."""
    report_digest: Digest | None = None
    """Digest of the full report."""


class EvaluationStatus(ApiModel):
    """How well the graph does its task on one execution provider, beside the original."""

    provider: ExecutionProvider
    """Where the graph ran."""
    name: Annotated[str, Field(max_length=32)]
    """As declared."""
    metric: Annotated[str, Field(max_length=32)]
    """What was measured."""
    original: Measured
    """The original's value."""
    graph: Measured
    """The graph's."""
    loss: Measured
    """What was lost, as maxLoss counts it; below 0 the graph is better."""
    loss_low: Measured
    """Where the 95 % interval of the loss begins."""
    loss_high: Measured
    """Where it ends. Above maxLoss, the data is too little to show that the bound is kept."""
    max_loss: Measured
    """As declared."""
    samples: Count
    """Number of examples."""


class TriedScheme(ApiModel):
    """What came of one scheme that auto tried."""

    scheme: Annotated[str, Field(max_length=32)]
    """The scheme."""
    reason: Annotated[str, Field(max_length=128)]
    """Validated, or the documented reason for which it was refused; the report has the message."""
    loss: Measured | None = None
    """What it loses, as maxQualityLoss counts it."""
    speedup: Measured | None = None
    """How many times as fast as the original, the geometric mean over all shapes of request."""
    size_bytes: Count | None = None
    """The graph on disk."""


class ChosenScheme(ApiModel):
    """What auto took on one execution provider, and what else it tried."""

    provider: ExecutionProvider
    """Where it was measured."""
    scheme: Annotated[str, Field(max_length=32)]
    """The one that was taken; name it in a spec to convert the same again without auto."""
    schemes: Annotated[list[TriedScheme], Field(max_length=8)]
    """All that were tried."""


class LatencyStatus(ApiModel):
    """How long one side took to answer; each is a run that was measured."""

    p50_milliseconds: Measured
    """Median."""
    p90_milliseconds: Measured
    """90th percentile."""
    p99_milliseconds: Measured
    """99th percentile; with fewer than 100 runs the slowest."""
    tokens_per_second: Measured
    """New tokens, or images, of one request over the median."""


class BenchmarkCell(ApiModel):
    """One shape of request."""

    batch: Annotated[int, Field(ge=1)]
    """How many texts or images."""
    sequence_length: Annotated[int, Field(ge=1)]
    """New tokens of each. After a past it is 1: a language model that writes; without one it reads. An
    image counts as one."""
    past_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens before them whose keys and values are known."""
    runs: Annotated[int, Field(ge=1)]
    """How often each side answered."""
    speedup: Measured
    """The original's median over the graph's: above 1 the graph is faster."""
    original: LatencyStatus
    """Torch, fp32, eager attention, on the GPU beside a graph that is."""
    graph: LatencyStatus
    """The graph in onnxruntime on the execution provider, as a server's instance runs it."""


class FootprintStatus(ApiModel):
    """What one side takes."""

    size_bytes: Count
    """Its weights on disk; of the graph, all of its files."""
    load_milliseconds: Measured
    """From disk to the first question; of the original, its checks included."""
    peak_memory_bytes: Count | None = None
    """Resident memory of the host at its peak: the original's weights, or what loading the graph took, and the growth
    while one request of each shape was answered. Unset where the kernel does not tell it."""


class BenchmarkStatus(ApiModel):
    """Graph beside original on one execution provider, in turn. Told only: nothing is judged by it."""

    provider: ExecutionProvider
    """Where the graph ran."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of each side; those of a server's instance."""
    original_device: Annotated[str, Field(max_length=32)] | None = None
    """Where the original ran, as torch calls it; unset means the CPU."""
    cells: Annotated[list[BenchmarkCell], Field(max_length=4)] = []
    """By shape of request."""
    original: FootprintStatus | None = None
    """What the original takes."""
    graph: FootprintStatus | None = None
    """What the graph takes."""
    message: Text | None = None
    """What was left out, or why there is nothing."""


class ArtifactStatus(ApiModel):
    """The published artifact. Beside its folder in the store lies what was measured of it: <digest>.report.json,
    <digest>.report.html, <digest>.benchmark.json and <digest>.golden.json.
    """

    digest: Digest
    """Digest of its manifest, which lists every file."""
    bytes: Count = 0
    """Total size."""
    report_digest: Digest | None = None
    """Digest of <digest>.report.json, as it was written when this revision was published."""
    page_digest: Digest | None = None
    """Digest of <digest>.report.html, as it was written when this revision was published."""
    golden_digest: Digest | None = None
    """Digest of <digest>.golden.json, which the prober checks. Where it is unset, an older version published the
    artifact with report.json and golden.json inside."""


class QuarantineStatus(ApiModel):
    """Why this revision is not tried again by itself."""

    stage: Annotated[str, Field(max_length=32)]
    """Where it failed: Converted, Validated, Published, CandidateAvailable or Rollout."""
    reason: Annotated[str, Field(max_length=128)]
    """The documented reason."""
    message: Text
    """What happened, and the way out."""
    exit_code: int | None = None
    """Exit code of the container that failed."""
    logs: Annotated[str, Field(max_length=2048)] | None = None
    """The command that shows the logs of the failed container."""
    time: Time
    """When."""


class RecordedMetric(ApiModel):
    """One column of the points."""

    name: Annotated[str, Field(max_length=64)]
    """The metric."""
    bound: Annotated[str, Field(max_length=128)] = ""
    """What it is held to, in words."""
    maximum: Annotated[str, Field(max_length=24)] | None = None
    """As declared in the model or its class: a share, or a value where the metric is one."""
    minimum: Annotated[str, Field(max_length=24)] | None = None
    """As declared in the model or its class, for a value."""
    tolerance: Annotated[str, Field(max_length=24)] | None = None
    """As declared in the model or its class."""
    dry_run: bool = False
    """Judged and told only; the rollout does not follow it."""


class RecordedMoment(ApiModel):
    """Something that began."""

    time: Time
    """When it was first seen."""
    weight: Annotated[int, Field(ge=0, le=100)]
    """Percent of requests that the candidate was to have."""
    reason: Annotated[str, Field(max_length=128)]
    """The documented reason."""
    message: Annotated[str, Field(max_length=160)]
    """What it was, in a sentence."""


class RolloutEnd(ApiModel):
    """How a rollout ended."""

    time: Time
    """When it was decided."""
    outcome: Annotated[str, Field(pattern=r"^(Promoted|RolledBack|Failed|Superseded)$")]
    """What became of the candidate."""
    reason: Annotated[str, Field(max_length=128)]
    """The documented reason."""
    message: Annotated[str, Field(max_length=512)]
    """Why, in a sentence."""


class RolloutRecord(ApiModel):
    """What a rollout was like from its first to its last minute; `python -m onnx_operator report` makes a page of it.
    Bounded: when it is full, points in the middle are dropped, so that all of it stays visible, less finely.
    """

    started_time: Time
    """When the revision became the candidate; the points count seconds from here."""
    metrics: Annotated[list[RecordedMetric], Field(max_length=8)] = []
    """What the parts of a point speak of, in this order."""
    points: Annotated[
        list[Annotated[str, Field(max_length=1024, pattern=r"^[0-9]+ [0-9]+( [|] [-PINEF] [^ ]+ [^ ]+)*$")]],
        Field(max_length=120),
    ] = []
    """One judgement each: seconds, weight, and for each metric its verdict, the candidate's and stable's side.
    "132 20 | P 3/410 5/1630" is second 132 at 20 %: Pass with 3 bad of 410 answers of the candidate since the step
    began, and 5 of 1630 of stable. Verdicts are Pass, Inconclusive, NoData, providerError (E), Fail. A side is
    bad/total, bad+disputed/total, a plain number where the metric is one, or - for nothing."""
    moments: Annotated[list[RecordedMoment], Field(max_length=30)] = []
    """Each change of what the rollout was doing: steps, holds, pauses."""
    end: RolloutEnd | None = None
    """How it ended; unset while it is under way."""


class OnnxModelRevisionStatus(ApiModel):
    """What became of the revision. Written by the operator only."""

    outcome: Outcome = Outcome.PENDING
    """Where it stands in its life."""
    attempt: Annotated[int, Field(ge=0)] = 0
    """Counts the retries that a person asked for; part of the Jobs' names."""
    stages: Annotated[
        list[StageStatus],
        Field(
            max_length=2 + len(ExecutionProvider),  # convert and publish, and validate once for each
            json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["name"]),
        ),
    ] = []
    """Results of the Jobs."""
    parity: Annotated[list[ParityStatus], Field(max_length=len(ExecutionProvider))] = []
    """Measured difference per execution provider."""
    evaluations: Annotated[list[EvaluationStatus], Field(max_length=MOST_EVALUATIONS * len(ExecutionProvider))] = []
    """Measured quality per execution provider."""
    quantization: Annotated[list[ChosenScheme], Field(max_length=len(ExecutionProvider))] = []
    """Of scheme auto: what was taken per execution provider."""
    benchmark: Annotated[list[BenchmarkStatus], Field(max_length=len(ExecutionProvider))] = []
    """Measured speed, memory and size per execution provider."""
    artifact: ArtifactStatus | None = None
    """The published artifact."""
    quarantine: QuarantineStatus | None = None
    """Set when the revision failed or was rolled back."""
    rollout: RolloutRecord | None = None
    """The last rollout of this revision, in figures."""


class OnnxModelRevision:
    """Names of the kind."""

    KIND: ClassVar = "OnnxModelRevision"
    PLURAL: ClassVar = "onnxmodelrevisions"
    SINGULAR: ClassVar = "onnxmodelrevision"
    SHORT: ClassVar = "omr"
