"""onnxruntime sessions, and proof of where their nodes ran.

onnxruntime falls back to the CPU without a word when a provider cannot be loaded or has no kernel. Refuses a session
without the provider that was asked for, and one whose heavy nodes ran elsewhere.
"""

from __future__ import annotations

import json
import shutil
import weakref
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Final

import onnxruntime

from onnx_converter.limits import threads
from onnx_converter.reasons import GRAPH_REFUSED, PLACEMENT_FAILED, StepFailedError, gist
from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    #: Its operator, the provider it ran on, and what the profile calls it.
    Node = tuple[str, str, str]

#: Where a model spends its time; the rest, shapes above all, may run on the CPU beside an accelerator.
_HEAVY: Final = frozenset(
    {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    | {"MoE", "QMoE", "MatMulNBits", "MatMulBnb4", "QLinearMatMul", "QGemm", "QAttention", "Einsum"}
    # Of images and sounds, in float, fused and in whole numbers.
    | {"Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv"}
    | {
        "GroupQueryAttention",
        "PackedAttention",
        "DecoderMaskedMultiHeadAttention",
        "RotaryEmbedding",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "EmbedLayerNormalization",
        "FastGelu",
        "QuickGelu",
        "Attention",
        "MultiHeadAttention",
        "Softmax",
        "LayerNormalization",
        "SkipLayerNormalization",
        "Gelu",
        "BiasGelu",
        "Erf",
    }
)

#: How the operators begin that TensorRT makes of a part of the graph.
_ENGINE: Final = "TRTKernel"
#: By itself it rounds what it multiplies to ten bits, and calls that float32.
_OPTIONS: Final = {"use_tf32": "0"}
#: How long a thread of a server's instance stays awake, as the server itself says.
SPIN_MICROSECONDS: Final = "50"
#: Where a node may run that the provider lacks a kernel for, and still be as fast as was meant.
_SECOND: Final = {Provider.TENSORRT: Provider.CUDA}


def session(
    model: Path | bytes,
    provider: Provider,
    intra_op: int | None = None,
    told: Mapping[str, str] | None = None,
    *,
    is_profiled: bool = False,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """A session whose first provider is the one asked for, on as many threads as the container may use or on those of
    a server's instance. `told` is what that provider is told besides, and `options` what onnxruntime is.
    """
    if provider not in onnxruntime.get_available_providers():
        raise StepFailedError(
            PLACEMENT_FAILED, f"this image's onnxruntime has no {provider}: use the image flavour that has it"
        )
    if provider is not Provider.CPU:
        # The CUDA libraries come as wheels beside torch's; the loader does not look there by itself.
        onnxruntime.preload_dlls()
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op or threads()
    if (intra_op or 0) > 1:
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if is_profiled:
        profiles = mkdtemp()
        # The session keeps its options, and both are gone together.
        weakref.finalize(options, shutil.rmtree, profiles, ignore_errors=True)
        options.enable_profiling = True
        options.profile_file_prefix = f"{profiles}/profile"
    providers: list[Any] = [str(Provider.CPU)]
    if Provider.CUDA in (provider, _SECOND.get(provider)):
        providers.insert(0, (str(Provider.CUDA), _OPTIONS))
    if provider is Provider.TENSORRT:
        providers.insert(0, (str(provider), dict(told or {})))
    try:
        made = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:
        name = model.name if isinstance(model, Path) else "a part of the graph"
        raise StepFailedError(GRAPH_REFUSED, f"onnxruntime cannot load {name}: {gist(error)}") from error
    if made.get_providers()[0] != provider:
        raise StepFailedError(
            PLACEMENT_FAILED,
            f"{provider} could not be started on this node, onnxruntime fell back to {made.get_providers()[0]}"
            + (": the image needs the libraries of TensorRT as well" if provider is Provider.TENSORRT else ""),
        )
    return made


def ran(profiled: onnxruntime.InferenceSession) -> list[Node]:
    """What ran so far of a session that has a profile, which ends with this."""
    events: list[dict[str, Any]] = json.loads(Path(profiled.end_profiling()).read_text())
    nodes = {
        event["args"]["node_index"]: (event["args"]["op_name"], event["args"]["provider"], event["name"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
    return list(nodes.values())


def counted(nodes: Collection[Node], provider: Provider) -> dict[str, dict[str, int]]:
    """By operator and the provider they ran on, where none of the heavy ones is elsewhere than it may be."""
    allowed = (provider, _SECOND.get(provider))
    if not any(where == provider for _, where, _ in nodes):
        raise StepFailedError(PLACEMENT_FAILED, f"no node of the graph ran on {provider}: leave that provider out")
    for operator, where, name in nodes:
        if operator in _HEAVY and where not in allowed:
            raise StepFailedError(
                PLACEMENT_FAILED,
                f"node {name.removesuffix('_kernel_time')} ({operator}) ran on {where}, not on {provider}",
            )
    # What TensorRT made one of many has a name of its own in each session.
    counts = Counter((_ENGINE if operator.startswith(_ENGINE) else operator, where) for operator, where, _ in nodes)
    coverage: dict[str, dict[str, int]] = {}
    for (operator, where), count in sorted(counts.items()):
        coverage.setdefault(operator, {})[where] = count
    return coverage


def by_provider(coverage: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """How many nodes ran on each provider."""
    counts: Counter[str] = Counter()
    for places in coverage.values():
        counts.update(places)
    return dict(sorted(counts.items()))
