"""Every way a step can end: name, exit code, and when it surfaces.

The operator imports this table to write a Job's podFailurePolicy and to explain a condition, so it is standard
library only. It refuses two reasons with one exit code: the code alone must tell why a container stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Reason:
    """One way to end, as it stands in a condition."""

    name: str
    exit_code: int
    surfaces: str

    @property
    def is_transient(self) -> bool:
        return self.exit_code in TRANSIENT_CODES


#: From the forties on it is the tens and twenties going on.
PERMANENT_CODES: Final = (*range(10, 30), *range(40, 80))
TRANSIENT_CODES: Final = range(30, 40)

# Success, one for each step.
FETCHED: Final = Reason("Fetched", 0, "surfaces when the checkpoint lies in the work volume under its digest")
CONVERTED: Final = Reason("Converted", 0, "surfaces when a graph was written for each execution provider")
VALIDATED: Final = Reason("Validated", 0, "surfaces when a graph stayed within tolerance of the torch original")
PUBLISHED: Final = Reason("Published", 0, "surfaces when the artifact lies in the store under its digest")
ASSEMBLED: Final = Reason(
    "Assembled", 0, "surfaces when the artifact's digests hold and the model repository is laid out"
)

# Mistakes of the program or of whoever called it.
CRASHED: Final = Reason("Crashed", 1, "surfaces when the converter met an error it has no name for: a bug to report")
USAGE: Final = Reason(
    "UsageError", 2, "surfaces when a flag is missing or its JSON does not fit; the message names the field"
)

# Bad input: the same again gives the same again, so never retried.
SOURCE_NOT_FOUND: Final = Reason(
    "SourceNotFound",
    10,
    "surfaces when the path, repository or revision of the source, or a file of texts or examples, does not exist, or "
    "the source holds no checkpoint",
)
SOURCE_UNAUTHORIZED: Final = Reason(
    "SourceUnauthorized", 11, "surfaces when the hub answers 401 or 403, or the repository is gated"
)
LINK_REFUSED: Final = Reason(
    "LinkRefused", 12, "surfaces when the source holds a symbolic link, a device, a socket or a pipe"
)
SOURCE_ESCAPES: Final = Reason(
    "SourceEscapes", 13, "surfaces when a path, a shard's name or a redirect leads out of the source"
)
PICKLE_REFUSED: Final = Reason(
    "PickleRefused", 14, "surfaces when weights come only as pickle or another format that can run code"
)
REMOTE_CODE_REFUSED: Final = Reason(
    "RemoteCodeRefused", 15, "surfaces when a file of the checkpoint asks for code of its own to be loaded"
)
DIGEST_MISMATCH: Final = Reason(
    "DigestMismatch", 16, "surfaces when the bytes differ from the digest that was asked for or announced"
)
CHECKPOINT_INCOMPLETE: Final = Reason(
    "CheckpointIncomplete", 17, "surfaces when the weights or a module's files are missing"
)
CONFIG_INVALID: Final = Reason(
    "ConfigInvalid", 18, "surfaces when a value in a JSON file of the checkpoint is impossible"
)
WEIGHTS_CORRUPT: Final = Reason(
    "WeightsCorrupt", 19, "surfaces when a tensor of a safetensors file has not the bytes that its type and shape take"
)
WEIGHTS_NOT_FINITE: Final = Reason("WeightsNotFinite", 20, "surfaces when a weight is NaN or infinite")
WEIGHTS_MISMATCH: Final = Reason(
    "WeightsMismatch",
    21,
    "surfaces when tensors are left over, or config.json describes far more than there is",
)
ARCHITECTURE_UNSUPPORTED: Final = Reason(
    "ArchitectureUnsupported",
    22,
    "surfaces when the model type is not built into transformers, or it or a module is of a kind that is not converted",
)
TOKENIZER_MISMATCH: Final = Reason(
    "TokenizerMismatch",
    23,
    "surfaces when the tokenizer gives ids that the model has no row for, or pads with another one",
)
SPEC_IMPOSSIBLE: Final = Reason(
    "SpecImpossible", 24, "surfaces when a legal spec asks for what this checkpoint, provider or runtime cannot do"
)
EXPORT_FAILED: Final = Reason("ExportFailed", 25, "surfaces when torch's exporter or the quantizer gives up")
GRAPH_REFUSED: Final = Reason(
    "GraphRefused", 26, "surfaces when a graph cannot be loaded or lacks an input, an output or a dynamic axis"
)
PARITY_FAILED: Final = Reason(
    "ParityFailed", 27, "surfaces when the graph's answers are not within tolerance of the torch original's"
)
PLACEMENT_FAILED: Final = Reason(
    "PlacementFailed", 28, "surfaces when nodes did not run on the execution provider that was asked for"
)
ARTIFACT_CORRUPT: Final = Reason(
    "ArtifactCorrupt", 29, "surfaces when a file is missing, extra, changed or a link against the manifest"
)
TOKENIZER_MISSING: Final = Reason(
    "TokenizerMissing",
    43,
    "surfaces when the tokenizer, the feature extractor or the image processor was not saved beside the model",
)
PREPROCESSOR_MISMATCH: Final = Reason(
    "PreprocessorMismatch",
    44,
    "surfaces when the feature extractor or image processor makes what the model does not take, or from impossible "
    "numbers",
)
JSON_CORRUPT: Final = Reason(
    "JsonCorrupt", 45, "surfaces when a JSON file of the checkpoint is cut off, too large or nested without end"
)
WEIGHTS_TRUNCATED: Final = Reason(
    "WeightsTruncated", 46, "surfaces when a safetensors file ends before its header says: copying it broke off"
)
FILE_DISGUISED: Final = Reason(
    "FileDisguised", 47, "surfaces when a file that is text by its name begins like a pickle, an archive or a program"
)
ALREADY_QUANTIZED: Final = Reason(
    "AlreadyQuantized", 48, "surfaces when the weights of the checkpoint are quantised already"
)
ADAPTER_NOT_MERGED: Final = Reason(
    "AdapterNotMerged", 49, "surfaces when the checkpoint is an adapter, such as a LoRA, to another one"
)
TOKENIZER_INVALID: Final = Reason(
    "TokenizerInvalid",
    57,
    "surfaces when the tokenizer's files are there and cannot be loaded, or lack a vocabulary or a pad_token",
)
CONFIG_MISSING: Final = Reason("ConfigMissing", 61, "surfaces when the source has files and no config.json beside them")
SHARD_MISSING: Final = Reason(
    "ShardMissing", 62, "surfaces when a file of weights is missing that model.safetensors.index.json names"
)
HEADER_INVALID: Final = Reason(
    "HeaderInvalid", 63, "surfaces when the header of a safetensors file is too large, no JSON or no list of tensors"
)
TENSORS_OVERLAP: Final = Reason(
    "TensorsOverlap", 64, "surfaces when tensors of a safetensors file overlap or leave a gap"
)
TRAILING_BYTES: Final = Reason("TrailingBytes", 65, "surfaces when bytes follow the last tensor of a safetensors file")
SHAPE_MISMATCH: Final = Reason("ShapeMismatch", 66, "surfaces when a tensor has another shape than config.json says")
WEIGHTS_MISSING: Final = Reason("WeightsMissing", 67, "surfaces when the weights lack tensors that the model needs")
CODE_BESIDE_WEIGHTS: Final = Reason(
    "CodeBesideWeights", 68, "surfaces when a program lies beside the weights, to be loaded with them"
)
DATASET_INVALID: Final = Reason(
    "DatasetInvalid",
    40,
    "surfaces when a file of texts or examples cannot be read, or shows nothing about this checkpoint, as the original "
    "is no better on it than chance",
)
QUALITY_LOST: Final = Reason(
    "QualityLost", 41, "surfaces when the graph does its task worse than the torch original by more than maxLoss"
)
MEMORY_TOO_SMALL: Final = Reason(
    "MemoryTooSmall", 42, "surfaces when the container may use less memory than the checkpoint's headers say it takes"
)

# Faults of a graph that its exporter does not tell, each seen in the field: as bad input, never retried.
INPUT_IGNORED: Final = Reason(
    "InputIgnored", 50, "surfaces when an input that the graph declares, a mask or the past, does not move its answer"
)
AXIS_FROZEN: Final = Reason(
    "AxisFrozen",
    51,
    "surfaces when the batch or a length is a number in the graph and not an axis, in its signature or inside, where "
    "what is asked in other shapes ends in an error",
)
RUNTIME_TOO_OLD: Final = Reason(
    "RuntimeTooOld", 52, "surfaces when the graph's opset or IR version is beyond what the serving runtime reads"
)
WEIGHTS_STORED_TWICE: Final = Reason(
    "WeightsStoredTwice",
    53,
    "surfaces when a graph holds the same matrix more than once, turned or not, or two graphs of a model one copy each",
)
CACHE_DIFFERS: Final = Reason(
    "CacheDiffers",
    54,
    "surfaces when a language model's first call is right and what goes on from its keys is not, or its words are "
    "right and the keys and values that it keeps do not grow or are others",
)
LONG_TEXTS_DIFFER: Final = Reason(
    "LongTextsDiffer", 55, "surfaces when short texts agree with the original and longer ones do not: a lost window"
)
NOT_FINITE: Final = Reason("NotFinite", 56, "surfaces when an answer holds NaN or infinity, be it where padding is")
COMPONENT_MISSING: Final = Reason(
    "ComponentMissing", 58, "surfaces when one of a model's graphs, or the file of its weights, is not there"
)
CROSS_COMPUTED_ANEW: Final = Reason(
    "CrossComputedAnew",
    59,
    "surfaces when a graph that writes takes what is read, and not the keys and values that were made of it once: it "
    "would make them anew at each step",
)
KERNEL_SLOW: Final = Reason(
    "KernelSlow",
    69,
    "surfaces when a product of the quantised graph takes three times as long as one of floats or more",
)
ORDER_LOST: Final = Reason(
    "OrderLost",
    60,
    "surfaces when an answer is the same whatever the order of the tokens, and the original's is not: attention lost "
    "its bias, or the graph its positions",
)

# The world was not ready: the same again may work, so retried.
SOURCE_UNREACHABLE: Final = Reason(
    "SourceUnreachable", 30, "surfaces when the hub does not answer, answers 5xx or 429, or breaks off"
)
DISK_FULL: Final = Reason("DiskFull", 31, "surfaces when a volume has no room left")
OUT_OF_MEMORY: Final = Reason(
    "OutOfMemory", 32, "surfaces when an allocation failed before the kernel ended the process"
)
STORAGE_FAILED: Final = Reason("StorageFailed", 33, "surfaces when a volume answers with an input or output error")
INTERRUPTED: Final = Reason("Interrupted", 34, "surfaces when the container was told to stop before it was done")

ALL: Final[tuple[Reason, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Reason))
BY_NAME: Final[dict[str, Reason]] = {reason.name: reason for reason in ALL}


def gist(error: BaseException) -> str:
    """The first line of what a library said, short enough for a condition; with the next, where that says what."""
    first, second = ([line.strip() for line in str(error).splitlines() if line.strip()] + ["", ""])[:2]
    return (f"{first} {second}" if first.endswith(":") else first)[:300].rstrip() or type(error).__name__


class StepFailedError(Exception):
    """A step ends here; the message is one sentence that names the file or field and the way out."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
