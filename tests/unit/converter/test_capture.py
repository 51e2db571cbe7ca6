"""What torch's exporter need not trace twice is translated as it was captured, and answers as the module does."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch

from onnx_converter import capture
from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_NUMBERS = torch.linspace(-2, 2, 12).reshape(3, 4)


class Of(torch.nn.Module):
    """A function that is traced."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function
        self.register_buffer("count", torch.zeros(1))


def _in_place(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 1
    return y.add_(x)


def _branches(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))  # type: ignore[no-any-return]


#: What it computes, and whether the exporter has to trace it again.
PROGRAMS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "products and norms": (lambda x: torch.nn.functional.layer_norm(x.mT @ x, (4,)), False),
    "a cast": (lambda x: (x * 3).to(torch.int64).to(torch.float32) / 2, False),
    "a cast to what it is": (lambda x: (x * 3).to(torch.float32) + 1, False),
    "an answer that is cast to what it is": (lambda x: (x * 3).to(torch.float32), False),
    "an input that is answered as it is": (lambda x: x.to(torch.float32), False),
    "another device": (lambda x: torch.arange(4).to(x.device) + x, False),
    "something detached": (lambda x: x.detach() * 2, False),
    "the smaller and the larger of two": (lambda x: torch.max(torch.min(x, -x), x / 2), False),
    "masks of which all or one must hold": (lambda x: torch.where((x > -1) & (x < 1) | (x > 1.5), x, 0.0), False),
    "numbers that are written into a tensor": (_in_place, True),
    "one of two programs": (_branches, True),
    "an operator that ONNX lacks": (lambda x: torch.nn.functional.huber_loss(x, x * 2, reduction="none"), True),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_traced_again_only_where_it_has_to_be(name: str) -> None:
    function, is_decomposed = PROGRAMS[name]
    module = Of(function).eval()
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        patch.object(capture, "_decompose", side_effect=capture._decompose) as decompose,
        capture.once(),
    ):
        warnings.simplefilter("ignore")  # deprecations inside torch
        program = torch.onnx.export(
            module,
            (_NUMBERS,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=18,
            verbose=False,
        )
    assert decompose.called is is_decomposed
    assert program is not None
    graph = onnx_ir.to_proto(program.model).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=[Provider.CPU])
    for rows in (_NUMBERS, torch.cat([_NUMBERS, -2 * _NUMBERS])):
        (answer,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        assert np.allclose(answer, function(rows.clone()).numpy(), atol=1e-5)
