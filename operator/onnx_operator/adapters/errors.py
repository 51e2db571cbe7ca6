"""What the API server may answer instead of doing what was asked, in our own words.

    ApiError
    ├── NotFound            404 on a write or a list (a read answers None)
    ├── Conflict            409: somebody wrote first, or the object is not the one meant (UID)
    ├── AlreadyExists       409: the name is taken; success only if what is there is ours
    ├── Expired             410: a list's continuation is too old
    ├── Invalid             400, 413, 422, and 500 where apply knows no such field: the object breaks its schema
    ├── Rejected            the object is fine, this cluster's rules forbid it
    │   ├── QuotaExceeded   a ResourceQuota is used up
    │   └── AdmissionDenied Pod Security, LimitRange, webhook or admission policy, named in `by`
    ├── Forbidden           403 by RBAC: names verb and resource
    ├── Unauthorized        401: the token is not (yet, any more) accepted
    ├── TooManyRequests     429: says after how many seconds to come back
    └── Unavailable         5xx, time-outs, broken connections: nobody's fault here, try again

    NotLeading              a write refused on our side: this process may no longer be the leader

The client library's and aiohttp's exceptions stop at adapters/kube.py and are chained, never leaked: whoever
reconciles decides by these classes alone. Nothing here retries or logs.
"""

# ruff: noqa: N818 - read in an `except` clause, these are the names of what happened, and all are API *answers*

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked of the API server."""

    verb: str
    resource: str
    namespace: str | None
    name: str | None

    @override
    def __str__(self) -> str:
        where = "/".join(part for part in (self.namespace, self.name) if part)
        return f"{self.verb} {self.resource} {where}".rstrip()


@dataclass(frozen=True, slots=True)
class FieldCause:
    """One field the API server finds fault with."""

    field: str
    message: str


class ApiError(Exception):
    """The API server did not do what was asked."""

    def __init__(self, call: Call, message: str, *, status: int | None = None) -> None:
        super().__init__(f"{call}: {message}")
        self.call = call
        self.message = message
        self.status = status


class NotFound(ApiError):
    """The object, its namespace or its kind is not there."""


class Conflict(ApiError):
    """Somebody else wrote first, or the object of this name is not the one meant."""


class AlreadyExists(ApiError):
    """The name is taken."""


class Expired(ApiError):
    """The continuation of a list, or a resourceVersion, is too old to go on from."""


class Invalid(ApiError):
    """The object breaks its schema."""

    def __init__(self, call: Call, message: str, *, status: int, causes: tuple[FieldCause, ...]) -> None:
        super().__init__(call, message, status=status)
        self.causes = causes


class Rejected(ApiError):
    """The object is well-formed, but this cluster's rules do not allow it."""


class QuotaExceeded(Rejected):
    """A ResourceQuota of the namespace is used up."""


class AdmissionDenied(Rejected):
    """An admission rule said no; `by` names it."""

    def __init__(self, call: Call, message: str, *, status: int, by: str) -> None:
        super().__init__(call, message, status=status)
        self.by = by


class Forbidden(ApiError):
    """RBAC does not grant the operator this verb on this resource."""

    def __init__(self, call: Call, message: str, *, status: int, verb: str, resource: str) -> None:
        super().__init__(call, message, status=status)
        self.verb = verb
        self.resource = resource


class Unauthorized(ApiError):
    """The API server does not accept the operator's credentials."""


class TooManyRequests(ApiError):
    """The API server asks to come back later."""

    def __init__(self, call: Call, message: str, *, status: int, retry_after: float) -> None:
        super().__init__(call, message, status=status)
        self.retry_after = retry_after


class Unavailable(ApiError):
    """The API server could not be reached, took too long, or failed."""


class NotLeading(Exception):
    """A write was not sent, because another process may be the leader by now."""

    def __init__(self, call: Call) -> None:
        super().__init__(f"{call}: not sent, the lease was not renewed in time")
        self.call = call


_RBAC = re.compile(r'cannot (?P<verb>\S+) (?:resource|path) "(?P<resource>[^"]+)"(?: in API group "(?P<group>[^"]*)")?')
_WEBHOOK = re.compile(r'admission webhook "(?P<by>[^"]+)" denied the request')
_POLICY = re.compile(r"ValidatingAdmissionPolicy '(?P<by>[^']+)'")
_POD_SECURITY = re.compile(r'violates PodSecurity "(?P<by>[^"]+)"')
_QUOTA = re.compile(r"\b(?:exceeded|failed) quota: ")
_NOT_IN_SCHEMA = "field not declared in schema"
_LIMIT_RANGE = re.compile(r"\b(?:minimum|maximum) \S+ usage per |\blimit to request ratio per ")


def error_from_response(call: Call, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Say in our words what a response outside 2xx means."""
    answer = _status_object(body)
    message = str(answer.get("message") or body[:500].decode(errors="replace") or f"HTTP {status}")
    denied_by = _admission_rule(answer, message)
    if denied_by is not None and status < 500:  # noqa: PLR2004
        return AdmissionDenied(call, message, status=status, by=denied_by)
    match status:
        case 403:
            return _forbidden(call, message)
        case 409 if answer.get("reason") == "AlreadyExists":
            return AlreadyExists(call, message, status=status)
        case 400 | 413 | 422 | 500 if status != 500 or _NOT_IN_SCHEMA in message:  # noqa: PLR2004
            return Invalid(call, message, status=status, causes=_causes(answer))
        case 429:
            return TooManyRequests(call, message, status=status, retry_after=_retry_after(headers, answer))
        case _:
            return _PLAIN.get(status, ApiError)(call, message, status=status)


_PLAIN: Mapping[int, type[ApiError]] = {
    401: Unauthorized,
    404: NotFound,
    409: Conflict,
    410: Expired,
    408: Unavailable,
    500: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def _status_object(body: bytes) -> dict[str, Any]:
    """The Status in the body, or nothing: proxies in between answer with pages of HTML."""
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _admission_rule(answer: Mapping[str, Any], message: str) -> str | None:
    for pattern in (_WEBHOOK, _POLICY, _POD_SECURITY):
        if found := pattern.search(message):
            return found["by"]
    if _LIMIT_RANGE.search(message):
        return "LimitRange"
    if any(cause.get("reason") == "NamespaceTerminating" for cause in _raw_causes(answer)):
        return "NamespaceTerminating"
    return None


def _forbidden(call: Call, message: str) -> ApiError:
    if _QUOTA.search(message):
        return QuotaExceeded(call, message, status=403)
    found = _RBAC.search(message)
    if found is None:
        # Authorisers speak of verbs and resources; whatever else answers 403 is an admission plugin.
        return AdmissionDenied(call, message, status=403, by="admission")
    resource = f"{found['resource']}.{found['group']}" if found["group"] else found["resource"]
    return Forbidden(call, message, status=403, verb=found["verb"], resource=resource)


def _raw_causes(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return (answer.get("details") or {}).get("causes") or []


def _causes(answer: Mapping[str, Any]) -> tuple[FieldCause, ...]:
    return tuple(
        FieldCause(cause["field"], str(cause.get("message", "")))
        for cause in _raw_causes(answer)
        # Rules that could not be checked, as the object is malformed already, come as a cause of no field.
        if cause.get("field") not in {None, "", "<nil>"}
    )


def _retry_after(headers: Mapping[str, str], answer: Mapping[str, Any]) -> float:
    told = headers.get("Retry-After") or (answer.get("details") or {}).get("retryAfterSeconds")
    try:
        return max(0.0, float(told)) if told else 1.0
    except ValueError:  # the header may also hold a date, which API servers do not send
        return 1.0
