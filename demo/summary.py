"""What came of it all, in two tables and a few commands. Reads what the operator wrote down; measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from demo.scenario import Ending
from demo.site import gateway_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from demo.kubectl import Kubectl, Manifest
    from demo.load import Counters
    from demo.model import Model
    from demo.scenario import Played
    from demo.site import Site

_STAGES = ("convert", "validate-cpu", "publish")


def acts_table(acts: Iterable[Played], revisions: Iterable[Manifest]) -> Table:
    """One line for each act: how it ended, why, and how long its parts took."""
    by_name = {revision["metadata"]["name"]: revision for revision in revisions}
    table = Table("act", "ended", *_STAGES, "total", "reason", title="What happened")
    for played in acts:
        stages = stage_seconds(by_name.get(played.revision))
        table.add_row(played.act.key, played.ending.value, *stages, f"{played.seconds:.0f} s", played.reason)
    return table


def reasons(acts: Iterable[Played]) -> tuple[str, ...]:
    """Why each bad version was taken out, in the operator's words."""
    return tuple(f"{played.act.key}: {played.message}" for played in acts if played.message)


def traffic_table(acts: Iterable[Played]) -> Table:
    """One line for each act: the requests in it, and what the version it is about answered.

    The harm of one that was rolled back lasts from its first bad answer to its last answer.
    """
    counted = ("sent", "failed", "this version answered", "with an error", "slowly", "wrongly")
    table = Table("act", *counted, "harm lasted", title="Traffic")
    for played in acts:
        answers = played.traffic.of_revision(played.revision)
        counts = (answers.good + answers.errors, answers.errors, answers.slow, answers.wrong)
        numbers = (played.traffic.sent, played.traffic.failed, *counts)
        harm = f"{answers.harm_seconds:.1f} s" if played.ending is Ending.ROLLED_BACK else "-"
        table.add_row(played.act.key, *(f"{number:,}" for number in numbers), harm)
    return table


def stage_seconds(revision: Manifest | None) -> tuple[str, ...]:
    """How long the Jobs of a revision took; a dash for those it did not need."""
    stages = revision.get("status", {}).get("stages", []) if revision else []
    took = {stage["name"]: stage.get("seconds", 0) for stage in stages}
    return tuple(f"{took[name]} s" if name in took else "-" for name in _STAGES)


def traffic_lines(traffic: Counters) -> tuple[str, ...]:
    """The requests of the whole run, in words."""
    return (
        f"{traffic.sent:,} requests sent",
        f"{traffic.failed} failed on the way (0 expected)",
        f"{traffic.errors} answered with an error by a bad candidate before it was taken back",
        *(f"failed: {failure}" for failure in traffic.failures),
    )


def next_commands(site: Site, inside: Kubectl, model: Model) -> tuple[str, ...]:
    """What a reader may want to try now."""
    asked: tuple[str, ...] = ()
    if model.status.endpoint is not None:
        gateway = gateway_of(site)
        where = f"http://{gateway.address}:{gateway.http_port}/v2/models/{model.name}"
        asked = (f"curl -H 'Host: {model.status.endpoint.host}' {where}",)
    kubectl = f"kubectl -n {inside.namespace}"
    return (
        f"export KUBECONFIG={inside.kubeconfig} PATH={inside.binary.parent}:$PATH",
        f"{kubectl} get onnxmodels,onnxmodelrevisions",
        f"{kubectl} describe onnxmodel {model.name}",
        f"{kubectl} events --for onnxmodel/{model.name}",
        f"{kubectl} apply -f examples/minilm-v2.yaml   # mends it, and converts nothing",
        "kubectl explain onnxmodel.spec.rollout",
        *asked,
    )
