"""What onnxruntime makes of a graph: its fast kernels are found, and its slow one is not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir
import onnxruntime
import pytest
import torch
from typing_extensions import override

from onnx_converter import idioms
from onnx_converter.spec import Provider

if TYPE_CHECKING:
    from pathlib import Path


class Block(torch.nn.Module):
    """What nearly every encoder has: a layer with GELU, and the norm of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.norm = torch.nn.LayerNorm(8)

    @override
    def forward(self, given: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.norm(given + torch.nn.functional.gelu(self.layer(given)))
        return answer


@pytest.fixture(scope="module")
def exported() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch
        program = torch.onnx.export(
            Block().eval(), (torch.ones(1, 3, 8),), dynamo=True, opset_version=18, verbose=False
        )
    assert program is not None
    return bytes(onnx_ir.to_proto(program.model).SerializeToString())


def optimised(graph: bytes, provider: Provider | None, folder: Path) -> tuple[set[str], list[float]]:
    """The operators that onnxruntime really runs, and an answer."""
    model = onnx_ir.from_proto(onnx.ModelProto.FromString(graph))
    if provider is not None:
        idioms.settle(model, provider)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / f"{provider}.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model).SerializeToString(), options, providers=[Provider.CPU]
    )
    given = torch.linspace(-2, 2, 24).reshape(1, 3, 8).numpy()
    (answer,) = session.run(None, {session.get_inputs()[0].name: given})
    return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}, answer.ravel().tolist()


def test_gelu_is_one_operator_and_a_norm_stays_apart_from_its_sum_on_the_cpu(exported: bytes, tmp_path: Path) -> None:
    before, wanted = optimised(exported, None, tmp_path)
    assert "Erf" in before, "the exporter writes what onnxruntime knows: the rewriting can go"
    assert "SkipLayerNormalization" in before
    there, answer = optimised(exported, Provider.CPU, tmp_path)
    assert there & {"Gelu", "BiasGelu"}
    assert not there & {"Erf", "SkipLayerNormalization"}
    assert answer == pytest.approx(wanted, abs=1e-6)


def test_where_one_kernel_is_faster_than_two_the_sum_is_left_with_its_norm(exported: bytes, tmp_path: Path) -> None:
    there, _ = optimised(exported, Provider.CUDA, tmp_path)
    assert "SkipLayerNormalization" in there
    assert there & {"Gelu", "BiasGelu"}


@pytest.mark.parametrize("provider", [Provider.CPU, Provider.CUDA])
def test_a_product_of_bfloat16_is_taken_in_floats_where_there_is_no_kernel(provider: Provider) -> None:
    distances, slope = torch.arange(0, 300, 7), torch.tensor([0.00390625, 0.0884], dtype=torch.bfloat16)[:, None]
    wanted = (slope * distances).float()
    graph = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (int64[N] distances, float[2, 1] slopes) => (float[2, N] answer)
        { near = Cast<to=16>(distances) steep = Cast<to=16>(slopes) far = Mul(steep, near) answer = Cast<to=1>(far) }"""
    )
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(graph))
    idioms.settle(model, provider)
    assert len(model.graph) == (4 if provider is Provider.CUDA else 7)
    if provider is Provider.CPU:
        settled = onnx_ir.to_proto(model).SerializeToString()
        session = onnxruntime.InferenceSession(settled, providers=[Provider.CPU])
        given = {"distances": distances.numpy(), "slopes": slope.float().numpy()}
        assert torch.equal(torch.from_numpy(session.run(None, given)[0]), wanted)
