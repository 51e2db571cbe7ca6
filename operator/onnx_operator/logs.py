"""Logs as one JSON object a line: a constant message, and everything that varies as fields of its own.

Never the body of an object: it may hold what a user would not want to see in a log.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from typing_extensions import override

#: What every record has, and what Kopf attaches for itself; all other attributes came in as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "settings", "k8s_skip"}


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, the fields, and the traceback if there is one."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For eyes: the message, then the fields."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        return super().format(record) + fields


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def configure(level: str, log_format: str) -> None:
    """Everything to standard error, in one format."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Kopf says two lines about every event, which only we act on.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It runs in a thread of its own on purpose, and warns at every start that it cannot take signals there.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    # One line per probe and scrape tells nobody anything.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
