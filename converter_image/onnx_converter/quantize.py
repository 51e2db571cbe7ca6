"""Fewer bits for each weight, mostly by onnxruntime's own quantizers.

Refuses to quantise for a provider that has no kernels for it, and to call a graph quantised in which nothing was.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

from onnx_converter import decoders, gptq, ranges, sensitivity, share, wire
from onnx_converter.blocks import DOMAIN, Blocks
from onnx_converter.integers import Integers
from onnx_converter.products import EXPERTS, PRODUCTS, experts_of, layers_of, products_by, routers_of, turned_in
from onnx_converter.reasons import EXPORT_FAILED, SPEC_IMPOSSIBLE, StepFailedError, gist
from onnx_converter.spec import Activations, Algorithm, Provider, Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_converter.spec import ConversionSpec

    #: What becomes of a node of experts, by its weights.
    Experts = Callable[[onnx.NodeProto, Mapping[str, NDArray[Any]]], onnx.GraphProto | None]

#: They read rounded values around an operator, and neither operators of integers nor those of onnxruntime's own. The
#: page of QNN's operators says that what computes on the NPU takes nothing else.
_KNOWN: Final = {
    Provider.TENSORRT: frozenset({Scheme.NONE, Scheme.FLOAT16, Scheme.BFLOAT16, Scheme.INT8_STATIC}),
    Provider.QNN: frozenset({Scheme.INT8_STATIC}),
}


#: Weights with one scale, of experts where the scheme has no blocks.
_BLOCK: Final = 32


def refuse_without_kernels(scheme: Scheme, provider: Provider, field: str) -> None:
    """`field` is where the scheme was said."""
    if (known := _KNOWN.get(provider)) is not None and scheme not in known:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"{field} {scheme} is not known to {provider}: use {', '.join(sorted(known))} there",
        )
    if scheme in (Scheme.INT8_DYNAMIC, Scheme.INT8_STATIC) and provider is Provider.CUDA:
        raise StepFailedError(
            SPEC_IMPOSSIBLE,
            f"{field} {scheme} has no kernels on {provider}: use none, float16, bfloat16 or a weight-only scheme there",
        )


def opset_of(spec: ConversionSpec) -> int:
    """The opset to export at: 16-bit activations came with 21."""
    return max(spec.opset, 21) if spec.activations is Activations.UINT16 else spec.opset


def quantise(
    spec: ConversionSpec,
    source: Path,
    target: Path,
    requests: Iterable[dict[str, NDArray[Any]]] = (),
    *,
    provider: Provider = Provider.CPU,
    is_last: bool = False,
    later: Iterable[Path] = (),
    alike: Sequence[Path] = (),
    shared: share.Weights | None = None,
) -> dict[str, float]:
    """The graph of a scheme that the export does not settle; int8-static and gptq measure what goes into layers on the
    requests, which may be read more than once.

    The last time, what the source holds may be given back before the target is written, but for what graphs beside it
    hold as well that are read later. A pattern of `exclude` may match layers of graphs alike alone: others that have
    the scheme. Tells the layers that were left as they are since they moved too far, and how far.
    """
    model = wire.outline(source)
    _refuse_experts(spec, model.graph, provider)
    if spec.scheme is Scheme.INT8_STATIC:
        return int8_static(spec, source, target, requests, provider=provider, alike=alike, shared=shared)
    is_large = _is_large(model, source)
    if spec.scheme is Scheme.INT8_DYNAMIC:
        integers = Integers()
        spared = routers_of(model.graph)
        if spec.exclude:
            spared |= _excluded(spec.exclude, model.graph, alike)
        spent, made = _replace_layers(
            model, source.parent, spared, integers.product, integers.looked_up, experts=_in_eight(spec)
        )
    else:
        spent, made = _in_blocks(spec, model, source, requests, provider)
    _refuse_unquantised(model, "MatMulInteger", "MatMulNBits")
    if is_last:
        still_read = (tensor for one in (model, *map(wire.outline, later)) for tensor in one.graph.initializer)
        wire.give_back(spent, source.parent, still_read)
    _write(model, source.parent, made, target, is_large=is_large, is_last=is_last, shared=shared)
    return {}


def int8_static(
    spec: ConversionSpec,
    source: Path,
    target: Path,
    requests: Iterable[dict[str, NDArray[Any]]],
    *,
    provider: Provider = Provider.CPU,
    alike: Sequence[Path] = (),
    shared: share.Weights | None = None,
) -> dict[str, float]:
    """What goes into a layer is rounded, and what comes out is not; whatever is no layer stays in floats, but for the
    tables of words on the CPU, beside activations that are rounded as coarsely.

    TensorRT wants zero in the middle of each range, and biases as they are.

    A language model is measured while it reads, which tells of writing as well: what a token brings to each layer comes
    from the tokens before it alone, whether they are read beside it or are keys and values of a past.

    With every operator quantised, as the quantizer would by itself, real models answer nonsense; with the outputs of
    layers rounded to 8 bits, nearly so.
    """
    model = wire.outline(source)
    is_large = _is_large(model, source)
    there = _quantisable(model.graph)
    kept = _not_excluded(there, spec.exclude or (), alike)
    products = frozenset(_names(layers_of(model.graph))) - routers_of(model.graph)
    if not (chosen := [layer for layer in kept if layer in products]):
        raise _none_left(len(there), alike)
    given = sorted({node.input[0] for node in model.graph.node if node.name in chosen})
    measured = ranges.of(source, given, requests)
    is_wide, is_symmetric = spec.activations is Activations.UINT16, provider is Provider.TENSORRT
    has_tables = provider is Provider.CPU and not is_wide
    layers = target if shared is None and not has_tables else target.with_name(f"layers-{target.name}")
    lying = target.with_name(f"lying-{target.name}")
    told = target.with_name(f"ranges-{target.name}")
    sensitive: dict[str, float] = {}
    if spec.max_layer_error is not None:
        found = sensitivity.errors(
            source, chosen, requests, measured, spec.activations or Activations.UINT8, is_symmetric=is_symmetric
        )
        sensitive = {layer: error for layer, error in found.items() if error > spec.max_layer_error}
        chosen = [layer for layer in chosen if layer not in sensitive]
        if not chosen:
            raise StepFailedError(
                SPEC_IMPOSSIBLE,
                f"quantization.maxLayerError {spec.max_layer_error:g} leaves no layer to quantise, the best of them "
                f"moves by {min(sensitive.values()):.3g}: allow more, or use scheme none{_there(shared is not None)}",
            )
    activation_type = QuantType.QUInt16 if is_wide else QuantType.QInt8 if is_symmetric else QuantType.QUInt8
    bounds = {name: (np.float32(low), np.float32(high)) for name, (low, high) in measured.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, bounds), told)
    try:
        quantize_static(
            _with_weights_as_read(model, source, chosen, lying),
            layers,
            calibration_cache_path=told,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=chosen,
            use_external_data_format=is_large,
            activation_type=activation_type,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # As in integers.py. With 16 bits onnxruntime multiplies in floats, where nothing saturates, nor does it on
            # a GPU.
            reduce_range=not (is_wide or is_symmetric),
            extra_options={
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                "ActivationSymmetric": is_symmetric,
                "QuantizeBias": not is_symmetric,
            },
        )
    except Exception as error:
        raise _given_up(error) from error
    model = wire.outline(layers)
    _refuse_unquantised(model, "QuantizeLinear")
    made: dict[str, bytes] = {}
    if has_tables:
        in_floats = frozenset(there).difference(kept).union(sensitive)
        _, made = _replace_layers(
            model, target.parent, in_floats, lambda _node, _weight: None, Integers().looked_up, experts=_in_eight(spec)
        )
    if layers != target:
        _write(model, target.parent, made, target, is_large=is_large, is_last=False, shared=shared)
    for path in {layers, lying, told} - {target}:
        for one in (path, path.with_name(f"{path.name}.data")):
            one.unlink(missing_ok=True)
    return sensitive


def _with_weights_as_read(model: onnx.ModelProto, source: Path, layers: Iterable[str], target: Path) -> Path:
    """The graph of an outline in another file, where each of the layers has its weight as it multiplies by it, since
    the quantizer takes none that is turned on the way; the graph itself where none is.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    turned = set(layers).difference(_names(products_by(weights, model.graph)))
    if not turned:
        return source

    def with_weight(product: onnx.NodeProto, matrix: NDArray[Any]) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.ascontiguousarray(matrix), product.input[1])
        return onnx.GraphProto(node=[product], initializer=[weight])

    others = {node.name for node in model.graph.node} - turned
    _, made = _replace_layers(model, source.parent, others, with_weight)
    _write(model, source.parent, made, target, is_large=True, is_last=False, shared=None)
    return target


