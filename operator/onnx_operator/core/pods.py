"""What keeps a pod from doing its work, in a reason and a sentence a person can act on.

Reads pods as they are; judges neither Jobs nor Deployments, which have different patience with the same trouble.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from onnx_converter import reasons as converter_reasons
from onnx_converter.summary import Summary, SummaryError, parse
from onnx_operator.core import reasons

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx_operator.core.reasons import Reason

_PULLING: Final = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_KILLED: Final = 137


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not do what it was made for."""

    reason: str
    message: str
    exit_code: int | None = None
    #: A container ended by itself, as opposed to never having started.
    is_crash: bool = False
    #: Trying again gives the same again.
    is_final: bool = False


def trouble(pod: Mapping[str, Any]) -> Trouble | None:
    """What is wrong with the pod; None while it merely takes its time."""
    status = pod.get("status") or {}
    if status.get("reason") == "Evicted":
        return Trouble(reasons.EVICTED, f"pod {_name(pod)} was evicted: {status.get('message', 'no reason given')}")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return _unscheduled(pod, condition.get("message", ""))
    for container in _containers(status):
        if found := _trouble_of(pod, container):
            return found
    return None


def is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def url_of(pod: Mapping[str, Any], port: int) -> str | None:
    """Where a port of the pod answers; None while it has no address."""
    address = (pod.get("status") or {}).get("podIP")
    if not address:
        return None
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def last_words(container: Mapping[str, Any]) -> Summary | None:
    """The summary a terminated container left; None where there is none that can be read."""
    try:
        return parse(container.get("message") or "")
    except SummaryError:
        return None


def failure(pod: Mapping[str, Any], ended: Mapping[str, Any]) -> Trouble:
    """Why a container of the pod ended; `ended` is its terminated state."""
    code = int(ended.get("exitCode", -1))
    if ended.get("reason") == "OOMKilled":
        message = f"pod {_name(pod)} needed more memory than its limit; raise the limit or make the model smaller"
        return Trouble(reasons.OOM_KILLED, message, code, is_crash=True)
    summary = last_words(ended)
    if summary is not None and summary.outcome == "Failed":
        is_final = code in converter_reasons.PERMANENT_CODES
        return Trouble(summary.reason, summary.message, code, is_crash=True, is_final=is_final)
    text = " ".join((ended.get("message") or "").split())[-600:]
    killed = " (killed)" if code == _KILLED else ""
    message = f"pod {_name(pod)} ended with exit code {code}{killed}" + (f": {text}" if text else "")
    return Trouble(reasons.CONTAINER_FAILED, message, code, is_crash=True)


def _trouble_of(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Trouble | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    if (reason := waiting.get("reason")) in _PULLING:
        message = f"image {container.get('image')} cannot be pulled: {waiting.get('message', reason)}"
        return Trouble(reasons.IMAGE_PULL_FAILED, message)
    if waiting.get("reason") in _CONFIG:
        message = f"pod {_name(pod)} cannot start container {container.get('name')}: {waiting.get('message', '')}"
        return Trouble(reasons.CONTAINER_CONFIG_ERROR, message)
    for ended in (state.get("terminated"), (container.get("lastState") or {}).get("terminated")):
        if ended and ended.get("exitCode") != 0:
            return failure(pod, ended)
    return None


def _unscheduled(pod: Mapping[str, Any], message: str) -> Trouble:
    reason: Reason = reasons.UNSCHEDULABLE
    if "persistentvolumeclaim" in message and "not found" in message:
        reason = reasons.CLAIM_NOT_FOUND
    elif "unbound immediate PersistentVolumeClaims" in message:
        reason = reasons.CLAIM_NOT_BOUND
    return Trouble(reason, f"pod {_name(pod)} cannot be scheduled: {message}")


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])
