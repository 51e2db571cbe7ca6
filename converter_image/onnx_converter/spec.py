"""The parameters of the steps, as they arrive in flags.

Refuses unknown fields, numbers out of bounds and two sources at once, and says which field it was.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import override

from onnx_converter.digest import hex_of
from onnx_converter.policy import refuse_escape
from onnx_converter.reasons import SOURCE_ESCAPES, USAGE, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_DIGEST: Final = r"^sha256:[0-9a-f]{64}$"
_REPOSITORY: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
_REVISION: Final = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,254}$"


class Task(StrEnum):
    """What the graph is for; decides its output."""

    AUTO = "auto"
    FEATURE_EXTRACTION = "feature-extraction"
    SENTENCE_EMBEDDING = "sentence-embedding"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105  no secret
    TEXT_GENERATION = "text-generation"
    TEXT2TEXT_GENERATION = "text2text-generation"
    AUTOMATIC_SPEECH_RECOGNITION = "automatic-speech-recognition"
    IMAGE_FEATURE_EXTRACTION = "image-feature-extraction"
    IMAGE_CLASSIFICATION = "image-classification"


class Scheme(StrEnum):
    """In what the weights are kept, and for some what is computed in."""

    NONE = "none"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    INT8_WEIGHT_ONLY = "int8-weight-only"
    INT4_WEIGHT_ONLY = "int4-weight-only"
    #: Whichever of the others is best where the graph runs.
    AUTO = "auto"


#: What the export alone settles; the others are the quantizers'.
AS_EXPORTED: Final = frozenset({Scheme.NONE, Scheme.FLOAT16, Scheme.BFLOAT16})


class Activations(StrEnum):
    """What int8-static rounds activations to."""

    UINT8 = "uint8"
    UINT16 = "uint16"


class Algorithm(StrEnum):
    """How int4-weight-only rounds."""

    RTN = "rtn"
    GPTQ = "gptq"


class Provider(StrEnum):
    """An execution provider, by onnxruntime's name for it."""

    CPU = "CPUExecutionProvider"
    CUDA = "CUDAExecutionProvider"
    TENSORRT = "TensorrtExecutionProvider"
    DML = "DmlExecutionProvider"
    COREML = "CoreMLExecutionProvider"
    WEBGPU = "WebGpuExecutionProvider"
    OPENVINO = "OpenVINOExecutionProvider"
    QNN = "QNNExecutionProvider"

    @property
    def is_edge(self) -> bool:
        """Whether it is of devices outside of any cluster: its graph is packed and checked, and runs nowhere here."""
        return self not in (Provider.CPU, Provider.CUDA, Provider.TENSORRT)

    @property
    def judged_on(self) -> Provider:
        """Where its graph answers when it is compared with the original."""
        return Provider.CPU if self.is_edge else self


class Parameters(BaseModel):
    """What all parameters share: camelCase on the wire, frozen, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class ClaimSource(Parameters):
    """A folder on a volume of the user's."""

    claim_name: str
    path: str = ""

    @field_validator("path")
    @classmethod
    def _stay_inside(cls, path: str) -> str:
        if path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path:
            raise StepFailedError(
                SOURCE_ESCAPES,
                f"source.persistentVolumeClaim.path {path!r} leads out of the volume: use a path relative to its root",
            )
        return path


class HubSource(Parameters):
    """A repository of a hub that speaks Hugging Face's protocol."""

    repository: Annotated[str, Field(pattern=_REPOSITORY)]
    revision: Annotated[str, Field(pattern=_REVISION)]
    #: Where the operator takes HF_TOKEN from; the value itself arrives in the environment.
    token_secret_ref: dict[str, str] | None = None


class Source(Parameters):
    """Where the checkpoint comes from: exactly one."""

    persistent_volume_claim: ClaimSource | None = None
    hugging_face: HubSource | None = None
    #: Judged by --expect-digest.
    digest: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.persistent_volume_claim is None) == (self.hugging_face is None):
            raise ValueError("give exactly one of persistentVolumeClaim, huggingFace")
        return self


class ConfigMapFile(Parameters):
    """A key of a ConfigMap."""

    name: str
    key: str

    @property
    def path(self) -> str:
        return self.key

    @override
    def __str__(self) -> str:
        return f"key {self.key!r} of ConfigMap {self.name}"