def _names(layers: Iterable[onnx.NodeProto]) -> list[str]:
    return [layer.name for layer in layers]


def _quantisable(graph: onnx.GraphProto) -> list[str]:
    return _names([*layers_of(graph), *experts_of(graph)])


def _excluded(exclude: Sequence[str], graph: onnx.GraphProto, alike: Sequence[Path]) -> frozenset[str]:
    layers = _quantisable(graph)
    return frozenset(layers).difference(_not_excluded(layers, exclude, alike))


def _not_excluded(layers: Sequence[str], exclude: Sequence[str], alike: Sequence[Path]) -> list[str]:
    """The layers, but for those that a pattern matches; each has to match one of them, or of the graphs alike, which
    are read if it comes to that.
    """
    if unmatched := [pattern for pattern in exclude if not _matches_any(pattern, layers)]:
        there = [*layers, *(layer for path in alike for layer in _quantisable(wire.outline(path).graph))]
        for pattern in unmatched:
            if not _matches_any(pattern, there):
                raise StepFailedError(
                    SPEC_IMPOSSIBLE,
                    f"quantization.exclude: {pattern!r} matches no layer; there is {', '.join(there[:8])}"
                    f"{', …' if len(there) > 8 else ''}",  # noqa: PLR2004  enough to see how they are called
                )
    left = [layer for layer in layers if not any(fnmatchcase(layer, pattern) for pattern in exclude)]
    if not left:
        raise _none_left(len(layers), alike)
    return left


