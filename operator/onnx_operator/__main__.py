"""`python -m onnx_operator run`: the operator. Parses, sets logging up, and hands over; nothing else.

`python -m onnx_operator report`: a revision as `kubectl get omr NAME -o json` gives it comes in, its page goes out.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from onnx_operator import logs
from onnx_operator.settings import SettingsError, read_settings

_USAGE = """usage: python -m onnx_operator run [--help | flags]
       kubectl get omr NAME -o json | python -m onnx_operator report > NAME.html"""


def main(arguments: list[str]) -> int:
    if arguments == ["report"]:
        return report()
    if arguments[:1] != ["run"]:
        print(_USAGE, file=sys.stderr)  # noqa: T201
        return 2
    try:
        settings = read_settings(arguments[1:], os.environ)
    except SettingsError as error:
        print(f"onnx-operator: {error}", file=sys.stderr)  # noqa: T201
        return 2
    logs.configure(settings.log_level, settings.log_format)

    # Late, so that a wrong setting is told in milliseconds and --help needs no client libraries.
    from onnx_operator.adapters.prometheus import Prometheus  # noqa: PLC0415
    from onnx_operator.app import run  # noqa: PLC0415
    from onnx_operator.reconcile import reconcile  # noqa: PLC0415

    prometheus = Prometheus(settings.prometheus_url) if settings.prometheus_url else None
    asyncio.run(run(settings, reconcile, prometheus))
    return 0


def report() -> int:
    """Needs no cluster: whoever may read a revision may have its page."""
    from onnx_operator.render.report import page  # noqa: PLC0415

    try:
        print(page(json.load(sys.stdin)))  # noqa: T201
    except ValueError as error:
        print(f"onnx-operator: {error}\n{_USAGE}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
