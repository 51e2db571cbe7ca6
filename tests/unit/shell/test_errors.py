"""What the API server says, sorted into our own errors; the messages are those that real servers send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnx_operator.adapters.errors import (
    AdmissionDenied,
    AlreadyExists,
    ApiError,
    Call,
    Conflict,
    Expired,
    FieldCause,
    Forbidden,
    Invalid,
    NotFound,
    QuotaExceeded,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    error_from_response,
)

CALL = Call("create", "jobs.batch", "team-a", "minilm-1-convert")


def answered(status: int, message: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> ApiError:
    body = json.dumps({"kind": "Status", "message": message, **fields}).encode()
    return error_from_response(CALL, status, headers or {}, body)


@pytest.mark.parametrize(
    ("status", "fields", "expected"),
    [
        (401, {}, Unauthorized),
        (404, {}, NotFound),
        (409, {"reason": "AlreadyExists"}, AlreadyExists),
        (409, {"reason": "Conflict"}, Conflict),
        (410, {}, Expired),
        (400, {}, Invalid),
        (413, {}, Invalid),
        (422, {}, Invalid),
        (429, {}, TooManyRequests),
        (500, {}, Unavailable),
        (503, {}, Unavailable),
        (504, {}, Unavailable),
        (418, {}, ApiError),
    ],
)
def test_every_status_has_its_error(status: int, fields: dict[str, Any], expected: type[ApiError]) -> None:
    error = answered(status, **fields)
    assert type(error) is expected
    assert error.status == status


def test_the_error_says_what_was_asked_and_what_was_answered() -> None:
    assert str(answered(500, "etcd is tired")) == "create jobs.batch team-a/minilm-1-convert: etcd is tired"


@pytest.mark.parametrize(
    ("message", "verb", "resource"),
    [
        (
            'jobs.batch is forbidden: User "x" cannot create resource "jobs" in API group "batch" in the namespace "a"',
            "create",
            "jobs.batch",
        ),
        (
            'pods "p" is forbidden: User "x" cannot get resource "pods/log" in API group "" in the namespace "a"',
            "get",
            "pods/log",
        ),
    ],
)
def test_missing_rights_name_verb_and_resource(message: str, verb: str, resource: str) -> None:
    error = answered(403, message)
    assert isinstance(error, Forbidden)
    assert (error.verb, error.resource) == (verb, resource)


@pytest.mark.parametrize(
    "message",
    [
        'pods "p" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5',
        'pods "p" is forbidden: failed quota: q: must specify limits.cpu for: convert',
    ],
)
def test_a_used_up_quota_is_its_own_error(message: str) -> None:
    assert isinstance(answered(403, message), QuotaExceeded)


@pytest.mark.parametrize(
    ("status", "message", "by"),
    [
        (
            403,
            'pods "p" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            "restricted:latest",
        ),
        (403, 'admission webhook "policy.example.com" denied the request: no team label', "policy.example.com"),
        (400, 'admission webhook "policy.example.com" denied the request: no team label', "policy.example.com"),
        (
            422,
            "jobs.batch \"j\" is forbidden: ValidatingAdmissionPolicy 'p1' with binding 'b' denied request: no",
            "p1",
        ),
        (403, 'pods "p" is forbidden: maximum cpu usage per Container is 1, but limit is 2', "LimitRange"),
        (403, "pods is forbidden: some plugin says no", "admission"),
    ],
)
def test_an_admission_rule_is_named(status: int, message: str, by: str) -> None:
    error = answered(status, message)
    assert isinstance(error, AdmissionDenied)
    assert error.by == by


def test_a_namespace_that_ends_is_told_apart() -> None:
    message = "unable to create new content in namespace team-a because it is being terminated"
    error = answered(403, message, details={"causes": [{"reason": "NamespaceTerminating", "field": "metadata"}]})
    assert isinstance(error, AdmissionDenied)
    assert error.by == "NamespaceTerminating"


def test_a_field_that_apply_does_not_know_is_no_outage() -> None:
    message = (
        "failed to create typed patch object (team-a/minilm; gateway.networking.k8s.io/v1, Kind=HTTPRoute): "
        ".spec.rules[0].filters[0].requestMirror.percent: field not declared in schema"
    )
    assert isinstance(answered(500, message), Invalid)


def test_a_webhook_that_cannot_be_called_is_nobodys_denial() -> None:
    message = 'Internal error occurred: failed calling webhook "policy.example.com": connection refused'
    assert isinstance(answered(500, message), Unavailable)


def test_a_broken_object_names_its_fields() -> None:
    error = answered(
        422,
        details={
            "causes": [
                {"reason": "FieldValueTypeInvalid", "field": "spec.opset", "message": "must be integer"},
                {"field": "<nil>", "message": "some validation rules were not checked"},
            ]
        },
    )
    assert isinstance(error, Invalid)
    assert error.causes == (FieldCause("spec.opset", "must be integer"),)


@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [
        ({"Retry-After": "7"}, None, 7.0),
        ({}, {"retryAfterSeconds": 3}, 3.0),
        ({}, None, 1.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None, 1.0),
        ({"Retry-After": "-5"}, None, 0.0),
    ],
)
def test_too_many_requests_says_when_to_come_back(
    headers: dict[str, str], details: dict[str, int] | None, seconds: float
) -> None:
    error = answered(429, headers=headers, details=details)
    assert isinstance(error, TooManyRequests)
    assert error.retry_after == seconds


@pytest.mark.parametrize("body", [b"", b"<html>502</html>", b"[]", b'"text"', b"\xff\xfe", b'{"message": null}'])
def test_an_answer_that_is_no_status_is_an_error_all_the_same(body: bytes) -> None:
    error = error_from_response(CALL, 502, {}, body)
    assert isinstance(error, Unavailable)
    assert error.message
