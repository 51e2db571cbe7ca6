"""`OnnxModel`: what a product team writes, and what the operator tells about it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, WithJsonSchema

from onnx_operator.api.common import (
    EDGE,
    ApiModel,
    Condition,
    ConfigMapKey,
    Count,
    DecimalString,
    Digest,
    DnsLabel,
    ExecutionProvider,
    ObjectName,
    Quantity,
    Resources,
    Share,
    Text,
    cel,
    duration_field,
    schema_extra,
    share_field,
)
from onnx_operator.api.rollout import Rollout
from onnx_operator.api.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Task(StrEnum):
    """What the model answers."""

    AUTO = "auto"
    FEATURE_EXTRACTION = "feature-extraction"
    SENTENCE_EMBEDDING = "sentence-embedding"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105  (a task's name, not a password)
    TEXT_GENERATION = "text-generation"
    TEXT2TEXT_GENERATION = "text2text-generation"
    AUTOMATIC_SPEECH_RECOGNITION = "automatic-speech-recognition"
    IMAGE_FEATURE_EXTRACTION = "image-feature-extraction"
    IMAGE_CLASSIFICATION = "image-classification"


class Scheme(StrEnum):
    """Quantisation schemes."""

    NONE = "none"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    INT8_WEIGHT_ONLY = "int8-weight-only"
    INT4_WEIGHT_ONLY = "int4-weight-only"
    AUTO = "auto"


def _path_in(what: str) -> Any:
    rule = cel(
        "!self.startsWith('/') && !self.split('/').exists(p, p == '..')",
        f"path must be relative to the {what}'s root and must not contain ..",
    )
    return Field(max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$", json_schema_extra=schema_extra(rule))


_ClaimPath = Annotated[str, _path_in("claim")]


class PersistentVolumeClaimSource(ApiModel):
    """A checkpoint folder in a claim of the model's own namespace; mounted read-only by the fetch Job."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: _ClaimPath = ""
    """Folder inside the claim that holds config.json and the weights; empty is the claim's root."""


_KeyOfSecret = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
#: What tokens are called inside of Secrets.
TOKEN_KEY: Final = "token"  # noqa: S105  (the name of a key)


class SecretKey(ApiModel):
    """A key of a Secret in the model's own namespace; mounted by the fetch Job, never read by the operator."""

    name: ObjectName
    """Name of the Secret."""
    key: _KeyOfSecret = TOKEN_KEY
    """Key inside the Secret."""


class ListedSecretKey(ApiModel):
    """The same inside of a list, where a default would be a change at every apply."""

    name: ObjectName
    """Name of the Secret."""
    key: _KeyOfSecret | None = None
    """Key inside the Secret; token when unset."""


class HubRepository(ApiModel):
    """A repository on a Hugging Face hub; the class says which hub."""

    repository: Annotated[
        str,
        Field(
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$",
            max_length=200,
            json_schema_extra=schema_extra(
                cel(
                    "!self.contains('..') && !self.contains(':') && self.split('/').size() <= 2",
                    "repository must be <owner>/<name> as on the hub, such as sentence-transformers/all-MiniLM-L6-v2; "
                    "the hub's address stands in the class",
                )
            ),
        ),
    ]
    """Owner and name, such as sentence-transformers/all-MiniLM-L6-v2."""
    revision: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
            max_length=200,
            json_schema_extra=schema_extra(
                cel("!self.contains('..')", "revision must be a commit, branch or tag; it must not contain ..")
            ),
        ),
    ]
    """The commit as 40 hexadecimal digits. A branch or tag is taken only where the class allows mutable
    revisions; it is resolved once and stays pinned until the source or retryToken changes."""


class HuggingFaceSource(HubRepository):
    """A repository on a Hugging Face hub; the class says which hub."""

    token_secret_ref: SecretKey | None = None
    """Where the access token for a private repository is kept."""


class Source(ApiModel):
    """Where the checkpoint comes from: exactly one of the sources."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "[has(self.persistentVolumeClaim), has(self.huggingFace)].filter(x, x).size() == 1",
                "exactly one of persistentVolumeClaim and huggingFace must be set",
            )
        )
    }

    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """A folder in a PersistentVolumeClaim of this namespace."""
    hugging_face: HuggingFaceSource | None = None
    """A repository on a Hugging Face hub."""
    digest: Digest | None = None
    """The digest that the fetched checkpoint must have; the fetch fails on any other."""


class Activations(StrEnum):
    """What int8-static rounds activations to."""

    UINT8 = "uint8"
    UINT16 = "uint16"


class Algorithm(StrEnum):
    """How int4-weight-only rounds."""

    RTN = "rtn"
    GPTQ = "gptq"


class ClaimFile(ApiModel):
    """A file in a claim of the model's own namespace; mounted read-only by the Job that reads it."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: Annotated[_ClaimPath, Field(min_length=1)]
    """The file inside the claim."""


class HubFile(HubRepository):
    """A file of a dataset repository on the class's hub; loaded by the fetch Job, with what source may load too."""

    token_secret_ref: ListedSecretKey | None = None
    """Where the access token for a private repository is kept."""
    path: Annotated[str, Field(min_length=1), _path_in("repository")]
    """The file inside the repository."""


def _one_file(way_out: str) -> dict[str, str]:
    return cel(
        "[has(self.configMap), has(self.persistentVolumeClaim), has(self.huggingFace)].filter(x, x).size() == 1",
        f"exactly one of configMap, persistentVolumeClaim and huggingFace must be set{way_out}",
    )


