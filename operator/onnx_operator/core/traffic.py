"""Which revision answers how much: the split that is wanted, and the one the gateway says it has.

    rule            matches                        backends
    split           everything                     stable 100-w, candidate w, retiring 0; in a shadow copies to
                                                   the candidate, whose answers go to nobody
    pin candidate   x-onnx-track: candidate,       candidate
                    or x-onnx-version: its number
    pin stable      x-onnx-track: stable,          stable
                    or x-onnx-version: its number
    pin retiring    x-onnx-version: its number     retiring, each one

A side's share is divided among its pools, one Service each (see `pools`). Pins go to all of them that are ready, evenly
and whatever they weigh: golden requests have to cover every pool.

Pins are how a person or the prober reaches one side, how a client that carries keys and values from token to token
stays with the version that made them, and what keeps a side's clusters alive in Envoy: without them requests are lost
whenever a weight passes 0. (A pool without ready pods has no cluster to keep alive.) A weight counts only once the
gateway has accepted it on both routes; what was merely written is never reported.

Without a gateway there is one Service of the model's name, and the split is what its selector and the numbers of ready
servers make of it: see `behind`.

A mirror to a Service that does not exist costs every request a 500 (measured with Envoy Gateway 1.9.1); one to a
Service without endpoints, or whose pods hang, costs none. So a Service stays for as long as a route mirrors to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from onnx_operator.core import reasons
from onnx_operator.core.names import server_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from onnx_operator.api.common import ExecutionProvider
    from onnx_operator.api.model_class import GatewayReference

TRACK_HEADER: Final = "x-onnx-track"
VERSION_HEADER: Final = "x-onnx-version"
FULL: Final = 100


class Track(StrEnum):
    """A side of the traffic that a request can name."""

    CANDIDATE = "candidate"
    STABLE = "stable"


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where the gateway's listeners answer, for the prober."""

    host: str
    http_port: int | None
    grpc_port: int | None


@dataclass(frozen=True, slots=True)
class Side:
    """A revision as a target of traffic: one Service per execution provider."""

    revision: str
    #: The revision's number, which its servers tell as the version of their model.
    version: int
    providers: tuple[ExecutionProvider, ...]
    #: How requests are shared among the providers, in their order; evenly when empty.
    parts: tuple[int, ...] = ()
    #: The same for requests that are pinned to the side.
    pinned: tuple[int, ...] = ()

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(server_name(self.revision, provider) for provider in self.providers)


@dataclass(frozen=True, slots=True)
class Backend:
    """A Service with its share, in parts of the rule's sum."""

    service: str
    weight: int


@dataclass(frozen=True, slots=True)
class Mirror:
    """A Service that gets copies of this part of the requests that name no side; nobody gets its answers."""

    service: str
    share: Fraction


@dataclass(frozen=True, slots=True)
class Pin:
    """All requests that name the version, or the track, go to these Services."""

    version: int
    track: Track | None
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """What a route says about its backends."""

    backends: tuple[Backend, ...]
    pins: tuple[Pin, ...]
    mirrors: tuple[Mirror, ...] = ()

    @property
    def services(self) -> frozenset[str]:
        """Every Service that any rule leads to, be it with weight 0."""
        pinned = {backend.service for pin in self.pins for backend in pin.backends}
        mirrored = {mirror.service for mirror in self.mirrors}
        return frozenset(pinned | mirrored | {backend.service for backend in self.backends})

    def mentions(self, side: Side) -> bool:
        """Whether any rule leads to the revision."""
        return not self.services.isdisjoint(side.services)

    def percent(self, services: Collection[str]) -> int:
        """The share of unpinned requests that these Services have together."""
        total = sum(backend.weight for backend in self.backends)
        mine = sum(backend.weight for backend in self.backends if backend.service in services)
        return round(FULL * mine / total) if total else 0

    def mirrored_percent(self, services: Collection[str]) -> int:
        """The percentage of unpinned requests that is copied to these Services together."""
        return round(FULL * sum(one.share for one in self.mirrors if one.service in services))


