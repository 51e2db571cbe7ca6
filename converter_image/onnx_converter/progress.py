"""What a step says while it works: one JSON object a line.

Refuses free text: an event is a constant, what varies goes into fields.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from onnx_converter.overriding import override

if TYPE_CHECKING:
    from collections.abc import Callable

_QUERY = re.compile(r"(?<=\S)\?[^\s'\"<>]+")

Scalar = str | int | float | bool | None


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Progress:
    """Writes the lines of one step."""

    step: str
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    clock: Callable[[], datetime] = _now

    def tell(self, event: str, *, level: str = "info", percent: int | None = None, **fields: Scalar) -> None:
        line = {
            "time": self.clock().isoformat(timespec="milliseconds"),
            "level": level,
            "step": self.step,
            "event": event,
        }
        if percent is not None:
            line["percent"] = percent  # type: ignore[assignment]
        self.stream.write(json.dumps(line | fields, ensure_ascii=False, separators=(",", ":")) + "\n")
        self.stream.flush()


def without_queries(text: str) -> str:
    """Addresses of a content network carry their signature in the query: it must not reach a log."""
    return _QUERY.sub("?…", text)


class ProgressHandler(logging.Handler):
    """Carries the warnings of libraries as lines of the step."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    @override
    def emit(self, record: logging.LogRecord) -> None:
        text = without_queries(record.getMessage().strip())
        self._progress.tell("LibraryWarning", level=record.levelname.lower(), logger=record.name, text=text[:500])