class Dataset(ApiModel):
    """A file, held to its digest."""

    model_config = {"json_schema_extra": schema_extra(_one_file(""))}

    config_map: ConfigMapKey | None = None
    """A key of a ConfigMap of this namespace."""
    persistent_volume_claim: ClaimFile | None = None
    """A file in a PersistentVolumeClaim of this namespace."""
    hugging_face: HubFile | None = None
    """A file of a dataset repository on a Hugging Face hub."""
    digest: Digest
    """SHA-256 of the file: sha256: and what sha256sum prints. Part of what the revision is: another file is another
    digest and another revision, and a file that is not this one is refused."""

    def without_token(self) -> Self:
        """What is read, and nothing about how to get in."""
        if self.hugging_face is None:
            return self
        file = self.hugging_face.model_copy(update={"token_secret_ref": None})
        return self.model_copy(update={"hugging_face": file})


class CalibrationKey(ConfigMapKey):
    """A key of a ConfigMap in the model's own namespace; mounted by the convert Job, never read by the operator."""

    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "calibration.txt"
    """The key that holds the texts."""


class Calibration(Dataset):
    """Texts such as the model will be asked, one a line: UTF-8, at most 1024 lines and 1 MiB."""

    model_config = {
        "json_schema_extra": schema_extra(_one_file("; for the converter's own texts leave calibration out"))
    }

    config_map: CalibrationKey | None = None
    """A key of a ConfigMap of this namespace."""


class Preference(StrEnum):
    """What counts among schemes that lose little enough."""

    SPEED = "speed"
    SIZE = "size"


class AutoQuantization(ApiModel):
    """How auto chooses."""

    max_quality_loss: Share = "0.01"
    """The most that a scheme may lose, such as "0.01": the largest loss of the evaluations where any are declared. Else
    it is measured on texts of the converter's own: by how much perplexity rises on what the original would say, as a
    share of it, and of embeddings the mean of 1 - cosine."""
    prefer: Preference = Preference.SPEED
    """speed takes the fastest of the schemes that lose little enough, size the smallest. Of schemes that are equally
    fast, within 5 percent, the smallest is taken, and where the class measures no speed as well. int8-static is tried
    with a maxLayerError of 0.04."""


class GraphScheme(StrEnum):
    """Schemes that one graph of a model may have."""

    NONE = "none"
    FLOAT16 = "float16"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    INT8_WEIGHT_ONLY = "int8-weight-only"
    INT4_WEIGHT_ONLY = "int4-weight-only"


class Component(ApiModel):
    """One of the two graphs of a model."""

    scheme: GraphScheme
    """Its scheme, with that scheme's defaults. Keys and values cross between the graphs as FP16 where the decoder is in
    float16, and else as FP32."""
    execution_provider: Annotated[str, Field(pattern="^CPUExecutionProvider$")] | None = None
    """CPUExecutionProvider has it run on the CPU of the pods of CUDAExecutionProvider, the other graph on the device;
    validated as it is served. In other pools it runs as they do."""


class Components(ApiModel):
    """The two graphs of a model that reads one text and writes another, or hears it."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "!has(self.encoder) || !has(self.encoder.executionProvider) || "
                "!has(self.decoder) || !has(self.decoder.executionProvider)",
                "with both graphs on the CPU nothing runs on the device; leave executionProvider out of one, or list "
                "CPUExecutionProvider in spec.executionProviders",
            )
        )
    }

    encoder: Component | None = None
    """What reads or hears, once for each text."""
    decoder: Component | None = None
    """What writes, token by token."""


class Quantization(ApiModel):
    """How much precision is given up for speed and size."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "self.scheme.endsWith('-weight-only') || "
                "!(has(self.blockSize) || has(self.symmetric) || has(self.keepOutputHead))",
                "blockSize, symmetric and keepOutputHead belong to int8-weight-only and int4-weight-only; "
                "leave them out, or take one of these schemes",
            ),
            cel(
                "self.scheme == 'int8-static' || !(has(self.activations) || has(self.maxLayerError))",
                "activations and maxLayerError belong to int8-static, which measures on texts; leave them out, or "
                "take that scheme",
            ),
            cel(
                "self.scheme in ['int8-dynamic', 'int8-static'] || !has(self.exclude)",
                "exclude belongs to int8-dynamic and int8-static; leave it out, or take one of these schemes",
                field_path=".exclude",
            ),
            cel(
                "self.scheme == 'int4-weight-only' || !has(self.algorithm)",
                "algorithm belongs to int4-weight-only; leave it out, or take that scheme",
                field_path=".algorithm",
            ),
            cel(
                "self.scheme == 'int8-static' || (has(self.algorithm) && self.algorithm == 'gptq') "
                "|| !has(self.calibration)",
                "calibration belongs to int8-static and to algorithm gptq, which measure on texts; leave it out, or "
                "take one of these",
                field_path=".calibration",
            ),
            cel(
                "!has(self.components) || !(self.scheme in ['bfloat16', 'auto'])",
                "bfloat16 and auto are for a model as a whole; leave components out, or take another scheme",
                field_path=".components",
            ),
            cel(
                "self.scheme == 'auto' || !has(self.auto)",
                "auto belongs to scheme auto; leave it out, or take that scheme",
                field_path=".auto",
            ),
        )
    }

    scheme: Scheme = Scheme.NONE
    """none keeps float32. float16 and bfloat16 store weights and compute in 16 bits, as transformers itself does, for
    accelerators; answers stay float32. float16 on the CPU is right, and no faster than none; bfloat16 has no kernels
    there. int8-dynamic stores weights as 8-bit integers, one scale for each column, and quantises
    activations while it runs; on the CPU only. int8-static does so with ranges of the activations that were measured
    before on texts; not on CUDA. int8-weight-only and int4-weight-only store the weights
    of layers as 8 or 4-bit integers in blocks, each with a scale. On the CPU tables of words become 8-bit integers in
    all four, but beside activations of uint16; elsewhere they stay in float32. auto tries all that the execution
    provider has kernels for, measures each as if it had been asked for, and takes the best."""
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    """For weight-only schemes: how many weights share a scale; 32 when unset. Smaller is closer to the original and
    larger on disk."""
    symmetric: bool | None = None
    """For weight-only schemes: whether zero lies in the middle of each block's range; false when unset. True saves a
    little space and costs precision."""
    keep_output_head: bool | None = None
    """For weight-only schemes: whether the layer that makes the logits stays in float32, and the table of words where
    that is the same weight; false when unset, which gives it 8 bits in either scheme."""
    algorithm: (
        Annotated[
            Algorithm,
            # In place of an enum, which would be all that is told.
            WithJsonSchema(
                schema_extra(
                    cel(
                        "self in ['rtn', 'gptq']",
                        "must be rtn or gptq; hqq has no kernel on the CPU, where its weights are made floats for each "
                        "product and a token takes longer than with scheme none",
                    ),
                    type="string",
                    maxLength=16,
                )
            ),
        ]
        | None
    ) = None
    """For int4-weight-only: rtn, when unset, rounds each weight to the nearest; gptq rounds row by row, and the rows
    that are left make up for what was moved, on the calibration texts: closer to the original by far, of the same size
    and speed, and it takes minutes."""
    activations: Activations | None = None
    """For int8-static: what the inputs of layers are rounded to; uint8 when unset. uint16 is closer to the original but
    slower than no quantisation, as onnxruntime then multiplies in floats; its graph has opset 21 at least."""
    exclude: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]],
            Field(min_length=1, max_length=64, json_schema_extra=schema_extra(x_kubernetes_list_type="set")),
        ]
        | None
    ) = None
    """For int8-dynamic and int8-static: layers that stay in float32, by name as in the checkpoint, with * and ? for any
    characters, such as encoder.layer.0.*; one that matches no layer ends the conversion."""
    max_layer_error: Annotated[str, share_field(least="0.001", example="0.04")] | None = None
    """For int8-static: a layer whose answer moves by more than this share of its length when what goes into it is
    rounded, measured on the calibration texts, stays in float32, such as "0.04"; unset, none does. The report names
    them."""
    calibration: Calibration | None = None
    """For int8-static and gptq: what is measured on; texts of the converter's own when unset. A model that hears writes
    them, to generated sounds."""
    auto: AutoQuantization | None = None
    """For auto: how much may be lost, and what counts then; a loss of "0.01" and speed when unset."""
    components: Components | None = None
    """For models of two graphs: a graph that has another scheme than the model, as the two want different things: the
    encoder reads once, the decoder reads all of its weights for every token."""

    @property
    def schemes(self) -> set[str]:
        """Of all graphs."""
        parts = [self.components.encoder, self.components.decoder] if self.components else [None]
        return {str(one.scheme if one else self.scheme) for one in parts}


