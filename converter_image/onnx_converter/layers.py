"""A deep graph from a shallow one: torch traces each kind of layer twice, and the model has it as often as it is deep.

Tracing takes nearly all of a conversion, and as long again for every layer, though the layers of a language model are
alike but for their weights. Here a model stands in that has two layers of each kind, with weights of chance; what comes
of both must be the same but for the weights, node by node, and then it is what the whole model has, with each layer's
own weights. Refuses layers that differ in anything else, that share what they compute, or whose weights the exporter
computed with: those models are traced as they are.
"""

from __future__ import annotations

import copy
import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import onnx_ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from onnx_converter import decoders

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from onnx_converter.load import Checkpoint

#: Of each kind, so that what is the layer's is told from what all share.
_OF_EACH: Final = 2
#: Where a layer begins and ends, as an operator that nobody has.
_DOMAIN: Final = "onnx_operator"
_BORDER: Final = "LayerBorder"
#: What counts the layers; each has its own.
_NUMBER: Final = "layer_idx"
#: Where the exporter notes the path of modules that a node comes from.
SCOPES: Final = "pkg.torch.onnx.name_scopes"
#: As decoders.Wrapper calls the model.
_WITHIN: Final = "model."
#: The axes of keys and values that a request decides: texts, and tokens that are past.
_DYNAMIC: Final = (0, 2)
_OF_TORCH: Final = frozenset(vars(nn.Module()))


class UnlikeError(Exception):
    """Why a graph cannot be grown."""


@dataclass(frozen=True, slots=True)
class Shallow:
    """The model that stands in, and what the whole one is made of."""

    checkpoint: Checkpoint
    #: The layers of the whole model, and of each the place in the shallow one that it is made after.
    layers: tuple[nn.Module, ...]
    places: tuple[int, ...]
    #: What the list of layers is called inside of the model.
    path: str
    #: The weights of chance, by place.
    weights: tuple[Mapping[str, Tensor], ...]


#: The list of layers by its name, the first layer of each kind, and for each layer which of those it is like.
Plan = tuple[str, nn.ModuleList, list[int], list[int]]


def plan_of(checkpoint: Checkpoint) -> Plan | None:
    """None where there is nothing to gain."""
    model = checkpoint.model
    if not checkpoint.cache or checkpoint.cross:
        return None
    depth = model.config.num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(found) != 1:
        return None
    ((path, stack),) = found
    kinds = [kind_of(layer) for layer in stack]
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    if _OF_EACH * len(firsts) >= len(stack):
        return None
    return path, stack, firsts, [firsts.index(kinds.index(kind)) for kind in kinds]


@contextmanager
def shallow(checkpoint: Checkpoint, plan: Plan) -> Iterator[Shallow]:
    """Inside, the model of the checkpoint is the shallow one."""
    model, config = checkpoint.model, checkpoint.model.config
    path, stack, firsts, likes = plan
    chosen = [first for first in firsts for _ in range(_OF_EACH)]
    few = nn.ModuleList(_by_chance(stack[layer], place, config) for place, layer in enumerate(chosen))
    few.eval()
    owner, _, name = path.rpartition(".")
    parent = model.get_submodule(owner)
    lists = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == len(stack)
    }
    borders = [few[0].register_forward_pre_hook(_enter, with_kwargs=True)]
    borders += [layer.register_forward_hook(_leave) for layer in few]
    depth = config.num_hidden_layers
    try:
        setattr(parent, name, few)
        config.num_hidden_layers = len(few)
        for key, value in lists.items():
            setattr(config, key, type(value)(value[layer] for layer in chosen))
        cache = tuple(item for layer in chosen for item in checkpoint.cache[2 * layer : 2 * layer + 2])
        inputs = (*decoders.INPUTS, *decoders.names_of(decoders.PAST, cache))
        yield Shallow(
            replace(checkpoint, cache=cache, inputs=inputs),
            tuple(stack),
            tuple(_OF_EACH * like for like in likes),
            path,
            tuple(dict(layer.named_parameters()) for layer in few),
        )
    finally:
        setattr(parent, name, stack)
        config.num_hidden_layers = depth
        for key, value in lists.items():
            setattr(config, key, value)
        for border in borders:
            border.remove()


def kind_of(layer: nn.Module) -> Hashable:
    """The same for two layers that differ in their number and in the values of their weights only."""
    return (
        type(layer),
        tuple((name, _plain(value)) for name, value in vars(layer).items() if name not in _OF_TORCH | {_NUMBER}),
        tuple((name, weight.shape, weight.dtype) for name, weight in layer.named_parameters(recurse=False)),
        tuple((name, _digest(buffer)) for name, buffer in layer.named_buffers(recurse=False)),
        tuple((name, kind_of(module)) for name, module in layer.named_children()),
    )