def split(*, stable: Side, candidate: Side | None, weight: int, retiring: Iterable[Side], mirror: int = 0) -> Split:
    """The wanted split: the candidate has `weight` percent, and copies of `mirror` percent, shared among its pools as
    stable's part is.
    """
    leaving = tuple(retiring)
    sides = [(stable, FULL - weight)]
    if candidate is not None:
        sides.append((candidate, weight))
    sides += [(side, 0) for side in leaving]
    # Weights are integers, so all are scaled until each share can be divided into its side's parts.
    scale = math.lcm(*(sum(_parts(side)) for side, _ in sides))
    backends = tuple(
        Backend(service, share * part * (scale // sum(_parts(side))))
        for side, share in sides
        for service, part in zip(side.services, _parts(side), strict=True)
    )
    pins = [] if candidate is None else [_pin(candidate, Track.CANDIDATE)]
    pins += [_pin(stable, Track.STABLE), *map(_pin, leaving)]
    mirrors = () if candidate is None or not mirror else tuple(_copies(candidate, Fraction(mirror, FULL)))
    return Split(backends, tuple(pins), mirrors)


def _copies(side: Side, share: Fraction) -> Iterator[Mirror]:
    parts = _parts(side)
    for service, part in zip(side.services, parts, strict=True):
        if part:
            yield Mirror(service, share * part / sum(parts))


def _parts(side: Side) -> tuple[int, ...]:
    return side.parts or (1,) * len(side.providers)


def _pin(side: Side, track: Track | None = None) -> Pin:
    weights = side.pinned or (1,) * len(side.providers)
    backends = tuple(Backend(service, weight) for service, weight in zip(side.services, weights, strict=True))
    return Pin(side.version, track, backends)


@dataclass(frozen=True, slots=True)
class RouteSeen:
    """One of the model's routes, as written and as the gateway stands to it."""

    split: Split
    is_accepted: bool
    #: Why not, where the gateway said so.
    problem: str = ""


def read_route(route: Mapping[str, Any], gateway: GatewayReference) -> RouteSeen:
    """What the route says, and whether this gateway has accepted it as it is now."""
    problem, is_accepted = _standing(route, gateway)
    return RouteSeen(_split_of(route), is_accepted, problem)


def behind(selected: Iterable[tuple[Side, tuple[int, ...]]]) -> RouteSeen:
    """The split of a Service that leads to these sides, each with its ready servers by pool; to all evenly while none
    is ready.
    """
    found = [pair for side, ready in selected for pair in zip(side.services, ready, strict=True)]
    least = 0 if any(ready for _, ready in found) else 1
    backends = tuple(Backend(service, max(ready, least)) for service, ready in found)
    return RouteSeen(Split(backends, ()), is_accepted=True)


def carries(routes: Iterable[RouteSeen | None], wanted: Split) -> bool:
    """Whether every route says what is wanted and the gateway has accepted it."""
    return all(route is not None and route.is_accepted and _same(route.split, wanted) for route in routes)


def trouble_of(routes: Iterable[tuple[str, RouteSeen | None]]) -> tuple[reasons.Reason, str]:
    """Why the traffic is not as wanted yet."""
    for kind, route in routes:
        if route is not None and route.problem:
            return reasons.ROUTES_REFUSED, f"the gateway refuses the {kind}: {route.problem}"
    return reasons.ROUTES_PENDING, "waiting for the gateway to accept the routes"


def _same(one: Split, other: Split) -> bool:
    # Order within a rule means nothing.
    return _unordered(one) == _unordered(other)


def _unordered(one: Split) -> tuple[set[Backend], set[Mirror], set[tuple[int, Track | None, frozenset[Backend]]]]:
    pins = {(pin.version, pin.track, frozenset(pin.backends)) for pin in one.pins}
    return set(one.backends), set(one.mirrors), pins


def _split_of(route: Mapping[str, Any]) -> Split:
    backends: tuple[Backend, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    pins = []
    for rule in route["spec"].get("rules") or ():
        found = tuple(Backend(one["name"], int(one.get("weight", 1))) for one in rule.get("backendRefs") or ())
        headers = _headers_of(rule)
        if headers:
            track, version = headers.get(TRACK_HEADER), headers.get(VERSION_HEADER, "")
            named = Track(track) if track in set(Track) else None
            pins.append(Pin(int(version) if version.isdecimal() else 0, named, found))
        else:
            backends = found
            mirrors = tuple(_mirrors_of(rule))
    return Split(backends, tuple(pins), mirrors)


def _mirrors_of(rule: Mapping[str, Any]) -> Iterator[Mirror]:
    for mirror in (one["requestMirror"] for one in rule.get("filters") or () if "requestMirror" in one):
        fraction = mirror.get("fraction") or {"numerator": mirror.get("percent", FULL)}
        share = Fraction(fraction["numerator"], fraction.get("denominator", FULL))
        yield Mirror(mirror["backendRef"]["name"], share)


def _headers_of(rule: Mapping[str, Any]) -> Mapping[str, str]:
    """What a request must name to come under the rule; any one of them is enough."""
    return {
        header["name"]: header["value"] for match in rule.get("matches") or () for header in match.get("headers") or ()
    }


def _standing(route: Mapping[str, Any], gateway: GatewayReference) -> tuple[str, bool]:
    generation = int(route["metadata"].get("generation", 0))
    for parent in (route.get("status") or {}).get("parents") or ():
        reference = parent.get("parentRef") or {}
        if reference.get("name") != gateway.name or reference.get("namespace", gateway.namespace) != gateway.namespace:
            continue
        spoken = {
            condition["type"]: condition
            for condition in parent.get("conditions") or ()
            if int(condition.get("observedGeneration", 0)) == generation
        }
        for kind in ("Accepted", "ResolvedRefs"):
            if kind in spoken and spoken[kind].get("status") == "False":
                return f"{spoken[kind].get('reason')}: {spoken[kind].get('message', '')}", False
        return "", all(spoken.get(kind, {}).get("status") == "True" for kind in ("Accepted", "ResolvedRefs"))
    return "", False