#: A route takes weights up to a million: 100 percent of up to two thousand parts fit in.
PoolWeight = Annotated[int, Field(ge=0, le=1000)]


class PoolSchedule(Window):
    """A time in which a pool has another weight."""

    weight: PoolWeight
    """The pool's weight while the window is open."""


def _named(providers: Iterable[str]) -> str:
    return ", ".join(f"'{one}'" for one in providers)


class ExecutionProviderRequest(ApiModel):
    """One execution provider that the model must be validated and served on: a pool of pods."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                f"!(self.name in [{_named(EDGE)}]) || has(self.serving)",
                f"{', '.join(EDGE)} are of devices outside of the cluster; say serving: none, and the graph is checked "
                "and packed for them, and not served",
                field_path=".serving",
            ),
            cel(
                "!has(self.serving) || !(has(self.weight) || has(self.schedules))",
                "serving: none gets no requests; leave weight and schedules out, or leave serving out",
                field_path=".serving",
            ),
        )
    }

    name: ExecutionProvider
    """CPUExecutionProvider, CUDAExecutionProvider or, for encoders, TensorrtExecutionProvider; the class says on which
    nodes each runs. With serving: none also DmlExecutionProvider (DirectML), CoreMLExecutionProvider,
    WebGpuExecutionProvider, OpenVINOExecutionProvider and, in int8-static, QNNExecutionProvider, which need no node."""
    # No defaults: kubectl apply sends a list whole, so a default inside of one is a change at every apply.
    serving: Annotated[str, Field(pattern="^none$")] | None = None
    """none makes, validates and packs a graph that no pod serves. For devices outside of the cluster it is compared
    with the original on the CPU, and checked node by node against the table of operators that their makers publish."""
    weight: PoolWeight | None = None
    """The pool's share of the requests, relative to the other pools; 1 when unset. 0 gets requests only while no other
    pool can take them. Stable and candidate share by the same weights, and a change makes no new revision."""
    schedules: (
        Annotated[
            list[PoolSchedule], Field(max_length=8, json_schema_extra=schema_extra(x_kubernetes_list_type="atomic"))
        ]
        | None
    ) = None
    """Times in which the pool has another weight; of several that are open the first one counts."""


class Parity(ApiModel):
    """Bounds on the difference between the ONNX graph and the original; unset means the scheme's default."""

    min_cosine: Share | None = None
    """Smallest cosine similarity between outputs that still passes, such as "0.999"."""
    max_absolute: DecimalString | None = None
    """Largest absolute difference of any output value that still passes, such as "1e-3"."""
    max_relative: DecimalString | None = None
    """Largest difference relative to the output's scale that still passes."""
    min_label_agreement: Share | None = None
    """For classifiers: smallest share of inputs with the same label that still passes, such as "0.99"; for language
    models, of tokens after which the same one comes next."""


