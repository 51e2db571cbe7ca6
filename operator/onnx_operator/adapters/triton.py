"""Reads Triton's own counters, straight from the pods of its servers.

The address is that of a pod the operator made, never one that a user wrote. As with Prometheus, no exception leaves: a
server that cannot be read is an `Outage`.

Whose fault an answer is. Bad: what Triton counts as a failure, but for requests that their callers cancelled, and
GRAPH errors of the Python backend of this project's image, which Triton counts as successes. Disputed: what was
cancelled, and that backend's REQUEST errors. Requests that Triton refuses before they reach the model are in neither.

A model of two graphs is three models of Triton's, each graph and both in turn. Requests are counted where a graph
answers them, whichever of the three was asked: of the third Triton counts successes as version 1, and failures twice.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from onnx_operator.adapters.asking import Asking, Outage
from onnx_operator.core.counts import Counts

_SUCCESS: Final = "nv_inference_request_success"
_FAILURE: Final = "nv_inference_request_failure"
_ERROR: Final = "onnxruntime_request_failure"
_GRAPHS: Final = ("-encoder", "-decoder")
_MOST_BYTES: Final = 128 * 1024
"""A server of one model tells some ten kilobytes; the event loop stands still for as long as a text is taken apart."""
_MOST_ANSWERS: Final = 2**43
"""More than anything answers; a side of hundreds of servers fits into status."""


class TritonReader:
    """A client of the servers' counters."""

    def __init__(self, *, timeout_seconds: float = 5.0) -> None:
        self._asking = Asking("the server", timeout_seconds=timeout_seconds, most_bytes=_MOST_BYTES)

    async def read(self, address: str, *, model: str, version: int) -> Counts | Outage:
        """What the server at `address`, such as http://10.244.0.7:8002, has answered since it started."""
        answer = await self._asking.ask("GET", f"{address}/metrics")
        return answer if isinstance(answer, Outage) else parse(answer.status, answer.body, model=model, version=version)

    async def close(self) -> None:
        """Close the connections."""
        await self._asking.close()


def parse(status: int, body: bytes, *, model: str, version: int) -> Counts | Outage:
    """Read what a server tells of one version of a model at /metrics."""
    if status != HTTPStatus.OK:
        return Outage(f"the server answered {status} to /metrics")
    graphs = {f"{model}{graph}" for graph in _GRAPHS}
    whole, parts = ({name: dict[str, int]() for name in (_SUCCESS, _FAILURE, _ERROR)} for _ in range(2))
    try:
        # A side may have hundreds of servers, and most of what each tells is something else.
        text = "\n".join(line for line in body.decode().splitlines() if any(name in line for name in whole))
        # By family, since the parser puts _total behind the names of its samples.
        for family in text_string_to_metric_families(text):
            for sample in family.samples if family.name in whole else ():
                labels = sample.labels
                if labels["version"] == str(version) and labels["model"] in {model, *graphs}:
                    counted = (parts if labels["model"] in graphs else whole)[family.name]
                    # Triton has a series for each GPU of the pod.
                    reason = labels.get("reason", "")
                    counted[reason] = counted.get(reason, 0) + int(sample.value)
    except (ValueError, KeyError, OverflowError):
        return Outage(f"the server answered with something else than metrics: {body[:200]!r}")
    found = parts if parts[_SUCCESS] else whole
    if not found[_SUCCESS]:
        return Outage(f"the server tells nothing of version {version} of {model}")
    failed, erred = found[_FAILURE], found[_ERROR]
    cancelled = failed.get("CANCELED", 0)
    bad = sum(failed.values()) - cancelled + erred.get("GRAPH", 0)
    disputed = cancelled + erred.get("REQUEST", 0)
    total = sum(found[_SUCCESS].values()) + sum(failed.values())
    if min(bad, total, disputed) < 0 or max(total, bad + disputed) > _MOST_ANSWERS:
        return Outage(f"the server counts {total} answers, which cannot be")
    # An error is counted before its answer, and a scrape may come in between.
    return Counts(bad, max(total, bad + disputed), disputed)
