"""The real operator process around a reconcile that only leaves traces; run by the tests of this folder.

Names of models steer it: `refused-*` writes a status that breaks the schema, `poison-*` raises, `busy-*` writes its
process's name every 0.2 s, `slow-*` takes two seconds. Each reconcile is a line on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING

from onnx_operator import logs
from onnx_operator.adapters import kube
from onnx_operator.app import run
from onnx_operator.settings import read_settings

if TYPE_CHECKING:
    from onnx_operator.context import Context
    from onnx_operator.workqueue import Key


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps({"at": time.time(), **fields}) + "\n")
    sys.stdout.flush()


async def reconcile(key: Key, context: Context) -> float | None:
    model = context.store.get(kube.ONNX_MODEL, key.namespace, key.name)
    say(event="reconciled", key=str(key), exists=model is not None)
    if model is None:
        return None
    metadata = model["metadata"]
    kind = key.name.split("-")[0]
    status = {"observedGeneration": metadata["generation"]}
    match kind:
        case "poison":
            raise RuntimeError("poison")
        case "refused":
            status["observedGeneration"] = "not a number"
        case "busy":
            status["lastFailure"] = {
                "stage": "Rollout",
                "reason": context.settings.pod_name,
                "message": f"{time.time()}",
                "time": "2026-01-01T00:00:00Z",
            }
        case "slow":
            await asyncio.sleep(2)
            say(event="slow work finished", key=str(key))
        case _:
            pass
    if (model.get("status") or {}).get("observedGeneration") != status["observedGeneration"] or kind == "busy":
        await context.kube.patch_status(kube.ONNX_MODEL, key.namespace, key.name, status, metadata["resourceVersion"])
    return 0.2 if kind == "busy" else None


def main() -> None:
    settings = read_settings(sys.argv[1:], os.environ)
    logs.configure(settings.log_level, settings.log_format)
    asyncio.run(run(settings, reconcile, None))
    say(event="ended well")


if __name__ == "__main__":
    main()
