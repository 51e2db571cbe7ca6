"""Things that break in the middle of a rollout, while traffic runs: operator, API server, gateway, kubelet, Prometheus,
the way to the servers' counters.

The model flips between two good versions whose artifacts exist already, so every test is a canary of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from demo import installation
from demo.site import ROOT
from demo.waiting import until
from e2e.rollouts import OURS, QUICK, assert_nothing_lost, begin_flip, finish, owned, stable_version
from onnx_operator.api.common import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.kubectl import Manifest
    from demo.model import Model
    from demo.scenario import Stage
    from demo.site import Site

OUTAGE_SECONDS = 120
#: client-go asks an API server that was away after up to a minute, and so does the gateway's control plane, for whose
#: word on its routes a rollout waits.
RESUME_SECONDS = 90
DEADLINE = "1m"


def holder(cluster: Site) -> str:
    lease = cluster.kubectl.within(installation.OPERATOR_NAMESPACE).get("lease", "onnx-operator")
    return str(lease["spec"].get("holderIdentity", "")) if lease else ""


def test_when_the_active_operator_is_killed_the_other_one_finishes_the_rollout(cluster: Site, serving: Stage) -> None:
    jobs = owned(serving.kubectl, "jobs")
    begin_flip(serving, steps=QUICK)
    active = holder(cluster)
    kill_operator(cluster, active)
    until("another operator to take over", lambda: holder(cluster) not in {"", active}, seconds=60)
    end = finish(serving)

    assert end.is_promoted, end.message("Ready")
    assert set(owned(serving.kubectl, "jobs")) <= set(jobs), "a second Job"
    assert_no_orphans(serving)


def kill_operator(cluster: Site, identity: str) -> None:
    """SIGKILL, from outside of the container, to every process of the pod that holds the lease."""
    pods = cluster.kubectl.within(installation.OPERATOR_NAMESPACE).list("pods")
    pod = next(pod for pod in pods if identity.startswith(pod["metadata"]["name"]))
    killed = 0
    for process in processes(pod, "onnx_operator"):
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(process, signal.SIGKILL)
            killed += 1
    assert killed, f"no process of {pod['metadata']['name']} was found"


def processes(pod: Manifest, command: str) -> Iterator[int]:
    """The pod's processes whose command line has this in it, by their numbers outside of it."""
    # The kubelet writes the UID with dashes or, under systemd's slices, with underscores.
    uid = pod["metadata"]["uid"].replace("-", "[-_]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended by itself meanwhile
            if re.search(uid, (process / "cgroup").read_text()) and command in (process / "cmdline").read_text():
                yield int(process.name)


def assert_no_orphans(stage: Stage) -> None:
    """Every server belongs to a revision that exists, and only stable's runs."""
    stable = stage.model().status.stable
    assert stable is not None
    revisions = {revision["metadata"]["name"] for revision in stage.kubectl.list("onnxmodelrevisions")}
    for name, deployment in owned(stage.kubectl, "deployments").items():
        revision = deployment["metadata"]["labels"]["onnx-operator.io/revision"]
        assert revision in revisions, f"{name} belongs to no revision"
        assert revision == stable.revision or not deployment["spec"]["replicas"], f"{name} still runs"


def test_while_the_api_server_is_away_traffic_goes_on_and_after_it_the_rollout_does(
    cluster: Site, serving: Stage
) -> None:
    before = begin_flip(serving)
    onebox("stop-apiserver")
    stopped = time.monotonic()
    try:
        until("two minutes of outage", lambda: time.monotonic() - stopped > OUTAGE_SECONDS, seconds=OUTAGE_SECONDS + 5)
    finally:
        onebox("start-apiserver")
    until(
        "the rollout to go on",
        lambda: progress(serving.model()) != progress(before),
        seconds=RESUME_SECONDS,
    )
    end = finish(serving)

    assert end.is_promoted, end.message("Ready")
    assert_nothing_lost(serving)
    assert serving.counters().longest_gap < OUTAGE_SECONDS / 10, "traffic stopped with the API server"


def progress(model: Model) -> tuple[object, ...]:
    """What changes when the operator works on a rollout."""
    candidate = model.status.candidate
    return (candidate and candidate.step, candidate and candidate.verdict_time, model.is_at_rest)


def onebox(command: str, *options: str) -> None:
    subprocess.run([sys.executable, ROOT / "hack" / "onebox", command, "--name", "e2e", *options], check=True)


def test_while_the_gateway_and_its_control_plane_are_restarted_no_request_is_lost_and_the_rollout_goes_on(
    cluster: Site, serving: Stage
) -> None:
    gateway = cluster.kubectl.within("envoy-gateway-system")
    begin_flip(serving)
    for deployment in gateway.list("deployments"):
        name = f"deployment/{deployment['metadata']['name']}"
        gateway.run("rollout", "restart", name)
        gateway.run("rollout", "status", name, "--timeout=120s", timeout=130)
    end = finish(serving)

    assert end.is_promoted, end.message("Ready")
    assert_nothing_lost(serving)


def test_when_the_kubelet_is_killed_the_servers_go_on_and_so_does_the_rollout(cluster: Site, serving: Stage) -> None:
    begin_flip(serving)
    # A kubelet that comes back takes running pods for unready until it has asked them, and a gateway then tries those
    # that are ending: there must be none left of the same revision's last life.
    until("the servers of before to be gone", lambda: not ending(serving), seconds=60)
    killed = datetime.now(UTC)
    onebox("signal", "--process=kubelet", "--signal=KILL")
    until("the kubelet to renew its lease", lambda: last_heartbeat(cluster) > killed, seconds=120)
    end = finish(serving)

    assert end.is_promoted, end.message("Ready")
    assert_nothing_lost(serving)


def ending(stage: Stage) -> list[str]:
    """Server pods on their way out."""
    pods = stage.kubectl.list("pods", selector=f"{OURS},onnx-operator.io/component=server")
    return [pod["metadata"]["name"] for pod in pods if is_ending(pod)]


def is_ending(pod: Manifest) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def last_heartbeat(cluster: Site) -> datetime:
    (lease,) = cluster.kubectl.within("kube-node-lease").list("leases")
    return moment(lease["spec"]["renewTime"])


def test_without_prometheus_a_candidate_is_held_then_given_up_never_promoted_and_may_be_tried_again(
    cluster: Site, serving: Stage
) -> None:
    monitoring = cluster.kubectl.within("monitoring")
    before = stable_version(serving)
    begin_flip(serving, progressDeadline=DEADLINE)
    monitoring.run("scale", "deployment/prometheus", "--replicas=0")
    try:
        held = until("the analysis to miss Prometheus", lambda: missed(serving.model()), seconds=60)
        end = finish(serving, seconds=300)
    finally:
        monitoring.run("scale", "deployment/prometheus", "--replicas=1")
        monitoring.run("rollout", "status", "deployment/prometheus", "--timeout=60s")

    assert end.is_given_up
    assert end.reason("Promoted") == "AnalysisProviderError"
    assert stable_version(serving) == before
    assert end.status.last_failure is not None
    assert held.status.candidate is not None
    assert held.status.candidate.progress_time is not None
    waited = moment(end.status.last_failure.time) - moment(held.status.candidate.progress_time)
    assert waited >= parse_duration(DEADLINE) - timedelta(seconds=1), "taken back before its deadline"

    serving.kubectl.patch("onnxmodel", serving.name, {"spec": {"rollout": {"retryToken": "Prometheus is back"}}})
    again = finish(serving)

    assert again.is_promoted, again.message("Ready")
    assert stable_version(serving) != before
    assert_nothing_lost(serving)


def test_while_the_counters_of_the_servers_are_out_of_reach_a_candidate_is_held_and_then_goes_on(
    serving: Stage,
) -> None:
    metrics = [{"name": "errorRatio", "provider": "triton", "maximum": "0.05"}]
    analysis = {"interval": "2s", "minimumSamples": 40, "metrics": metrics}
    steps = [{"weight": 20, "duration": "15s"}, *QUICK]
    candidate = begin_flip(serving, steps=steps, analysis=analysis).status.candidate
    assert candidate is not None
    selector = f"onnx-operator.io/revision={candidate.revision},onnx-operator.io/component=server"
    # The same revision's pods of the test before may still be on their way out.
    (pod,) = (one for one in serving.kubectl.list("pods", selector=selector) if not is_ending(one))
    with unreachable(pod, port=8002):
        held = until("the analysis to miss the servers", lambda: missed(serving.model()), seconds=60)
        # Longer than the step, of which nothing else would keep it.
        time_over = time.monotonic() + 20
        until("the step to be over", lambda: time.monotonic() > time_over, seconds=30)
        still = serving.model()
    end = finish(serving)

    assert held.candidate_weight == still.candidate_weight == 20
    assert still.status.candidate is not None
    assert [str(metric.verdict) for metric in still.status.candidate.analysis] == ["ProviderError"]
    assert end.is_promoted, end.message("Ready")
    assert_nothing_lost(serving)


@contextlib.contextmanager
def unreachable(pod: Manifest, *, port: int) -> Iterator[None]:
    """Drop what comes to one port of a pod, inside of its network namespace; everything else goes on."""
    process = next(processes(pod, "tritonserver"))

    def nft(*words: str) -> None:
        subprocess.run(["nsenter", f"--target={process}", "--net", "nft", *words], check=True)

    nft("add table inet test; add chain inet test in { type filter hook input priority 0; }")
    nft(f"add rule inet test in tcp dport {port} drop")
    try:
        yield
    finally:
        nft("delete table inet test")


def missed(model: Model) -> Model | None:
    candidate = model.status.candidate
    return model if candidate and candidate.verdict == "ProviderError" else None


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