def _none_left(count: int, alike: Sequence[Path]) -> StepFailedError:
    """Without names the quantizer would take every product there is."""
    return StepFailedError(
        SPEC_IMPOSSIBLE,
        f"quantization.exclude leaves none of {count} layers to quantise: use scheme none{_there(bool(alike))}",
    )


def _matches_any(pattern: str, layers: Iterable[str]) -> bool:
    return any(fnmatchcase(layer, pattern) for layer in layers)


def _there(is_of_two: bool) -> str:  # noqa: FBT001
    return " in quantization.components for that graph" if is_of_two else ""


def _in_blocks(
    spec: ConversionSpec,
    model: onnx.ModelProto,
    source: Path,
    requests: Iterable[dict[str, NDArray[Any]]],
    provider: Provider,
) -> tuple[list[onnx.TensorProto], dict[str, bytes]]:
    """Weights as whole numbers in blocks, each with a scale; the multiplication itself takes floats.

    So are tables on the CPU. A head that is kept in floats keeps its table so, too, in each graph of a model.
    """
    head = head_of(model.graph)
    inputs = gptq.Inputs.of(source, requests) if spec.algorithm is Algorithm.GPTQ else None
    blocks = Blocks(spec, head, inputs)
    has_tables = provider is Provider.CPU and (head is not None or not spec.keep_output_head)
    try:
        return _replace_layers(
            model,
            source.parent,
            routers_of(model.graph) | ({head} if spec.keep_output_head else set()),
            blocks.product,
            blocks.looked_up if has_tables else None,
            experts=blocks.experts,
        )
    except Exception as error:
        raise _given_up(error) from error


def _write(
    model: onnx.ModelProto,
    folder: Path,
    made: Mapping[str, bytes],
    target: Path,
    *,
    is_large: bool,
    is_last: bool,
    shared: share.Weights | None,
) -> None:
    """With the bytes of weights that were made, and of those that are in files of the folder.

    The last time, those of one file are given back there as soon as they are in the other.
    """

    def numbers_of(tensor: onnx.TensorProto) -> NDArray[Any]:
        return np.frombuffer(made[tensor.name], np.uint8) if tensor.name in made else wire.mapped(tensor, folder)

    def put(tensor: onnx.TensorProto, stream: BinaryIO) -> None:
        stream.write(numbers_of(tensor).data)
        if is_last and not is_large and tensor.name not in made:
            wire.give_back([tensor], folder)

    if shared is not None:
        shared.write(model, target, numbers_of)
        return
    if not is_large:
        wire.write(model, target, put)
        return
    beside = target.with_name(f"{target.name}.data")
    with beside.open("wb") as stream:
        for tensor in filter(uses_external_data, model.graph.initializer):
            begin = stream.tell()
            put(tensor, stream)
            wire.refer(tensor, beside.name, begin, stream.tell() - begin)
    onnx.save(model, target)


def head_of(graph: onnx.GraphProto) -> str | None:
    """The node of the layer that makes the logits, of a graph that has any: the last with weights before them."""
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get(decoders.LOGITS)
    while node is not None and node.op_type not in PRODUCTS:
        node = makers.get(next(iter(node.input), ""))
    return node and node.name


def _in_eight(spec: ConversionSpec) -> Experts:
    """Experts with weights of eight bits: there is no other form for them in whole numbers."""
    said = {"scheme": Scheme.INT8_WEIGHT_ONLY, "block_size": _BLOCK}
    return Blocks(spec.model_copy(update=said), None, None).experts


