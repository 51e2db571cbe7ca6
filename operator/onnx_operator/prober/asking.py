"""Asks a model by either protocol, at a gateway or side by side, and never raises: what is no answer is a `Failure`.

Keeps connections open. Sends what it is told, once: no retries, they would hide what is to be counted.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import aiohttp
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_operator.prober.counters import Side
    from onnx_operator.prober.golden import Golden

PIN_HEADER: Final = "x-onnx-track"
_MOST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered; an output that could not be read is not there."""

    version: str
    outputs: Mapping[str, NDArray[Any]]
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer; `kind` is one of few words."""

    kind: str


class Asker(Protocol):
    """One way of asking."""

    protocol: str

    async def ask(self, golden: Golden, side: Side) -> Answer | Failure: ...

    async def close(self) -> None: ...


class HttpAsker:
    """Asks by HTTP, tensors in binary."""

    protocol = "http"

    def __init__(self, address: str, host: str, model: str, timeout: float) -> None:
        self._client = triton_http.InferenceServerClient(address, conn_limit=4, conn_timeout=timeout)
        self._host, self._model, self._timeout = host, model, timeout

    async def ask(self, golden: Golden, side: Side) -> Answer | Failure:
        """Ask one side."""
        inputs = []
        for name, tensor in golden.inputs.items():
            entry = triton_http.InferInput(name, list(tensor.values.shape), tensor.datatype)
            entry.set_data_from_numpy(tensor.values, binary_data=True)
            inputs.append(entry)
        # By name: what a language model keeps of a text is many times what is compared.
        outputs = [triton_http.InferRequestedOutput(name) for name in golden.outputs]
        headers = {"Host": self._host, PIN_HEADER: side.value}
        call = self._client.infer(self._model, inputs, outputs=outputs, headers=headers)
        return await _asked(call, golden, self._timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class GrpcAsker:
    """Asks by gRPC on one channel."""

    protocol = "grpc"

    def __init__(self, address: str, host: str, model: str, timeout: float) -> None:
        options = [
            ("grpc.default_authority", host),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", _MOST_BYTES),
            # The default grows to two minutes, for which a restarted gateway would look dead.
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._client = triton_grpc.InferenceServerClient(address, channel_args=options)
        self._model, self._timeout = model, timeout

    async def ask(self, golden: Golden, side: Side) -> Answer | Failure:
        """Ask one side."""
        inputs = []
        for name, tensor in golden.inputs.items():
            entry = triton_grpc.InferInput(name, list(tensor.values.shape), tensor.datatype)
            entry.set_data_from_numpy(tensor.values)
            inputs.append(entry)
        outputs = [triton_grpc.InferRequestedOutput(name) for name in golden.outputs]
        headers = {PIN_HEADER: side.value}
        call = self._client.infer(self._model, inputs, outputs=outputs, headers=headers, client_timeout=self._timeout)
        return await _asked(call, golden, self._timeout)

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()


class BySide:
    """Asks each side at an address of its own."""

    def __init__(self, sides: Mapping[Side, Asker]) -> None:
        self._sides = sides
        (self.protocol,) = {one.protocol for one in sides.values()}

    async def ask(self, golden: Golden, side: Side) -> Answer | Failure:
        """Ask one side."""
        return await self._sides[side].ask(golden, side)

    async def close(self) -> None:
        """Close the connections."""
        for asker in self._sides.values():
            await asker.close()


async def _asked(call: Any, golden: Golden, timeout: float) -> Answer | Failure:  # noqa: ASYNC109 - one number for both protocols
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            result = await call
        response = result.get_response()
        version = response["model_version"] if isinstance(response, dict) else response.model_version
        return Answer(str(version), _outputs(result, golden), time.monotonic() - began)
    except TimeoutError:
        return Failure("Timeout")
    except InferenceServerException as error:
        status = str(error.status()).removeprefix("StatusCode.")
        return Failure("Timeout" if status == "DEADLINE_EXCEEDED" else f"Status{status}")
    except (aiohttp.ClientError, OSError):
        return Failure("Connection")
    except Exception as error:  # noqa: BLE001 - a server may answer anything, and the client libraries raise as many things
        return Failure(type(error).__name__)


def _outputs(result: Any, golden: Golden) -> dict[str, NDArray[Any]]:
    outputs = {}
    for name in golden.outputs:
        try:
            values = result.as_numpy(name)
        except Exception:  # noqa: BLE001, S112 - an output that cannot be read is missing, the others may be fine
            continue
        if values is not None:
            outputs[name] = values
    return outputs