class Metric(StrEnum):
    """What an evaluation measures, by the definitions of the field."""

    WORD_PERPLEXITY = "wordPerplexity"
    BYTE_PERPLEXITY = "bytePerplexity"
    BITS_PER_BYTE = "bitsPerByte"
    MULTIPLE_CHOICE = "multipleChoice"
    MULTIPLE_CHOICE_NORMALIZED = "multipleChoiceNormalized"
    STS_SPEARMAN = "stsSpearman"
    RETRIEVAL_NDCG10 = "retrievalNdcg10"
    ACCURACY = "accuracy"
    F1_MACRO = "f1Macro"
    ENTITY_F1 = "entityF1"
    TOKEN_ACCURACY = "tokenAccuracy"  # noqa: S105  (a metric's name, not a password)
    WORD_ERROR_RATE = "wordErrorRate"
    BLEU = "bleu"
    CHRF = "chrf"
    PASS_AT_K = "passAtK"  # noqa: S105  (a metric's name, not a password)


#: What can be measured of which task.
METRICS: dict[Task, tuple[Metric, ...]] = {
    Task.TEXT_GENERATION: (
        Metric.WORD_PERPLEXITY,
        Metric.BYTE_PERPLEXITY,
        Metric.BITS_PER_BYTE,
        Metric.MULTIPLE_CHOICE,
        Metric.MULTIPLE_CHOICE_NORMALIZED,
        Metric.PASS_AT_K,
    ),
    Task.SENTENCE_EMBEDDING: (Metric.STS_SPEARMAN, Metric.RETRIEVAL_NDCG10),
    Task.FEATURE_EXTRACTION: (Metric.STS_SPEARMAN, Metric.RETRIEVAL_NDCG10),
    Task.TEXT_CLASSIFICATION: (Metric.ACCURACY, Metric.F1_MACRO),
    Task.TOKEN_CLASSIFICATION: (Metric.ENTITY_F1, Metric.TOKEN_ACCURACY),
    Task.TEXT2TEXT_GENERATION: (Metric.BLEU, Metric.CHRF),
    Task.AUTOMATIC_SPEECH_RECOGNITION: (Metric.WORD_ERROR_RATE,),
}


class Sampling(ApiModel):
    """How many programs are written for each problem, and how."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "!has(self.completions) || self.completions >= (has(self.k) ? self.k : 1)",
                "completions must be k at least, which is 1 when unset",
                field_path=".completions",
            )
        )
    }

    # No defaults: they would be inside of a list.
    k: Annotated[int, Field(ge=1, le=100)] | None = None
    """One of so many programs has to be right; 1 when unset."""
    completions: Annotated[int, Field(ge=1, le=100)] | None = None
    """How many are written, of which the share of right ones is known the better the more there are; k when unset. One
    is written greedily, several by chance, seeded, with the same luck for both sides."""
    temperature: Annotated[str, share_field(least="0.01", most="2", example="0.8")] | None = None
    """How freely several are written, such as "0.8", which it is when unset."""


class JudgedBy(StrEnum):
    """Which loss has to keep maxLoss."""

    VALUE = "Value"
    INTERVAL = "Interval"


class Evaluation(ApiModel):
    """How well the graph does its task on data of yours, beside the original."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "!has(self.dataset.huggingFace) || self.dataset.huggingFace.path.matches('[.](jsonl|json|csv)$')",
                "path must end in .jsonl, .json or .csv, which are what is read; export other formats to one of them",
                field_path=".dataset.huggingFace.path",
            ),
            cel(
                "!has(self.sampling) || self.metric == 'passAtK'",
                "sampling belongs to passAtK; leave it out, or take that metric",
                field_path=".sampling",
            ),
        )
    }

    name: Annotated[DnsLabel, Field(max_length=32)]
    """What it is called in reports."""
    metric: Metric
    """What is measured. Of language models wordPerplexity, bytePerplexity, bitsPerByte, multipleChoice and
    multipleChoiceNormalized, as lm-evaluation-harness defines them, and passAtK, which runs the programs that the model
    writes and so needs a class that allows it (validation.runGeneratedCode); of sentence embeddings stsSpearman and
    retrievalNdcg10, and of bare encoders the same, on the mean of the tokens' vectors; of text classifiers accuracy and
    f1Macro; of token classifiers entityF1 and tokenAccuracy; of models that read one text and write another bleu and
    chrf (sacrebleu's, from 0 to 1); of speech wordErrorRate."""
    dataset: Dataset
    """JSON lines in UTF-8, 20 to 10000 examples and at most 8 MiB: {text}; {context, choices, answer}; {sentence1,
    sentence2, score}; {id, text} and {query, relevant}; {text, label}; {words, labels}; {source, reference}; {audio,
    text, language}, at most 32 MiB; {prompt, test, entry_point}, as HumanEval has them. A file named .json may hold a
    list of them, one named .csv has a line of names and then a line for each."""
    sampling: Sampling | None = None
    """For passAtK: how many programs are written; one, greedily, when unset."""
    max_loss: Share
    """The most that may be lost, such as "0.01": of a perplexity and of bits the increase as a share of the original's,
    of a word error rate the increase, of all others what is missing to the original's."""
    judged_by: JudgedBy | None = None
    """Value, when unset, is the loss that was measured. Interval is the far end of its 95 % interval, so that too few
    examples pass nothing by luck."""

    @property
    def runs_programs(self) -> bool:
        """Whether programs are run that the model writes."""
        return self.metric is Metric.PASS_AT_K


MOST_EVALUATIONS: Final = 6
Evaluations = Annotated[
    list[Evaluation],
    Field(
        max_length=MOST_EVALUATIONS,
        json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["name"]),
    ),
]