class ClaimFile(Parameters):
    """A file on a volume of the user's."""

    claim_name: str
    path: str

    @override
    def __str__(self) -> str:
        return f"file {self.path!r} of claim {self.claim_name}"


class HubFile(HubSource):
    """A file of a dataset repository of a hub."""

    path: Annotated[str, Field(min_length=1)]

    @field_validator("path")
    @classmethod
    def _stay_inside(cls, path: str) -> str:
        refuse_escape(path)
        return path

    @override
    def __str__(self) -> str:
        return f"file {self.path!r} of dataset {self.repository}@{self.revision}"


class Dataset(Parameters):
    """Where texts or examples come from: exactly one file, held to its digest."""

    config_map: ConfigMapFile | None = None
    persistent_volume_claim: ClaimFile | None = None
    #: Left out where there is none, so that artifacts stay what they were before there could be any.
    hugging_face: Annotated[HubFile | None, Field(exclude_if=lambda file: file is None)] = None
    digest: Annotated[str, Field(pattern=_DIGEST)]

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if [self.config_map, self.persistent_volume_claim, self.hugging_face].count(None) != 2:  # noqa: PLR2004
            raise ValueError("give exactly one of configMap, persistentVolumeClaim, huggingFace")
        return self

    @property
    def file(self) -> ConfigMapFile | ClaimFile | HubFile:
        found = self.config_map or self.persistent_volume_claim or self.hugging_face
        assert found is not None  # noqa: S101  the model holds exactly one
        return found

    @property
    def place(self) -> str:
        """The file below what is mounted: fetch names those of a hub by their digests."""
        return hex_of(self.digest) if self.hugging_face is not None else self.file.path


