"""Models that write, as the converter's own last steps lay them out, and how they are asked."""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from onnx_operator.prober.asking import Answer, GrpcAsker, HttpAsker
from onnx_operator.prober.counters import Side
from onnx_operator.prober.golden import read_golden
from unit.converter.steps import Line, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from onnx_operator.prober.golden import Golden
    from triton_server.serverprocess import Server

    Arrays = dict[str, NDArray[Any]]

NAME = "writer"


@dataclass(frozen=True)
class Published:
    """A model of a repository that the converter's own last step lays out."""

    line: Line
    digest: str

    def write(self, repository: Path, _artifacts: Path) -> None:
        run(
            "assemble",
            ("--artifact", self.line.artifact(self.digest), "--digest", self.digest, "--version", 1),
            ("--provider", "CPUExecutionProvider", "--model-name", NAME, "--repository", repository),
        )


@contextmanager
def publishing(server_root: Path, make: Callable[[Path], Path]) -> Iterator[Published]:
    """A checkpoint through all steps, beside the server's own files for as long as it is served."""
    with tempfile.TemporaryDirectory(dir=server_root.parent) as name:
        line = Line(Path(name))
        digest = line.fetch(make(line.root / "model")).details["digest"]
        line.convert(digest)
        assert line.validate(digest).summary.reason == "Validated"
        yield Published(line, line.publish().details["digest"])


def ask(server: Server, protocol: str, arrays: Arrays, model: str = NAME) -> Arrays:
    """Everything that the model answers, by name."""
    library: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    inputs = []
    for name, array in arrays.items():
        tensor = library.InferInput(name, list(array.shape), "INT64" if array.dtype == np.int64 else "FP32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    client = getattr(server, protocol)()
    try:
        answer = client.infer(model, inputs)
        outputs = json.loads(server.ask(f"/v2/models/{model}").body)["outputs"]
        return {item["name"]: answer.as_numpy(item["name"]) for item in outputs}
    finally:
        client.close()


def asked_by_both(server: Server, published: Published) -> Iterator[tuple[Golden, Answer, Answer]]:
    """Each golden request of the artifact with what the prober is answered by HTTP and by gRPC."""
    golden = read_golden(published.line.beside(published.digest, "golden.json"))

    async def answers() -> list[Any]:
        askers = (
            HttpAsker(f"127.0.0.1:{server.http_port}", NAME, NAME, 30),
            GrpcAsker(f"127.0.0.1:{server.grpc_port}", NAME, NAME, 30),
        )
        try:
            return [[await asker.ask(request, Side.STABLE) for asker in askers] for request in golden]
        finally:
            for asker in askers:
                await asker.close()

    for request, (by_http, by_grpc) in zip(golden, asyncio.run(answers()), strict=True):
        assert isinstance(by_http, Answer)
        assert isinstance(by_grpc, Answer)
        yield request, by_http, by_grpc
