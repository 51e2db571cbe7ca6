"""The HTTPRoute and the GRPCRoute of a model: one split, and the pins that keep every cluster alive.

Backends always say group, kind and weight, so that nothing the API server fills in looks like an edit. No rule has a
name and no backend a filter: names are not in every Gateway API version in use, and filters of backends cost requests
whenever a weight passes 0. A mirror is a filter of the rule and costs none: 0 of 6,000 while it changed thirty times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_operator.core.tell import host_of
from onnx_operator.core.traffic import FULL, TRACK_HEADER, VERSION_HEADER
from onnx_operator.render.parts import (
    GRPC_PORT,
    HTTP_PORT,
    Manifest,
    labels,
    metadata,
    owned_by_model,
    stamped,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx_operator.core.actions import WantRoutes
    from onnx_operator.core.traffic import Backend, Mirror, Pin, Split


def build_http_route(want: WantRoutes) -> Manifest:
    path = {"path": {"type": "PathPrefix", "value": "/"}}
    rules: list[Manifest] = [{"matches": [path], **_shared(want.split, HTTP_PORT)}]
    for pin in want.split.pins:
        matches = [{**path, **match} for match in _matches(pin)]
        rules.append({"matches": matches, "backendRefs": _backends(pin.backends, HTTP_PORT)})
    return _route(want, "HTTPRoute", rules)


def build_grpc_route(want: WantRoutes) -> Manifest:
    pins = [{"matches": _matches(pin), "backendRefs": _backends(pin.backends, GRPC_PORT)} for pin in want.split.pins]
    rules: list[Manifest] = [_shared(want.split, GRPC_PORT), *pins]
    return _route(want, "GRPCRoute", rules)


def _route(want: WantRoutes, kind: str, rules: list[Manifest]) -> Manifest:
    model, traffic = want.model, want.class_spec.traffic
    if traffic.gateway is None:
        raise ValueError("without a gateway there is nothing that routes attach to")
    parent = {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "name": traffic.gateway.name,
        "namespace": traffic.gateway.namespace,
        "sectionName": traffic.gateway.http_listener if kind == "HTTPRoute" else traffic.gateway.grpc_listener,
    }
    return stamped(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": kind,
            "metadata": metadata(owned_by_model(model), model.namespace, model.name, labels(model.name)),
            "spec": {
                "parentRefs": [parent],
                "hostnames": [host_of(model.name, model.namespace, traffic.domain)],
                "rules": rules,
            },
        }
    )


def _matches(pin: Pin) -> list[Manifest]:
    """One for each name that leads to the side."""
    names = [(VERSION_HEADER, str(pin.version))]
    if pin.track is not None:
        names.append((TRACK_HEADER, str(pin.track)))
    return [{"headers": [{"type": "Exact", "name": name, "value": value}]} for name, value in names]


def _shared(split: Split, port: int) -> Manifest:
    """What becomes of requests that name no side."""
    filters = [{"type": "RequestMirror", "requestMirror": _mirror(one, port)} for one in split.mirrors]
    return {**({"filters": filters} if filters else {}), "backendRefs": _backends(split.backends, port)}


def _mirror(mirror: Mirror, port: int) -> Manifest:
    reference = {"group": "", "kind": "Service", "name": mirror.service, "port": port}
    percent = FULL * mirror.share
    if percent.denominator == 1:
        return {"backendRef": reference, "percent": int(percent)}
    # Only one of the two may be given, and a percentage is a whole number.
    fraction = {"numerator": mirror.share.numerator, "denominator": mirror.share.denominator}
    return {"backendRef": reference, "fraction": fraction}


def _backends(backends: Iterable[Backend], port: int) -> list[Manifest]:
    return [
        {"group": "", "kind": "Service", "name": one.service, "port": port, "weight": one.weight} for one in backends
    ]