def _number(value: object) -> object:
    """Tolerances are strings in the OnnxModel, since its schema has no floats."""
    return float(value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class Preference(StrEnum):
    """What counts among schemes that lose little enough."""

    SPEED = "speed"
    SIZE = "size"


class Auto(Parameters):
    """How auto chooses."""

    max_quality_loss: Annotated[Number, Field(ge=0, le=1)] = 0.01
    prefer: Preference = Preference.SPEED


#: What may differ from graph to graph: each computes in 32 or 16 bits, and what is settled after the export is each
#: file's own.
_BY_GRAPH: Final = frozenset(
    {Scheme.NONE, Scheme.FLOAT16}
    | {Scheme.INT8_DYNAMIC, Scheme.INT8_STATIC, Scheme.INT8_WEIGHT_ONLY, Scheme.INT4_WEIGHT_ONLY}
)
#: The graphs of a model of two, by their names.
ENCODER: Final = "encoder"
DECODER: Final = "decoder"
COMPONENTS: Final = (ENCODER, DECODER)


class Component(Parameters):
    """One of the two graphs of a model."""

    scheme: Scheme
    #: Where it runs in a pool of CUDA's; the pool's own where nothing is said.
    execution_provider: Literal[Provider.CPU] | None = None

    @model_serializer(mode="wrap")
    def _said(self, rest: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is not said leaves no trace: artifacts of before this could be said stay as they are."""
        return {name: value for name, value in rest(self).items() if value is not None}

    @field_validator("scheme")
    @classmethod
    def _by_graph(cls, scheme: Scheme) -> Scheme:
        if scheme not in _BY_GRAPH:
            raise ValueError(f"{scheme} is for a model as a whole, not for one of its graphs")
        return scheme


class Components(Parameters):
    """What holds for one graph, where it is something else than for the model."""

    encoder: Component | None = None
    decoder: Component | None = None


#: What can be said besides the scheme, and what holds where nothing is said. Written into the artifact's lineage.
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    Scheme.NONE: {},
    Scheme.FLOAT16: {},
    Scheme.BFLOAT16: {},
    # Unsaid it leaves no trace of its own: artifacts of before it could be said stay as they are.
    Scheme.INT8_DYNAMIC: {"exclude": None},
    Scheme.INT8_STATIC: {"activations": Activations.UINT8, "exclude": (), "maxLayerError": None, "calibration": None},
    Scheme.INT8_WEIGHT_ONLY: {"blockSize": 32, "symmetric": False, "keepOutputHead": False},
    Scheme.INT4_WEIGHT_ONLY: {
        "blockSize": 32,
        "symmetric": False,
        "keepOutputHead": False,
        "algorithm": Algorithm.RTN,
        "calibration": None,
    },
    Scheme.AUTO: {"auto": Auto()},
}
#: The fields that only some schemes know.
_BY_SCHEME: Final = frozenset(
    {"block_size", "symmetric", "keep_output_head", "algorithm"}
    | {"activations", "exclude", "max_layer_error", "calibration"}
    | {"auto"}
)


class ConversionSpec(Parameters):
    """What shapes the graph."""

    task: Task = Task.AUTO
    opset: Annotated[int, Field(ge=18, le=23)] = 18
    scheme: Scheme = Scheme.NONE
    #: None where the scheme does not know them.
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    symmetric: bool | None = None
    keep_output_head: bool | None = None
    algorithm: Algorithm | None = None
    activations: Activations | None = None
    exclude: tuple[str, ...] | None = None
    max_layer_error: Annotated[Number, Field(gt=0, le=1)] | None = None
    calibration: Dataset | None = None
    auto: Auto | None = None
    components: Components | None = None
    max_sequence_length: Annotated[int, Field(ge=1, le=131_072)] | None = None
    providers: Annotated[tuple[Provider, ...], Field(min_length=1)] = (Provider.CPU,)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        said = {to_camel(name): value for name, value in given.items() if value is not None}
        return _DEFAULTS.get(str(said.get("scheme", Scheme.NONE)), {}) | said

    @model_validator(mode="after")
    def _refuse_what_the_scheme_does_not_know(self) -> Self:
        said = self.model_dump(by_alias=True, include=set(_BY_SCHEME), exclude_none=True)
        if unknown := sorted(said.keys() - _DEFAULTS[self.scheme].keys()):
            raise ValueError(f"{', '.join(unknown)} has no meaning with scheme {self.scheme}")
        if self.scheme is Scheme.AUTO and (edge := [one for one in self.providers if one.is_edge]):
            raise ValueError(f"auto takes what is measured, and nothing is measured on {edge[0]}: name a scheme")
        if self.algorithm is Algorithm.RTN and self.calibration is not None:
            raise ValueError("calibration has no meaning with algorithm rtn")
        if self.components is not None and self.scheme not in _BY_GRAPH:
            raise ValueError(f"components have no meaning with scheme {self.scheme}")
        return self

    @field_validator("algorithm", mode="before")
    @classmethod
    def _has_kernels(cls, algorithm: object) -> object:
        if algorithm == "hqq":
            raise ValueError("hqq makes weights floats for every product on the CPU, slower than none: use rtn or gptq")
        return algorithm

    @field_validator("providers")
    @classmethod
    def _no_repeats(cls, providers: tuple[Provider, ...]) -> tuple[Provider, ...]:
        if len(set(providers)) != len(providers):
            raise ValueError("an execution provider is listed twice")
        return providers

    def of(self, component: str) -> ConversionSpec:
        """What holds for one of the graphs; what else is said of a scheme is said of the model's."""
        chosen: Component | None = getattr(self.components, component, None)
        if chosen is None or chosen.scheme is self.scheme:
            return self
        shared = self.model_dump(include={"task", "opset", "max_sequence_length", "providers"})
        return ConversionSpec(**shared, scheme=chosen.scheme)

    @property
    def is_measured(self) -> bool:
        """Whether its quantizer asks what the graph computes."""
        return self.scheme is Scheme.INT8_STATIC or self.algorithm is Algorithm.GPTQ

    def field_of(self, component: str) -> str:
        """Where the scheme of one of the graphs was said."""
        chosen: Component | None = getattr(self.components, component, None)
        return "quantization.scheme" if chosen is None else f"quantization.components.{component}.scheme"

    def place_of(self, component: str, pool: Provider) -> Provider:
        """Where one of the graphs runs in the pods of a pool."""
        chosen: Component | None = getattr(self.components, component, None)
        if chosen is None or chosen.execution_provider is None or pool is not Provider.CUDA:
            return pool
        return chosen.execution_provider

    @property
    def schemes(self) -> frozenset[Scheme]:
        """Of all graphs."""
        return frozenset(self.of(component).scheme for component in COMPONENTS)


class Parity(Parameters):
    """Tolerances as the user gave them; what is absent follows from the scheme and the task."""

    min_cosine: Annotated[Number, Field(gt=0, lt=1)] | None = None
    max_absolute: Annotated[Number, Field(gt=0)] | None = None
    max_relative: Annotated[Number, Field(gt=0)] | None = None
    min_label_agreement: Annotated[Number, Field(gt=0, le=1)] | None = None


class Metric(StrEnum):
    """What an evaluation measures."""

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
    TOKEN_ACCURACY = "tokenAccuracy"  # noqa: S105  no secret
    WORD_ERROR_RATE = "wordErrorRate"
    BLEU = "bleu"
    CHRF = "chrf"
    PASS_AT_K = "passAtK"  # noqa: S105  no secret


#: Which tasks it is for.
TASKS_OF: Final[dict[Metric, tuple[Task, ...]]] = {
    Metric.WORD_PERPLEXITY: (Task.TEXT_GENERATION,),
    Metric.BYTE_PERPLEXITY: (Task.TEXT_GENERATION,),
    Metric.BITS_PER_BYTE: (Task.TEXT_GENERATION,),
    Metric.MULTIPLE_CHOICE: (Task.TEXT_GENERATION,),
    Metric.MULTIPLE_CHOICE_NORMALIZED: (Task.TEXT_GENERATION,),
    Metric.STS_SPEARMAN: (Task.SENTENCE_EMBEDDING, Task.FEATURE_EXTRACTION),
    Metric.RETRIEVAL_NDCG10: (Task.SENTENCE_EMBEDDING, Task.FEATURE_EXTRACTION),
    Metric.ACCURACY: (Task.TEXT_CLASSIFICATION,),
    Metric.F1_MACRO: (Task.TEXT_CLASSIFICATION,),
    Metric.ENTITY_F1: (Task.TOKEN_CLASSIFICATION,),
    Metric.TOKEN_ACCURACY: (Task.TOKEN_CLASSIFICATION,),
    Metric.WORD_ERROR_RATE: (Task.AUTOMATIC_SPEECH_RECOGNITION,),
    Metric.BLEU: (Task.TEXT2TEXT_GENERATION,),
    Metric.CHRF: (Task.TEXT2TEXT_GENERATION,),
    Metric.PASS_AT_K: (Task.TEXT_GENERATION,),
}


class Sampling(Parameters):
    """How many programs are written for each problem, and how."""

    k: Annotated[int, Field(ge=1, le=100)] = 1
    completions: Annotated[int, Field(ge=1, le=100)] = 1
    temperature: Annotated[Number, Field(gt=0, le=2)] = 0.8

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return {"completions": given.get("k", 1)} | given if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.completions < self.k:
            raise ValueError(f"completions must be k = {self.k} at least")
        return self


class JudgedBy(StrEnum):
    """Which loss has to keep an evaluation's bound: the measured one, or the far end of its 95 % interval."""

    VALUE = "Value"
    INTERVAL = "Interval"


class Evaluation(Parameters):
    """How well the graph does its task, and how much worse than the original it may."""

    name: str
    metric: Metric
    dataset: Dataset
    max_loss: Annotated[Number, Field(ge=0, le=1)]
    judged_by: JudgedBy = JudgedBy.VALUE
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _only_programs_are_sampled(self) -> Self:
        if self.metric is not Metric.PASS_AT_K and self.sampling != Sampling():
            raise ValueError(f"sampling has no meaning with metric {self.metric}")
        return self

    @property
    def field(self) -> str:
        return f"validation.evaluations[{self.name}]"


class Evaluations(RootModel[tuple[Evaluation, ...]]):
    """What validate is to measure besides the parity."""

    model_config = ConfigDict(frozen=True)


class Serving(Parameters):
    """What config.pbtxt needs to know of the pods."""

    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    max_queue_delay_microseconds: Annotated[int, Field(ge=0, le=1_000_000)] = 2000
    instances: Annotated[int, Field(ge=1, le=64)] = 1
    threads: Annotated[int, Field(ge=1, le=256)] = 1


class Lineage(BaseModel):
    """What the operator knows of the artifact's origin: any JSON object, kept as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def value(self) -> Mapping[str, Any]:
        return dict(self.__pydantic_extra__ or {})


Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], flag: str, text: str) -> Model:
    """The value of a JSON flag; an error names the flag and the field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the value"
        raise StepFailedError(USAGE, f"{flag}: {place}: {first['msg']}") from error


def provider_of(text: str) -> Provider:
    try:
        return Provider(text)
    except ValueError as error:
        raise StepFailedError(USAGE, f"--provider {text!r} is none of {', '.join(Provider)}") from error
