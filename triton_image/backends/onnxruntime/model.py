"""Triton's `onnxruntime` backend in Python, for a Triton that comes without NVIDIA's native one.

It serves the same repositories (model.onnx and a config.pbtxt with `backend: "onnxruntime"`). It is neither faster nor
more general than the native one: what it cannot honour it refuses at load, in words. It knows nothing of text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton
from onnx_graph import Graph, GraphError, Question, load_graph
from serving_contract import ContractError, read_settings

if TYPE_CHECKING:
    from onnx_graph import Arrays


class TritonPythonModel:
    """One instance of one model, alone in its process. The names of class and methods are Triton's."""

    graph: Graph
    failures: Failures

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, or raise a sentence that Triton logs before it gives up."""
        folder = Path(args["model_repository"], args["model_version"])
        try:
            _check_numpy()
            settings = read_settings(json.loads(args["model_config"]))
            self.graph = load_graph(
                folder / settings.model_file,
                settings,
                args["model_instance_kind"],
                int(args["model_instance_device_id"]),
            )
        except ContractError as error:
            raise triton.TritonModelException(f"model '{args['model_name']}': {error}") from error
        self.failures = Failures(args["model_name"], args["model_version"])
        triton.Logger.log_info(
            f"{args['model_instance_name']}: {folder / settings.model_file} on onnxruntime {onnxruntime.__version__}, "
            f"{', '.join(self.graph.session.get_providers())}, {settings}"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one execution, each with its outputs or with an error of its own.

        Triton 2.51 counts these errors as successes. It would count a raised exception as failure, but then leaks
        every request of that execution, and a model with leaked requests is never unloaded: so nothing is raised, and
        the errors have a counter of their own.
        """
        answers = self.graph.answer([self._question(request) for request in requests])
        self.failures.count(answers)
        return [_respond(answer) for answer in answers]

    def _question(self, request: Any) -> Question:
        inputs = {spec.name: triton.get_input_tensor_by_name(request, spec.name) for spec in self.graph.settings.inputs}
        return Question(
            {name: tensor.as_numpy() for name, tensor in inputs.items()}, tuple(request.requested_output_names())
        )


class Failures:
    """Counts the errors among what Triton calls successes, under /metrics beside Triton's own counters."""

    def __init__(self, model: str, version: str) -> None:
        # Every instance is a process; Triton gives all of them the same series.
        self._family = triton.MetricFamily(
            name="onnxruntime_request_failure",
            description="Number of inference requests answered with an error, which Triton counts as successful",
            kind=triton.MetricFamily.COUNTER,
        )
        labels = {"model": model, "version": version}
        self._by_kind = {
            kind: self._family.Metric(labels=labels | {"reason": reason})
            for kind, reason in ((GraphError, "GRAPH"), (ContractError, "REQUEST"))
        }

    def count(self, answers: list[Arrays | ContractError | GraphError]) -> None:
        """One more for each error."""
        for kind, metric in self._by_kind.items():
            if errors := sum(isinstance(answer, kind) for answer in answers):
                metric.increment(errors)


def _check_numpy() -> None:
    # The model would load, be ready, and answer with tensors of no bytes.
    if not np.__version__.startswith("1."):
        raise ContractError(f"numpy {np.__version__}: Triton's stub was built for numpy 1 and would send empty outputs")


def _respond(answer: Arrays | ContractError | GraphError) -> Any:
    # What the client can mend is its error (HTTP 400); what the graph could not compute is the model's (HTTP 500), as
    # in the native backend, so that a model which fails is seen failing.
    match answer:
        case ContractError():
            return triton.InferenceResponse(error=triton.TritonError(str(answer), triton.TritonError.INVALID_ARG))
        case GraphError():
            return triton.InferenceResponse(error=triton.TritonError(str(answer), triton.TritonError.INTERNAL))
        case outputs:
            return triton.InferenceResponse([triton.Tensor(name, array) for name, array in outputs.items()])
