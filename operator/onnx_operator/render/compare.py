"""Whether the cluster already has what is wanted: what keeps an idle operator from writing.

Compares the fields we set and nothing else. Defaults that the API server fills in, and entries that others add to
lists with keys (a sidecar, an annotation), are none of our business; a list without keys is ours as a whole.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from onnx_operator.core.names import APPLIED_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The key of each list that the API server merges by key, by the name of the list.
_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "name",
    "ownerReferences": "uid",
}
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([mkMGTPE]|[KMGTPE]i|[eE][0-9]{1,2})?")
_SCALE: Final = {"m": Decimal("0.001"), "k": Decimal(1000)}
_SCALE_LETTERS: Final = "MGTPE"


def is_as_wanted(wanted: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Whether applying the manifest would change nothing that matters."""
    if live is None:
        return False
    mine = wanted["metadata"].get("annotations", {}).get(APPLIED_ANNOTATION)
    theirs = (live["metadata"].get("annotations") or {}).get(APPLIED_ANNOTATION)
    # A field that is no longer wanted shows nowhere but in the hash.
    return mine == theirs and _holds(wanted, live, key="")


def _holds(wanted: Any, live: Any, *, key: str) -> bool:
    match wanted:
        case dict():
            return isinstance(live, dict) and all(
                _holds(value, live.get(name), key=name) for name, value in wanted.items()
            )
        case list() if key in _KEYS and isinstance(live, list):
            return _holds_by_key(wanted, live, _KEYS[key])
        case list():
            return (
                isinstance(live, list)
                and len(live) == len(wanted)
                and all(_holds(mine, theirs, key="") for mine, theirs in zip(wanted, live, strict=True))
            )
        case _:
            return bool(wanted == live) or _is_same_amount(wanted, live)


def _holds_by_key(wanted: Sequence[Any], live: Sequence[Any], name: str) -> bool:
    found = {one.get(name): one for one in live if isinstance(one, dict)}
    return all(_holds(one, found.get(one.get(name)), key="") for one in wanted)


def _is_same_amount(wanted: Any, live: Any) -> bool:
    """`1000m` is `1`: the API server writes amounts its own way."""
    if wanted == {} or live is None:
        return False
    mine, theirs = _amount(wanted), _amount(live)
    return mine is not None and mine == theirs


def _amount(value: Any) -> Decimal | None:
    found = _QUANTITY.fullmatch(str(value))
    if found is None:
        return None
    number, unit = Decimal(found[1]), found[2]
    if unit is None:
        return number
    if unit in _SCALE:
        return number * _SCALE[unit]
    if unit[0] in "eE" and unit != "E":
        return number.scaleb(int(unit[1:]))
    if unit == "Ki":
        return number * 1024
    power = _SCALE_LETTERS.index(unit[0]) + 2
    return number * Decimal(1024 if unit.endswith("i") else 1000) ** power
