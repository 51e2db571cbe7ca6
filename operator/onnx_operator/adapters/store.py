"""What the cluster looks like, in memory: our kinds and the children we own, newest known version of each.

Three sources feed it, in any order and as often as they like: watch events, the periodic relist, and the answers
to our own writes. The newest resourceVersion wins (integers that grow, by the API's own promise), so:

    relist snapshot (v10) ... object created (v12, by event) ... snapshot stored  -> the object stays
    relist snapshot (v10) ... object deleted (by event)      ... snapshot stored  -> it stays deleted
    event lost: deleted while the watch was down             ... next snapshot    -> the ghost is purged

A deleted UID never comes back, as UIDs are not reused. What it refuses: to be written by reconcilers (they write
to the API server), and to hold kinds or objects it was not set up for. What it returns is shared: read only.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from onnx_operator.adapters import kube
from onnx_operator.workqueue import Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from onnx_operator.adapters.kube import Listing, Manifest, Resource

#: Kinds whose every object concerns us.
OWN_KINDS = (kube.ONNX_MODEL, kube.ONNX_MODEL_REVISION, kube.ONNX_MODEL_CLASS)
#: Kinds of which only the labelled objects, our children, concern us.
CHILD_KINDS = (
    kube.JOB,
    kube.DEPLOYMENT,
    kube.SERVICE,
    kube.POD,
    kube.POD_DISRUPTION_BUDGET,
    kube.HORIZONTAL_POD_AUTOSCALER,
    kube.NETWORK_POLICY,
    kube.HTTP_ROUTE,
    kube.GRPC_ROUTE,
)
#: Kinds that a cluster may do without.
OPTIONAL_KINDS = (kube.HTTP_ROUTE, kube.GRPC_ROUTE)
KINDS = OWN_KINDS + CHILD_KINDS

#: Longer than any watch event or list can be under way.
_TOMBSTONE_SECONDS = 900.0

_Place = tuple[str | None, str]


class _Shelf:
    """All objects of one kind."""

    def __init__(self) -> None:
        self.objects: dict[_Place, Manifest] = {}
        self.by_model: dict[Key, set[str]] = defaultdict(set)
        self.listed_at: dict[str | None, int] = {}
        self.served = False


class Store:
    """Single event loop, no locks, nothing awaits."""

    def __init__(self, kinds: Iterable[Resource] = KINDS, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._shelves = {resource: _Shelf() for resource in kinds}
        self._deleted: dict[str, float] = {}

    # ---- reading

    def get(self, resource: Resource, namespace: str | None, name: str) -> Mapping[str, Any] | None:
        """The object, or None; kinds that are not kept here answer None too."""
        shelf = self._shelves.get(resource)
        return None if shelf is None else shelf.objects.get((namespace, name))

    def all(self, resource: Resource) -> list[Mapping[str, Any]]:
        """All objects of the kind."""
        return list(self._shelves[resource].objects.values())

    def children(self, resource: Resource, namespace: str, model: str) -> list[Mapping[str, Any]]:
        """The model's objects of this kind, by name."""
        shelf = self._shelves[resource]
        names = shelf.by_model.get(Key(namespace, model), ())
        return [shelf.objects[namespace, name] for name in sorted(names)]

    def keys(self) -> list[Key]:
        """Every OnnxModel there is."""
        return [Key(namespace or "", name) for namespace, name in self._shelves[kube.ONNX_MODEL].objects]

    def is_served(self, resource: Resource) -> bool:
        """Whether the cluster knows the kind, as of the last relist."""
        return self._shelves[resource].served

    # ---- feeding

    def upsert(self, resource: Resource, manifest: Manifest) -> bool:
        """Take in an object unless something newer is known; says whether that changed anything."""
        shelf = self._shelves.get(resource)
        if shelf is None or not _concerns_us(resource, manifest):
            return False
        metadata = manifest["metadata"]
        if metadata["uid"] in self._deleted:
            return False
        place = (metadata.get("namespace"), metadata["name"])
        known = shelf.objects.get(place)
        if known is not None and _version(known) >= _version(manifest):
            return False
        if known is not None:
            self._take_off(shelf, place)
            if known["metadata"]["uid"] != metadata["uid"]:
                self._bury(known["metadata"]["uid"])
        metadata.pop("managedFields", None)
        shelf.objects[place] = manifest
        owner = owner_key(resource, manifest)
        if owner is not None:
            shelf.by_model[owner].add(metadata["name"])
        return True

    def forget(self, resource: Resource, namespace: str | None, name: str, uid: str) -> None:
        """This very object is gone for good."""
        shelf = self._shelves.get(resource)
        if shelf is None:
            return
        self._bury(uid)
        known = shelf.objects.get((namespace, name))
        if known is not None and known["metadata"]["uid"] == uid:
            self._take_off(shelf, (namespace, name))

    def replace(self, resource: Resource, namespace: str | None, listing: Listing) -> set[Key]:
        """Make the contents of the kind (in the namespace) those of the listing; returns whose keys it touched.

        The keys are what the watch failed to tell, so they want a look now.
        """
        shelf = self._shelves[resource]
        shelf.served = True
        touched: set[Key] = set()
        newest_stays = listing.resource_version >= shelf.listed_at.get(namespace, 0)
        shelf.listed_at[namespace] = listing.resource_version
        listed = {(item["metadata"].get("namespace"), item["metadata"]["name"]) for item in listing.items}
        for place, known in list(shelf.objects.items()):
            if namespace is not None and place[0] != namespace:
                continue
            # Versions that went backwards mean a cluster restored from a backup: then the listing alone counts.
            if newest_stays and (place in listed or _version(known) > listing.resource_version):
                continue
            touched |= _as_set(owner_key(resource, known))
            self._take_off(shelf, place)
        if not newest_stays:
            self._deleted.clear()
        for item in listing.items:
            if self.upsert(resource, item):
                touched |= _as_set(owner_key(resource, item))
        self._forget_old_burials()
        return touched

    def not_served(self, resource: Resource) -> None:
        """The cluster does not know the kind (any more)."""
        self._shelves[resource] = _Shelf()

    # ---- inside

    def _take_off(self, shelf: _Shelf, place: _Place) -> None:
        known = shelf.objects.pop(place)
        owner = owner_key(kube.resource_of(known), known)
        if owner is None:
            return
        shelf.by_model[owner].discard(known["metadata"]["name"])
        if not shelf.by_model[owner]:
            del shelf.by_model[owner]

    def _bury(self, uid: str) -> None:
        self._deleted.setdefault(uid, self._now())

    def _forget_old_burials(self) -> None:
        horizon = self._now() - _TOMBSTONE_SECONDS
        while self._deleted:
            uid, at = next(iter(self._deleted.items()))
            if at > horizon:
                return
            del self._deleted[uid]


def owner_key(resource: Resource, manifest: Mapping[str, Any]) -> Key | None:
    """The model to look at when this object changes; None for objects of no single model."""
    metadata = manifest["metadata"]
    if resource == kube.ONNX_MODEL:
        return Key(metadata["namespace"], metadata["name"])
    model = (metadata.get("labels") or {}).get(kube.MODEL_LABEL)
    return Key(metadata["namespace"], model) if model and "namespace" in metadata else None


def _concerns_us(resource: Resource, manifest: Manifest) -> bool:
    if resource in OWN_KINDS:
        return True
    return (manifest["metadata"].get("labels") or {}).get(kube.MANAGED_BY_LABEL) == kube.FIELD_MANAGER


def _version(manifest: Mapping[str, Any]) -> int:
    return int(manifest["metadata"]["resourceVersion"])


def _as_set(key: Key | None) -> set[Key]:
    return set() if key is None else {key}