def _refuse_experts(spec: ConversionSpec, graph: onnx.GraphProto, provider: Provider) -> None:
    """Experts that are all asked at once, which no quantizer has a form for, and which are most of what a model is."""
    sizes = {tensor.name: tensor.dims for tensor in graph.initializer}
    sizes |= {
        node.output[0]: sizes[node.input[0]]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in sizes
    }
    for node in graph.node:
        dims = list(sizes.get(node.input[1], ())) if node.op_type == "MatMul" else []
        if len(dims) == 3 and min(dims) > 1:  # noqa: PLR2004  a matrix for each
            raise StepFailedError(
                SPEC_IMPOSSIBLE,
                f"quantization.scheme {spec.scheme} has no form for the {dims[0]} experts of this model's layers on "
                f"{provider}: use none, float16 or bfloat16",
            )


def _replace_layers(
    model: onnx.ModelProto,
    folder: Path,
    spared: Container[str | None],
    quantised: Callable[[onnx.NodeProto, NDArray[Any]], onnx.GraphProto | None],
    looked_up: Callable[[onnx.NodeProto, NDArray[Any]], onnx.GraphProto | None] | None = None,
    *,
    experts: Experts | None = None,
) -> tuple[list[onnx.TensorProto], dict[str, bytes]]:
    """Every layer but those that are spared, and tables, if they are asked for, but those layers'; one weight at a time
    is read from the folder.

    Gives the weights that nothing reads any more, and the bytes of new ones.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    turned = turned_in(graph, constants)
    floats = {turned.get(name, name) for node in graph.node if node.name in spared for name in node.input}
    done, made = onnx.GraphProto(), dict[str, bytes]()
    for node in graph.node:
        part, rest = None, list[onnx.NodeProto]()
        layer = _layer_of(node, constants, turned) if node.op_type in PRODUCTS and node.name not in spared else None
        if layer is not None:
            weight, product, rest = layer
            matrix = wire.mapped(weight, folder)
            part = quantised(product, matrix if product.input[1] == weight.name else matrix.T)
        elif looked_up is not None and _is_table_of(node, constants) and node.input[0] not in floats:
            part = looked_up(node, wire.mapped(constants[node.input[0]], folder))
        elif experts is not None and node.op_type == EXPERTS and node.name not in spared:
            part = experts(
                node, {name: wire.mapped(constants[name], folder) for name in node.input if name in constants}
            )
        if part is None:
            done.node.append(node)
            continue
        # Copies, as each part of a message keeps all of it in memory, here the weight that was quantised.
        done.node.extend([*part.node, *rest])
        for tensor in part.initializer:
            if tensor.name not in constants and tensor.name not in made:
                bare, made[tensor.name] = wire.lifted(tensor)
                done.initializer.append(bare)
    asked = {name for node in done.node for name in node.input} | {output.name for output in graph.output}
    nodes = [node for node in done.node if not asked.isdisjoint(node.output)]
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *done.initializer])
    if any(node.domain == DOMAIN for node in nodes) and all(item.domain != DOMAIN for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return [tensor for name, tensor in constants.items() if name not in read], made


def _is_table_of(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    return (
        node.op_type == "Gather"
        and node.input[0] in constants
        and constants[node.input[0]].data_type == onnx.TensorProto.FLOAT
    )


def _layer_of(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], turned: dict[str, str]
) -> tuple[onnx.TensorProto, onnx.NodeProto, list[onnx.NodeProto]] | None:
    """Its weight, a MatMul by it (the one form that the quantizer takes) and what adds the bias."""
    said = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    weights, is_turned = node.input[1], bool(said.get("transB"))
    if weights in turned:
        weights, is_turned = turned[weights], not is_turned
    is_plain = not said.get("transA") and said.get("alpha", 1.0) == said.get("beta", 1.0) == 1.0
    if weights not in constants or not is_plain:
        return None
    name = f"{weights}_turned" if is_turned else weights
    if len(node.input) == 2:  # noqa: PLR2004  without a bias
        return constants[weights], helper.make_node("MatMul", [node.input[0], name], node.output, name=node.name), []
    product = f"{node.output[0]}_product"
    return (
        constants[weights],
        helper.make_node("MatMul", [node.input[0], name], [product], name=node.name),
        [helper.make_node("Add", [product, node.input[2]], node.output, name=f"{node.name}_bias")],
    )


def _given_up(error: Exception) -> StepFailedError:
    return StepFailedError(EXPORT_FAILED, f"onnxruntime's quantizer gives up: {type(error).__name__}: {gist(error)}")


def _is_large(model: onnx.ModelProto, path: Path) -> bool:
    """Whether the weights of the file's outline are in another file."""
    return any(
        uses_external_data(tensor) and ExternalDataInfo(tensor).location != path.name
        for tensor in model.graph.initializer
    )


def _refuse_unquantised(model: onnx.ModelProto, *operators: str) -> None:
    if not any(node.op_type in operators for node in model.graph.node):
        raise StepFailedError(
            EXPORT_FAILED,
            "no multiplication was quantised: the graph has none with constant weights",
        )