class Validation(ApiModel):
    """What must be proved before a revision may see traffic."""

    parity: Parity = Parity()
    """The ONNX graph against the original checkpoint, over adversarial shapes and real text."""
    evaluations: Evaluations = []
    """How well the graph does its task, on each execution provider; what loses more than its maxLoss is refused."""


class Batching(ApiModel):
    """Triton's dynamic batching."""

    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    """Most requests that are answered in one run of the graph. Memory grows with it times the length."""
    max_queue_delay: Annotated[str, duration_field(most="10s")] = "500us"
    """How long a request may wait for others to share its batch."""


class AutoscalingTarget(ApiModel):
    """What each pod is to have on average: exactly one of the targets."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "[has(self.queueTime), has(self.requestsInFlight)].filter(x, x).size() == 1",
                "exactly one of queueTime and requestsInFlight must be set",
            ),
            cel(
                "!has(self.requestsInFlight) || !isQuantity(string(self.requestsInFlight))"
                " || quantity(string(self.requestsInFlight)).isGreaterThan(quantity('0'))",
                "requestsInFlight must be above 0",
                field_path=".requestsInFlight",
            ),
        )
    }

    queue_time: Annotated[str, duration_field(least="1ms", most="1m")] | None = None
    """How long a request waits in Triton's queue, on average over a minute, such as 20ms. More than
    batching.maxQueueDelay, for which a request may wait on purpose."""
    requests_in_flight: Quantity | None = None
    """How many requests a pod holds, waiting or under way, such as "4"."""


class Autoscaling(ApiModel):
    """Pods as the load asks for, by a HorizontalPodAutoscaler for each execution provider."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
                "minReplicas must not be above maxReplicas",
                field_path=".minReplicas",
            )
        )
    }

    min_replicas: Annotated[int, Field(ge=1, le=100)] = 1
    """The fewest pods per execution provider. While a new revision gets requests, the autoscalers may not go below what
    each side's weight stands for either."""
    max_replicas: Annotated[int, Field(ge=1, le=100)]
    """The most pods per execution provider, of each revision."""
    target: AutoscalingTarget
    """What is measured. Needs the metrics that the chart's files/autoscaling describe."""
    scale_down_stabilization: Annotated[str, duration_field(least="2m", most="1h")] = "5m"
    """How long fewer pods must have been enough before any goes, and how long stable keeps all it has after a rollout
    has ended: the metrics speak of before."""


class Serving(ApiModel):
    """How the model is served. Changing replicas or autoscaling scales; changing anything else makes a new revision."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "!has(self.replicas) || !has(self.autoscaling)",
                "replicas and autoscaling cannot both be set; take replicas out (or set it to null), and an autoscaler "
                "goes on from the pods that there are",
                field_path=".replicas",
            ),
            cel(
                "!has(self.autoscaling) || !has(self.autoscaling.target.queueTime) || !has(self.batching)"
                " || !has(self.batching.maxQueueDelay)"
                " || duration(self.autoscaling.target.queueTime) > duration(self.batching.maxQueueDelay)",
                "target.queueTime must be longer than batching.maxQueueDelay, for which requests wait on purpose",
                field_path=".autoscaling",
            ),
        )
    }

    # No default: replicas xor autoscaling.
    replicas: Annotated[int, Field(ge=1, le=100)] | None = None
    """Pods per execution provider at full weight; 1 when neither this nor autoscaling is set."""
    autoscaling: Autoscaling | None = None
    """Pods per execution provider as the load asks for, instead of replicas."""
    resources: Resources = Resources()
    """Resources of each server container; the class's for the execution provider when empty."""
    batching: Batching = Batching()
    """How requests are put together; not those to a language model, which come after pasts of different length."""
    instances: Annotated[int, Field(ge=1, le=16)] = 1
    """Copies of the graph inside one pod that run at the same time."""
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """CPU threads of each instance."""


def _fits(task: Task) -> dict[str, str]:
    known = METRICS.get(task, ())
    listed = ", ".join(f"'{one}'" for one in known)
    words = f"{task} is measured by {', '.join(known)}; take one of them" if known else f"{task} has no metric yet"
    return cel(
        f"self.task != '{task}' || !has(self.validation.evaluations)"
        f" || self.validation.evaluations.all(e, e.metric in [{listed}])",
        f"{words}, or leave evaluations out",
        field_path=".validation.evaluations",
    )


_WITHOUT_TENSORRT: Final = "!self.executionProviders.exists(p, p.name == 'TensorrtExecutionProvider')"


