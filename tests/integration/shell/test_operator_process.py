"""The whole process on a real API server: leading, failing over, outliving outages, and ending well."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from integration.apiserver import wait_until
from onnx_operator.adapters import kube

if TYPE_CHECKING:
    import pytest

    from integration.apiserver import ControlPlane
    from integration.processes import OperatorProcess
    from integration.shell.conftest import Models, StartOperator


def test_the_standby_leads_after_the_leader_is_killed(operator: StartOperator, models: Models) -> None:
    models.create("a")
    first = operator("one").start()
    first.wait_leading()
    second = operator("two").start()
    wait_until(lambda: second.page("/readyz")[0] == 200, within=60, what="the standby is ready")
    assert second.lines(message="leading") == []

    first.signal(signal.SIGKILL)
    second.wait_leading(within=60)
    models.create("b")
    wait_until(lambda: models.is_settled("b"), within=60, what=f"the new leader works:\n{second.tail()}")


def test_sigterm_finishes_what_was_begun_and_gives_the_lease_back(operator: StartOperator, models: Models) -> None:
    first = operator("one").start()
    first.wait_leading()
    second = operator("two").start()
    wait_until(lambda: second.page("/readyz")[0] == 200, within=60, what="the standby is ready")
    models.create("slow-one")
    wait_until(first.reconciled, within=60, what="the slow reconcile has begun")

    told = time.monotonic()
    first.signal(signal.SIGTERM)
    assert first.wait(20) == 0, first.tail()
    assert time.monotonic() - told < 20
    assert first.lines(event="slow work finished")
    assert first.lines(event="ended well")
    assert first.lines(message="lease released")
    second.wait_leading(within=60)


def test_a_standby_told_to_stop_goes_and_touches_nothing(operator: StartOperator) -> None:
    first = operator("one").start()
    first.wait_leading()
    second = operator("two").start()
    wait_until(lambda: second.page("/readyz")[0] == 200, within=60, what="the standby is ready")
    second.signal(signal.SIGTERM)
    assert second.wait(10) == 0, second.tail()
    wait_until(lambda: first.page("/readyz")[0] == 200, within=60, what="the leader is ready")
    assert first.page("/healthz") == (200, "ok")


def test_a_leader_that_may_not_read_the_cluster_is_not_ready(
    operator: StartOperator, control_plane: ControlPlane, namespace: str
) -> None:
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    control_plane.admin.create(
        f"{roles}/roles",
        {
            "metadata": {"name": "leases"},
            "rules": [
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
            ],
        },
    )
    control_plane.admin.create(
        f"{roles}/rolebindings",
        {
            "metadata": {"name": "leases"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "leases"},
            "subjects": [{"kind": "User", "name": "operator"}],
        },
    )
    one = operator("one")
    one.user = "operator"
    one.start().wait_leading()
    wait_until(lambda: one.lines(message="kind not readable"), within=60, what="it says what it may not read")
    assert 'cannot list resource "onnxmodels"' in one.lines(message="kind not readable")[0]["error"]
    assert one.page("/readyz")[0] == 503


def test_an_idle_operator_writes_nothing_but_its_lease(
    operator: StartOperator, models: Models, control_plane: ControlPlane
) -> None:
    models.create("a", "b", "c")
    one = operator("one", RELIST_SECONDS="0.5").start()
    one.wait_leading()
    wait_until(lambda: all(models.is_settled(name) for name in "abc"), within=60, what="settled")
    before = [models.get(name) for name in "abc"]
    seen = len(one.reconciled())
    wait_until(lambda: len(one.reconciled()) >= seen + 12, within=60, what="every model was looked at four times")
    assert [models.get(name) for name in "abc"] == before
    assert control_plane.admin.items(kube.EVENT.path(models.namespace)) == []


def test_a_leader_stopped_in_mid_work_writes_nothing_when_it_wakes_up_dethroned(
    operator: StartOperator, models: Models
) -> None:
    models.create("busy-a", "busy-b", "busy-c")
    first = operator("one").start()
    first.wait_leading()
    wait_until(partial(_is_writer, models, "busy-a", "one"), within=60, what="the first one writes")
    second = operator("two").start()
    wait_until(lambda: second.page("/readyz")[0] == 200, within=60, what="the standby is ready")

    first.signal(signal.SIGSTOP)
    second.wait_leading(within=60)
    for name in ("busy-a", "busy-b", "busy-c"):
        wait_until(partial(_is_writer, models, name, "two"), within=60, what="the second one writes")
    first.signal(signal.SIGCONT)
    assert first.wait(20) == 1, first.tail()
    assert first.lines(message="leadership lost, ending at once")
    # Nobody but the new leader has written since: every version of every object is its own.
    for name in ("busy-a", "busy-b", "busy-c"):
        assert _is_writer(models, name, "two")


def _is_writer(models: Models, name: str, writer: str) -> bool:
    found = models.get(name) or {}
    return bool((found.get("status", {}).get("lastFailure") or {}).get("reason") == writer)


def test_after_100_s_without_api_server_every_model_is_looked_at_again(
    operator: StartOperator, models: Models, control_plane: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    models.create(*(f"m-{number}" for number in range(20)))
    one = operator("one").supervise()
    one.wait_leading()
    wait_until(lambda: all(models.is_settled(f"m-{n}") for n in range(20)), within=60, what="all settled")

    control_plane.apiserver.kill()
    try:
        time.sleep(100)  # the length of the outage is what is tested
    finally:
        control_plane.start_apiserver()
    back = time.time()
    expected = {models.key(f"m-{number}") for number in range(20)}
    wait_until(
        lambda: set(one.reconciled(since=back)) >= expected,
        within=60,
        what=f"all reconciled after the outage:\n{one.tail()}",
    )
    took = time.time() - back
    with capsys.disabled():
        print(f"\nevery one of 20 models was looked at {took:.1f} s after the API server came back")  # noqa: T201
    models.change("m-3", opset=19)
    models.create("new")
    wait_until(lambda: models.is_settled("new") and models.is_settled("m-3"), within=60, what="watches work again")
    # Losing the lease ends the process once; standing by for the API server does not.
    assert one.starts == 2


def test_a_short_outage_ends_nothing(operator: StartOperator, models: Models, control_plane: ControlPlane) -> None:
    models.create("a")
    one = operator("one").start()
    one.wait_leading()
    wait_until(lambda: models.is_settled("a"), within=60, what="settled")
    control_plane.apiserver.pause()
    time.sleep(4)  # the length of the outage is what is tested
    control_plane.apiserver.resume()
    models.create("b")
    wait_until(lambda: models.is_settled("b"), within=60, what=f"works after the pause:\n{one.tail()}")
    assert one.lines(message="leading")
    assert len(one.lines(message="leading")) == 1
    assert one.page("/healthz") == (200, "ok")


def test_refused_statuses_and_poison_models_stop_nobody_else(operator: StartOperator, models: Models) -> None:
    models.create("refused-a", "poison-a", "good-a")
    one = operator("one").start()
    one.wait_leading()
    wait_until(lambda: models.is_settled("good-a"), within=60, what="the good one settled")
    for name in ("refused-a", "poison-a"):
        wait_until(partial(_was_tried, one, models.key(name), 4), within=60, what=f"{name} is tried again")
    models.create("good-b")
    wait_until(lambda: models.is_settled("good-b"), within=60, what="the other good one settled")
    metrics = one.page("/metrics")[1]
    assert 'onnx_operator_reconciles_total{outcome="crashed",reason="RuntimeError"}' in metrics
    assert 'onnx_operator_reconciles_total{outcome="refused",reason="Invalid"}' in metrics
    assert "onnx_operator_leader 1.0" in metrics
    assert one.page("/healthz") == (200, "ok")
    crash = one.lines(message="reconcile failed", outcome="crashed")[0]
    assert crash["key"] == models.key("poison-a")
    assert "RuntimeError: poison" in crash["exception"]


def _was_tried(process: OperatorProcess, key: str, times: int) -> bool:
    return process.reconciled().count(key) >= times


def test_a_deleted_model_is_looked_at_once_more(operator: StartOperator, models: Models) -> None:
    models.create("a")
    one = operator("one").start()
    one.wait_leading()
    wait_until(lambda: models.is_settled("a"), within=60, what="settled")
    models.delete("a")
    wait_until(
        lambda: one.lines(event="reconciled", key=models.key("a"), exists=False),
        within=60,
        what="the deletion was seen",
    )


def test_a_wrong_setting_is_named_and_ends_the_process(operator: StartOperator) -> None:
    one = operator("one", WORKERS="many").start()
    assert one.wait(30) != 0
    assert "WORKERS: 'many' is no whole number from 1 to 256" in one.log.read_text()


def test_a_thousand_models_start_in_seconds_and_fit_in_memory(
    operator: StartOperator, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    models.create(*(f"m-{number}" for number in range(1000)))
    one = operator("one").start()
    one.wait_leading()
    led = one.lines(message="leading")[0]["time"]
    wait_until(lambda: len(set(one.reconciled())) == 1000, within=120, what=f"all 1,000 reconciled:\n{one.tail()}")
    wait_until(lambda: models.is_settled("m-999"), within=60, what="settled")
    memory = one.peak_mib()
    first, last = one.lines(event="reconciled")[0]["at"], one.lines(event="reconciled")[-1]["at"]
    with capsys.disabled():
        print(  # noqa: T201
            f"\n1,000 models: leading {led}, all reconciled (one status write each) in {last - first:.1f} s,"
            f" {one.cpu_seconds():.1f} s of CPU since start, peak memory {memory} MiB"
        )
    assert memory < 350
