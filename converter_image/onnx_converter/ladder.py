"""The scheme auto: which schemes are tried on a provider, and which of them is taken.

Each is converted and judged as if it had been asked for. One that is refused is a row that says why; without a graph in
float32 there is nothing to compare with, so its refusal ends the step.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from onnx_converter.digest import canonical_json
from onnx_converter.reasons import ARTIFACT_CORRUPT, StepFailedError
from onnx_converter.spec import Auto, ConversionSpec, Preference, Provider, Scheme

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

FILE: Final = "ladder.json"
TRIED: Final[dict[Provider, tuple[Scheme, ...]]] = {
    Provider.CPU: (
        Scheme.NONE,
        Scheme.INT8_DYNAMIC,
        Scheme.INT8_STATIC,
        Scheme.INT8_WEIGHT_ONLY,
        Scheme.INT4_WEIGHT_ONLY,
    ),
    Provider.CUDA: (
        Scheme.NONE,
        Scheme.FLOAT16,
        Scheme.BFLOAT16,
        Scheme.INT8_WEIGHT_ONLY,
        Scheme.INT4_WEIGHT_ONLY,
    ),
    Provider.TENSORRT: (Scheme.NONE, Scheme.FLOAT16, Scheme.BFLOAT16, Scheme.INT8_STATIC),
}
#: What else is said of a scheme: of MiniLM's layers a fifth moves further, and without them it loses less than half.
_SAID: Final[dict[str, dict[str, float]]] = {Scheme.INT8_STATIC: {"max_layer_error": 0.04}}
#: Graphs that differ in speed by less than this share are equally fast on any machine that is not idle.
_EQUALLY_FAST: Final = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one scheme on one provider."""

    scheme: Scheme
    #: Validated, or what it was refused for.
    reason: str
    message: str
    #: What is missing where it was refused, or was not measured.
    loss: float | None = None
    #: How many times as fast as the original, over all shapes of request.
    speedup: float | None = None
    size: int | None = None

    def value(self) -> dict[str, Any]:
        """For reports. Numbers as text, as everywhere."""
        return self.brief() | {"message": self.message}

    def brief(self) -> dict[str, Any]:
        told = {"scheme": str(self.scheme), "reason": self.reason}
        measured = {"loss": _number(self.loss), "speedup": _number(self.speedup), "sizeBytes": self.size}
        return told | {name: value for name, value in measured.items() if value is not None}


def write(folder: Path, refused: Sequence[Row]) -> None:
    """Beside a conversion for each scheme, those that were refused."""
    told = [{"scheme": str(row.scheme), "reason": row.reason, "message": row.message} for row in refused]
    (folder / FILE).write_bytes(canonical_json(told))


def read(folder: Path) -> list[Row]:
    """The schemes that were refused by convert."""
    try:
        return [Row(**one | {"scheme": Scheme(one["scheme"])}) for one in json.loads((folder / FILE).read_bytes())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepFailedError(
            ARTIFACT_CORRUPT, f"{FILE} is missing or cannot be read: run the convert step again"
        ) from error


def rungs(spec: ConversionSpec) -> Iterator[ConversionSpec]:
    """The specs of all schemes to try, float32 first, each for the providers that it is tried on."""
    schemes = dict.fromkeys(scheme for provider in spec.providers for scheme in TRIED[provider])
    return (rung(spec, scheme) for scheme in schemes)


def rung(spec: ConversionSpec, scheme: str) -> ConversionSpec:
    shared = spec.model_dump(include={"task", "opset", "max_sequence_length"})
    providers = tuple(provider for provider in spec.providers if scheme in TRIED[provider])
    return ConversionSpec(**shared, **_SAID.get(scheme, {}), scheme=Scheme(scheme), providers=providers)


def row_of(scheme: Scheme, size: int, details: Mapping[str, Any]) -> Row:
    """Of what validate told of a graph that it let through."""
    evaluated = [float(one["loss"]) for one in details.get("evaluations", ())]
    # On data of the user's, where there is any; else on real text, against what the original says.
    said = details["parity"]["qualityLoss"]
    loss = max(evaluated) if evaluated else None if said is None else float(said)
    cells = details.get("benchmark", {}).get("cells", ())
    speedups = [float(cell["speedup"]) for cell in cells]
    speedup = math.exp(sum(map(math.log, speedups)) / len(speedups)) if speedups and min(speedups) > 0 else None
    return Row(scheme, "Validated", "", loss, speedup, size)


def choose(rows: Sequence[Row], auto: Auto) -> Row:
    """The fastest or the smallest of those that lose little enough; float32 is what losses are counted from."""
    kept = [row for row in rows if _is_kept(row, auto)]
    smallest = min(kept, key=lambda row: row.size or 0)
    speeds = [row.speedup for row in kept if row.speedup is not None]
    if auto.prefer is Preference.SIZE or len(speeds) < len(kept):
        return smallest
    fast = [row for row in kept if (row.speedup or 0) >= max(speeds) * (1 - _EQUALLY_FAST)]
    return min(fast, key=lambda row: row.size or 0)


def _is_kept(row: Row, auto: Auto) -> bool:
    return row.scheme is Scheme.NONE or (row.loss is not None and row.loss <= auto.max_quality_loss)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