class OnnxModelSpec(ApiModel):
    """The declared model."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "!(self.quantization.scheme in ['int8-dynamic', 'int8-static']) || "
                "!self.executionProviders.exists(p, p.name == 'CUDAExecutionProvider')",
                "int8-dynamic and int8-static have no kernels on CUDAExecutionProvider; take none, float16, bfloat16, "
                "int8-weight-only or int4-weight-only, or leave that provider out",
                field_path=".quantization.scheme",
            ),
            cel(
                "self.quantization.scheme != 'bfloat16' || "
                "self.executionProviders.all(p, p.name in ['CUDAExecutionProvider', 'TensorrtExecutionProvider'])",
                "bfloat16 has no kernels on CPUExecutionProvider, where graphs for devices outside of the cluster are "
                "judged, too; list CUDAExecutionProvider alone in executionProviders, or take float16 or none",
                field_path=".quantization.scheme",
            ),
            cel(
                "self.executionProviders.exists(p, p.name == 'CUDAExecutionProvider') || "
                "!has(self.quantization.components) || "
                "!((has(self.quantization.components.encoder) "
                "&& has(self.quantization.components.encoder.executionProvider)) "
                "|| (has(self.quantization.components.decoder) "
                "&& has(self.quantization.components.decoder.executionProvider)))",
                "a component's executionProvider is for the pods of CUDAExecutionProvider; list it in "
                "executionProviders, or leave the component's out",
                field_path=".quantization.components",
            ),
            cel(
                "self.quantization.scheme in ['none', 'float16', 'bfloat16', 'int8-static', 'auto'] || "
                f"{_WITHOUT_TENSORRT}",
                "TensorrtExecutionProvider knows none, float16, bfloat16 and int8-static; take one of these, or auto, "
                "or leave that provider out",
                field_path=".quantization.scheme",
            ),
            cel(
                "!has(self.quantization.activations) || self.quantization.activations == 'uint8' || "
                f"{_WITHOUT_TENSORRT}",
                "TensorrtExecutionProvider rounds activations to 8 bits; take uint8, or leave that provider out",
                field_path=".quantization.activations",
            ),
            cel(
                "!(self.task in ['text-generation', 'text2text-generation', 'automatic-speech-recognition']) || "
                f"{_WITHOUT_TENSORRT}",
                "TensorrtExecutionProvider is for encoders; take CUDAExecutionProvider for a model that writes",
                field_path=".executionProviders",
            ),
            cel(
                f"self.quantization.scheme != 'auto' || !self.executionProviders.exists(p, p.name in [{_named(EDGE)}])",
                f"auto takes what is measured, and nothing is measured on {', '.join(EDGE)}; name a scheme, or leave "
                "them out",
                field_path=".quantization.scheme",
            ),
            cel(
                "self.quantization.scheme in ['int8-static', 'auto'] || "
                "!self.executionProviders.exists(p, p.name == 'QNNExecutionProvider')",
                "QNNExecutionProvider takes quantised graphs alone; take int8-static, or leave that provider out",
                field_path=".quantization.scheme",
            ),
            cel(
                "!(self.task in ['image-feature-extraction', 'image-classification']) || !has(self.maxSequenceLength)",
                "maxSequenceLength is the length of a text; leave it out for a model that takes images",
                field_path=".maxSequenceLength",
            ),
            cel(
                "!(self.task in ['image-feature-extraction', 'image-classification']) || "
                "!has(self.quantization.calibration)",
                "calibration holds texts; leave it out for a model that takes images, which is measured on generated "
                "ones",
                field_path=".quantization.calibration",
            ),
            *(_fits(task) for task in Task if task is not Task.AUTO),
        )
    }

    class_name: ObjectName | None = None
    """The OnnxModelClass to use; unset means the default class."""
    source: Source
    """The checkpoint."""
    task: Task = Task.AUTO
    """What the model answers; auto reads it from the checkpoint's own files. Of CLIP, which is two models in one
    checkpoint, auto takes the one for texts, and image-feature-extraction the one for images."""
    opset: Annotated[int, Field(ge=18, le=23)] = 18
    """ONNX operator set of the graph; must be known to the serving image."""
    quantization: Quantization = Quantization()
    """Precision of the graph."""
    max_sequence_length: Annotated[int, Field(ge=1, le=131_072)] | None = None
    """Longest input in tokens that is served; longer ones are answered with an error. Unset means all that the
    checkpoint allows, and for a language model no more than 2048, past included. A sound is of one length, and what is
    written of it is meant; images have none."""
    execution_providers: Annotated[
        list[ExecutionProviderRequest],
        Field(
            min_length=1,
            max_length=len(ExecutionProvider),
            json_schema_extra=schema_extra(
                cel(
                    "self.exists(p, !has(p.serving) && (!has(p.weight) || p.weight > 0))"
                    " || self.all(p, has(p.serving))",
                    "the weight of every execution provider is 0, so that outside of their schedules none would get "
                    "requests; give one a weight above 0 and take it away in a schedule",
                ),
                x_kubernetes_list_type="map",
                x_kubernetes_list_map_keys=["name"],
            ),
        ),
    ] = [ExecutionProviderRequest(name=ExecutionProvider.CPU)]
    """Where the model runs. Each one is validated on its own and served by its own pods, a pool; requests are shared
    between the pools by their weights. A pool without ready pods gets none while another has some. Where all of them
    say serving: none the model is published, and a new revision replaces the one before as soon as it is."""
    validation: Validation = Validation()
    """What must be proved before traffic."""
    serving: Serving = Serving()
    """How it is served."""
    rollout: Rollout = Rollout()
    """How a new revision takes over."""
    revision_history_limit: Annotated[int, Field(ge=1, le=50)] = 5
    """Finished revisions that are kept for history, besides stable, candidate and those within rollbackWindow."""

    @property
    def datasets(self) -> dict[str, Dataset]:
        """Every file that is read besides the checkpoint, by its field."""
        texts = self.quantization.calibration
        found: dict[str, Dataset] = {"quantization.calibration": texts} if texts is not None else {}
        return found | {
            f"validation.evaluations[{one.name}].dataset": one.dataset for one in self.validation.evaluations
        }


class SourceStatus(ApiModel):
    """How the source was resolved; a ledger that outlives the fetch Job."""

    key: Annotated[str, Field(max_length=64)]
    """Identifies the declared source and attempt that this is the result of."""
    digest: Digest | None = None
    """Digest over all files of the checkpoint; unset when the fetch failed."""
    files: Count = 0
    """Number of files."""
    bytes: Count = 0
    """Total size."""
    parameters: Count = 0
    """Numbers in all tensors, as their headers say. With vocabulary and attention it tells how much memory a conversion
    takes."""
    vocabulary: Count = 0
    """Rows of the tallest matrix, which has one for each word."""
    attention: Count = 0
    """Of a model that hears or sees: numbers by which each position of a sound or image heeds each other."""
    cache: Count = 0
    """Of a decoder-only language model: keys and values that are kept of each token."""
    positions: Count = 0
    """Of the same, tokens of the longest text that config.json tells of."""
    reason: Annotated[str, Field(max_length=128)] = ""
    """The documented reason it ended with."""
    message: Text = ""
    """What happened, in a sentence."""
    resolved_time: Time
    """When the fetch finished."""


class EvidenceStatus(ApiModel):
    """What the looks of a step have come to for one bound; the next look goes on from here."""

    bound: Annotated[str, Field(max_length=64)]
    """The bound in words. Evidence against another bound is not carried over."""
    strength: Annotated[str, Field(max_length=32, pattern=r"^-?[0-9]+([.][0-9]+)?$")]
    """How strongly the answers speak against the candidate, or for it where the bound begins with "within", as a
    natural logarithm: chance alone brings it to 6.9 at most once in a thousand times."""
    candidate_bad: Count = 0
    """Bad answers of the candidate that are in it; for a bound of a value, the looks running that were beyond it."""
    candidate_total: Count = 0
    """Answers of the candidate that are in it; for a bound of a value, the looks at it."""
    stable_bad: Count | None = None
    """Bad answers of stable that are in it; unset where nothing is compared."""
    stable_total: Count | None = None
    """Answers of stable that are in it; unset where nothing is compared."""


class ServerCountsStatus(ApiModel):
    """What a side's servers have counted, for metrics that triton provides; the next look goes on from here."""

    servers: Annotated[str, Field(max_length=16)]
    """Stands for the containers that were asked. When they change, the growth of that look does not count."""
    time: Time
    """When they were asked."""
    bad: Count
    """Errors since they started."""
    disputed: Count
    """Answers since they started that may be the callers' own mistakes."""
    total: Count
    """Answers since they started."""
    step_bad: Count = 0
    """Errors in this step, since its first look."""
    step_disputed: Count = 0
    """Answers in this step that may be the callers' own mistakes."""
    step_total: Count = 0
    """Answers in this step."""