def _plain(value: object) -> Hashable:
    """Numbers and words by what they are, anything else by which one it is."""
    if isinstance(value, int | float | str | None | torch.dtype):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_plain, value))
    if isinstance(value, partial):
        return value.func, _plain(value.args), tuple((name, _plain(one)) for name, one in value.keywords.items())
    return id(value)


def _digest(tensor: Tensor) -> Hashable:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(content.data).digest()


def _by_chance(layer: nn.Module, place: int, config: object) -> nn.Module:
    """A copy with other weights, all of them different, so that none is taken for another."""
    made = copy.deepcopy(layer, {id(config): config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(place)
        for weight in made.parameters():
            weight.data = torch.randn_like(weight)
    for module in made.modules():
        if hasattr(module, _NUMBER):
            module.layer_idx = place  # type: ignore[assignment]
    return made


def _border(hidden: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{_DOMAIN}::{_BORDER}", (hidden,), {}, dtype=hidden.dtype, shape=hidden.shape, version=1
    )


def _enter(_layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if given:
        return (_border(given[0]), *given[1:]), named
    return given, named | {"hidden_states": _border(named["hidden_states"])}


def _leave(_layer: nn.Module, _given: object, answer: Any) -> Any:
    return _border(answer) if isinstance(answer, Tensor) else (_border(answer[0]), *answer[1:])


def grow(model: onnx_ir.Model, few: Shallow, cache: decoders.Cache) -> None:
    """The graph of the whole model, in place of that of the shallow one."""
    Growth(model, few, cache).run()


def grow_small(model: onnx_ir.Model, few: Shallow, whole: Checkpoint, small: Checkpoint) -> onnx_ir.Model:
    """The same graph grown to a small model of the same configuration, with all the weights of that; a new one."""
    plan = plan_of(small)
    if plan is None or {_OF_EACH * like for like in plan[-1]} != set(few.places):
        raise UnlikeError("the small model has other kinds of layers")
    made = model.clone()
    _exchange(made, few, whole.model, dict(small.model.named_parameters()))
    grow(made, replace(few, layers=tuple(plan[1]), places=tuple(_OF_EACH * like for like in plan[-1])), small.cache)
    return made


def forget_sizes(model: onnx_ir.Model) -> None:
    """What is told of values that are computed, and is that of the large model."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None


def _exchange(model: onnx_ir.Model, few: Shallow, whole: nn.Module, others: Mapping[str, Tensor]) -> None:
    """The weights that are in no layer, by what the exporter made of them."""
    outside = [item for item in whole.named_parameters() if not item[0].startswith(f"{few.path}.")]
    for value in model.graph.initializers.values():
        constant = value.const_value
        if constant is None or constant.dtype not in _DTYPES:
            continue
        held = _tensor(constant)
        found = (
            TorchTensor(made(others[name].detach().to(held.dtype)).contiguous(), name=value.name)
            for name, weight in outside
            for made in _FORMS.values()
            if _is_same(made(weight.detach()), held)
        )
        if (other := next(found, None)) is not None:
            value.const_value, value.shape = other, onnx_ir.Shape(other.shape)


def _is_same(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return (one.data_ptr(), one.stride()) == (other.data_ptr(), other.stride()) or torch.equal(one, other)


class Growth:
    """One graph on its way from two layers of each kind to all of them."""

    def __init__(self, model: onnx_ir.Model, few: Shallow, cache: decoders.Cache) -> None:
        self.model, self.graph, self.few, self.cache = model, model.graph, few, cache
        #: In the order of layers: one before the first, one after each.
        self.borders = [node for node in self.graph if (node.domain, node.op_type) == (_DOMAIN, _BORDER)]
        self.inputs = {str(item.name): item for item in self.graph.inputs}
        self.outputs = {str(item.name): item for item in self.graph.outputs}
        self.lengths = self._lengths()
        # What was made of the length of each layer's cache is one now, and then what was made of that.
        same = CommonSubexpressionEliminationPass()
        same(model)
        self._order_sums()
        same(model)
        self.weights = self._weights()
        self.tags = self._tags()

    def run(self) -> None:
        if len(self.borders) != len(self.few.weights) + 1:
            raise UnlikeError(f"{len(self.borders)} borders of {len(self.few.weights)} layers are left")
        for place in set(self.few.places):
            if self._meaning(place) != self._meaning(place + 1):
                raise UnlikeError(f"two layers of one kind came out differently, those at {place} and {place + 1}")
        for value in self.weights:
            value.name = f"shallow_{value.name}"
        hidden = self._before(0)
        kept, answers = [], []
        for number, place in enumerate(self.few.places):
            hidden, given, answered = self._put(number, place, hidden)
            kept += given
            answers += answered
        after = self.borders[-1].outputs[0]
        onnx_ir.convenience.replace_all_uses_with((after, self._begins(0)[1]), (hidden, kept[0]))
        self._settle(kept, answers)

    def _settle(self, kept: Sequence[onnx_ir.Value], answers: Sequence[onnx_ir.Value]) -> None:
        """Inputs and outputs of the whole model, and nothing left of the shallow one."""
        sides = (
            (self.graph.inputs, decoders.PAST, kept),
            (self.graph.outputs, decoders.PRESENT, answers),
        )
        for ends, prefix, values in sides:
            old = [item for item in ends if str(item.name).startswith(f"{prefix}.")]
            rest = [item for item in ends if item not in old]
            for item in old:
                item.name = f"shallow_{item.name}"
            for name, value in zip(decoders.names_of(prefix, self.cache), values, strict=True):
                value.name = name
            ends.clear()
            ends.extend([*rest, *values])
        self.graph.sort()
        RemoveUnusedNodesPass()(self.model)
        if left := self.weights.keys() & set(self.graph.initializers.values()):
            raise UnlikeError(f"{next(iter(left)).name} of one layer is used by more than that layer")
        self.model.opset_imports.pop(_DOMAIN, None)
        self.graph.opset_imports.pop(_DOMAIN, None)

    def _before(self, place: int) -> onnx_ir.Value:
        (value,) = (value for value in self.borders[place].inputs if value is not None)
        return value

    def _ends(self, place: int) -> tuple[onnx_ir.Value, ...]:
        """What a layer answers: the next one's hidden state, key and value."""
        present = (self.outputs[f"{decoders.PRESENT}.{place}.{kind}"] for kind in ("key", "value"))
        return (self._before(place + 1), *present)

    def _begins(self, place: int) -> tuple[onnx_ir.Value, ...]:
        past = (self.inputs[f"{decoders.PAST}.{place}.{kind}"] for kind in ("key", "value"))
        return (self.borders[place].outputs[0], *past)

    def _weights(self) -> dict[onnx_ir.Value, tuple[int, str, str]]:
        """Initializers that are weights of layers: the place, the name in the layer, and in which form."""
        known: dict[Hashable, tuple[int, str, str]] = {}
        for place, weights in enumerate(self.few.weights):
            for name, weight in weights.items():
                for form, made in _FORMS.items():
                    known.setdefault(_digest(made(weight.detach())), (place, name, form))
        sizes = {key[:2] for key in known}  # type: ignore[index]
        found = {}
        for value in self.graph.initializers.values():
            constant = value.const_value
            if constant is None or (_DTYPES.get(constant.dtype), tuple(constant.shape)) not in sizes:
                continue
            whose = known.get(_digest(_tensor(constant)))
            if whose is not None:
                found[value] = whose
        return found

    def _lengths(self) -> set[onnx_ir.Node]:
        """What asks how many texts there are and how much is past, which is the same of every layer: of the first."""
        past = {item for name, item in self.inputs.items() if name.startswith(decoders.PAST)}
        found = set()
        for node in self.graph:
            if node.op_type == "Shape" and node.inputs[0] in past:
                start, end = (node.attributes.get_int(name, -1) for name in ("start", "end"))
                if start in _DYNAMIC and end == start + 1:
                    node.replace_input_with(0, self._begins(0)[1])
                    found.add(node)
        return found

    def _order_sums(self) -> None:
        """New tokens and those that are past are added in either order."""
        for node in self.graph:
            left, *right = node.inputs
            if node.op_type == "Add" and left and right[0] and left.dtype is onnx_ir.DataType.INT64:
                for at, value in enumerate(sorted((left, right[0]), key=lambda value: str(value.name))):
                    node.replace_input_with(at, value)

    def _tags(self) -> dict[onnx_ir.Value, int]:
        """The one layer whose state, cache or weights a value is made of; of what all share, there is none."""
        tags = {value: place for value, (place, _, _) in self.weights.items()}
        for place in range(len(self.few.weights)):
            tags |= dict.fromkeys(self._begins(place), place)
        for node in self.graph:
            if node in self.lengths:
                continue
            if node in self.borders:
                # After the last layer there is one more place.
                tags[node.outputs[0]] = self.borders.index(node)
                continue
            places = {tags[value] for value in node.inputs if value in tags}
            if len(places) > 1:
                raise UnlikeError(f"{node.name} computes with several layers at once")
            tags |= dict.fromkeys(node.outputs, *places) if places else {}
        return tags

    def _meaning(self, place: int) -> list[Hashable]:
        """What a layer computes, said without the names of its own values."""
        said: dict[onnx_ir.Value, Hashable] = {value: ("begin", at) for at, value in enumerate(self._begins(place))}
        for value, (where, name, form) in self.weights.items():
            if where == place:
                said[value] = name, form
        for node in self._nodes(place):
            words = (
                node.domain,
                node.op_type,
                tuple(sorted((name, _said(attribute)) for name, attribute in node.attributes.items())),
                tuple(said[value] if value in said else _shared(value) for value in node.inputs),
            )
            digest = hashlib.sha256(repr(words).encode()).hexdigest()
            said |= {value: (digest, at) for at, value in enumerate(node.outputs)}
        return [said.get(value) for value in self._ends(place)]

    def _nodes(self, place: int) -> list[onnx_ir.Node]:
        return [node for node in self.graph if node not in self.borders and self.tags.get(node.outputs[0]) == place]

    def _put(
        self, number: int, place: int, hidden: onnx_ir.Value
    ) -> tuple[onnx_ir.Value, list[onnx_ir.Value], list[onnx_ir.Value]]:
        """One more layer: its answer, and what is kept of it before and after."""
        begins, ends = self._begins(place), self._ends(place)
        past = [
            onnx_ir.Value(name=f"past_{number}_{at}", shape=value.shape, type=value.type)
            for at, value in enumerate(begins[1:])
        ]
        known: dict[onnx_ir.Value, onnx_ir.Value] = dict(zip(begins, (hidden, *past), strict=True))
        known |= self._own_weights(number, place)
        for node in self._nodes(place):
            outputs = [
                onnx_ir.Value(name=f"layer{number}_{value.name}", shape=value.shape, type=value.type)
                for value in node.outputs
            ]
            made = onnx_ir.Node(
                node.domain,
                node.op_type,
                [value and known.get(value, value) for value in node.inputs],
                list(node.attributes.values()),
                outputs=outputs,
                version=node.version,
                name=f"layer{number}_{node.name}",
            )
            scopes = node.metadata_props.get(SCOPES, "")
            made.metadata_props[SCOPES] = re.sub(rf"({re.escape(self.few.path)}\.){place}\b", rf"\g<1>{number}", scopes)
            known |= dict(zip(node.outputs, outputs, strict=True))
            self.graph.append(made)
        answer, *present = (known[value] for value in ends)
        return answer, past, present

    def _own_weights(self, number: int, place: int) -> dict[onnx_ir.Value, onnx_ir.Value]:
        named = dict(self.few.layers[number].named_parameters())
        made = {}
        for value, (where, name, form) in self.weights.items():
            if where != place or value.const_value is None:
                continue
            title = f"{_WITHIN}{self.few.path}.{number}.{name}{form}"
            dtype = value.const_value.dtype
            make = partial(_formed, form, named[name], _DTYPES[dtype], title)
            shape = onnx_ir.Shape(make().shape)
            # Made of what the model holds when it is written: rules of the optimizer keep the graphs that they saw, and
            # those would keep the weights.
            tensor = onnx_ir.LazyTensor(make, dtype, shape, name=title)
            made[value] = onnx_ir.Value(name=title, shape=shape, type=value.type, const_value=tensor)
            self.graph.register_initializer(made[value])
        return made


#: What the exporter makes of a weight: matrices are turned for their products, and Gemma's norms begin at one.
_FORMS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "": lambda weight: weight,
    "_turned": lambda weight: weight.mT if weight.dim() > 1 else weight,
    "_from_one": lambda weight: weight + 1 if weight.dim() == 1 else weight,
}
_DTYPES: Final = {
    onnx_ir.DataType.FLOAT: torch.float32,
    onnx_ir.DataType.FLOAT16: torch.float16,
    onnx_ir.DataType.BFLOAT16: torch.bfloat16,
}


def _formed(form: str, weight: Tensor, dtype: torch.dtype, title: str) -> TorchTensor:
    return TorchTensor(_FORMS[form](weight.detach().to(dtype)), name=title)


def _tensor(constant: onnx_ir.TensorProtocol) -> Tensor:
    raw = constant.raw
    return raw if isinstance(raw, Tensor) else torch.from_numpy(constant.numpy())


def _shared(value: onnx_ir.Value | None) -> Hashable:
    """What all layers have: a constant by its content, as there may be several of it, else the very value."""
    constant = value.const_value if value is not None else None
    if constant is None:
        return id(value)
    return str(constant.dtype), tuple(constant.shape), hashlib.sha256(constant.tobytes()).hexdigest()


def _said(attribute: onnx_ir.Attr) -> str:
    if attribute.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS):
        raise UnlikeError("a layer has a graph of its own inside")
    if attribute.type is onnx_ir.AttributeType.TENSOR:
        return str(_shared(onnx_ir.Value(const_value=attribute.as_tensor())))
    return repr(attribute.value)