class MetricJobStatus(ApiModel):
    """How the Job of a metric ended in this step; outlives the Job, which is not run again."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the Job."""
    outcome: Annotated[str, Field(pattern=r"^(Measured|Passed|Failed|NoData|ProviderError)$")]
    """What its end came to."""
    value: Annotated[str, Field(max_length=32)] | None = None
    """The candidate's value, as it said."""
    stable: Annotated[str, Field(max_length=32)] | None = None
    """Stable's value, as it said."""
    message: Annotated[str, Field(max_length=512)] = ""
    """How it ended, in a sentence."""


class MetricStatus(ApiModel):
    """The last judgement of one metric."""

    name: Annotated[str, Field(max_length=63)]
    """The metric."""
    verdict: Annotated[str, Field(pattern=r"^(Pass|Fail|NoData|ProviderError|Inconclusive)$")]
    """What the measurement says."""
    dry_run: bool = False
    """Judged and told only; the rollout does not follow it."""
    bound: Annotated[str, Field(max_length=128)] = ""
    """What it is held to in this step, in words: at most 5%, at most 1% above stable."""
    candidate: Annotated[str, Field(max_length=32)] | None = None
    """The candidate's share or value as text, a value with its unit."""
    stable: Annotated[str, Field(max_length=32)] | None = None
    """Stable's over the same time."""
    candidate_samples: Annotated[int, Field(ge=0)] = 0
    """Requests behind the candidate's value."""
    stable_samples: Annotated[int, Field(ge=0)] = 0
    """Requests behind stable's value."""
    message: Text = ""
    """The judgement in a sentence, with value and bound."""
    evidence: Annotated[list[EvidenceStatus], Field(max_length=4)] = []
    """For each bound, how strongly the answers of this step speak against the candidate; with proof: prove also how
    strongly they speak for it."""
    candidate_counts: ServerCountsStatus | None = None
    """What the candidate's servers have counted, where triton provides the metric."""
    stable_counts: ServerCountsStatus | None = None
    """What stable's servers have counted."""
    job: MetricJobStatus | None = None
    """How the Job ended, where one provides the metric; unset while it runs."""


class RevisionInUse(ApiModel):
    """One side of the traffic."""

    revision: ObjectName
    """Name of the OnnxModelRevision."""
    number: Annotated[int, Field(ge=1)]
    """Its number, which is the version Triton reports in every answer."""
    digest: Digest | None = None
    """Digest of the artifact that is served; unset until it is published."""
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    """Percent of requests it answers, as the gateway has accepted it; without one, its part of the ready servers that
    requests come to."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Pods that are ready, over all execution providers."""


class StableStatus(RevisionInUse):
    """The revision that serves, and to which a rollback goes; while the candidate bakes it is kept warm instead."""

    rollback: bool = False
    """Whether the spec went back to it within rollbackWindow, so that it took all requests at once."""
    left_out: Annotated[list[ExecutionProvider], Field(max_length=len(ExecutionProvider))] = []
    """Execution providers that no node could validate, and that it is served without."""


class KnownGood(ApiModel):
    """A revision that was stable until a later one was promoted."""

    revision: ObjectName
    """Name of the OnnxModelRevision."""
    number: Annotated[int, Field(ge=1)]
    """Its number."""
    until_time: Time
    """When the later one became stable."""


class SplitStatus(ApiModel):
    """How requests that named no side were split since the step began, golden requests taken out."""

    percent: Annotated[int, Field(ge=0, le=100)]
    """Percent of them that reached the candidate."""
    candidate_requests: Count
    """Those that reached the candidate."""
    requests: Count
    """All of them."""
    as_wanted: bool
    """Whether chance explains how far that is from the candidate's weight; true while it is too early to say."""


class CandidateStatus(RevisionInUse):
    """The revision that is on its way."""

    step: Annotated[int, Field(ge=0)] | None = None
    """Index of the rollout step, counted from 0; unset while the candidate has no traffic."""
    mirror: Annotated[int, Field(ge=0, le=100)] = 0
    """Percent of stable's requests that are mirrored to it, as the gateway has accepted it."""
    baking: bool = False
    """Whether it has passed the last step and answers all requests, while stable is kept warm with weight 0. It
    becomes stable when the bake is over."""
    rollback: bool = False
    """Whether the spec goes back to it within rollbackWindow, so that it takes all requests once its servers are
    ready."""
    started_time: Time
    """When this candidate began."""
    step_started_time: Time | None = None
    """When the gateway accepted the weight of this step; samples are counted from here."""
    progress_time: Time | None = None
    """When this candidate last made progress; the progress deadline counts from here. Unset while it is being
    converted (Jobs have deadlines of their own), while the rollout is paused, while a step waits for a person, and in
    a freeze window."""
    held_time: Time | None = None
    """Since when a step with pause has passed its analysis and waits for promoteToken; unset anywhere else."""
    scaling_time: Time | None = None
    """Since when the step has passed and only the servers of the next one are missing; unset anywhere else."""
    promotion_asked_time: Time | None = None
    """When promoteToken changed for this candidate, as long as that could not act yet; unset once it has."""
    verdict: Annotated[str, Field(pattern=r"^(Pass|Fail|NoData|ProviderError|Inconclusive)$")] | None = None
    """The worst verdict of the last analysis."""
    verdict_time: Time | None = None
    """When it was judged."""
    verdict_since_time: Time | None = None
    """Since when the verdict has been the same; rollout.analysis.limits counts from here."""
    measured_split: SplitStatus | None = None
    """What the gateway made of the weight, as errorRatio counts requests; unset where that is not measured, and in a
    preview."""
    golden_requests_before: Count = 0
    """Golden requests that had been compared when this step was entered."""
    analysis: Annotated[list[MetricStatus], Field(max_length=8)] = []
    """Each metric's last judgement."""


class FailureStatus(ApiModel):
    """The last thing that went wrong; kept after recovery, for the post-mortem."""

    stage: Annotated[str, Field(max_length=32)]
    """Where: Accepted, SourceResolved, Converted, Validated, Published, CandidateAvailable, Rollout."""
    reason: Annotated[str, Field(max_length=128)]
    """The documented reason."""
    message: Text
    """What happened and the way out."""
    revision: ObjectName | None = None
    """The revision it happened to."""
    exit_code: int | None = None
    """Exit code of the container that failed."""
    logs: Annotated[str, Field(max_length=2048)] | None = None
    """The command that shows the logs of the failed container."""
    time: Time
    """When it was first seen."""


class HandledTokens(ApiModel):
    """The tokens that were acted on; a token in spec that differs is a request."""

    promote: Annotated[str, Field(max_length=128)] = ""
    """Last handled promoteToken."""
    abort: Annotated[str, Field(max_length=128)] = ""
    """Last handled abortToken."""
    retry: Annotated[str, Field(max_length=128)] = ""
    """Last handled retryToken."""


class EndpointStatus(ApiModel):
    """Where the model answers."""

    host: Annotated[str, Field(max_length=253)]
    """Host name to send, as HTTP Host header or gRPC authority; without a gateway the name of the Service, which
    listens at 8000 (HTTP) and 8001 (gRPC)."""
    model_name: DnsLabel
    """Name of the model in Triton's protocol."""


class PoolStatus(ApiModel):
    """The pods of one execution provider, of stable and candidate together."""

    provider: ExecutionProvider
    """The execution provider."""
    weight: PoolWeight
    """The weight that counts now, by the spec and its schedules. A pool that serves and that the spec no longer names
    keeps the one it had."""
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Percent of requests it answers, as the gateway has accepted it."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Pods that are ready."""


class OnnxModelStatus(ApiModel):
    """What the operator has seen and decided. Written by the operator only."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this status speaks of."""
    phase: Annotated[str, Field(max_length=32)] = "Pending"
    """A word for people; programs read the conditions."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["type"]),
        ),
    ] = []
    """Ready, Reconciling, Stalled and one per stage."""
    endpoint: EndpointStatus | None = None
    """Where the model answers."""
    source: SourceStatus | None = None
    """The checkpoint as it was resolved."""
    stable: StableStatus | None = None
    """The revision that serves."""
    candidate: CandidateStatus | None = None
    """The revision that is on its way."""
    retiring: Annotated[
        list[RevisionInUse],
        Field(
            max_length=8,
            json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["revision"]),
        ),
    ] = []
    """Revisions that were taken out of the traffic and are being drained before they are scaled down."""
    pools: Annotated[
        list[PoolStatus],
        Field(
            max_length=4,
            json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["provider"]),
        ),
    ] = []
    """What each execution provider in use answers."""
    known_good: Annotated[
        list[KnownGood],
        Field(
            max_length=10,
            json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["revision"]),
        ),
    ] = []
    """Revisions that were stable until a later one was promoted, the last one first; what rollbackWindow chooses
    from."""
    scale_down_after_time: Time | None = None
    """Until when the autoscalers may take no pods from stable, because it answers all requests only since a moment ago
    and what they measure speaks of before; unset anywhere else."""
    drain_started_time: Time | None = None
    """When the gateway accepted that the retiring revisions get no traffic."""
    last_failure: FailureStatus | None = None
    """The last thing that went wrong."""
    handled_tokens: HandledTokens = HandledTokens()
    """The tokens that were acted on."""


class OnnxModel:
    """Names of the kind."""

    KIND: ClassVar = "OnnxModel"
    PLURAL: ClassVar = "onnxmodels"
    SINGULAR: ClassVar = "onnxmodel"
    SHORT: ClassVar = "om"
